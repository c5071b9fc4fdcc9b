"""The work of ``main.py evaluate``; its flags are in ``commands``."""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from framework.assemble.common import data_spec
from framework.config.bptt import Config
from framework.config.distilling import Distilling
from framework.data.load import Listing, list_data, load_listed
from framework.data.preprocess import Preprocess, Standardise
from framework.data.registry import DatasetInfo, known, label_of
from framework.data.splits import RealData, require_random_real
from framework.distilled.foreign import Target, from_foreign, preprocessed
from framework.distilled.formats import Stored
from framework.distilled.labels import with_classes_of
from framework.distilled.load import from_stored, open_stored
from framework.distilled.set import Distilled
from framework.errors import UserError
from framework.evaluation import judge
from framework.evaluation.coresets import EL2N_NETWORKS, choose, early_steps
from framework.evaluation.names import ALL, CORESETS, TEACHER_STEPS
from framework.evaluation.recipes import Recipe, make_recipe
from framework.evaluation.scoreboard import Wanted, baseline_rows, by_strategy, set_rows
from framework.evaluation.teacher import Pupil, Teacher, find_or_train
from framework.files import TEACHERS, folder_for
from framework.inner.counts import Counts
from framework.inner.execution import configure_process
from framework.networks.registry import specify
from framework.outer.buffers.record import rows_checksum
from framework.records import Origin
from framework.report.folder import evaluation_folder
from framework.report.tables import judgement_table, write_judgement
from framework.run.distributed import resolve_device
from framework.run.interrupt import StopRequest

FOREIGN = ("dataset", "preprocess", "pixel_range", "mean", "std", "zca_reg", "im_size", "labels", "label_kind",
           "hf_image", "hf_label")  # fmt: skip
"""Flags about files of other programs."""

OTHER_DATA = ("dataset", "hf_image", "hf_label")
"""Those that a set of this program takes too, to be judged on other real images of its classes."""

PLACES = ("root", "data_cache", "cache_dir")
"""Flags about the real images, which take the place of a run's own."""


def evaluate(args: argparse.Namespace) -> None:
    """Train fresh networks on the set, print their scores on the real test images, and write them into a folder.

    Raises:
        UserError: the set cannot be read, or the flags do not fit it.
        CannotWrite: the table was printed but cannot be written.
    """
    device = resolve_device(args.device)
    configure_process(device, "float32")
    opened, listing, preprocess = _open(args)
    sizes = _sizes(opened, args.prefix)
    recipes = [_recipe(_part(opened, size), args) for size in sizes]
    names = args.eval_arch or [opened.config.arch]
    nets = {name: judge.build(name, opened, args.width, device) for name in names}
    pupil = _pupil(opened, args, device)
    _check_baselines(_part(opened, sizes[-1]), listing, args.baselines)
    if opened.lacks:
        print(opened.lacks, file=sys.stderr, flush=True)
    output = _output(args, opened, listing)
    with folder_for(output) as folder:  # before images are decoded and networks trained, not after
        real = load_listed(listing, device, preprocess=preprocess)
        distilled = preprocessed(opened, real.preprocess)
        runs = args.num_train_eval or distilled.config.num_train_eval
        wanted = Wanted(args.label_rows, args.strategies, args.baselines, runs, args.seed)
        teacher = None if pupil is None else _teacher(pupil, real, listing, args)
        trials = _trials(distilled, real, dict(zip(sizes, recipes, strict=True)), wanted, teacher)
        total = runs * len(nets) * sum(len(trial.rows) * trial.recipe.lengths[-1] for trial in trials)
        with tqdm(total=total, desc="evaluating", unit="step", dynamic_ncols=True) as bar:
            result = judge.evaluate(distilled, real, trials, nets, args.seed, _ticking(bar))
            result = replace(result, origin=_origin(opened, args))
        with StopRequest():  # from here on, Ctrl-C comes too late
            print(judgement_table(result) + "\n", flush=True)
            print("\n".join(map(str, write_judgement(result, folder))), flush=True)


def _trials(
    distilled: Distilled, real: RealData, recipes: dict[int | None, Recipe], wanted: Wanted, teacher: Teacher | None
) -> list[judge.Trial]:
    """The set's parts, by the recipe of each size, with their rows; the whole real set is a row of the largest."""
    largest = list(recipes)[-1]
    chosen = {} if teacher is None else _coresets(teacher, real, wanted, _part(distilled, largest).counts)
    trials = []
    for size, recipe in recipes.items():
        part = _part(distilled, size)
        baselines = [name for name in wanted.baselines if name != "full" or size == largest]
        rows = set_rows(part, real, recipe, wanted, teacher, size)
        rows |= baseline_rows(part, real, recipe, replace(wanted, baselines=baselines), chosen)
        trials.append(judge.Trial(recipe, by_strategy(rows, wanted.strategies, real.image_shape[-1]), size))
    return trials


def _check_baselines(largest: Distilled, listing: Listing, names: list[str]) -> None:
    """Check that there are as many real images as the rows need.

    Raises:
        UserError: a class has fewer, or the set has no number of images per class.
    """
    for name in names:
        if name != "full":
            if largest.numbers is None and len(largest.images) % largest.num_classes:
                raise UserError(
                    f"--baselines {name}: takes as many real images of each class, and {largest.source} has "
                    f"{len(largest.images)} of {largest.num_classes} classes; leave it out"
                )
            require_random_real(listing.counts, listing.class_names, largest.counts, f"--baselines {name}")


def _ticking(bar: "tqdm[Any]") -> Callable[[int], None]:
    """What moves a bar by the steps just taken."""

    def tick(steps: int) -> None:
        bar.update(steps)

    return tick


def _sizes(opened: Distilled, given: list[int | str] | None) -> list[int | None]:
    """Of the prefixes to evaluate, the images of each class; None: the set as it is.

    Raises:
        UserError: the set does not have them.
    """
    if given is None:
        return [None]
    block = opened.block_size
    if given == [ALL] and block is None:
        raise UserError(f"--prefix {ALL}: {opened.source} was not learnt in blocks; give numbers of images per class")
    sizes = list(range(block, opened.per_class + 1, block)) if given == [ALL] and block else list(map(int, given))
    for size in sizes:
        try:
            opened.prefix(size)
        except UserError as error:
            raise UserError(f"--prefix {size}: {error}") from error
    return [*sizes]


def _part(distilled: Distilled, size: int | None) -> Distilled:
    return distilled if size is None else distilled.prefix(size)


def _recipe(distilled: Distilled, args: argparse.Namespace) -> Recipe:
    lengths = tuple(args.eval_steps) if args.eval_steps else None
    return make_recipe(args.recipe or distilled.config.recipe, distilled, lengths, args.inner_lr)


def _pupil(opened: Distilled, args: argparse.Namespace, device: torch.device) -> Pupil | None:
    """The network that is to be the teacher; None where no row needs one.

    Raises:
        UserError: it does not fit the images.
    """
    if not args.needs_teacher:
        return None
    arch = args.teacher_arch or opened.config.arch
    network = judge.build(arch, opened, args.width, device, "--teacher_arch")
    channels, side = opened.images.shape[1:3]
    spec = specify(arch, channels, side, opened.num_classes, **judge.options(arch, opened, args.width))
    return Pupil(arch, spec, network, args.teacher_steps or TEACHER_STEPS)


def _teacher(pupil: Pupil, real: RealData, listing: Listing, args: argparse.Namespace) -> Teacher:
    """The teacher, from its folder or trained now; a line on stderr says which."""
    folder = Path(args.teacher_dir) if args.teacher_dir else listing.spec.cache / TEACHERS
    images = rows_checksum(listing.train) or ""
    with tqdm(total=pupil.steps, desc="training a teacher", unit="step", dynamic_ncols=True, delay=1) as bar:
        teacher, path, fresh = find_or_train(pupil, real, images, folder, _ticking(bar))
    how = "trained and kept" if fresh else "kept from before"
    print(f"teacher {pupil.arch}, {100 * teacher.accuracy:.1f} % on the test images, {how}: {path}", file=sys.stderr,
          flush=True)  # fmt: skip
    return teacher


def _coresets(teacher: Teacher, real: RealData, wanted: Wanted, counts: Counts) -> dict[str, list[torch.Tensor]]:
    """Of each coreset that is wanted, its images; see ``coresets.choose``."""
    names = [name for name in wanted.baselines if name in CORESETS]
    steps = EL2N_NETWORKS * early_steps(teacher.pupil) if "el2n" in names else 0
    with tqdm(total=steps, desc="choosing coresets", unit="step", dynamic_ncols=True, disable=not steps) as bar:
        return {name: choose(name, teacher, real, counts, _ticking(bar)) for name in names}


def _origin(opened: Distilled, args: argparse.Namespace) -> Origin:
    """What a leaderboard says of the set."""
    spread = None if opened.numbers is None or opened.counts.same else opened.counts.text
    hard = opened.hard_labels is not None
    return Origin(opened.config.arch, opened.method, opened.per_class, hard, args.line, spread)


def _output(args: argparse.Namespace, opened: Distilled, listing: Listing) -> Path:
    """Where the tables go: those on the data that the set was made from, and those on each other, are kept apart."""
    judged_on = label_of(listing.name)
    other = "" if judged_on == opened.config.dataset_label else f"-on-{judged_on}"
    return args.output or Path(f"{evaluation_folder(args.set)}{other}")


def _open(args: argparse.Namespace) -> tuple[Distilled, Listing, Preprocess | None]:
    """The set, the listed real data, and the preprocessing of both where it need not be fitted to real images."""
    stored = open_stored(args.set, args.labels)
    if not stored.ours:
        return _open_foreign(stored, args)
    given = [name for name in FOREIGN if getattr(args, name) is not None]
    if known_too := [name for name in given if args.dataset is None or name not in OTHER_DATA]:
        raise UserError(f"--{known_too[0]}: {args.set} is a file of this program and says that itself; leave it out")
    distilled = from_stored(stored, args.set)
    if given:
        listing = _other_data(distilled, stored, args)
        distilled = _numbered(distilled, listing)
    else:
        listing = _listed(distilled.config, args)
        _check_shape(distilled, listing.name, listing.image_shape, "restore it from a copy")
    return with_classes_of(distilled, listing.class_names), listing, distilled.preprocess


def _other_data(distilled: Distilled, stored: Stored, args: argparse.Namespace) -> Listing:
    """Of other real images than the set was made from, resized to its own."""
    side, advice = distilled.images.shape[-1], "give another --dataset"
    config = replace(distilled.config, im_size=side, **{name: getattr(args, name) for name in OTHER_DATA})
    config.validate()
    if (target := _before_download(known(args.dataset), side, stored)) is not None:
        _check_shape(distilled, target.name, target.shape, advice)
    listing = _listed(config, args)
    _check_shape(distilled, listing.name, listing.image_shape, advice)
    return listing


def _numbered(distilled: Distilled, listing: Listing) -> Distilled:
    """The set under the data's class names, where one of both has mere numbers for them; a line on stderr says so."""
    theirs, data = distilled.class_names, listing.class_names
    numbers = tuple(map(str, range(len(data))))
    if sorted(theirs) == sorted(data) or len(theirs) != len(data) or numbers not in (theirs, data):
        return distilled
    who, names = (distilled.source, data) if theirs == numbers else (listing.name, theirs)
    told = f"{who}: its classes are numbers; 0 is taken for {names[0]!r}, and so on in order"
    print(told, file=sys.stderr, flush=True)
    return replace(distilled, class_names=data)


def _check_shape(distilled: Distilled, name: str, wanted: tuple[int, ...], advice: str) -> None:
    shape = tuple(distilled.images.shape[1:])
    if shape != wanted:
        sizes = [" x ".join(map(str, each)) for each in (shape, wanted)]
        raise UserError(f"{distilled.source}: images are {sizes[0]}, those of {name} {sizes[1]}; {advice}")


def _listed(config: Distilling, args: argparse.Namespace) -> Listing:
    """The real data of a set, from where the flags say."""
    given = {name: getattr(args, name) for name in PLACES if getattr(args, name) is not None}
    return list_data(data_spec(replace(config, **given)))


def _open_foreign(stored: Stored, args: argparse.Namespace) -> tuple[Distilled, Listing, Preprocess | None]:
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
    given_too = {
        name: getattr(args, name)
        for name in ("width", "zca_reg", "hf_image", "hf_label")
        if getattr(args, name) is not None
    }
    config = Config(**settings, **given_too, inner_optim="Adam", inner_lr=0.001, num_train_eval=5)
    config.validate()
    target, listing = _before_download(known(args.dataset), args.im_size, stored), None
    if target is None:
        listing = _listed(config, args)
        target = Target(listing.name, listing.image_shape, listing.class_names)
    if args.mean is not None and len(args.mean) != target.shape[0]:
        raise UserError(f"--mean: {args.dataset} has {target.shape[0]} channel(s); give that many")
    found = from_foreign(
        stored, args.set, target, config, pixels=args.preprocess == "pixels", white=args.pixel_range,
        label_kind=args.label_kind or "auto", learnt=args.inner_lr is None,
    )  # fmt: skip
    listing = listing or _listed(config, args)
    return replace(found, class_names=listing.class_names), listing, preprocess


def _before_download(info: DatasetInfo, im_size: int | None, stored: Stored) -> Target | None:
    """What a set is compared with before a download; None where there is none, or where classes' names matter."""
    if info.origin != "downloaded" or info.num_classes is None or "folders" in stored.metadata:
        return None
    size = im_size or info.image_size
    return Target(info.name, (info.channels, size, size), [str(number) for number in range(info.num_classes)])


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
