"""Put a finished run into the zoo: evaluate its set, and write it with a card into framework/zoo.

    python scripts/zoo_add.py RUN NAME [--root DIR] [--before COMMAND --before_seconds S] [--data TEXT --licence TEXT]

Networks are trained on the set by its own recipe and by ``dc``, each beside as many random real images, and with hard
labels too where its own are learnt. The card has what came out, what the run's summary says, and the commands that make
the set again, in which ROOT stands for the folder of the data. COMMAND is one that came before the run's own; several
are given in their order. A set of ``main.py ftd`` needs that of its experts, ``python main.py buffer ...``, as it was
given, and the seconds that they took; wherever they were, the card's commands have them in save/zoo/NAME-experts.
Nothing is overwritten: remove NAME.json and NAME.safetensors to make them anew.
"""

import argparse
import dataclasses
import json
import re
import shlex
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

# Python finds this file beside itself when it is run as a script, but not framework.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from framework import __version__
from framework.config.common import Common
from framework.config.matching import BufferConfig, FtdConfig
from framework.config.registry import parse
from framework.distilled.formats import write_safetensors
from framework.distilled.set import Distilled
from framework.errors import UserError
from framework.files import file_checksum, read_json, write_json
from framework.outer.buffers.record import FLAGS
from framework.records import Card, CardScore, Judgement, Row, Summary, read_record
from framework.report.folder import RunFolder, evaluation_folder, words_of
from framework.zoo.cards import FOLDER, PREFIX
from main import main as run_main

DATA = {
    "digits": (
        "test half of E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning "
        "Repository, 1998, as in scikit-learn; embedded in this package",
        "CC BY 4.0",
    ),
    "mnist": (
        "MNIST by Y. LeCun, C. Cortes and C. J. C. Burges; the four standard files",
        "none comes with the files; the documentation of Keras gives CC BY-SA 3.0",
    ),
    "fashion-mnist": ("Fashion-MNIST by H. Xiao, K. Rasul and R. Vollgraf, Zalando; the four standard files", "MIT"),
}
"""Where the real images are from, and their licence."""
TRAINING = ("lr", "momentum", "weight_decay", "batch", "epochs", "decay", "rho", "alpha", "adaptive", "seed")
"""What a set knows of its experts that a flag of theirs says."""
C = TypeVar("C", bound=Common)
PLACES = {"root": "ROOT", "save_dir": "save/zoo/{name}", "buffer_path": "save/zoo/{name}-experts", "cache_dir": None}
"""Flags that name folders of one machine, and what stands in a card's commands instead; None: their default."""


def portable(c: C) -> C:
    """The flags of a run, or of experts, without folders of the machine that it ran on."""
    defaults: Any = c.defaults()
    there = [name for name in (*PLACES, "resume") if name in c.flags()]
    return replace(c, **{name: getattr(defaults, name) for name in there})


def command_of(c: Common, name: str) -> str:
    """The command that makes a set of this name again, or its experts, from the flags."""
    own, defaults = portable(c), c.defaults()
    there = {flag: place for flag, place in PLACES.items() if place is not None and flag in c.flags()}
    placed = {
        flag: place.format(name=name)
        for flag, place in there.items()
        if flag != "root" or getattr(c, flag) != getattr(defaults, flag)
    }
    return " ".join([*words_of(own), *(shlex.join([f"--{flag}", place]) for flag, place in placed.items())])


def write_set(distilled: Distilled, path: Path) -> None:
    """Write a run's set, with flags that name no folder of its machine."""
    config = json.loads(portable(distilled.config).to_json())
    own = replace(distilled, provenance={**distilled.provenance, "config": config})
    write_safetensors(own.stored(numbers=False), path)


def judged(path: Path, recipe: str, labels: list[str], flags: list[str]) -> Judgement:
    """What ``main.py evaluate`` finds of a set.

    Raises:
        UserError: it has failed, and has said why.
    """
    command = ["evaluate", str(path), "--recipe", recipe, "--labels", *labels, "--baselines", "random", *flags]
    if run_main(command) != 0:
        raise UserError(f"{path}: could not be evaluated, as the line above says")
    file = evaluation_folder(path) / f"{recipe}.json"
    return read_record(Judgement, read_json(file), file)


def score(j: Judgement, arch: str, name: str) -> CardScore:
    """What a card says of an evaluation."""
    rows = j.results[arch]
    own, random = rows["distilled"], rows["random"]
    hard: Row | None = rows.get("hard")
    labels = ["--labels", "learnt", "hard"] if hard is not None else []
    words = ["evaluate", PREFIX + name, "--recipe", j.recipe, *labels, "--baselines", "random", "--num_train_eval"]
    return CardScore(
        own.top1, own.top1_std, None if hard is None else hard.top1, None if hard is None else hard.top1_std,
        random.top1, random.top1_std, own.networks, own.steps, j.recipe_text,
        shlex.join(["python", "main.py", *words, str(own.networks)]),
    )  # fmt: skip


def make_card(
    distilled: Distilled, summary: Summary, judgements: list[Judgement], name: str, path: Path, a: argparse.Namespace
) -> Card:
    """The card of the set in the file ``path``."""
    c = distilled.config
    if not distilled.counts.same:
        raise UserError(f"{distilled.source}: a card has one number of images per class; give a set of as many of each")
    data, licence = DATA.get(c.dataset, (a.data, a.licence))
    bits = judgements[0].results[c.arch]["distilled"].bits_per_class
    assert bits is not None, "every evaluation of this version counts them"
    return Card(
        dataset=c.dataset_label,
        data=a.data or data,
        licence=a.licence or licence,
        method=distilled.method,
        per_class=distilled.per_class,
        images=len(distilled.images),
        learnt_labels=distilled.hard_labels is None,
        arch=c.arch,
        commands=[*(before_of(command, name) for command in a.before), command_of(c, name)],
        seed=summary.seed,
        epochs=summary.epochs,
        outer_steps=summary.outer_steps,
        best_epoch=summary.best_epoch,
        select=summary.select,
        recipe=c.recipe,
        scores={j.recipe: score(j, c.arch, name) for j in judgements},
        bits_per_class=bits,
        hours=(summary.seconds + a.before_seconds) / 3600,
        device=summary.device,
        version=__version__,
        torch=summary.torch,
        python=summary.python,
        checksum=file_checksum(path),
    )


def before_of(command: str, name: str) -> str:
    """A command that came before the run's as a card has it: that of experts without folders of the machine."""
    config = parse(shlex.split(command)[2:])[0]
    return command_of(config, name) if isinstance(config, BufferConfig) else command


def check_experts(distilled: Distilled, before: list[str], seconds: float) -> None:
    """Check that the experts of a set of ``main.py ftd`` are made by one of the commands that came before.

    Raises:
        UserError: none makes them, it makes others, or its time is missing.
    """
    c, known = distilled.config, distilled.provenance.get("experts", {})
    if not isinstance(c, FtdConfig):
        return
    made = [config for command in before if isinstance(config := parse(shlex.split(command)[2:])[0], BufferConfig)]
    if len(made) != 1 or seconds <= 0:
        raise UserError(
            "--before, --before_seconds: a set of main.py ftd has experts; give the one command of main.py buffer that "
            "trained them, and the seconds that it took"
        )
    found = replace(made[0], buffer_path=c.buffer_path).buffer_folder
    if found != c.buffer_folder:
        raise UserError(f"--before: makes experts for {found}, and the run has those of {c.buffer_folder}; give theirs")
    for what in TRAINING:
        flag = FLAGS[what]
        value = getattr(made[0], flag.removeprefix("--"))
        if what in known and value != known[what]:
            raise UserError(f"--before: {flag} {value}, and the set's experts had {known[what]}; give their command")


def check(a: argparse.Namespace) -> tuple[Distilled, Summary]:
    """The run's set and summary.

    Raises:
        UserError: the run has not ended, the name is none or taken, or flags are missing or those of others.
    """
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", a.name):
        raise UserError(f"{a.name}: as a set's name, give small letters and digits with - between them")
    for suffix in (".json", ".safetensors"):
        if (a.folder / f"{a.name}{suffix}").exists():
            raise UserError(f"{a.folder / a.name}{suffix}: is there already; remove it or choose another name")
    run = RunFolder(a.run)
    dataset = run.config.dataset
    if run.summary is None or run.distilled is None:
        raise UserError(f"{a.run}: the run has not ended; let it go on, then try again")
    if dataset not in DATA and not (a.data and a.licence):
        raise UserError(f"--data, --licence: say where the images of {dataset} are from, and their licence")
    for command in a.before:
        if shlex.split(command)[:2] != ["python", "main.py"]:
            raise UserError(f"--before {command}: give a whole command, python main.py ...")
        parse(shlex.split(command)[2:])
    check_experts(run.distilled, a.before, a.before_seconds)
    # The set's own flags are those of the attempt that took its snapshot; a later one may have set another end.
    return replace(run.distilled, config=run.config), run.summary


def add(a: argparse.Namespace) -> list[Path]:
    """Evaluate, and write both files; returns their paths."""
    distilled, summary = check(a)
    labels = ["learnt", "hard"] if distilled.hard_labels is None else ["learnt"]
    flags = ["--root", str(a.root)] if a.root else []
    flags += ["--num_train_eval", str(a.num_train_eval)] if a.num_train_eval else []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{a.name}.safetensors"
        write_set(distilled, path)
        recipes = dict.fromkeys([distilled.config.recipe, "dc"])
        judgements = [judged(path, recipe, labels, flags) for recipe in recipes]
        card = make_card(distilled, summary, judgements, a.name, path, a)
        paths = [a.folder / path.name, a.folder / f"{a.name}.json"]
        shutil.copyfile(path, paths[0])
        write_json(paths[1], dataclasses.asdict(card))
    return paths


def main() -> int:
    """Parse and add; returns the exit code."""
    doc = __doc__ or ""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a finished run")
    parser.add_argument("name", metavar="NAME", help="of the set, as digits-ipc1")
    parser.add_argument("--root", metavar="DIR", type=Path, help="folder of the data set's files (default: ./dataset)")
    parser.add_argument("--num_train_eval", metavar="N", type=int, help="networks per row (default: the run's)")
    parser.add_argument("--before", metavar="COMMAND", action="append", default=[], help="that came before the run's")
    parser.add_argument("--before_seconds", metavar="S", type=float, default=0.0, help="which these took")
    parser.add_argument("--data", metavar="TEXT", help="where the real images are from (needed unless it is known)")
    parser.add_argument("--licence", metavar="TEXT", help="of these (the same)")
    parser.add_argument("--folder", metavar="DIR", type=Path, default=FOLDER, help="to write into (default: the zoo)")
    try:
        print("\n".join(map(str, add(parser.parse_args()))))
    except UserError as error:
        print(f"zoo_add.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
