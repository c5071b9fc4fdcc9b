"""``main.py advise``: predictions by hand, from a run's records alone, and what it says where it cannot tell."""

import json
import shutil
from pathlib import Path

import pytest
from advised import write_run
from cli import refused

from framework.report.advice import advise
from framework.report.folder import RunFolder
from main import main

PASSES = [30 * n + 12 * 10 * 2 + 3 * 100 for n in range(3)]  # 10 images a step, a window of 2, 100 real images


def best(moments: list[float], costs: list[float]) -> float:
    """mean(m) mean(c) / mean(sqrt(m c))^2, of three positions."""
    root = sum((m * c) ** 0.5 for m, c in zip(moments, costs, strict=True))
    return sum(moments) * sum(costs) / root**2


def test_bins_gains_and_costs_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    norms = [6.0, 1.0, 1.0, 2.0, 1.0, 1.0]  # in turn at 0, 1, 2: m is 20, 1, 1
    write_run(tmp_path, norms)
    found = advise(RunFolder(tmp_path))
    assert (found.windows, found.steps) == (24, 24)
    assert [(b.first, b.last, b.windows, b.passes, b.seconds) for b in found.bins] == [
        (n, n, 8, PASSES[n], 0.5) for n in range(3)
    ]
    assert [b.norm**2 for b in found.bins] == pytest.approx([20, 1, 1])
    assert found.gain["pass"]["best"] == pytest.approx(best([20, 1, 1], PASSES))
    assert found.gain["second"]["best"] == pytest.approx(best([20, 1, 1], [1, 1, 1]))
    assert found.passes == {"prefix": 30, "window": 240, "real batch": 300}
    changes = {change.flag: (change.passes, change.noise) for change in found.changes}
    # A window of 1 starts at 0 .. 3, one of 4 at 0 alone. Kept networks start at 0 and 2, or at 1 after a prefix of 1.
    assert changes == {"--window 1": (45 + 120 + 300, None), "--window 4": (480 + 300, None),
                       "--truncation rat-pool": (30 / 3 + 540, None),
                       "--meta_batch 2": (2 * 570, 0.5), "--meta_batch 4": (4 * 570, 0.25)}  # fmt: skip


def test_halves_draw_by_one_half_and_judge_by_the_other(tmp_path: Path) -> None:
    """m is 36, 1, 1 in the one half and 4, 1, 1 in the other; p is 0.8 of the best and 0.2 uniform."""
    write_run(tmp_path, [6.0, 1.0, 1.0, 2.0, 1.0, 1.0], records={"seconds_per_step": None})

    def gain(by: list[float], judge: list[float]) -> float:
        best = [(m / c) ** 0.5 for m, c in zip(by, PASSES, strict=True)]
        p = [0.8 * share / sum(best) + 0.2 / 3 for share in best]
        moment = sum(m / q for m, q in zip(judge, p, strict=True)) / 9
        return sum(judge) * sum(PASSES) / 9 / moment / sum(q * c for q, c in zip(p, PASSES, strict=True))

    found, one, two = advise(RunFolder(tmp_path)), [36.0, 1.0, 1.0], [4.0, 1.0, 1.0]
    assert found.halves == {"pass": pytest.approx((gain(one, two) * gain(two, one)) ** 0.5)}
    assert found.gain["pass"]["rat-is"] == pytest.approx(gain([20.0, 1.0, 1.0], [20.0, 1.0, 1.0]))
    assert [b.seconds for b in found.bins] == [None] * 3


def test_it_ends_with_flags_to_try(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, [4.0, 1.0, 1.0], factors={0: 0.5})
    assert main(["advise", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "| 0 .. 0 | 4 | 4 | 2 | 100 % | 0.50 | 540 | 0.5 |" in text
    *_, headline, first, second = text.splitlines()
    assert headline == "Try, each by itself:"
    assert first.startswith("  --truncation rat-is    # predicted: the same error for 1/1.")
    assert second == "  --clip_by position    # the clip weighs positions by factors that differ 2.00-fold"
    assert main(["advise", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [flag for flag, _ in told["flags"]] == ["--truncation rat-is", "--clip_by position"]
    assert told["bins"][0]["cut"] == 1


def test_windows_that_hold_adams_first_step_are_told_apart(tmp_path: Path) -> None:
    """The mean square over three positions is (16 + 1 + 1) / 3 times that of the last two."""
    write_run(tmp_path, [4.0, 1.0, 1.0], inner_optim="Adam")
    found = advise(RunFolder(tmp_path))
    assert found.first_step == pytest.approx(6, rel=1e-12)
    assert found.flags[0][0] == "--minwindow 1"
    assert "6.00 times" in found.flags[0][1]
    write_run(tmp_path, [1.0, 1.0, 1.0], inner_optim="Adam")
    assert "--minwindow 1" not in dict(advise(RunFolder(tmp_path)).flags)
    write_run(tmp_path, [4.0, 1.0, 1.0], inner_optim="SGD")
    assert advise(RunFolder(tmp_path)).first_step is None
    write_run(tmp_path, [4.0, 1.0, 1.0], inner_optim="Adam", inner_eps_root=1e-6)
    assert advise(RunFolder(tmp_path)).first_step is None


def test_an_outlier_is_told_by_its_neighbours_after_the_clip(tmp_path: Path) -> None:
    """Norms of 100 at first, then of 1; the outlier of 30 times those around it is the one that starts at 1."""
    norms = [100.0] * 30 + [1.0] * 30
    norms[43] = 60.0
    write_run(tmp_path, norms, rounds=1, factors={1: 0.5})
    found = advise(RunFolder(tmp_path))
    assert found.outlier == pytest.approx(30, rel=1e-12)
    assert "was 30 times" in dict(found.flags)["--clip_norms applied"]
    write_run(tmp_path, norms, rounds=1, factors={1: 0.1})
    assert "--clip_norms applied" not in dict(advise(RunFolder(tmp_path)).flags)
    write_run(tmp_path, norms, rounds=1, factors={1: 0.5}, clip_norms="applied")
    assert "--clip_norms applied" not in dict(advise(RunFolder(tmp_path)).flags)


@pytest.mark.parametrize(
    ("norms", "flags", "end"),
    [
        ([1.0, 1.0, 1.0], {}, "Nothing to gain"),
        ([1.0], {"window": 4}, "Nothing to gain"),  # one position
        # Large in one half alone, elsewhere in the other.
        ([9.0, 1.0, 9.0, 1.0, 1.0, 1.0], {}, "Not certain: rat-is gains 1."),
    ],
)
def test_it_says_where_nothing_or_nothing_certain_is_to_be_gained(
    norms: list[float], flags: dict[str, int], end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, norms, **flags)
    assert main(["advise", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[-1].startswith(end)
    assert "Try" not in text


def test_a_run_that_has_the_clip_by_position_is_not_advised_to_take_it(tmp_path: Path) -> None:
    write_run(tmp_path, [1.0, 1.0, 1.0], factors={0: 0.5}, clip_by="position")
    assert advise(RunFolder(tmp_path)).flags == []


def test_bins_are_as_many_as_there_are_records_for(tmp_path: Path) -> None:
    """No window starts at 3, so that neither four nor three bins have any each."""
    write_run(tmp_path, [1.0, 1.0, 1.0], totwindow=5)
    assert [(b.first, b.last, b.windows) for b in advise(RunFolder(tmp_path)).bins] == [(0, 1, 8), (2, 3, 4)]
    write_run(tmp_path, [1.0, 1.0, 1.0], is_bins=2)
    assert [(b.first, b.last, b.windows) for b in advise(RunFolder(tmp_path)).bins] == [(0, 1, 8), (2, 2, 4)]


def test_earlier_steps_and_earlier_blocks_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, [5.0] * 12 + [1.0] * 12, rounds=1)
    assert {b.norm for b in advise(RunFolder(tmp_path), since=13).bins} == {1.0}
    write_run(tmp_path, [1.0, 1.0, 1.0], records={"block": 2}, num_per_class=2, boost_block=1, batch_per_class=2)
    assert advise(RunFolder(tmp_path)).bins[0].passes == 12 * 20 * 2 + 300


def test_what_an_actual_run_records_is_read(finished_run: Path) -> None:
    folder = RunFolder(finished_run)
    steps = folder.records["step"]
    assert [point.start for point in folder.windows] == [record["window_start"] for record in steps]
    assert all(point.norm > 0 and 0 < point.clip_factor <= 1 and point.seconds > 0 for point in folder.windows)


def test_classes_that_no_table_has_are_those_of_the_set(finished_run: Path, tmp_path: Path) -> None:
    write_run(tmp_path, [1.0, 1.0, 1.0], dataset="imagefolder")
    with pytest.raises(ValueError, match="wait for the first evaluation"):
        advise(RunFolder(tmp_path))
    shutil.copy(finished_run / "distilled.safetensors", tmp_path)
    assert advise(RunFolder(tmp_path)).bins[0].passes == PASSES[0]
    (tmp_path / "distilled.safetensors").write_text("nothing")
    with pytest.raises(ValueError, match=r"distilled\.safetensors: damaged"):
        advise(RunFolder(tmp_path))


@pytest.mark.parametrize(
    ("flags", "norms", "message"),
    [
        ({"truncation": "rat-is"}, [1.0, 1.0, 1.0], "a run of rat-is; give one of rat-bptt"),
        ({}, [1.0], "4 recorded windows are too few; let the run go on, or record more of them by --print_freq 1"),
        ({}, [], "0 recorded windows are too few"),
        ({}, [0.0, 1.0, 1.0], "all meta-gradients of some positions are 0"),
    ],
)
def test_a_run_without_what_is_needed_is_one_line(
    flags: dict[str, str], norms: list[float], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, norms, **flags)
    error = refused(["advise", str(tmp_path)], capsys)
    assert message in error
    assert error.count("\n") == 1
