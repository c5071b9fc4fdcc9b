"""The zoo's sets by their names: what there is, the cards, and the checked files."""

from pathlib import Path

from framework.errors import UserError
from framework.files import file_checksum, read_json
from framework.records import Card, read_record

FOLDER = Path(__file__).parent
PREFIX = "zoo:"
"""Before a set's name, where a path could stand too."""


def names() -> list[str]:
    """Of all sets that have a card, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def name_of(path: str | Path) -> str | None:
    """``NAME`` of ``zoo:NAME``; None of a path that is no set of the zoo."""
    text = str(path)
    return text.removeprefix(PREFIX) if text.startswith(PREFIX) else None


def stand_in(path: Path) -> Path:
    """What files beside a set are named after: ``zoo-NAME`` in the current folder for ``zoo:NAME``, else the path."""
    name = name_of(path)
    return path if name is None else Path(f"zoo-{name}")


def read_card(name: str) -> Card:
    """A set's card.

    Raises:
        UserError: there is no such set, or the card is damaged.
    """
    known = names()
    if name not in known:
        raise UserError(f"{PREFIX}{name}: no such set; the zoo has {', '.join(known) or 'none'}")
    path = FOLDER / f"{name}.json"
    return read_record(Card, read_json(path), path)


def checked_file(name: str) -> Path:
    """A set's file, whose checksum is that of its card.

    Raises:
        UserError: there is no such set, or the card or the file is damaged.
    """
    card, path = read_card(name), FOLDER / f"{name}.safetensors"
    try:
        found = file_checksum(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); install the package again") from error
    if found != card.checksum:
        raise UserError(
            f"{path}: damaged, its checksum is {found} and not {card.checksum} as in {name}.json; install the package "
            "again"
        )
    return path
