"""Plots of a run."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from framework.records import Entry, Scores
from framework.report import plots
from framework.report.folder import EpochPoint
from framework.report.plots import COLUMNS, accuracy_plot, truncation_plot


def drawn(points: list[EpochPoint]) -> Figure:
    """The figure that would be saved."""
    with patch.object(plots, "save_figure") as save:
        truncation_plot(points, Path("unused"))
    figure: Figure = save.call_args.args[0]
    return figure


def windows(figure: Figure) -> list[tuple[float, float, float]]:
    """Epoch, start and end of every bar."""
    bars = [bar for c in figure.axes[0].collections if isinstance(c, LineCollection) for bar in c.get_segments()]
    return sorted((float(bar[0][0]), float(bar[0][1]), float(bar[1][1])) for bar in bars)


def test_every_window_stands_where_it_lay() -> None:
    points = [
        EpochPoint(1, 3, 4, 0.5, "early"),
        EpochPoint(2, 0, 9, float("nan"), "late"),
        EpochPoint(3, 5, 1, 0.6, None),
    ]
    assert windows(drawn(points)) == [(1, 3, 7), (2, 0, 9), (3, 5, 6)]


def test_a_stage_with_a_new_name_has_a_colour_of_its_own() -> None:
    """A policy to come may call its stages as it likes."""
    figure = drawn(
        [EpochPoint(1, 0, 1, 0.5, "early"), EpochPoint(2, 0, 1, 0.5, "thaw"), EpochPoint(3, 0, 1, 0.5, "frost")]
    )
    colours = {tuple(c.get_colors()[0][:3]) for c in figure.axes[0].collections if isinstance(c, LineCollection)}
    assert len(colours) == 3
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["early", "thaw", "frost"]


@pytest.mark.parametrize("count", [0, 1, COLUMNS, COLUMNS + 1, 60_000])
def test_a_long_run_is_thinned_to_what_pixels_can_show(count: int) -> None:
    points = [EpochPoint(i + 1, i % 7, 3, 0.5, "early" if i < count / 2 else "late") for i in range(count)]
    shown = windows(drawn(points))
    assert len(shown) <= COLUMNS
    assert len(shown) >= min(count, COLUMNS // 2)
    if count:
        assert shown[-1][0] == count, "the last epoch is there"
        gaps = np.diff([epoch for epoch, _, _ in shown])
        assert count == 1 or len(set(gaps)) == 1, "evenly spread"


def test_records_without_a_window_are_no_points() -> None:
    """Other methods have none; a damaged line may have anything."""
    whole = {"epoch": 3, "window_start": 1, "window_length": 2, "accuracy": 0.5, "stage": "x"}
    assert EpochPoint.of(whole) == EpochPoint(3, 1, 2, 0.5, "x")
    assert EpochPoint.of({"epoch": 3, "loss": 1.0}) is None
    assert EpochPoint.of({**whole, "window_start": "1"}) is None
    assert EpochPoint.of({**whole, "stage": 7}) == EpochPoint(3, 1, 2, 0.5, None)


def test_a_long_history_is_thinned_too(tmp_path: Path) -> None:
    scores = [Scores(0.5, 0.01, 1.0, None, 0.1, None, 0.5, None)]
    history = [Entry(25 * i, "val", [300], scores, 300, 0.5) for i in range(2400)]
    with patch.object(plots, "save_figure") as save:
        accuracy_plot(history, tmp_path / "unused")
    (line,) = save.call_args.args[0].axes[0].lines
    assert len(line.get_xdata()) == COLUMNS
    assert line.get_xdata()[-1] == history[-1].epoch
