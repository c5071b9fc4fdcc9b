"""What a person sees of the zoo: a table of its sets, and one set's card."""

from collections.abc import Mapping
from statistics import mode

from framework.records import Card, CardScore
from framework.report.tables import bits, duration, markdown_table, percent_if_known

COLUMNS = ("set", "images", "method", "top-1 %", "hard labels %", "random real images %", "recipe dc %",
           "bits per class", "made in")  # fmt: skip
CHOSEN = {
    "val": "The snapshot and training lengths were chosen on validation images.",
    "test": "The snapshot and training lengths were chosen ON THE TEST SET: optimistic.",
}
NOTE = (
    "Accuracy on the real test images, ± one standard deviation over networks: by the set's own recipe; by that with "
    "labels made one-hot, which is the same where they are so anyway; by that of as many random real images; by the "
    "recipe of dataset condensation. Made in: time on {device}, where no other is named."
)


def _hard(card: Card, score: CardScore) -> str:
    """With one-hot labels, which a set may have anyway."""
    return (
        percent_if_known(score.hard, score.hard_deviation)
        if card.learnt_labels
        else percent_if_known(score.accuracy, score.deviation)
    )


def row(name: str, card: Card, usual: str) -> list[str]:
    """A set under ``COLUMNS``; its device is named if it is not the usual one."""
    own, dc = card.scores[card.recipe], card.scores["dc"]
    return [
        f"`zoo:{name}`",
        f"{card.images} of {card.dataset}",
        card.method,
        percent_if_known(own.accuracy, own.deviation),
        _hard(card, own),
        percent_if_known(own.random, own.random_deviation),
        percent_if_known(dc.accuracy, dc.deviation),
        bits(card.bits_per_class),
        duration(3600 * card.hours) + ("" if card.device == usual else f" on {card.device}"),
    ]


def table(cards: Mapping[str, Card]) -> str:
    """Markdown: a row for each set, and what the columns are."""
    device = mode(card.device for card in cards.values())
    lines = markdown_table(COLUMNS, [row(name, card, device) for name, card in cards.items()])
    return "\n".join([*lines, "", NOTE.format(device=device)])


def text(name: str, card: Card) -> str:
    """Markdown: all that a card says, with the commands that make the set and its figures again."""
    labels = "learnt" if card.learnt_labels else "hard"
    facts = {
        "data set": card.dataset,
        "images": f"{card.images}, {card.per_class} of each class, with {labels} labels",
        "method": f"{card.method}, seed {card.seed}",
        "network": card.arch,
        "run": f"{card.epochs} epochs, {card.outer_steps:,} outer steps, epoch {card.best_epoch} chosen",
        "time": f"{duration(3600 * card.hours)} on {card.device}",
        "versions": f"at-bptt {card.version}, torch {card.torch}, Python {card.python}",
        "bits per class": bits(card.bits_per_class),
        "data": card.data,
        "licence of the data": card.licence,
        "checksum": card.checksum,
    }
    columns = ("recipe", "top-1 %", "hard labels %", "random real images %", "networks", "steps", "training")
    scores = [
        [recipe, percent_if_known(s.accuracy, s.deviation), _hard(card, s),
         percent_if_known(s.random, s.random_deviation), str(s.networks), f"{s.steps:,}", s.recipe]
        for recipe, s in card.scores.items()
    ]  # fmt: skip
    lines = [f"# zoo:{name}", "", *markdown_table(("", ""), [[what, value] for what, value in facts.items()])]
    lines += ["", *markdown_table(columns, scores)]
    lines += ["", f"± is one standard deviation over networks. {CHOSEN[card.select]}"]
    commands = [*card.commands, *(score.command for score in card.scores.values())]
    return "\n".join([*lines, "", "```bash", *commands, "```"])
