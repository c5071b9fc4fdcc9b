"""The sub-commands ``evaluate``, ``export``, ``report`` and so on: their flags, and who does what they ask for.

The work is imported when the flags are known to be right: ``--help`` and mistakes should not wait for PyTorch.
"""

import argparse
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from framework.config.bptt import FLAGS
from framework.distilled.names import DDRANKING, FORMS, HUB_TOKEN, LABEL_KINDS
from framework.errors import UserError, reachable
from framework.evaluation.names import ALL, BASELINES, CORESETS, LABELS, RECIPES, STRATEGIES, TEACHER_STEPS, TIMM
from framework.files import EXPORTS
from framework.flags import Parser, plain_text
from framework.zoo.cards import PREFIX, name_of, names, read_card, stand_in

DATASETS: tuple[Any, ...] = FLAGS["dataset"].choices or ()
ARCHITECTURES: tuple[Any, ...] = FLAGS["arch"].choices or ()


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _architecture(text: str) -> str:
    if text not in ARCHITECTURES and not text.startswith(TIMM):
        raise argparse.ArgumentTypeError(
            f"invalid choice: {text!r} (choose from {', '.join(ARCHITECTURES)}, {TIMM}NAME)"
        )
    return text


def _prefix(text: str) -> int | str:
    return text if text == ALL else _positive(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


# ---- evaluate --------------------------------------------------------------------------------------


def _evaluate_parser() -> Parser:
    parser = Parser(
        "main.py evaluate",
        "Train fresh networks on a distilled set, of this program or another, and score them on the real test images.",
    )
    add = parser.add_argument
    add("set", metavar="RUN_OR_FILE", type=Path, help="a run's folder; .safetensors, .pt, .npz, .h5; an image folder; "
        "zoo:NAME, of main.py zoo")  # fmt: skip
    add("--eval_arch", nargs="+", type=_architecture, metavar="ARCH",
        help=f"networks to train: {', '.join(ARCHITECTURES)}; or timm:NAME, a model of the package timm "
        "(default: the set's own)")  # fmt: skip
    add("--width", type=_positive, metavar="N", help="channels of those that are not the set's own (default: theirs)")
    add("--recipe", choices=tuple(RECIPES),
        help="; ".join(f"{name}: {text}" for name, text in RECIPES.items()) + " (default: inner; mtt for a set of "
        "main.py ftd)")  # fmt: skip
    add("--num_train_eval", type=_positive, metavar="N", help="networks per row (default: the run's, or 5)")
    add("--eval_steps", type=_positive, nargs="+", metavar="STEPS", help="training lengths instead of the recipe's")
    add("--inner_lr", type=_rate, metavar="LR",
        help="learning rate instead of the recipe's, or of that in lr_best.pt beside images_best.pt")  # fmt: skip
    add("--baselines", nargs="*", choices=tuple(BASELINES), default=[],
        help="rows to add: " + ", ".join(f"{name} ({text})" for name, text in BASELINES.items()))  # fmt: skip
    add("--labels", nargs="+", metavar="KIND", default=[],
        help="rows of the set, one for each kind of labels: "
        + "; ".join(f"{name}: {text}" for name, text in LABELS.items())
        + " (default: learnt). Anything else is the FILE of the labels of a .pt file of images alone (default: "
        "labels_best.pt beside images_best.pt)")  # fmt: skip
    add("--strategies", nargs="+", choices=tuple(STRATEGIES), default=["run"],
        help="each row with these augmentations: "
        + ", ".join(f"{name} ({text})" for name, text in STRATEGIES.items()) + " (default: run)")  # fmt: skip
    add("--teacher_arch", choices=ARCHITECTURES, metavar="ARCH",
        help="network of the teacher (default: the set's own) [read by --labels teacher, "
        f"--baselines {' '.join(CORESETS)}]")  # fmt: skip
    add("--teacher_steps", type=_positive, metavar="N",
        help=f"batches of 256 that it is trained on (default: {TEACHER_STEPS}) [the same]")  # fmt: skip
    add("--teacher_dir", metavar="DIR", help="where teachers are kept for later evaluations (default: teachers in "
        "--cache_dir) [the same]")  # fmt: skip
    add("--prefix", type=_prefix, nargs="+", metavar="N",
        help="evaluate the first N images of each class alone, as a set of its own; several N: each; "
        f"{ALL}: those of a boosted set's first block, first two, and so on (default: the set as it is)")  # fmt: skip
    add("--seed", type=_whole, default=0, help="of every random choice (default: 0)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add("--root", metavar="DIR", help="folder of the data set's files (default: the run's, or ./dataset)")
    add("--data_cache", choices=FLAGS["data_cache"].choices,
        help="where real images are kept, as in a run (default: the run's, or auto)")  # fmt: skip
    add("--cache_dir", metavar="DIR", help="where ZCA matrices and decoded images are kept for later (default: the "
        "run's, or at-bptt in the user's cache folder)")  # fmt: skip
    add("--output", type=Path, metavar="DIR",
        help="where table, JSON and TensorBoard events go (default: RUN/evaluation, FILE.evaluation; of zoo:NAME "
        "zoo-NAME.evaluation)")  # fmt: skip
    foreign = parser.add_argument_group("what files of other programs do not say")
    add = foreign.add_argument
    add("--dataset", choices=DATASETS, help="real data set that the set was made from; of a set of this program, "
        "other real images of the same classes to judge it on")  # fmt: skip
    add("--preprocess", choices=("standardise", "zca", "zca_pixels", "pixels"),
        help="how its images were made: standardised per channel (with the training images' mean and deviation, or "
        "--mean and --std), whitened by the ZCA of RaT-BPTT and AT-BPTT (zca) or that of MTT, FTD and DATM "
        "(zca_pixels), or pixels (0..255, or 0..1, rounded to 8 bits)")  # fmt: skip
    add("--pixel_range", type=int, choices=(1, 255),
        help="the value of white (default: as the values tell, where they are certain) [read by pixels]")  # fmt: skip
    add("--mean", type=float, nargs="+", metavar="M", help="of each channel, in 0..1 [read by standardise]")
    add("--std", type=float, nargs="+", metavar="S", help="the same")
    add("--zca_reg", type=float, help="ZCA regularisation (default: 0.1) [read by zca]")
    add("--hf_image", metavar="COLUMN", help="of the real data, as in a run [read by --dataset hf:...]")
    add("--hf_label", metavar="COLUMN", help="the same")
    add("--im_size", type=_positive, metavar="PIXELS", help="the real images are resized to this")
    add("--label_kind", choices=tuple(LABEL_KINDS),
        help="what soft labels are: " + "; ".join(f"{name}: {text}" for name, text in LABEL_KINDS.items())
        + " (default: auto)")  # fmt: skip
    return parser


def _check_evaluate(args: argparse.Namespace) -> None:
    _split_labels(args)
    if len(set(args.strategies)) < len(args.strategies):
        raise UserError(f"--strategies {' '.join(args.strategies)}: give each once")
    args.needs_teacher = "teacher" in args.label_rows or bool(set(CORESETS) & set(args.baselines))
    for flag in ("teacher_arch", "teacher_steps", "teacher_dir"):
        if getattr(args, flag) is not None and not args.needs_teacher:
            raise UserError(
                f"--{flag} is not read without --labels teacher or --baselines {' '.join(CORESETS)}; leave it out"
            )
    lengths = args.eval_steps
    if lengths and sorted(set(lengths)) != lengths:
        raise UserError(f"--eval_steps {' '.join(map(str, lengths))}: give increasing lengths, each once")
    sizes = args.prefix or []
    if sizes != [ALL] and (ALL in sizes or sorted(set(sizes)) != sizes):
        raise UserError(f"--prefix {' '.join(map(str, sizes))}: give increasing numbers, each once, or {ALL} alone")


def _split_labels(args: argparse.Namespace) -> None:
    """Tell the kinds of labels (``label_rows``) from the file of the set's own (``labels``)."""
    kinds = [value for value in args.labels if value in LABELS]
    files = [value for value in args.labels if value not in LABELS]
    if len(files) > 1 or len(set(kinds)) < len(kinds):
        raise UserError(
            f"--labels {' '.join(args.labels)}: give each of {', '.join(LABELS)} once, and one file at most"
        )
    with reachable():
        if files and not Path(files[0]).exists():
            raise UserError(f"--labels {files[0]}: no such file, and none of {', '.join(LABELS)}; check it")
    args.label_rows, args.labels = kinds or ["learnt"], Path(files[0]) if files else None


def _evaluate(args: argparse.Namespace) -> None:
    from framework.evaluation.command import evaluate

    evaluate(args)


# ---- export ----------------------------------------------------------------------------------------


def _export_parser() -> Parser:
    parser = Parser("main.py export", "Write a distilled set in a form that other tools read.")
    add = parser.add_argument
    add("set", metavar="RUN", type=Path, help="a run's folder, a file of a set that this program wrote, or zoo:NAME")
    add("--to", required=True, choices=tuple(FORMS),
        help="safetensors, pt, npz, h5: lossless; images: one sub-folder of PNG files per class; ddranking: tensors "
        "for that package's scores; hf: parquet and a data card for datasets.load_dataset")  # fmt: skip
    add("--output", type=Path, metavar="PATH",
        help="file or folder to write (default: in RUN/exports; of zoo:NAME in zoo-NAME/exports)")  # fmt: skip
    add("--ddranking_dataset", choices=tuple(DDRANKING), metavar="NAME",
        help=f"which of its data sets, where the run's does not tell ({', '.join(DDRANKING)}) "
        "[read by --to ddranking]")  # fmt: skip
    add("--push", metavar="USER/NAME",
        help="put it into this data set on the Hugging Face hub too; needs a token in the variable "
        f"{HUB_TOKEN} [read by --to hf]")  # fmt: skip
    return parser


def _check_export(args: argparse.Namespace) -> None:
    if args.ddranking_dataset and args.to != "ddranking":
        raise UserError(f"--ddranking_dataset is not read by --to {args.to}; leave it out")
    if args.push is None:
        return
    if args.to != "hf":
        raise UserError(f"--push is not read by --to {args.to}; leave it out")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", args.push, re.ASCII):
        raise UserError(f"--push {args.push}: give USER/NAME, of letters, digits, - _ and .")
    if not os.environ.get(HUB_TOKEN):
        raise UserError(
            f"--push {args.push}: no token; set the variable {HUB_TOKEN} to one that may write, of "
            "https://huggingface.co/settings/tokens"
        )


def _export(args: argparse.Namespace) -> None:
    from framework.distilled.exports import export
    from framework.distilled.hub import open_hub, push
    from framework.distilled.load import load_distilled

    distilled = load_distilled(args.set)
    own = name_of(args.set) is not None
    folder = stand_in(args.set) if own or args.set.is_dir() else args.set.parent
    suffix = FORMS[args.to]
    path = args.output or folder / EXPORTS / (f"distilled{suffix}" if suffix else args.to)
    hub = None if args.push is None else open_hub()
    if distilled.lacks:
        print(distilled.lacks, file=sys.stderr, flush=True)
    lost = export(distilled, args.to, path, args.ddranking_dataset)
    print(f"{path}: {len(distilled.images)} images of {distilled.num_classes} classes; {lost}", flush=True)
    if hub is not None:
        print(push(hub, path, args.push))


# ---- report ----------------------------------------------------------------------------------------


def _report_parser() -> Parser:
    parser = Parser(
        "main.py report", "Write a page about one run, or several side by side, as HTML in one file and as Markdown."
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--output", type=Path, metavar="FILE.html",
        help="the page; the Markdown goes beside it (default: report.html in the first run's folder)")  # fmt: skip
    return parser


def _check_report(args: argparse.Namespace) -> None:
    if args.output is not None and args.output.suffix != ".html":
        raise UserError(f"--output {args.output}: give a name that ends in .html")


def _report(args: argparse.Namespace) -> None:
    from framework.report import page

    print("\n".join(map(str, page.write(args.runs, args.output or args.runs[0] / "report.html"))))


# ---- leaderboard -----------------------------------------------------------------------------------


def _leaderboard_parser() -> Parser:
    parser = Parser(
        "main.py leaderboard",
        "Compare sets by what main.py evaluate has left beside them: a table and a picture for each data set, as "
        "Markdown, JSON and HTML.",
    )
    parser.add_argument("sets", metavar="SET_OR_FOLDER", nargs="+", type=Path,
        help="a run's folder, a set that was evaluated (zoo:NAME too), or a folder of such, at any depth")  # fmt: skip
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="folder to write into")
    return parser


def _leaderboard(args: argparse.Namespace) -> None:
    from framework.report import leaderboard

    print("\n".join(map(str, leaderboard.write(args.sets, args.out))))


# ---- advise ----------------------------------------------------------------------------------------


def _advise_parser() -> Parser:
    parser = Parser(
        "main.py advise",
        "Predict from the metrics of a RaT-BPTT run, finished or not, what another policy, clip, window length or "
        "number of networks would gain or cost.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's folder")
    parser.add_argument("--since", type=_whole, default=0, metavar="STEP",
        help="leave out outer steps before this one: norms change along a run (default: 0)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def _advise(args: argparse.Namespace) -> None:
    from framework.report.advice import advise, as_json, as_text
    from framework.report.folder import RunFolder

    print((as_json if args.json else as_text)(advise(RunFolder(args.run), args.since)))


# ---- zoo -------------------------------------------------------------------------------------------


def _zoo_parser() -> Parser:
    parser = Parser("main.py zoo", "List the distilled sets that come with this program, or show the card of one.")
    parser.add_argument("name", metavar="NAME", nargs="?", help="show this set's card (default: list all sets)")
    parser.add_argument("--commands", action="store_true",
        help="print only the commands that made the set, one a line; ROOT is the folder of the data")  # fmt: skip
    return parser


def _check_zoo(args: argparse.Namespace) -> None:
    if args.commands and args.name is None:
        raise UserError("--commands: of which set? give its NAME too")


def _zoo(args: argparse.Namespace) -> None:
    from framework.report import zoo

    if args.name is None:
        print(zoo.table({name: read_card(name) for name in names()}))
        return
    name = args.name.removeprefix(PREFIX)
    card = read_card(name)
    print("\n".join(card.commands) if args.commands else zoo.text(name, card))


# ---- all of them -----------------------------------------------------------------------------------


class Command(NamedTuple):
    """A sub-command: its parser, what is checked before PyTorch is imported, its work, and what saves memory there.

    Without advice about memory it needs no PyTorch.
    """

    parser: Callable[[], Parser]
    check: Callable[[argparse.Namespace], None]
    work: Callable[[argparse.Namespace], None]
    advice: str | None


COMMANDS = {
    "evaluate": Command(
        _evaluate_parser, _check_evaluate, _evaluate,
        "leave out --baselines full, give --data_cache disk, smaller networks by --eval_arch and --width, or another "
        "--device (cpu has the machine's own memory)",
    ),
    "export": Command(_export_parser, _check_export, _export, "free memory, or give another form by --to"),
    "report": Command(_report_parser, _check_report, _report, "free memory, or give fewer runs"),
    "leaderboard": Command(
        _leaderboard_parser, lambda args: None, _leaderboard, "free memory, or give fewer sets",
    ),
    "advise": Command(_advise_parser, lambda args: None, _advise, None),
    "zoo": Command(_zoo_parser, _check_zoo, _zoo, None),
}  # fmt: skip


def _explained(advice: str | None) -> AbstractContextManager[None]:
    """Where memory runs out, ``advice`` is given."""
    if advice is None:
        return nullcontext()
    from framework.run.memory import explained

    return explained(lambda: advice)


def run(name: str, arguments: Sequence[str]) -> int:
    """Run a sub-command; returns its exit code.

    Raises:
        UserError: the user's mistake, or memory or disk do not suffice.
        SystemExit: by the parser, with code 2 for a mistake and 0 after ``--help``.
    """
    command = COMMANDS[name]
    plain_text(arguments)
    args = command.parser().parse_args(arguments)
    args.line = shlex.join(["python", "main.py", name, *arguments])
    command.check(args)
    try:
        with _explained(command.advice):
            command.work(args)
    except KeyboardInterrupt:
        print(f"main.py {name}: stopped; nothing was written", file=sys.stderr)
        return 130
    return 0
