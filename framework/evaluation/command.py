"""The work of ``main.py evaluate``; its flags are in ``commands``."""

import argparse
import math
from pathlib import Path

import torch
from tqdm import tqdm

from framework.assemble import load_for
from framework.config import Config, validate
from framework.data import registry
from framework.data.preprocess import Preprocess, Standardise
from framework.data.splits import RealData
from framework.distilled.foreign import from_foreign
from framework.distilled.formats import Stored
from framework.distilled.labels import class_weights, with_classes_of
from framework.distilled.load import from_stored, open_stored
from framework.distilled.set import Distilled
from framework.errors import UserError
from framework.evaluation import judge
from framework.evaluation.recipes import make_recipe
from framework.files import EVALUATION, folder_for
from framework.inner.execution import configure_process
from framework.report.tables import judgement_table, write_judgement
from framework.run.distributed import resolve_device
from framework.run.interrupt import StopRequest

FOREIGN = ("dataset", "preprocess", "pixel_range", "mean", "std", "zca_reg", "im_size", "labels", "label_kind")
"""Flags about files of other programs."""


def evaluate(args: argparse.Namespace) -> None:
    """Train fresh networks on the set, print their scores on the real test images, and write them into a folder.

    Raises:
        UserError: the set cannot be read, or the flags do not fit it.
        CannotWrite: the table was printed but cannot be written.
    """
    device = resolve_device(args.device)
    configure_process(device, "float32")
    distilled, real = _open(args, device)
    recipe = make_recipe(args.recipe, distilled, tuple(args.eval_steps) if args.eval_steps else None, args.inner_lr)
    names = args.eval_arch or [distilled.config.arch]
    nets = {name: judge.build(name, distilled, args.width, device) for name in names}
    runs = args.num_train_eval or distilled.config.num_train_eval
    rows = judge.candidates(distilled, real, recipe, tuple(args.baselines), runs, args.seed, device)
    total = runs * len(nets) * len(rows) * recipe.lengths[-1]
    with folder_for(_output(args)) as folder:  # before hours of training, not after
        with tqdm(total=total, desc="evaluating", unit="step", dynamic_ncols=True) as bar:

            def tick(steps: int) -> None:
                bar.update(steps)

            result = judge.evaluate(distilled, real, recipe, nets, rows, args.seed, tick)
        with StopRequest():  # from here on, Ctrl-C comes too late
            print(judgement_table(result) + "\n", flush=True)
            print("\n".join(map(str, write_judgement(result, folder))), flush=True)


def _output(args: argparse.Namespace) -> Path:
    beside: Path = args.set / EVALUATION if args.set.is_dir() else Path(f"{args.set}.evaluation")
    return args.output or beside


def _open(args: argparse.Namespace, device: torch.device) -> tuple[Distilled, RealData]:
    """The set, and the real data in its preprocessing."""
    stored = open_stored(args.set, args.labels)
    if not stored.ours:
        return _open_foreign(stored, args, device)
    if given := [name for name in FOREIGN if getattr(args, name) is not None]:
        raise UserError(f"--{given[0]}: {args.set} is a file of this program and says that itself; leave it out")
    distilled = from_stored(stored, args.set)
    real = load_for(distilled.config, device, root=args.root, preprocess=distilled.preprocess)
    return with_classes_of(distilled, real.class_names), real


def _open_foreign(stored: Stored, args: argparse.Namespace, device: torch.device) -> tuple[Distilled, RealData]:
    for name in ("dataset", "preprocess"):
        if getattr(args, name) is None:
            raise UserError(f"{args.set}: a file of another program does not say its {name}; give --{name}")
    preprocess = _statistics(args)
    if args.zca_reg is not None and args.preprocess != "zca":
        raise UserError(f"--zca_reg is not read by --preprocess {args.preprocess}; leave it out")
    if args.pixel_range is not None and args.preprocess != "pixels":
        raise UserError(f"--pixel_range is not read by --preprocess {args.preprocess}; leave it out")
    # Optimiser and augmentation of both papers' commands, for want of a run's own.
    whitening = {kind: args.preprocess == kind for kind in ("zca", "zca_pixels")}
    settings = {"dataset": args.dataset, "im_size": args.im_size, **whitening}
    given_too = {name: getattr(args, name) for name in ("width", "zca_reg") if getattr(args, name) is not None}
    config = Config(**settings, **given_too, inner_optim="Adam", inner_lr=0.001, num_train_eval=5)
    validate(config)
    info = registry.describe(args.dataset, args.root or Path(config.root), args.im_size)
    if args.mean is not None and len(args.mean) != info.channels:
        raise UserError(f"--mean: {args.dataset} has {info.channels} channel(s); give that many")
    if info.num_classes is not None and "folders" not in stored.metadata:
        class_weights(stored.tensors["labels"], info.num_classes, args.set)  # a mistake is told before images are read
    real = load_for(config, device, root=args.root, preprocess=preprocess)
    pixels, kind = args.preprocess == "pixels", args.label_kind or "auto"
    return from_foreign(stored, args.set, real, config, pixels=pixels, white=args.pixel_range, label_kind=kind), real


def _statistics(args: argparse.Namespace) -> Preprocess | None:
    """The standardisation by ``--mean`` and ``--std``, if given."""
    if (args.mean is None) != (args.std is None):
        raise UserError("--mean and --std belong together; give both")
    if args.mean is None:
        return None
    finite = all(map(math.isfinite, [*args.mean, *args.std]))
    if args.preprocess != "standardise" or len(args.mean) != len(args.std) or not finite or min(args.std) <= 0:
        raise UserError(
            "--mean, --std: give one of each per channel, deviations above 0, with --preprocess standardise"
        )
    return Standardise(torch.tensor(args.mean), torch.tensor(args.std))
