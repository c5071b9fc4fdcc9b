"""The benchmarks of trajectory matching in small: what they compare is the same mathematics, and what they write."""

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from cli import TINY
from problems import CPU, relative_error
from sets import made_up_summary

import experts
import matching
import matching_study
from experts import BATCH, PLAIN, Shape, Variant, prepare, variants
from framework.errors import UserError
from framework.files import write_json
from framework.inner.kernels import Execution
from main import main
from matching_study import Clock, TimedJob, collect, table

SMALL = argparse.Namespace(
    images=10,
    width=2,
    chunk=0,
    step_size=0.01,
    start_epoch=1,
    expert_epochs=1,
    expert_images=50,
    variants=None,
    repeats=1,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With an expert."""
    where = tmp_path_factory.mktemp("matching")
    torch.save(matching.train_expert(SMALL, CPU), where / "expert.pt")
    return where


# ---- one matching iteration ------------------------------------------------------------------------------


def test_the_originals_graph_and_ours_give_one_gradient_and_none_another(folder: Path) -> None:
    problem = matching.make(folder, 3, SMALL, CPU)
    graph, replay, none = (problem.solver(name, 25)(problem) for name in ("graph", "replay", "none"))
    assert float(replay.loss) == pytest.approx(float(graph.loss), rel=1e-4)
    assert relative_error(replay.grads.images, graph.grads.images) < 1e-3
    assert float(replay.step_size) == pytest.approx(float(graph.step_size), rel=1e-3)
    assert relative_error(none.grads.images, graph.grads.images) > 1e-2


def test_a_variant_is_measured_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = f"--out {tmp_path} --device cpu --steps 2 --variants replay --images 10 --width 2 --repeats 2"
    words += " --start_epoch 1 --expert_epochs 1 --expert_images 50"
    monkeypatch.setattr(sys, "argv", ["matching.py", *words.split()])
    matching.main()
    (case,) = json.loads((tmp_path / "matching.json").read_text())["cases"]
    replay = case["variants"]["replay"]
    assert len(replay["runs"]) == 2
    assert min(replay["runs"]) <= replay["seconds"] <= max(replay["runs"])
    assert (replay["cosine"], replay["relative error"], replay["step size"]) == (pytest.approx(1), 0, 1)
    text = (tmp_path / "matching.md").read_text()
    assert text.startswith("| steps | variant |")
    assert text.count("\n| 2 | replay | ") == 1


def test_gradients_are_compared_with_the_reference(tmp_path: Path) -> None:
    for name, images, step_size in (("graph", [3.0, 4.0], 2.0), ("none", [3.0, 0.0], 3.0)):
        torch.save({"images": torch.tensor(images), "step_size": torch.tensor(step_size)}, tmp_path / f"{name}.pt")
    found = matching.compare(tmp_path, "none", "graph")
    assert found == {"cosine": pytest.approx(0.6), "relative error": pytest.approx(0.8), "step size": 1.5}


def test_a_graph_that_does_not_fit_is_left_out_with_a_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "available_mib", lambda device: 0.5)
    entry = matching.case(folder, 2000, replace_variants(["graph"]), CPU)
    assert entry["variants"] == {}
    assert entry["left out"]["graph"].startswith("needs about ")


def replace_variants(names: list[str]) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(SMALL), "variants": names})


# ---- experts ---------------------------------------------------------------------------------------------


def trained(variant: Variant, rho: float) -> torch.Tensor:
    return prepare(variant, Shape(1, 8, 2, 60_000, "crop"), rho, 1, CPU)()


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_the_plain_loop_trains_the_experts_of_ours(rho: float) -> None:
    plain = trained(Variant(PLAIN), rho)
    for at_once in (1, 2):
        ours = trained(Variant("ours", at_once, Execution(chunk=BATCH)), rho)
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)
    assert not torch.allclose(trained(Variant(PLAIN), 0.5 - rho), plain, rtol=0, atol=1e-5)


def test_a_variant_that_trains_another_expert_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    def crooked(variant: Variant, *other: object) -> object:
        return lambda: torch.full((experts_size(),), 1.0 if variant.execution is None else 1.1)

    def experts_size() -> int:
        return experts.FlatNetwork(experts.build("convnet", 1, 28, 10, width=2), CPU).size

    monkeypatch.setattr(experts, "prepare", crooked)
    a = argparse.Namespace(width=2, batches=1, at_once=[1], no_compile=True, repeats=1, tolerance=1e-4)
    with pytest.raises(SystemExit, match="1 at once, whole batches, eager trains another expert"):
        experts.case("mnist", 0.0, a, CPU)


def test_every_way_of_training_experts_is_measured() -> None:
    a = argparse.Namespace(at_once=[1, 4], no_compile=False)
    names = [variant.name for variant in variants(a, CPU)]
    assert names[:2] == ["plain", "plain, memory kept"]
    assert "4 at once, chunks of 25, compile" in names
    assert len(names) == len(set(names)) == 2 + 2 * 2 * 2


def test_experts_are_written_as_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = f"--out {tmp_path} --device cpu --shapes mnist --rhos 0.01 --width 2 --batches 1 --at_once 2 --no_compile"
    monkeypatch.setattr(sys, "argv", ["experts.py", *words.split(), "--repeats", "1"])
    experts.main()
    (case,) = json.loads((tmp_path / "experts.json").read_text())["cases"]
    assert len(case["variants"]) == 4
    for measured in case["variants"].values():
        assert measured["difference"] < 1e-4
        assert measured["seconds per epoch"] == pytest.approx(60_000 / BATCH * measured["runs"][0])
    assert (tmp_path / "experts.md").read_text().count("\n| mnist | 2 | 0.01 | ") == 4


# ---- accuracy at equal time ------------------------------------------------------------------------------


def job(tmp_path: Path, name: str = "FTD", seed: int = 0, experts: str = "buffer --rho 0.01") -> TimedJob:
    return TimedJob(name, seed, ["--x"], tmp_path / name / f"seed{seed}", experts.split(), 100)


def test_time_is_counted_over_attempts_and_survives_none_that_was_killed(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "x")
    with clock.running():
        pass
    assert 0 < clock.seconds < 100
    first = clock.seconds
    with pytest.raises(ValueError, match="failed"), clock.running():
        raise ValueError("failed")
    assert Clock(tmp_path / "x").seconds > first
    write_json(clock.path, {"seconds": 40, "state": "running"})  # as a killed study leaves it
    (tmp_path / "x" / "last.pt").touch()
    assert Clock(tmp_path / "x").seconds == 0
    assert not (tmp_path / "x").exists()


def test_experts_that_take_all_the_time_are_told(tmp_path: Path) -> None:
    one = job(tmp_path)
    write_json_in(one.experts_folder, {"seconds": 120, "state": "done"})
    with pytest.raises(UserError, match="--seconds 100: the experts of FTD, seed 0 took 120; raise it, or lower"):
        one.work(float("inf"), 1)


def test_a_run_without_an_evaluation_is_told(tmp_path: Path) -> None:
    one = job(tmp_path, "RaT-BPTT", experts="")
    write_json_in(one.folder, {"seconds": 100, "state": "done"})
    with pytest.raises(UserError, match="RaT-BPTT, seed 0 was not evaluated before they were over; raise it, or lower"):
        one.work(float("inf"), 1)


def write_json_in(folder: Path, content: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "clock.json", content)


def test_the_table_counts_the_experts_time(tmp_path: Path) -> None:
    jobs = [job(tmp_path, seed=0), job(tmp_path, seed=1), job(tmp_path, "RaT-BPTT", experts="")]
    jobs.append(job(tmp_path, "RaT-BPTT", seed=1, experts=""))  # not finished
    for one, top1 in zip(jobs, (0.8, 0.9, 0.7), strict=False):
        write_json_in(one.folder, {"seconds": 60, "state": "done"})
        if one.experts:
            write_json_in(one.experts_folder, {"seconds": 40, "state": "done"})
        summary = made_up_summary(top1=top1)
        random = replace(summary.results["random"], top1=0.5)
        write_json(one.folder / "summary.json", asdict(replace(summary, results={**summary.results, "random": random})))
    results = collect(jobs)
    text = table(results)
    assert "| FTD | 85.00 ± 7.07 | 50.00 ± 0.00 | 2 | 100 | 40 | 12 |" in text
    assert "| RaT-BPTT | 70.00 | 50.00 | 1 | 60 | 0 | 12 |" in text
    assert "FTD:\n\n    python main.py buffer --rho 0.01\n    python main.py --x" in text


def test_a_method_runs_until_its_time_is_over_and_is_judged_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is started is written down; the experts take 30 of the 100 seconds, the first attempt 50."""
    started: list[tuple[list[str], float]] = []
    one = job(tmp_path)

    def execute(title: str, arguments: list[str], folder: Path, seconds: float, threads: int) -> bool:
        started.append((arguments, seconds))
        return seconds == float("inf")

    monkeypatch.setattr(matching_study, "execute", execute)
    monkeypatch.setattr(TimedJob, "_reached", lambda self: "70")
    one.work(float("inf"), 1)
    assert [words[:3] for words, _ in started] == [
        ["buffer", "--rho", "0.01"],
        ["--x", "--buffer_path", str(one.experts_folder)],
    ]
    assert started[0][0][-2:] == ["--buffer_path", str(one.experts_folder)]
    write_json_in(one.experts_folder, {"seconds": 30, "state": "done"})
    write_json_in(one.folder, {"seconds": 50, "state": "stopped"})
    one.work(float("inf"), 1)
    assert started[2][0][-3:] == ["--resume", "--Iteration", matching_study.ENDLESS]
    assert started[2][1] == pytest.approx(20)
    write_json_in(one.folder, {"seconds": 70.5, "state": "stopped"})
    one.work(float("inf"), 1)
    assert len(started) == 4
    assert started[3][0][-3:] == ["--resume", "--Iteration", "70"]
    assert started[3][1] == float("inf")
    assert Clock(one.folder).done


def test_a_run_that_was_stopped_is_judged_at_its_last_whole_epoch(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "summary.json").unlink()
    write_json_in(run, {"seconds": 100, "state": "done"})
    flags = [*TINY, "--baselines", "random"]
    monkeypatch.setattr(matching_study, "execute", lambda title, arguments, *other: main(arguments) == 0)
    TimedJob("RaT-BPTT", 0, flags, run, [], 100).work(float("inf"), 1)
    summary = TimedJob("RaT-BPTT", 0, flags, run, [], 100).summary
    assert summary is not None
    assert (summary.epochs, sorted(summary.results)) == (2, ["distilled", "random"])
