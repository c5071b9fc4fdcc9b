"""What a person sees: metrics, TensorBoard, tables and pictures."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sets import made_up_summary as summary
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from torch import Tensor

from framework.data.preprocess import Standardise
from framework.distilled import pictures
from framework.distilled.pictures import image_grid, natural_images
from framework.errors import UserError
from framework.files import finite, write_json
from framework.inner.counts import Counts
from framework.machine import environment
from framework.records import Entry, Scores
from framework.report.folder import RunFolder
from framework.report.metrics import Reporter
from framework.report.plots import accuracy_plot
from framework.report.tables import percent, result_table

# ---- metrics ---------------------------------------------------------------------------------------


@pytest.fixture
def open_reporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Reporter]]:
    """Opens reporters on ``tmp_path`` and closes them in the end."""
    # TensorBoard reads files of one second in the order of their numbers as text, where 10 comes before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    opened: list[Reporter] = []

    def opener(**arguments: Any) -> Reporter:
        opened.append(Reporter(tmp_path, 100, **arguments))
        return opened[-1]

    yield opener
    for reporter in opened:
        reporter.close()


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics; anything that is not one JSON object a line, in the strict sense, is an error."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    text = (folder / "metrics.jsonl").read_text()
    assert text.endswith("\n") or text == ""
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_metrics_are_json_lines_that_can_be_read_at_once(
    tmp_path: Path, open_reporter: Callable[..., Reporter]
) -> None:
    reporter = open_reporter()
    reporter.log("step", 1, loss=0.1, window_start=3)
    reporter.log("evaluation", 2, split="val", scores=[{"top1": 0.5, "top1_std": None}])
    assert lines(tmp_path) == [
        {"kind": "step", "step": 1, "loss": 0.1, "window_start": 3},
        {"kind": "evaluation", "step": 2, "split": "val", "scores": [{"top1": 0.5, "top1_std": None}]},
    ]
    assert reporter.records == 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_metrics_that_are_not_finite_are_json_too(
    value: float, tmp_path: Path, open_reporter: Callable[..., Reporter]
) -> None:
    open_reporter().log("step", 1, loss=value)
    assert lines(tmp_path)[0]["step"] == 1


def test_tensorboard_holds_every_number_and_picture(tmp_path: Path, open_reporter: Callable[..., Reporter]) -> None:
    reporter = open_reporter()
    for step in (1, 2, 3):
        reporter.log("step", step, loss=0.5 / step, window_start=step, text="no number", missing=None)
    reporter.pictures("distilled", torch.rand(4, 3, 8, 8), 3)
    reporter.close()
    assert scalars(tmp_path) == {
        "step/loss": [(1, 0.5), (2, 0.25), (3, pytest.approx(0.5 / 3))],
        "step/window_start": [(1, 1.0), (2, 2.0), (3, 3.0)],
    }
    assert EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()["images"] == ["distilled"]


def test_tensorboard_shows_a_grid_that_can_be_opened(tmp_path: Path, open_reporter: Callable[..., Reporter]) -> None:
    reporter = open_reporter()
    levels = torch.linspace(0, 1, 20_000)
    reporter.pictures("distilled", levels.view(-1, 1, 1, 1).expand(-1, 1, 8, 8), 3)
    reporter.close()
    (event,) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Images("distilled")
    assert (event.width, event.height) == (64, 10_000), "every second one"


def test_resuming_drops_the_records_of_steps_that_are_taken_again(
    tmp_path: Path, open_reporter: Callable[..., Reporter]
) -> None:
    first = open_reporter()
    for step in (1, 2, 3, 4):
        first.log("step", step, loss=float(step))
    first.close()
    second = open_reporter(step=2, records=2)
    assert second.records == 2
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    second.log("step", 3, loss=30.0)
    second.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert scalars(tmp_path)["step/loss"] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert second.bar.initial == 2
    assert second.bar.total == 100


GOOD = '{"kind": "step", "step": 1}\n'


@pytest.mark.parametrize(
    ("text", "records", "kept"),
    [
        pytest.param("", 0, 0, id="nothing"),
        pytest.param(GOOD * 3, 0, 0, id="another run"),
        pytest.param(GOOD * 2 + GOOD[:9], 2, 2, id="cut off after the checkpoint"),
        pytest.param(GOOD * 2, 3, 2, id="a line lost"),
        pytest.param(GOOD * 2 + GOOD[:9], 3, 2, id="half a line lost"),
        pytest.param(GOOD * 2 + GOOD[:-1], 3, 3, id="a line's end lost"),
    ],
)
def test_whatever_was_left_the_metrics_stay_readable(
    text: str, records: int, kept: int, tmp_path: Path, open_reporter: Callable[..., Reporter]
) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    reporter = open_reporter(step=records, records=records)
    reporter.log("step", 9)
    assert [line["step"] for line in lines(tmp_path)] == [1] * kept + [9]
    assert reporter.records == kept + 1


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        Reporter(tmp_path / "missing", 10)


def test_a_full_disk_is_a_user_error_that_says_how_to_go_on(
    open_reporter: Callable[..., Reporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter = open_reporter()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reporter.board.file_writer, "add_summary", full)
    with pytest.raises(UserError, match=r"No space left on device; free space"):
        reporter.log("step", 1, loss=0.5)


# ---- tables ----------------------------------------------------------------------------------------


def test_the_table_shows_every_row_with_its_deviations() -> None:
    text = result_table(summary())
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert rows[0] == ["digits, trained on", "top-1 %", "top-5 %", "ECE %", "networks", "steps"]
    assert rows[2:] == [
        ["10 distilled images", "61.2 ± 0.8", "95.0 ± 0.0", "3.1", "5", "300"],
        ["10 random real images", "61.2", "95.0 ± 0.0", "3.1", "1", "600"],
    ]
    assert "images: save/x/distilled.safetensors" in text.splitlines()


def test_a_result_selected_on_the_test_set_says_so() -> None:
    """Ancestors' fault 19."""
    assert "TEST SET" in result_table(summary("test"))
    assert "optimistic" in result_table(summary("test"))
    assert "TEST SET" not in result_table(summary("val"))
    assert "validation split" in result_table(summary("val"))


@pytest.mark.parametrize(
    ("mean", "deviation", "text"), [(0.6123, 0.0084, "61.2 ± 0.8"), (1.0, 0.0, "100.0 ± 0.0"), (0.0, None, "0.0")]
)
def test_percentages_come_from_fractions(mean: float, deviation: float | None, text: str) -> None:
    assert percent(mean, deviation) == text


def test_a_summary_is_read_back_and_is_always_json(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).summary is None
    write_json(tmp_path / "summary.json", asdict(summary()))
    assert "NaN" not in (tmp_path / "summary.json").read_text()
    read = RunFolder(tmp_path).summary
    assert read is not None
    assert math.isnan(read.results["random"].loss)
    assert repr(read) == repr(summary())  # NaN differs from itself


def without(*path: str) -> bytes:
    """A summary that lacks one key."""
    content: Any = asdict(summary())
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return json.dumps(finite(content)).encode()


@pytest.mark.parametrize(
    "content",
    [b"{", b"", b"\xff", b"[1]", b"3", b"null", without("results"), without("files"),
     without("results", "distilled", "name"), without("results", "random", "top1_std"),
     json.dumps({**finite(asdict(summary())), "epochs": "3"}).encode(),
     json.dumps({**finite(asdict(summary())), "results": []}).encode()],
)  # fmt: skip
def test_a_damaged_summary_is_a_user_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(UserError, match=r"summary.json.*delete it, and the run's own command with --resume"):
        _ = RunFolder(tmp_path).summary


# ---- pictures --------------------------------------------------------------------------------------


def picture(path: Path) -> np.ndarray:
    """A PNG's pixels, (H, W, 3) in 0..255."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def solid(*colours: tuple[float, ...], side: int = 6) -> Tensor:
    """One image of a single colour for each of ``colours``."""
    return torch.tensor(colours).view(len(colours), -1, 1, 1).expand(-1, -1, side, side)


RED, GREEN, BLUE, CYAN, PINK, GOLD = (1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0), (0, 1.0, 1.0), (1.0, 0, 1.0), (1.0, 0.8, 0)


def centre(pixels: np.ndarray, colour: tuple[float, ...]) -> tuple[float, float]:
    """Row and column of the middle of everything of that colour."""
    at = np.argwhere((np.abs(pixels - 255 * np.array(colour)) < 2).all(-1))
    assert len(at) > 100
    return tuple(at.mean(0))


def test_the_grid_has_one_row_per_class_and_one_column_per_image(tmp_path: Path) -> None:
    colours = (RED, GREEN, BLUE, CYAN, PINK, GOLD)
    image_grid(solid(*colours), ["a", "b", "c"], tmp_path / "grid.png")
    pixels = picture(tmp_path / "grid.png")
    (red, green), (blue, cyan), (pink, gold) = ([centre(pixels, c) for c in colours[i : i + 2]] for i in (0, 2, 4))
    for left, right in ((red, green), (blue, cyan), (pink, gold)):
        assert abs(left[0] - right[0]) < 2
        assert left[1] < right[1]
    for column in ((red, blue, pink), (green, cyan, gold)):
        assert column[0][0] < column[1][0] < column[2][0]
        assert np.ptp([at[1] for at in column]) < 2


def test_the_grid_shows_the_first_images_where_a_class_has_many(tmp_path: Path) -> None:
    image_grid(solid(RED, GREEN, BLUE, CYAN), ["a", "b"], tmp_path / "grid.png", columns=1)
    pixels = picture(tmp_path / "grid.png")
    assert centre(pixels, RED)[0] < centre(pixels, BLUE)[0]
    for hidden in (GREEN, CYAN):
        assert not (np.abs(pixels - 255 * np.array(hidden)) < 2).all(-1).any()


def test_the_grid_has_each_classs_own_images_where_they_are_not_as_many(tmp_path: Path) -> None:
    image_grid(solid(RED, GREEN, BLUE, CYAN), ["a", "b"], tmp_path / "grid.png", counts=Counts((1, 3)), columns=2)
    pixels = picture(tmp_path / "grid.png")
    red, green, blue = (centre(pixels, colour) for colour in (RED, GREEN, BLUE))
    assert red[0] < green[0] and abs(green[0] - blue[0]) < 2
    assert abs(red[1] - green[1]) < 2 and green[1] < blue[1]
    assert not (np.abs(pixels - 255 * np.array(CYAN)) < 2).all(-1).any()


def test_grey_images_are_shown_on_a_fixed_scale(tmp_path: Path) -> None:
    """Not stretched: a dark image stays dark beside no other."""
    image_grid(solid((0.25,), (0.75,)), ["a", "b"], tmp_path / "grid.png")
    pixels = picture(tmp_path / "grid.png")
    assert centre(pixels, (0.25,) * 3)[0] < centre(pixels, (0.75,) * 3)[0]


def test_soft_labels_are_told_by_their_two_largest_classes() -> None:
    """As shares: learnt weights need not add up to one, and may all be zero."""
    names = ["cat", "dog", "a_very_long_name_of_a_class"]
    assert pictures._top_classes(torch.tensor([0.5, 0.0, 1.5]), names) == "a_very_long_ 75%\ncat 25%"
    assert pictures._top_classes(torch.tensor([0.0, 0.2, 0.0]), names).startswith("dog 100%\n")
    assert pictures._top_classes(torch.zeros(3), names).count(" 0%") == 2
    assert pictures._top_classes(torch.ones(1), ["cat"]) == "cat 100%"


def test_a_grid_with_labels_still_has_one_row_per_class(tmp_path: Path) -> None:
    image_grid(solid(RED, GREEN, BLUE, CYAN), ["a", r"$\foo$"], tmp_path / "grid.png", torch.eye(2).repeat(2, 1))
    pixels = picture(tmp_path / "grid.png")
    red, green, blue, cyan = (centre(pixels, colour) for colour in (RED, GREEN, BLUE, CYAN))
    assert abs(red[0] - green[0]) < 2 and abs(blue[0] - cyan[0]) < 2 and red[0] < blue[0]
    assert red[1] < green[1] and blue[1] < cyan[1]
    image_grid(solid(RED, GREEN, BLUE, CYAN), ["a", r"$\foo$"], tmp_path / "bare.png")
    bare = picture(tmp_path / "bare.png")
    assert len(pixels) > len(bare), "the labels have room of their own"
    assert ((pixels < 128).all(-1)).sum() > ((bare < 128).all(-1)).sum() + 50, "and are written there"


@pytest.mark.parametrize("soft", [False, True])
def test_a_grid_of_many_classes_stays_low_enough_to_be_opened(soft: bool, tmp_path: Path) -> None:
    """The first classes as they always are, and a line that counts the others."""
    names, shade = [str(k) for k in range(1200)], torch.rand(1200, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    images, labels = shade.expand(-1, -1, 6, 6), torch.eye(1200) if soft else None
    image_grid(images, names, tmp_path / "all.png", labels)
    shown = picture(tmp_path / "all.png")
    drawn = (16384 - 40) // (126 + (36 if soft else 8))
    assert len(shown) == 8 + drawn * (126 + (36 if soft else 8)) + 32 <= 16384
    image_grid(images[:drawn], names[:drawn], tmp_path / "first.png", None if labels is None else labels[:drawn])
    first = picture(tmp_path / "first.png")
    assert np.array_equal(shown[: len(first) - 8, : first.shape[1]], first[:-8])
    assert (shown[len(first) :, :200] < 128).all(-1).sum() > 100, "the last line"
    assert np.array_equal(first[-8:], np.full_like(first[-8:], 255))


def test_the_last_line_of_a_grid_counts_the_classes_that_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    draw = pictures.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        pictures.ImageDraw.ImageDraw,
        "text",
        lambda self, at, text, **kw: written.append(text) or draw(self, at, text, **kw),
    )
    for classes in (121, 122, 1200):
        image_grid(torch.zeros(classes, 3, 6, 6), [str(k) for k in range(classes)], tmp_path / "grid.png")
    assert [text for text in written if not text.isdecimal()] == [
        "", "and 1 more class(es), not shown", "and 1,079 more class(es), not shown",
    ]  # fmt: skip


@pytest.mark.parametrize("side", [1, 28, 64, 128, 224])
def test_pictures_of_any_size_fill_tiles_of_the_same_colour(side: int, tmp_path: Path) -> None:
    image_grid(solid(RED, BLUE, side=side), ["a", "b"], tmp_path / "grid.png")
    pixels = picture(tmp_path / "grid.png")
    for colour in (RED, BLUE):
        filled = (np.abs(pixels - 255 * np.array(colour)) < 2).all(-1).sum()
        assert filled == (128 - 128 % side if side < 128 else 128) ** 2


@pytest.mark.parametrize("name", ["n01440764", "é", r"$\foo$", "a\nb", "猫", "caf\udce9"])
def test_any_class_name_can_be_drawn(name: str, tmp_path: Path) -> None:
    image_grid(solid(RED), [name], tmp_path / "grid.png")
    centre(picture(tmp_path / "grid.png"), RED)


def test_names_without_glyphs_can_be_told_apart(tmp_path: Path) -> None:
    assert [pictures._drawable(name) for name in ("é a", "a\nb", "猫", "caf\udce9")] == [
        "é a", r"a\nb", r"\u732b", r"caf\udce9",
    ]  # fmt: skip
    image_grid(solid(RED, BLUE), ["猫", "犬\n"], tmp_path / "grid.png", torch.eye(2))


@pytest.mark.parametrize("entries", [1, 3])
def test_the_plot_is_a_picture_with_a_curve_for_each_length(entries: int, tmp_path: Path) -> None:
    rest = (1.0, None, 0.1, None, 0.5, None)
    scores = [Scores(0.5, 0.01, *rest), Scores(0.6, None, *rest)]
    history = [Entry(5 * i, "val", [300, 600], scores, 600, 0.6) for i in range(entries)]
    accuracy_plot(history, tmp_path / "accuracy.png")
    pixels = picture(tmp_path / "accuracy.png")
    for colour in ("1f77b4", "ff7f0e"):  # the first two of matplotlib's cycle
        rgb = np.array([int(colour[i : i + 2], 16) for i in (0, 2, 4)])
        assert (np.abs(pixels - rgb) < 3).all(-1).sum() > 10


def test_pictures_replace_an_older_one_and_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "grid.png").write_bytes(b"old")
    image_grid(solid(RED), ["a"], tmp_path / "grid.png")
    assert [entry.name for entry in tmp_path.iterdir()] == ["grid.png"]
    centre(picture(tmp_path / "grid.png"), RED)


STANDARD = Standardise(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3]))


def test_natural_images_are_stretched_to_the_real_contrast_and_unprocessed() -> None:
    gen = torch.Generator().manual_seed(0)
    images = 0.01 * torch.randn(4, 3, 8, 8, generator=gen) + 0.1
    natural = natural_images(images, STANDARD, 0.7)
    assert natural.dtype == torch.float32
    for image, result in zip(images.double().numpy(), natural.numpy(), strict=True):
        stretched = (image - image.mean()) / image.std(ddof=1) * 0.7 + image.mean()
        expected = stretched * np.array([0.2, 0.25, 0.3])[:, None, None] + np.array([0.4, 0.5, 0.6])[:, None, None]
        assert np.allclose(result, expected.clip(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 1e3])
def test_natural_images_lie_between_0_and_1_and_even_the_faintest_are_visible(scale: float) -> None:
    images = scale * torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    natural = natural_images(images, STANDARD, 1.0)
    assert natural.min() >= 0
    assert natural.max() <= 1
    assert scale > 1 or natural.flatten(1).std(dim=1).min() > 0.1


def test_a_flat_image_is_shown_flat() -> None:
    natural = natural_images(torch.zeros(1, 3, 8, 8), STANDARD, 1.0)
    assert torch.allclose(natural[0].movedim(0, -1), torch.tensor([0.4, 0.5, 0.6]), rtol=0, atol=1e-6)


# ---- facts a figure depends on ---------------------------------------------------------------------


def test_the_environment_names_device_and_versions() -> None:
    facts = environment(torch.device("cpu"))
    assert facts["torch"] == torch.__version__
    assert facts["device"].startswith("cpu")
    with open("/proc/self/status") as status:
        (peak,) = (int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
    assert (
        0.95 * peak < facts["peak_memory_mib"] < 50 * peak
    )  # a parent's peak may count; a wrong unit is 1024 times off
