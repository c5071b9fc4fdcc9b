"""The sub-commands ``evaluate``, ``export`` and ``report``: their flags, and what each does."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from framework.assemble import load_for
from framework.config import FLAGS, Config
from framework.data import registry
from framework.data.preprocess import Preprocess, Standardise
from framework.data.splits import RealData
from framework.distilled.exports import DDRANKING, FORMS, export
from framework.distilled.foreign import from_foreign
from framework.distilled.load import from_stored, load_distilled, open_stored
from framework.distilled.set import Distilled
from framework.errors import UserError
from framework.evaluation import judge
from framework.evaluation.recipes import RECIPES, make_recipe
from framework.files import EVALUATION, EXPORTS, make_folder
from framework.flags import Parser
from framework.inner.execution import configure_process
from framework.report import page
from framework.report.tables import judgement_table, write_judgement
from framework.run.distributed import resolve_device

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


# ---- evaluate --------------------------------------------------------------------------------------


def _evaluate_parser() -> Parser:
    parser = Parser(
        "main.py evaluate",
        "Train fresh networks on a distilled set, of this program or another, and score them on the real test images.",
    )
    add = parser.add_argument
    add("set", metavar="RUN_OR_FILE", type=Path, help="a run's folder; .safetensors, .pt, .npz, .h5; an image folder")
    add("--eval_arch", nargs="+", choices=ARCHITECTURES, metavar="ARCH",
        help=f"networks to train: {', '.join(ARCHITECTURES)} (default: the set's own)")  # fmt: skip
    add("--width", type=_positive, metavar="N", help="channels of those that are not the set's own (default: theirs)")
    add("--recipe", choices=tuple(RECIPES), default="inner",
        help="; ".join(f"{name}: {text}" for name, text in RECIPES.items()) + " (default: inner)")  # fmt: skip
    add("--num_train_eval", type=_positive, metavar="N", help="networks per row (default: the run's, or 5)")
    add("--eval_steps", type=_positive, nargs="+", metavar="STEPS", help="training lengths instead of the recipe's")
    add("--baselines", nargs="*", choices=("random", "full"), default=[],
        help="rows to add: random (as many real images, same recipe), full (the whole real set)")  # fmt: skip
    add("--seed", type=_whole, default=0, help="of every random choice (default: 0)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add("--root", type=Path, metavar="DIR", help="folder of the data set's files (default: the run's, or ./dataset)")
    add("--output", type=Path, metavar="DIR",
        help="where table, JSON and TensorBoard events go (default: RUN/evaluation, or FILE.evaluation)")  # fmt: skip
    foreign = parser.add_argument_group("what files of other programs do not say")
    add = foreign.add_argument
    add("--dataset", choices=DATASETS, help="real data set that the set was made from")
    add("--preprocess", choices=("standardise", "zca", "pixels"),
        help="how its images were made: standardised per channel (with the training images' mean and deviation, or "
        "--mean and --std), whitened by ZCA, or pixels (0..255, or 0..1, rounded to 8 bits)")  # fmt: skip
    add("--mean", type=float, nargs="+", metavar="M", help="of each channel, in 0..1 [read by standardise]")
    add("--std", type=float, nargs="+", metavar="S", help="the same")
    add("--zca_reg", type=float, help="ZCA regularisation (default: 0.1) [read by zca]")
    add("--im_size", type=_positive, metavar="PIXELS", help="the real images are resized to this")
    add("--labels", type=Path, metavar="FILE", help="the labels, where RUN_OR_FILE is a .pt file of images alone")
    return parser


FOREIGN = ("dataset", "preprocess", "mean", "std", "zca_reg", "im_size", "labels")


def _open(args: argparse.Namespace, device: torch.device) -> tuple[Distilled, RealData]:
    """The set, and the real data in its preprocessing."""
    stored = open_stored(args.set, args.labels)
    given = [name for name in FOREIGN if getattr(args, name) is not None]
    if stored.ours:
        if given:
            raise UserError(f"--{given[0]}: {args.set} is a file of this program and says that itself; leave it out")
        distilled = from_stored(stored, args.set)
        return distilled, load_for(distilled.config, device, root=args.root, preprocess=distilled.preprocess)
    for name in ("dataset", "preprocess"):
        if name not in given:
            raise UserError(f"{args.set}: a file of another program does not say its {name}; give --{name}")
    preprocess: Preprocess | None = None
    if (args.mean is None) != (args.std is None):
        raise UserError("--mean and --std belong together; give both")
    if args.mean is not None:
        if args.preprocess != "standardise" or len(args.mean) != len(args.std) or min(args.std) <= 0:
            raise UserError(
                "--mean, --std: give one of each per channel, deviations above 0, with --preprocess standardise"
            )
        preprocess = Standardise(torch.tensor(args.mean), torch.tensor(args.std))
    if args.zca_reg is not None and args.preprocess != "zca":
        raise UserError(f"--zca_reg is not read by --preprocess {args.preprocess}; leave it out")
    # Optimiser and augmentation of both papers' commands, for want of a run's own.
    settings = {"dataset": args.dataset, "im_size": args.im_size, "zca": args.preprocess == "zca"}
    given_too = {name: getattr(args, name) for name in ("width", "zca_reg") if getattr(args, name) is not None}
    config = Config(**settings, **given_too, inner_optim="Adam", inner_lr=0.001, num_train_eval=5)
    info = registry.describe(args.dataset, args.root or Path(config.root), args.im_size)
    if args.mean is not None and len(args.mean) != info.channels:
        raise UserError(f"--mean: {args.dataset} has {info.channels} channel(s); give that many")
    real = load_for(config, device, root=args.root, preprocess=preprocess)
    return from_foreign(stored, args.set, real, config, pixels=args.preprocess == "pixels"), real


def evaluate(arguments: Sequence[str]) -> int:
    """``main.py evaluate``."""
    args = _evaluate_parser().parse_args(arguments)
    device = resolve_device(args.device)
    configure_process(device, "float32")
    distilled, real = _open(args, device)
    lengths = tuple(args.eval_steps) if args.eval_steps else None
    if lengths and sorted(set(lengths)) != list(lengths):
        raise UserError(f"--eval_steps {' '.join(map(str, lengths))}: give increasing lengths, each once")
    recipe = make_recipe(args.recipe, distilled, lengths)
    names = args.eval_arch or [distilled.config.arch]
    nets = {name: judge.build(name, distilled, args.width, device) for name in names}
    runs = args.num_train_eval or distilled.config.num_train_eval
    rows = judge.candidates(distilled, real, recipe, tuple(args.baselines), runs, args.seed, device)
    folder = args.output or (args.set / EVALUATION if args.set.is_dir() else Path(f"{args.set}.evaluation"))
    make_folder(folder)  # before hours of training, not after
    total = runs * len(nets) * len(rows) * recipe.lengths[-1]
    with tqdm(total=total, desc="evaluating", unit="step", dynamic_ncols=True) as bar:

        def tick(steps: int) -> None:
            bar.update(steps)

        result = judge.evaluate(distilled, real, recipe, nets, rows, args.seed, tick)
    paths = write_judgement(result, folder)
    print(judgement_table(result) + "\n\n" + "\n".join(map(str, paths)))
    return 0


# ---- export ----------------------------------------------------------------------------------------


def _export_parser() -> Parser:
    parser = Parser("main.py export", "Write a distilled set in a form that other tools read.")
    add = parser.add_argument
    add("set", metavar="RUN", type=Path, help="a run's folder, or a file of a set that this program wrote")
    add("--to", required=True, choices=tuple(FORMS),
        help="safetensors, pt, npz, h5: lossless; images: one sub-folder of PNG files per class; ddranking: tensors "
        "for that package's scores; hf: parquet and a data card for datasets.load_dataset")  # fmt: skip
    add("--output", type=Path, metavar="PATH", help="file or folder to write (default: in RUN/exports)")
    add("--ddranking_dataset", choices=tuple(DDRANKING), metavar="NAME",
        help=f"which of its data sets, where the run's does not tell ({', '.join(DDRANKING)}) "
        "[read by --to ddranking]")  # fmt: skip
    return parser


def export_set(arguments: Sequence[str]) -> int:
    """``main.py export``."""
    args = _export_parser().parse_args(arguments)
    if args.ddranking_dataset and args.to != "ddranking":
        raise UserError(f"--ddranking_dataset is not read by --to {args.to}; leave it out")
    distilled = load_distilled(args.set)
    folder = args.set if args.set.is_dir() else args.set.parent
    suffix = FORMS[args.to][0]
    path = args.output or folder / EXPORTS / (f"distilled{suffix}" if suffix else args.to)
    lost = export(distilled, args.to, path, args.ddranking_dataset)
    print(f"{path}: {len(distilled.images)} images of {distilled.num_classes} classes; {lost}")
    return 0


# ---- report ----------------------------------------------------------------------------------------


def report(arguments: Sequence[str]) -> int:
    """``main.py report``."""
    parser = Parser(
        "main.py report", "Write a page about one run, or several side by side, as HTML in one file and as Markdown."
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--output", type=Path, metavar="FILE.html",
        help="the page; the Markdown goes beside it (default: report.html in the first run's folder)")  # fmt: skip
    args = parser.parse_args(arguments)
    output = args.output or args.runs[0] / "report.html"
    if output.suffix != ".html":
        raise UserError(f"--output {output}: give a name that ends in .html")
    print("\n".join(map(str, page.write(args.runs, output))))
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"evaluate": evaluate, "export": export_set, "report": report}


def run(name: str, arguments: Sequence[str]) -> int:
    """Run a sub-command; returns its exit code."""
    try:
        return COMMANDS[name](arguments)
    except KeyboardInterrupt:
        print(f"main.py {name}: stopped; nothing was written", file=sys.stderr)
        return 130
