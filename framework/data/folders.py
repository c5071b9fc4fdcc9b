"""Readers of image files: trees of class folders, ImageNet and its subsets, Tiny-ImageNet, CUB-200-2011.

A reader lists what is there and checks it, but decodes nothing; see ``parts.Part``.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from framework.data.parts import FilePart, Source
from framework.data.subsets import SUBSETS
from framework.errors import MAY_READ, UserError, one_line


def read_cub(root: Path, size: int) -> Source:
    """CUB-200-2011 (200 kinds of birds) as distributed, in ``root/CUB_200_2011`` or ``root`` itself.

    The halves are those of ``train_test_split.txt``, the classes in the order of ``classes.txt``.
    Source: C. Wah et al., The Caltech-UCSD Birds-200-2011 Dataset, CNS-TR-2011-001.

    Raises:
        UserError: a file of the distribution is missing, or its tables contradict each other.
    """
    base = root if (root / "images.txt").is_file() else root / "CUB_200_2011"
    if not (base / "images.txt").is_file():
        raise UserError(
            f"--root {root}: {base / 'images.txt'} is missing; get CUB_200_2011.tgz from "
            f"https://www.vision.caltech.edu/datasets/cub_200_2011 and unpack it into {root}"
        )
    files = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
    paths, class_of, half_of, classes = (dict(row[:2] for row in _table(base / file, 2, " ")) for file in files)
    for file, table in ((files[1], class_of), (files[2], half_of)):
        if difference := sorted({*table} ^ {*paths}):
            raise UserError(
                f"{base / file}: its images and images.txt differ in {some(difference)}; unpack the archive again"
            )
    if difference := sorted({*class_of.values()} ^ {*classes}):
        raise UserError(
            f"{base / files[3]}: its classes and {files[1]} differ in {some(difference)}; unpack the archive again"
        )
    _require_two_classes(tuple(classes), base / files[3])
    label_of = {number: label for label, number in enumerate(classes)}

    def half(flag: str) -> FilePart:
        images = [image for image in paths if half_of[image] == flag]
        labels = [label_of[class_of[image]] for image in images]
        if missing := sorted({*range(len(classes))} - {*labels}):
            name = list(classes.values())[missing[0]]
            which = "training" if flag == "1" else "test"
            raise UserError(f"{base / files[2]}: class {name} has no {which} images; unpack the archive again")
        return FilePart([str(base / "images" / paths[image]) for image in images], torch.tensor(labels), size)

    # "001.Black_footed_Albatross"
    names = tuple(name.split(".", 1)[-1].replace("_", " ") for name in classes.values())
    return Source(names, half("1"), None, half("0"))


def read_imagefolder(root: Path, size: int) -> Source:
    """A tree ``root/train/CLASS/*`` and ``root/test/CLASS/*`` (or ``val`` for ``test``) of image files.

    With both ``test`` and ``val``, ``val`` is the validation part. Classes are the folders' names, sorted;
    hidden entries, and folders inside a class's folder, are not looked at, but for Tiny-ImageNet's level ``images``.

    Raises:
        UserError: a folder is missing or empty, classes differ between parts, or there is only one class.
    """
    if not root.is_dir():
        raise UserError(f"--root {root}: no such folder; give one that holds train/CLASS/* and test/CLASS/*")
    has_train, has_val, has_test = ((root / part).is_dir() for part in ("train", "val", "test"))
    # Tiny-ImageNet's test images have no labels and lie in one folder.
    has_test = has_test and not (has_val and folder_names(root / "test") == ["images"])
    if not has_train or not (has_val or has_test):
        missing = "test or val" if has_train else "train"
        raise UserError(f"--root {root}: it holds no folder {missing}; lay images out as train/CLASS/*, test/CLASS/*")
    class_names = tuple(folder_names(root / "train"))
    _require_two_classes(class_names, root / "train")
    return Source(
        class_names,
        _class_folders(root / "train", class_names, size),
        _class_folders(root / "val", class_names, size) if has_test and has_val else None,
        _class_folders(root / ("test" if has_test else "val"), class_names, size),
    )


def read_tiny_imagenet(root: Path, size: int) -> Source:
    """Tiny-ImageNet (3x64x64, 200 classes) as distributed, in ``root/tiny-imagenet-200`` or ``root`` itself.

    The distributed validation images are the test part, as the distributed test images have no labels.
    Classes are sorted by WordNet id and named by the first synonym in ``words.txt``.
    Source: Stanford CS231n, http://cs231n.stanford.edu/tiny-imagenet-200.zip.

    Raises:
        UserError: a file of the distribution is missing or damaged.
    """
    base = root if (root / "wnids.txt").is_file() else root / "tiny-imagenet-200"
    if not (base / "wnids.txt").is_file():
        raise UserError(
            f"--root {root}: {base / 'wnids.txt'} is missing; unpack "
            f"http://cs231n.stanford.edu/tiny-imagenet-200.zip into {root}"
        )
    wnids = tuple(sorted(line[0] for line in _table(base / "wnids.txt", 1)))
    _require_two_classes(wnids, base / "wnids.txt")
    words = {wnid: synonyms for wnid, synonyms, *_ in _table(base / "words.txt", 2)}
    if unknown := sorted({*wnids} - {*words}):
        raise UserError(f"{base / 'words.txt'}: it has no name for {some(unknown)}; unpack the archive again")
    return Source(
        tuple(words[wnid].split(",")[0].strip() for wnid in wnids),
        _file_part(((wnid, base / "train" / wnid) for wnid in wnids), size),
        None,
        _tiny_imagenet_val(base / "val", wnids, size),
    )


def _tiny_imagenet_val(folder: Path, wnids: Sequence[str], size: int) -> FilePart:
    """As distributed, or sorted into class folders, as many programs want it."""
    if any((folder / wnid).is_dir() for wnid in wnids):
        return _file_part(((wnid, folder / wnid) for wnid in wnids), size)
    annotations = folder / "val_annotations.txt"
    rows = _table(annotations, 2)
    if unknown := sorted({wnid for _, wnid, *_ in rows} ^ {*wnids}):
        raise UserError(f"{annotations}: its classes and wnids.txt differ in {some(unknown)}; unpack the archive again")
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    paths = [str(folder / "images" / file) for file, *_ in rows]
    return FilePart(paths, torch.tensor([label_of[wnid] for _, wnid, *_ in rows]), size)


def read_imagenet(root: Path, size: int) -> Source:
    """ImageNet-1k as ``train/WNID/*`` and ``val/WNID/*``, in ``root/imagenet`` or ``root`` itself.

    ``val`` is the test part, as ImageNet's own test labels are not public. Any number of classes is taken.
    Source: O. Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015.

    Raises:
        UserError: as ``read_imagefolder``, or the folders are missing.
    """
    base = _imagenet_tree(root)
    class_names = tuple(folder_names(base / "train"))
    _require_two_classes(class_names, base / "train")
    return Source(
        class_names,
        _class_folders(base / "train", class_names, size),
        None,
        _class_folders(base / "val", class_names, size),
    )


def read_imagenet_subset(name: str, root: Path, size: int) -> Source:
    """Ten classes of an ImageNet tree (see ``read_imagenet``), in the order of ``subsets.SUBSETS``.

    Other classes of the tree are not looked at, and need not be there.

    Raises:
        UserError: the tree or one of the classes is missing.
    """
    base, classes = _imagenet_tree(root), SUBSETS[name]
    for part in (base / "train", base / "val"):
        if missing := [f"{wnid} ({words})" for wnid, words in classes.items() if not (part / wnid).is_dir()]:
            raise UserError(
                f"--root {root}: {part} lacks {some(missing)} of {name}; download ILSVRC2012 from "
                f"https://image-net.org and put their images into {part}/WNID/"
            )
    train, val = (_file_part(((wnid, base / part / wnid) for wnid in classes), size) for part in ("train", "val"))
    return Source(tuple(classes.values()), train, None, val)


def _imagenet_tree(root: Path) -> Path:
    """The folder that holds ``train`` and ``val``: ``root/imagenet`` or ``root`` itself."""
    base = root / "imagenet" if (root / "imagenet").is_dir() else root
    for part in (base / "train", base / "val"):
        if not part.is_dir():
            raise UserError(
                f"--root {root}: {part} is missing; download ILSVRC2012 from https://image-net.org "
                f"and put its images into {part}/WNID/"
            )
    for part in (base / "train", base / "val"):
        if not any(entry.is_dir() for entry in _listed(part)):
            raise UserError(f"--root {root}: {part} holds no folders; sort its images into {part}/WNID/")
    return base


def folder_names(folder: Path) -> list[str]:
    """The sorted names of the folders in ``folder``; raises ``UserError`` as ``picture_paths``."""
    return [entry.name for entry in _visible(folder) if entry.is_dir()]


def picture_paths(folder: Path) -> list[str]:
    """The sorted paths of the files of one class, without hidden ones and those that Windows adds.

    Tiny-ImageNet has them one level lower, in ``images``, beside a text file of bounding boxes.

    Raises:
        UserError: the folder cannot be listed, or holds links to what is not there.
    """
    entries = _visible(folder)
    files = [entry.path for entry in entries if entry.is_file()]
    if any(entry.name == "images" and entry.is_dir() for entry in entries) and all(f.endswith(".txt") for f in files):
        return picture_paths(folder / "images")
    return files


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    """What is not hidden, by name; raises ``UserError`` where the folder cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not _hidden(e.name)), key=lambda entry: entry.name)
    except OSError as error:
        remedy = MAY_READ if isinstance(error, PermissionError) else "check the path"
        raise UserError(f"{folder}: cannot be listed ({error.strerror}); {remedy}") from error


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    """``_listed``, where all of it is used; raises ``UserError`` where a link leads nowhere, too."""
    shown = _listed(folder)
    if dangling := [e.name for e in shown if e.is_symlink() and not os.path.exists(e.path)]:
        raise UserError(
            f"{folder}: {len(dangling)} link(s) lead nowhere ({some(dangling)}); restore what they name or remove them"
        )
    return shown


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in ("thumbs.db", "desktop.ini")


def _class_folders(folder: Path, class_names: tuple[str, ...], size: int) -> FilePart:
    """List ``folder/CLASS/*``, whose classes must be exactly ``class_names``."""
    if difference := sorted({*folder_names(folder)} ^ {*class_names}):
        raise UserError(
            f"{folder}: its classes differ from the training classes in {some(difference)}; make them equal"
        )
    return _file_part(((name, folder / name) for name in class_names), size)


def _file_part(folders: Iterable[tuple[str, Path]], size: int) -> FilePart:
    """List the files of one folder per class; ``folders`` yields (class name, folder) in label order."""
    paths: list[str] = []
    counts: list[int] = []
    for name, folder in folders:
        files = picture_paths(folder)
        if not files:
            raise UserError(f"{folder}: class {name} has no images; put some there or remove the class")
        paths += files
        counts.append(len(files))
    return FilePart(paths, torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)), size)


def _require_two_classes(class_names: Sequence[str], where: Path) -> None:
    if len(class_names) < 2:
        raise UserError(f"{where}: found {len(class_names)} class(es), but it takes at least 2 to classify")


def _table(path: Path, columns: int, separator: str = "\t") -> list[list[str]]:
    """Return the lines of ``path``, each split into its fields, of which it must have at least ``columns``."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); unpack the archive again") from error
    rows = [line.split(separator) for line in lines if line.strip()]
    if not rows or min(map(len, rows)) < columns:
        raise UserError(f"{path}: expected lines of at least {columns} fields; unpack the archive again")
    return rows


def some(names: Sequence[str]) -> str:
    """Name a few of ``names`` and count the others."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
