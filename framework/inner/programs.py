"""Functions of tensors as compiled programs."""

from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

Program = tuple[Callable[..., Any], pytree.TreeSpec, list[bool]]


class Compiled:
    """A pure function, traced and compiled anew for each combination of its arguments' shapes.

    Tracing first makes plain operations of the derivatives that the function takes inside; ``torch.compile`` alone
    does not support differentiating twice. While it is traced, the compiled functions that it calls become part of it.

    Args:
        function: of tensors, numbers, None and registered dataclasses of them; must depend on nothing but its
            arguments. It sees numbers as float64 scalars on the CPU.
    """

    _tracing = False  # any of them

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._programs: dict[object, Program] = {}

    def __call__(self, *arguments: Any) -> Any:
        """The function's result, without history."""
        if Compiled._tracing:
            return self.function(*arguments)
        leaves, structure = pytree.tree_flatten(arguments)
        given = [leaf is not None for leaf in leaves]
        inputs = [_as_tensor(leaf) for leaf in leaves if leaf is not None]
        key = (structure, *given, *((tensor.shape, tensor.dtype, tensor.stride()) for tensor in inputs))
        with torch.no_grad():
            if key not in self._programs:
                self._programs[key] = self._compile(inputs, structure, given)
            program, shape, present = self._programs[key]
            return pytree.tree_unflatten(_fill(present, program(*inputs)), shape)

    def _compile(self, inputs: list[Tensor], structure: pytree.TreeSpec, given: list[bool]) -> Program:
        from torch.fx.experimental.proxy_tensor import make_fx  # late: slow to import

        shape: list[pytree.TreeSpec] = []
        present: list[bool] = []

        def flat(*tensors: Tensor) -> list[Tensor]:
            result = self.function(*pytree.tree_unflatten(_fill(given, tensors), structure))
            leaves, spec = pytree.tree_flatten(result)
            shape.append(spec)
            present.extend(leaf is not None for leaf in leaves)
            return [leaf for leaf in leaves if leaf is not None]

        Compiled._tracing = True
        try:
            traced = make_fx(flat)(*inputs)
        finally:
            Compiled._tracing = False
        return torch.compile(traced, dynamic=False), shape[0], present


def _as_tensor(leaf: Tensor | float) -> Tensor:
    return leaf.detach() if isinstance(leaf, Tensor) else torch.tensor(float(leaf), dtype=torch.float64)


def _fill(present: list[bool], values: Any) -> list[Any]:
    """The values where they are present, None elsewhere."""
    following = iter(values)
    return [next(following) if there else None for there in present]
