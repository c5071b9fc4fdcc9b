"""What only a CUDA device can show: graphs, compiled kernels, precision, runs. References are the CPU's, in float64.

``scripts/test.sh`` runs these where there is a device, and everything else without one.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cli import HANGS, TINY, difference, state_of, torchrun
from problems import CPU, Problem, assert_same, make_problem, relative_error, solve
from torch import Tensor

from framework.distill_higher import Higher
from framework.inner.execution import Work, choose, set_device_precision
from framework.inner.graphs import Captured
from framework.inner.kernels import Execution, has_compiler
from framework.inner.loop import InnerLoop
from framework.inner.names import AUGMENTATIONS
from framework.inner.optimizers import SGD, Adam, Optimizer, PlainSGD
from framework.networks.flat import FlatNetwork
from framework.outer.engines.engine import MetaGradient
from framework.outer.engines.lowrank import LowRank, Recipe
from framework.outer.engines.replay import Replay
from framework.outer.matching.ftd import match
from framework.outer.policies.policy import Window
from main import main

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for --deterministic, before the device is used
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

CUDA = torch.device("cuda")
RULES: list[Optimizer] = [Adam(1e-2), SGD(0.1), Adam(1e-2, eps_root=1e-4)]
GRAPHS = Execution(chunk=2, graphs=True, together=True)
ON_CUDA = ["--device", "cuda"]


def both_devices(*arguments: Any, **options: Any) -> tuple[Problem, Problem]:
    """``make_problem``'s, the same numbers on the CPU and on the GPU."""
    return make_problem(*arguments, **options, device=CPU), make_problem(*arguments, **options, device=CUDA)


def reference(rule: Optimizer, window: Window, *problems: Problem) -> MetaGradient:
    return solve(Higher(InnerLoop(problems[0].network, rule)), window, *problems)


# ---- meta-gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=["Adam", "SGD", "rooted"])
@pytest.mark.parametrize("strategy", ["none", *AUGMENTATIONS, "_".join(AUGMENTATIONS)])
def test_captured_steps_are_exact(rule: Optimizer, strategy: str) -> None:
    cpu, cuda = both_devices(9, strategy, compose=True)
    window = Window(4, 5)
    assert_same(solve(Replay(InnerLoop(cuda.network, rule, GRAPHS)), window, cuda), reference(rule, window, cpu))


@pytest.mark.parametrize("arch", ["convnet", "vgg11", "resnet18", "vit"])
def test_every_kind_of_network_can_be_captured(arch: str) -> None:
    cpu, cuda = both_devices(4, arch=arch, side={"vgg11": 17, "resnet18": 9}.get(arch, 8), width=8, depth=None)
    window = Window(1, 3)
    assert_same(
        solve(Replay(InnerLoop(cuda.network, RULES[1], GRAPHS)), window, cuda), reference(RULES[1], window, cpu)
    )


def test_other_windows_need_no_new_capture() -> None:
    cpu, cuda = both_devices(12)
    loop = InnerLoop(cuda.network, RULES[0], GRAPHS)
    counts = []
    for window in (Window(2, 4), Window(0, 9), Window(5, 2), Window(2, 4)):
        assert_same(solve(Replay(loop), window, cuda), reference(RULES[0], window, cpu))
        tables = (*loop._step.values(), *loop._judge.values(), *loop._back.values())
        counts.append(sum(len(f._captures) for f in tables if isinstance(f, Captured)))
    assert counts == [3] * 4  # a step, its way back, the real batch


@pytest.mark.parametrize("graphs", [False, True])
def test_several_networks_share_each_call(graphs: bool) -> None:
    pairs = [both_devices(7, "flip_rotate_mixup", compose=True, seed=seed) for seed in range(3)]
    loop = InnerLoop(pairs[0][1].network, RULES[0], Execution(chunk=2, graphs=graphs, together=True))
    window = Window(2, 5)
    found = solve(Replay(loop), window, *(cuda for _, cuda in pairs))
    assert_same(found, reference(RULES[0], window, *(cpu for cpu, _ in pairs)))


@pytest.mark.parametrize("execution", [Execution(2), Execution(2, forward_over_reverse=True, graphs=True)], ids=str)
def test_other_ways_are_exact(execution: Execution) -> None:
    cpu, cuda = both_devices(7, "flip_rotate")
    window = Window(3, 4)
    assert_same(solve(Replay(InnerLoop(cuda.network, RULES[0], execution)), window, cuda),
                reference(RULES[0], window, cpu))  # fmt: skip


def test_higher_is_exact() -> None:
    cpu, cuda = both_devices(7, "flip_rotate")
    window = Window(3, 4)
    assert_same(reference(RULES[0], window, cuda), reference(RULES[0], window, cpu))


@pytest.mark.parametrize("cotangent", [False, True])
def test_the_low_rank_engine_is_the_cpus(cotangent: bool) -> None:
    cpu, cuda = both_devices(7, width=2, depth=1, side=4)
    window, recipe = Window(3, 4), Recipe(4, 4, 1, cotangent=cotangent)
    expected = solve(LowRank(InnerLoop(cpu.network, RULES[0]), recipe), window, cpu)
    assert_same(solve(LowRank(InnerLoop(cuda.network, RULES[0], GRAPHS), recipe), window, cuda), expected, 1e-6)


@pytest.mark.parametrize("graphs", [False, True])
def test_matching_gradients_are_the_cpus(graphs: bool) -> None:
    results = []
    for p, execution in zip(both_devices(6, "flip_rotate"), (Execution(), Execution(2, graphs=graphs)), strict=True):
        step_size = torch.tensor(0.3, dtype=torch.float64, device=p.theta.device)
        engine = Replay(InnerLoop(p.network, PlainSGD(), execution))
        results.append(match(engine, p.theta, 1.1 * p.theta, p.synthetic, step_size, p.plan))
    expected, found = results
    assert relative_error(found.grads.images, expected.grads.images) < 1e-9
    assert relative_error(found.step_size, expected.step_size) < 1e-9


@pytest.mark.parametrize(("graphs", "networks"), [(False, 1), (True, 1), (True, 2)])
def test_compiled_kernels_are_exact(graphs: bool, networks: int) -> None:
    if not has_compiler(CUDA):
        pytest.skip("torch.compile needs Triton, a device that it knows, a C++ compiler and Python.h")
    size = {"width": 2, "depth": 1, "ipc": 3, "batch_per_class": 2}
    pairs = [both_devices(6, "flip_rotate", **size, soft=False, seed=seed) for seed in range(networks)]
    window = Window(2, 4)
    loop = InnerLoop(pairs[0][1].network, RULES[0], Execution(4, compile=True, graphs=graphs, together=True))
    found = solve(Replay(loop), window, *(cuda for _, cuda in pairs))
    assert_same(found, reference(RULES[0], window, *(cpu for cpu, _ in pairs)))


# ---- precision -----------------------------------------------------------------------------------------


def in_float32(p: Problem) -> Problem:
    """The problem in float32, with the same numbers but for rounding."""
    return Problem(
        FlatNetwork(p.network.module, p.network.device, torch.float32), p.theta.float(),
        p.images.detach().float().requires_grad_(), p.labels.detach().float(), p.plan,
        type(p.real)(p.real.images.float(), p.real.labels.float(), p.real.draw),
    )  # fmt: skip


def direction(p: Problem, precision: str) -> Tensor:
    set_device_precision(precision)
    try:
        execution = choose("auto", CUDA, Work(), precision=precision)
        return solve(Replay(InnerLoop(p.network, SGD(0.1), execution)), Window(22, 8), p).grads.images.double().cpu()
    finally:
        set_device_precision("float32")


@pytest.mark.parametrize(("precision", "least"), [("float32", 0.99999), ("tf32", 0.999), ("bf16", 0.95)])
def test_lower_precision_points_the_same_way(precision: str, least: float) -> None:
    cpu, cuda = both_devices(30, "none", width=16, channels=3, soft=False)
    exact = reference(SGD(0.1), Window(22, 8), cpu).grads.images
    found = direction(in_float32(cuda), precision)
    assert F.cosine_similarity(found.flatten(), exact.flatten(), 0) > least


# ---- the hot loop --------------------------------------------------------------------------------------


@pytest.mark.parametrize("networks", [1, 2])
def test_an_outer_step_never_waits_for_the_device(networks: int) -> None:
    p = make_problem(8, "_".join(AUGMENTATIONS), compose=True, channels=3, device=CUDA)
    engine = Replay(InnerLoop(p.network, RULES[0], GRAPHS))
    expected = solve(engine, Window(2, 6), *[p] * networks)  # captures
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = solve(engine, Window(2, 6), *[p] * networks)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(found.grads.images, expected.grads.images, rtol=1e-9)


# ---- whole runs ----------------------------------------------------------------------------------------

METHODS = {
    "rat-bptt": ["--truncation", "rat-bptt", "--train_y"],
    "at-bptt": ["--truncation", "at-bptt", "-d", "1", "--engine", "lowrank", "--lowrank_rank", "2"],
    "at-bptt-pp": ["--truncation", "at-bptt-pp", "--window_radius", "1", "--cr_rank", "2", "--cr_oversample", "2"],
    "rat-is": ["--truncation", "rat-is", "--meta_batch", "2"],
    "rat-pool": ["--truncation", "rat-pool", "--pool_size", "2"],
    "higher": ["--engine", "higher"],
    "bf16": ["--precision", "bf16", "--totwindow", "24", "--syn_strategy", "flip_rotate_crop"],
    "zca": ["--zca", "--inner_optim", "SGD"],
}


@pytest.mark.parametrize("name", METHODS)
def test_a_run_resumes_to_the_bit(name: str, tmp_path: Path) -> None:
    flags = [*TINY, *ON_CUDA, "--deterministic", *METHODS[name], "--baselines", "random"]
    assert main([*flags, "--save_dir", str(tmp_path / "whole")]) == 0
    assert main([*flags, "--epochs", "1", "--save_dir", str(tmp_path / "parts")]) == 0
    assert main([*flags, "--save_dir", str(tmp_path / "parts"), "--resume"]) == 0
    assert difference(state_of(tmp_path / "whole"), state_of(tmp_path / "parts")) is None


def test_a_finished_run_is_judged_and_goes_on_on_either_device(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*TINY, *ON_CUDA, "--save_dir", str(run)]) == 0
    for device in ("cpu", "cuda"):
        assert main(["evaluate", str(run), "--device", device, "--num_train_eval", "2", "--eval_arch", "convnet", "vit",
                     "--baselines", "random", "kcentre", "--output", str(tmp_path / device)]) == 0  # fmt: skip
    assert main([*TINY, "--epochs", "4", "--resume", "--save_dir", str(run)]) == 0


def test_trajectories_are_matched(tmp_path: Path) -> None:
    common = [*TINY[:6], *ON_CUDA, "--lr_teacher", "0.05"]
    experts = ["--num_experts", "3", "--train_epochs", "3", "--batch_train", "200", "--side_by_side", "2"]
    assert main(["buffer", *common, *experts, "--buffer_path", str(tmp_path / "experts")]) == 0
    matching = ["ftd", *common, "--deterministic", "--buffer_path", str(tmp_path / "experts"), "--lr_img", "1",
                "--syn_steps", "3", "--expert_epochs", "1", "--max_start_epoch", "2", "--eval_it", "2",
                "--num_eval", "2", "--epoch_eval_train", "6", "--Iteration", "4"]  # fmt: skip
    assert main([*matching, "--save_dir", str(tmp_path / "whole")]) == 0
    assert main([*matching, "--Iteration", "2", "--save_dir", str(tmp_path / "parts")]) == 0
    assert main([*matching, "--save_dir", str(tmp_path / "parts"), "--resume"]) == 0
    assert difference(state_of(tmp_path / "whole"), state_of(tmp_path / "parts")) is None


@pytest.mark.parametrize("backend", ["nccl", "gloo"])
def test_processes_of_a_group(backend: str, tmp_path: Path) -> None:
    """NCCL lets no two processes share a device: one alone by NCCL, two by gloo."""
    flags = [*TINY, "--device", "cuda:0", "--train_y", "--deterministic", "--dist_backend", backend]
    count = {"nccl": 1, "gloo": 2}[backend]
    process = torchrun("--standalone", "--nproc-per-node", str(count), "main.py", *flags, "--save_dir", tmp_path)
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 0, err
