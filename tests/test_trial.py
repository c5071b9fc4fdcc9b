"""``--dry_run --trial``: what it takes, what it says, and that it leaves nothing behind. No test depends on a clock."""

import re
import time
from itertools import count
from pathlib import Path

import pytest
import torch
from cli import TINY, refused
from loading import loaded

from framework import trial
from framework.config.bptt import Config, parse
from framework.data.registry import DATASETS
from framework.data.splits import StreamedImages
from framework.distill_higher import BackpropThroughTime
from framework.outer.synthetic import SyntheticSet
from framework.trial import Trial, forecast
from main import main

SMALL = [*TINY, "--dry_run", "--trial"]
PHASES = ["choice of the window", "prefix", "window", "real", "backward", "update"]


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The lines of a dry run, by what stands before the colon."""
    lines = capsys.readouterr().out.splitlines()
    return dict(line.split(": ", 1) for line in lines if ": " in line and not line.startswith(" "))


def test_the_forecast_is_the_sum_of_its_parts() -> None:
    phases = {"choice of the window": 2.0, "window": 3.0, "update": 1.0}
    found = Trial(True, ["0..3"], phases, inner=0.5, judged=4.0)
    c = Config(epochs=100, test_freq=30, num_train_eval=2, eval_steps=(10, 20), probe_every=3, baselines=("random",))
    # Evaluations of epochs 30, 60, 90 and 100, then two rows of the table; each 2 * (20 * 0.5 + 2 * 4) = 36 s.
    outer, judging = 100 * 6 * 4 + 34 * 2, (4 + 2) * 36
    assert forecast(found, c, 6, False, 0) == (
        f"time, in one process: {(outer + judging) / 3600:.3g} h, of which {outer / 3600:.3g} h for 600 outer steps "
        f"and {judging / 3600:.3g} h for 4 evaluations and the final table"
    )
    outer, judging = 39 * 6 * (4 + 2), (2 + 2) * 36
    assert forecast(found, c, 6, True, 61) == (
        f"time from where --resume continues, in one process: {(outer + judging) / 3600:.3g} h, of which "
        f"{outer / 3600:.3g} h for 234 outer steps and {judging / 3600:.3g} h for 2 evaluations and the final table"
    )


def test_a_stopwatch_adds_up_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)) ** 2)
    watch = trial._Stopwatch(torch.device("cpu"))
    watch.start()  # at 0
    for phase in ("a", "b", "a"):  # at 1, 4, 9
        watch(phase)
    assert watch.spent == {"a": 1 + 5, "b": 3}


def test_a_trial_takes_steps_of_the_run_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One to warm up and three, each of another epoch and window, on the real images."""
    monkeypatch.chdir(tmp_path)
    windows, updates, seen = [], [], []
    propose, update = BackpropThroughTime.propose, SyntheticSet.update
    real = loaded("digits").train.images
    assert isinstance(real, torch.Tensor)

    def spied(self: BackpropThroughTime, *args: torch.Tensor) -> object:
        windows.append(args[1])
        seen.append(torch.equal(args[3], real[args[2]]))
        return propose(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(BackpropThroughTime, "propose", spied)
    monkeypatch.setattr(SyntheticSet, "update", lambda self, *args: updates.append(update(self, *args)))
    assert main(SMALL) == 0
    lines = told(capsys)
    assert len(windows) == len(updates) == 4 and all(seen)
    shown = ", ".join(f"{w.start}..{w.start + w.length}" for w in windows[1:])
    assert lines["trial"].startswith("3 outer steps on the real images, ")
    assert lines["trial"].endswith(f"; windows {shown}")
    assert re.findall(r"([a-z][a-z ]+) [\d.e-]+[,)]", lines["trial"].split("; windows")[0]) == PHASES
    assert "h for 12 outer steps and" in lines["time, in one process"]
    assert "h for 3 evaluations and the final table" in lines["time, in one process"]
    assert list(tmp_path.iterdir()) == []


def test_random_pixels_stand_in_for_data_that_are_not_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--dataset", "mnist", "--root", str(tmp_path / "none"), "--init", "real", "--num_per_class", "2"]
    assert main([*SMALL, *flags, "--select", "test", "--zca"]) == 0
    lines = told(capsys)
    assert lines["trial"].startswith("3 outer steps on random pixels, as the data are not here, ")
    assert "h for 600 outer steps" in lines["time, in one process"]  # 60,000 images, 300 per step, 3 epochs
    folder = ["--dataset", "imagefolder", "--root", str(tmp_path / "none"), "--im_size", "8"]
    assert main([*SMALL, *folder]) == 0
    assert told(capsys)["time"] == "unknown until --root is here"
    assert list(tmp_path.iterdir()) == []


def test_the_stand_in_has_the_datas_numbers() -> None:
    c, _ = parse(["--dataset", "mnist", "--num_per_class", "3"])
    real = trial._stand_in(c, DATASETS["mnist"], 10, 54_000, torch.device("cpu"))
    assert (len(real.train), real.image_shape, real.num_classes) == (54_000, (1, 28, 28), 10)
    assert isinstance(real.train.images, StreamedImages)
    batch = real.train.batch(torch.tensor([3, 53_999]))
    assert batch.shape == (2, 1, 28, 28) and batch.std() > 0.1
    assert real.train.labels.bincount().tolist() == [5400] * 10


def test_of_a_run_that_was_begun_the_rest_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["--save_dir", str(tmp_path / "run")]
    assert main([*TINY, *folder, "--epochs", "1"]) == 0
    capsys.readouterr()
    assert main([*SMALL, *folder, "--resume"]) == 0
    assert "h for 8 outer steps" in told(capsys)["time from where --resume continues, in one process"]


def test_a_trial_refuses_what_a_run_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused([*SMALL, "--init", str(tmp_path / "none.pt")], capsys)
    assert "none.pt: no such file or folder; check the path" in said
    assert "--trial is not read by this run: only --dry_run without --eval_only reads it" in parse(["--trial"])[1][0]
