"""Distilled images as a person would see them."""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from framework.data.preprocess import Preprocess
from framework.errors import printable
from framework.files import write_atomically
from framework.inner.counts import Counts

FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
TILE = 128  # pixels a side of a picture in the grid, about
HIGHEST = 16_384  # pixels of a grid: many viewers, and GPUs, open nothing higher


def natural_images(images: Tensor, preprocess: Preprocess, contrast: float) -> Tensor:
    """Distilled images (N, C, H, W) as a person would see them: float32 in [0, 1].

    Networks with instance norm hardly notice an image's contrast, and distilled images start at a tiny
    one; so each is stretched about its mean to ``contrast``, the standard deviation of real preprocessed
    images, before the preprocessing is undone.
    """
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    deviation = images.std(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
    return preprocess.inverse((images - mean) / deviation * contrast + mean)


def image_grid(
    pictures: Tensor,
    class_names: Sequence[str],
    path: Path,
    labels: Tensor | None = None,
    columns: int = 10,
    counts: Counts | None = None,
) -> None:
    """Draw pictures (N, C, H, W) in [0, 1] as a PNG: one row per class with its name.

    The first classes are drawn, as many as fit into ``HIGHEST`` pixels; a last line counts the others.

    Args:
        pictures: sorted by class.
        class_names: K of them.
        path: of the PNG.
        labels: (N, K) soft labels; if given, the two classes of the largest weights stand below each picture.
        columns: pictures shown of each class, the first ones.
        counts: pictures of each class (None: as many of each).
    """
    class_names = [_drawable(name) for name in class_names]
    classes, side = len(class_names), pictures.shape[-1]
    enlarge = max(1, TILE // side)  # whole numbers, so that every pixel is shown alike
    size, mode = (side * enlarge, "nearest") if side <= TILE else (TILE, "area")
    right, down, last = size + 8, size + (8 if labels is None else 36), 32
    rows = min(classes, (HIGHEST - 8 - last) // down)
    counts = counts or Counts.equal(classes, len(pictures) // classes)
    shown, more = counts.part(0, columns).numbers[:rows], classes - rows
    note = f"and {more:,} more class(es), not shown" if more else ""
    # Drawn with PIL: matplotlib takes minutes for the labels of a thousand classes.
    large, small = ImageFont.truetype(FONT, 14), ImageFont.truetype(FONT, 10)
    margin = 16 + math.ceil(max(large.getbbox(name)[2] for name in class_names[:rows]))
    width = max(margin + max(shown) * right, 16 + math.ceil(large.getbbox(note)[2]))
    sheet = Image.new("RGB", (width, 8 + rows * down + (last if more else 0)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((8, 8 + rows * down + last // 2), note, fill="black", font=large, anchor="lm")
    for row, name in enumerate(class_names[:rows]):
        y = 8 + row * down
        draw.text((margin - 8, y + size // 2), name, fill="black", font=large, anchor="rm")
        own = pictures[counts.offsets[row] :][: shown[row]].cpu().mul(255).round()
        for column, tile in enumerate(F.interpolate(own, (size, size), mode=mode)):
            x = margin + column * right
            sheet.paste(Image.fromarray(tile.expand(3, -1, -1).byte().permute(1, 2, 0).numpy()), (x, y))
            if labels is not None:
                draw.text((x, y + size + 2), _top_classes(labels[counts.offsets[row] + column], class_names),
                          fill="black", font=small)  # fmt: skip
    write_atomically(path, lambda file: sheet.save(file, format="PNG"))


@cache
def _glyphs() -> frozenset[int]:
    """Code points of the characters that the font has."""
    return frozenset(FT2Font(str(FONT)).get_charmap())


def _drawable(name: str) -> str:
    """A class name on one line, with escapes for characters that the font lacks, so that classes can be told apart."""
    return "".join(
        character if ord(character) in _glyphs() else character.encode("unicode_escape").decode()
        for character in printable(name)
    )


def _top_classes(label: Tensor, class_names: Sequence[str]) -> str:
    """The two largest of the non-negative class weights (K,), as shares, a line each."""
    top = (label / label.sum().clamp_min(torch.finfo(label.dtype).tiny)).topk(min(2, len(label)))
    return "\n".join(
        f"{class_names[k][:12]} {100 * share:.0f}%" for share, k in zip(*map(Tensor.tolist, top), strict=True)
    )
