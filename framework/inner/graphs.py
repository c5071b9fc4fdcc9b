"""Replaying a function of tensors as a CUDA graph: one launch instead of hundreds."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

Call = Callable[[], Any]


Recording = tuple[Callable[[], None], Any]


WARM_UP = 3  # runs before a capture, in which libraries choose algorithms and allocate workspaces


class Recorder:
    """Captures calls on the current CUDA device.

    All of its graphs work in the same memory: they run one after another, and who runs one copies its result before the
    next.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, call: Call) -> Recording:
        """Capture ``call``.

        Returns:
            What runs it again, and its result, whose tensors each run overwrites.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Threads that load data or watch other processes may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = call()
        self._pool = graph.pool()
        return graph.replay, result


def preparer(graphs: bool) -> Callable[[Any], Any]:
    """What makes graphs of functions that are never replayed at the same time, or leaves them as they are."""
    return partial(Captured, record=Recorder()) if graphs else lambda function: function


class Captured:
    """A function captured once for each combination of its arguments' shapes, and replayed from static buffers.

    Args:
        function: of tensors, numbers, None and registered dataclasses of them; must neither wait for the host nor
            depend on anything but its arguments. It sees numbers as float64 scalars on the device.
        record: makes the capture; the same one for functions that are never replayed at the same time.
    """

    def __init__(self, function: Callable[..., Any], record: Callable[[Call], Recording]) -> None:
        self.function, self.record = function, record
        self._captures: dict[object, tuple[list[Any], Recording]] = {}

    def __call__(self, *arguments: Any) -> Any:
        """The function's result, in tensors of its own."""
        leaves, structure = pytree.tree_flatten(arguments)
        device = next(leaf.device for leaf in leaves if isinstance(leaf, Tensor))
        key = (structure, *((leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves))
        if key not in self._captures:
            static: list[Any] = [None if leaf is None else self._buffer(leaf, device) for leaf in leaves]
            inputs = pytree.tree_unflatten(static, structure)
            self._captures[key] = (static, self.record(lambda: self.function(*inputs)))
        static, (replay, result) = self._captures[key]
        for buffer, leaf in zip(static, leaves, strict=True):
            if isinstance(leaf, Tensor):
                buffer.copy_(leaf.detach())
            elif leaf is not None:
                buffer.fill_(leaf)
        replay()
        return pytree.tree_map_only(Tensor, torch.clone, result)

    @staticmethod
    def _buffer(leaf: Tensor | float, device: torch.device) -> Tensor:
        if isinstance(leaf, Tensor):
            return leaf.detach().clone()
        return torch.full((), leaf, dtype=torch.float64, device=device)
