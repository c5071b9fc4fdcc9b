"""First and second derivatives of a batch, however they are carried out, against plain autograd in float64."""

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from cli import ROOT
from problems import CPU, assert_same, emulate, make_problem, relative_error, solve
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from framework.distill_higher import Higher
from framework.inner.execution import Work, auto_chunk, choose
from framework.inner.graphs import WARM_UP, Captured, Recorder
from framework.inner.kernels import Execution, Kernels, has_compiler
from framework.inner.loop import LOW_PRECISION_FROM, InnerLoop
from framework.inner.names import AUGMENTATIONS
from framework.inner.optimizers import SGD, Adam, State
from framework.networks.flat import FlatNetwork
from framework.networks.registry import build
from framework.outer.engines.replay import Replay
from framework.outer.policies.policy import Window
from framework.rng import generator

needs_compiler = pytest.mark.skipif(not has_compiler(CPU), reason="torch.compile needs a C++ compiler and Python.h")


def batch(size: int, dtype: torch.dtype = torch.float64) -> tuple[FlatNetwork, Tensor, Tensor, Tensor, Tensor]:
    """A small network, its parameters, images, soft labels and a direction."""
    gen = generator(0, "kernels")
    network = FlatNetwork(build("convnet", 2, 8, 3, width=4, depth=1), CPU, dtype)
    images = torch.randn(size, 2, 8, 8, generator=gen, dtype=dtype)
    labels = torch.rand(size, 3, generator=gen, dtype=dtype)
    theta = network.init(gen)
    return network, theta, images, labels, torch.randn(theta.shape, generator=gen, dtype=dtype)


def loss(network: FlatNetwork, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(network(theta, images), labels)


EXECUTIONS = [
    Execution(chunk=100),
    Execution(chunk=3),
    Execution(chunk=1),
    Execution(chunk=3, channels_last=True),
    Execution(chunk=3, forward_over_reverse=True),
]


@pytest.mark.parametrize("execution", EXECUTIONS, ids=str)
def test_derivatives_equal_plain_autograd(execution: Execution) -> None:
    network, theta, images, labels, w = batch(7)
    kernels = Kernels(network, execution)
    inputs = [theta.clone().requires_grad_(), images.clone().requires_grad_(), labels.clone().requires_grad_()]
    expected_loss = loss(network, *inputs)
    (expected,) = torch.autograd.grad(expected_loss, inputs[0], create_graph=True)
    second = torch.autograd.grad(expected, inputs, w)

    value, accuracy, gradient = kernels.gradient(theta, images, labels)
    assert float(value) == pytest.approx(expected_loss.item(), rel=1e-12)
    assert float(accuracy) == pytest.approx(
        float((network(theta, images).argmax(1) == labels.argmax(1)).double().mean()), abs=1e-12
    )
    assert relative_error(gradient, expected.detach()) < 1e-12

    products = kernels.products(theta, images, labels, w, learn_labels=True)
    for product, reference in zip(products, second, strict=True):
        assert product is not None
        assert product.shape == reference.shape
        assert relative_error(product, reference) < 1e-12
    for result in (value, gradient, products[0], products[1]):
        assert result is not None
        assert not result.requires_grad


def test_what_is_not_wanted_is_not_returned() -> None:
    network, theta, images, labels, w = batch(5)
    kernels = Kernels(network, Execution(chunk=2))
    product, mixed, towards_labels = kernels.products(theta, images, labels, w, learn_labels=False)
    assert product is not None
    assert towards_labels is None
    without = kernels.products(theta, images, labels, w, learn_labels=False, hessian=False)
    assert without[0] is None
    assert relative_error(without[1], mixed) < 1e-14


def test_hessian_products_of_many_vectors_equal_one_by_one() -> None:
    network, theta, images, labels, _ = batch(5)
    kernels = Kernels(network, Execution(chunk=2))
    vectors = torch.randn(4, network.size, generator=generator(1, "vectors"), dtype=torch.float64)
    together = kernels.hessian_products(theta, images, labels, vectors)
    for v, product in zip(vectors, together, strict=True):
        (alone, *_) = kernels.products(theta, images, labels, v, learn_labels=False)
        assert alone is not None
        assert relative_error(product, alone) < 1e-12


def test_batch_normalised_batches_stay_whole() -> None:
    gen = generator(0, "batch norm")
    network = FlatNetwork(build("convnet", 2, 8, 3, width=4, depth=1, norm="batch"), CPU, torch.float64)
    theta, labels = network.init(gen), torch.rand(6, 3, generator=gen, dtype=torch.float64)
    images = torch.randn(6, 2, 8, 8, generator=gen, dtype=torch.float64)
    leaf = theta.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(network, leaf, images, labels), leaf)
    assert relative_error(Kernels(network, Execution(chunk=2)).gradient(theta, images, labels)[2], expected) < 1e-12


def test_bfloat16_is_close() -> None:
    network, theta, images, labels, w = batch(8, torch.float32)
    kernels = Kernels(network, Execution(precision="bf16"))
    full, low = (kernels.gradient(theta, images, labels, low)[2] for low in (False, True))
    assert not torch.equal(full, low)
    assert F.cosine_similarity(full, low, 0) > 0.99
    (h, *_), (h_low, *_) = (kernels.products(theta, images, labels, w, False, low) for low in (False, True))
    assert h is not None and h_low is not None
    assert h_low.dtype == torch.float32
    assert F.cosine_similarity(h, h_low, 0) > 0.98


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_bfloat16_is_for_later_steps_of_runs_that_ask_for_it(precision: str) -> None:
    p = make_problem(1)
    loop = InnerLoop(p.network, SGD(0.1), Execution(precision=precision))
    states = [State(p.theta, p.theta, p.theta, t) for t in (0, LOW_PRECISION_FROM - 1, LOW_PRECISION_FROM)]
    assert [loop.is_low(state) for state in states] == [False, False, precision == "bf16"]


@needs_compiler
@pytest.mark.parametrize(
    ("execution", "networks"),
    [(Execution(4, compile=True), 1), (Execution(6, compile=True, whole=True), 1),
     (Execution(4, compile=True, together=True), 2)],
    ids=str,
)  # fmt: skip
def test_a_compiled_meta_gradient_is_exact(execution: Execution, networks: int) -> None:
    """Compiling is slow: this test is for all compiled kernels. 6 images: the last chunk of 4 is filled up."""
    problems = [
        make_problem(6, "flip_rotate", width=2, depth=1, ipc=3, batch_per_class=2, soft=False, seed=seed)
        for seed in range(networks)
    ]
    network, rule = problems[0].network, Adam(1e-2)
    expected = solve(Higher(InnerLoop(network, rule)), Window(2, 4), *problems)
    assert_same(solve(Replay(InnerLoop(network, rule, execution)), Window(2, 4), *problems), expected)


MNIST = {"images": 10, "activations": 53_466, "layers": 13}  # of scripts/study.sh's network
DIGITS = {"images": 10, "activations": 13_322, "layers": 5}
CIFAR10 = {"images": 100, "activations": 559_114, "layers": 13}  # ConvNet of width 128


@pytest.mark.parametrize(
    ("device", "work", "worth"),
    [("cpu", Work(15 * 4000, **MNIST), True), ("cpu", Work(15 * 150, **MNIST), False),
     ("cpu", Work(15 * 450, **DIGITS), False), ("cpu", Work(15 * 1200, 100, 53_466, 13), True), ("cpu", Work(), False),
     ("cuda", Work(40 * 2000, **CIFAR10), True), ("cuda", Work(40 * 400, **CIFAR10), False),
     ("cuda", Work(15 * 4000, **MNIST), False), ("mps", Work(40 * 2000, **CIFAR10), False)],
)  # fmt: skip
def test_runs_are_compiled_where_that_saves_minutes(
    device: str, work: Work, worth: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU few images too: each of many small layers takes some time of its own."""
    monkeypatch.setattr("framework.inner.execution.has_compiler", lambda device: True)
    there = torch.device(device)
    assert choose("auto", there, work).compile == worth
    assert not choose("auto", there, work, replayed=False).compile
    assert not choose("none", there, work).compile
    if device != "mps":
        assert choose("compile", there, work).compile


@needs_compiler
def test_without_pythons_header_nothing_can_be_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert not has_compiler(CPU)


# ---- static buffers, with a stand-in for the GPU's graphs ------------------------------------------------


def graphed(loop: InnerLoop) -> InnerLoop:
    """``loop`` with every step replayed from static buffers."""
    result = InnerLoop(loop.network, loop.rule, loop.execution)
    object.__setattr__(result, "execution", Execution(chunk=loop.execution.chunk, together=loop.execution.together))
    for table in (result._step, result._judge, result._back):
        for key, function in table.items():
            table[key] = Captured(function, emulate)
    return result


@pytest.mark.parametrize("rule", [Adam(1e-2), SGD(0.1)], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("networks", [1, 2])
@pytest.mark.parametrize("soft", [False, True])
def test_steps_replayed_from_static_buffers_are_exact(rule: Adam | SGD, networks: int, soft: bool) -> None:
    problems = [make_problem(9, "flip_rotate_mixup", compose=True, soft=soft, seed=seed) for seed in range(networks)]
    loop = InnerLoop(problems[0].network, rule, Execution(together=True))
    for window in (Window(3, 6), Window(0, 4), Window(5, 2)):  # the same captures serve them all
        expected = solve(Higher(loop), window, *problems)
        result = solve(Replay(graphed(loop)), window, *problems)
        assert_same(result, expected)
        assert float(result.loss) == pytest.approx(float(expected.loss), rel=1e-12)
        assert (result.grads.labels is not None) == soft


def test_a_capture_is_made_once_for_each_shape() -> None:
    made = []

    def count(call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        made.append(1)
        return emulate(call)

    p = make_problem(8)
    loop = InnerLoop(p.network, Adam(1e-2))
    loop._step = {low: Captured(function, count) for low, function in loop._step.items()}
    state = loop.train(State.fresh(p.theta), p.images, p.labels, p.plan)
    assert len(made) == 1
    plain = InnerLoop(p.network, Adam(1e-2)).train(State.fresh(p.theta), p.images, p.labels, p.plan)
    assert relative_error(state.theta, plain.theta) < 1e-12
    assert state.t == plain.t == 8
    loop.train(State.fresh(p.theta), p.images, p.labels, make_problem(3, batch_per_class=2).plan)
    assert len(made) == 2


def test_a_capture_keeps_nothing_of_its_callers() -> None:
    doubled = Captured(lambda x, y: (2 * x, None if y is None else x + y), emulate)
    first, second = torch.ones(3), torch.full((3,), 5.0)
    results = [doubled(first, None)[0], doubled(second, None)[0], doubled(second, first)[1]]
    first.zero_()
    assert [result.tolist() for result in results] == [[2.0] * 3, [10.0] * 3, [6.0] * 3]


def test_a_loops_captures_share_one_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for torch.cuda: what is asked of it, not what it does."""
    pools: list[Any] = []
    modes: list[str] = []

    class Graph:
        def pool(self) -> str:
            return "the first graph's"

        def replay(self) -> None: ...

    @contextmanager
    def capture(graph: Graph, pool: Any, capture_error_mode: str) -> Iterator[None]:
        pools.append(pool)
        modes.append(capture_error_mode)
        yield

    stand_in = MagicMock(CUDAGraph=Graph, graph=capture)
    monkeypatch.setattr(torch, "cuda", stand_in)
    recorder, calls = Recorder(), []

    def call(name: str) -> str:
        calls.append(name)
        return name

    for name in ("step", "judge", "back"):
        replay, result = recorder(partial(call, name))
        assert result == name
        replay()
    assert pools == [None, "the first graph's", "the first graph's"]
    assert set(modes) == {"thread_local"}
    assert calls == ["step"] * (WARM_UP + 1) + ["judge"] * (WARM_UP + 1) + ["back"] * (WARM_UP + 1)


# ---- the hot loop of a device --------------------------------------------------------------------------


class OnDeviceOnly(TorchDispatchMode):
    """Fails where an operation reads or writes a tensor of the host; counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        assert all(tensor.is_meta for tensor in tensors), f"{function} touches the host"
        self.operations += 1
        return result


@pytest.mark.parametrize("networks", [1, 2])
@pytest.mark.parametrize("arch", ["convnet", "vit"])
@pytest.mark.parametrize("rule", [Adam(1e-2), SGD(0.1)], ids=lambda rule: type(rule).__name__)
def test_an_outer_step_never_touches_the_host(arch: str, networks: int, rule: Adam | SGD) -> None:
    """The "meta" device stands for any other: it has no numbers to wait for."""
    p = make_problem(
        6, "_".join(AUGMENTATIONS), compose=True, arch=arch, width=8, channels=3, device=torch.device("meta")
    )
    engine = Replay(InnerLoop(p.network, rule, Execution(chunk=2, together=True)))
    with OnDeviceOnly() as mode:
        result = solve(engine, Window(2, 4), *[p] * networks)
    assert result.grads.images.is_meta
    assert mode.operations > 1000
    with pytest.raises(AssertionError, match="touches the host"), OnDeviceOnly():
        torch.ones(3)
    with pytest.raises(RuntimeError, match="meta"):
        result.loss.item()


# ---- the allocator of a CPU ----------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_memory_serves_the_next_tensor() -> None:
    """Counted in pages that the system had to supply, in a process of its own: the setting cannot be undone."""
    program = """
import resource, sys, torch
from framework.inner.execution import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10**7)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(faults() for _ in range(20)))  # the C library takes a few to find its blocks again, and may lose them
"""
    counted = {}
    for mode in ("keep", "default"):
        command = [sys.executable, "-c", program, mode]
        counted[mode] = int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert counted["keep"] < counted["default"] / 10


@pytest.mark.parametrize(
    ("activations", "images"), [(559_000, 25), (140_000, 100), (13_000, 256), (10**9, 1), (0, 256)]
)
def test_chunks_on_a_cpu_are_as_large_as_their_activations_allow(activations: int, images: int) -> None:
    assert auto_chunk(torch.device("cpu"), activations) == images
    assert auto_chunk(torch.device("cuda"), activations) == 256
