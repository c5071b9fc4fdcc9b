"""The inner optimisers as pure, differentiable functions of a state.

One rule everywhere: PyTorch's own (for Adam, epsilon is added after the bias correction). ``step``
works on one flat vector or on a list of tensors' worth of it alike, being elementwise.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from framework.inner.names import MOMENTUM, WEIGHT_DECAY


@dataclass(frozen=True)
class State:
    """Parameters and what the optimiser keeps after ``t`` steps; all tensors have theta's shape, unless said otherwise.

    ``m`` is Adam's first moment or SGD's momentum buffer; ``v`` is Adam's second moment and unused
    (kept at zero) by SGD. ``PlainSGD`` keeps its learning rate () in ``v``, and nothing (0,) in ``m``.
    """

    theta: Tensor
    m: Tensor
    v: Tensor
    t: int = 0

    @classmethod
    def fresh(cls, theta: Tensor) -> "State":
        """The state before the first step."""
        return cls(theta, torch.zeros_like(theta), torch.zeros_like(theta))

    def detach(self) -> "State":
        """The same numbers without history."""
        return State(self.theta.detach(), self.m.detach(), self.v.detach(), self.t)


torch.export.register_dataclass(State)


def side_by_side(states: Sequence[State]) -> State:
    """The states of several networks, (P,) each, as one, (N, P)."""
    theta, m, v = (torch.stack([getattr(state, name) for state in states]) for name in ("theta", "m", "v"))
    return State(theta, m, v, states[0].t)


def apart(state: State) -> list[State]:
    """The states of several networks, (N, P), or of one, (P,), each by itself."""
    if state.theta.dim() == 1:
        return [state]
    return [State(*tensors, state.t) for tensors in zip(state.theta, state.m, state.v, strict=True)]


def safe_sqrt(x: Tensor) -> Tensor:
    """Square root of x >= 0 whose derivative at 0 is 0 instead of infinite.

    A parameter whose gradient has always been exactly 0 has v = 0; it takes no part in the
    meta-gradient. ``higher`` masks the same entries.
    """
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1) as ``torch.optim.Adam`` computes it.

    With ``eps_root`` the denominator is sqrt(v / (1 - beta2^t) + eps_root) + eps, as in optax's Adam: the derivative of
    the square root is then bounded where v is small, as in the first steps of a trajectory.
    """

    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    eps_root: float = 0.0

    def _inside(self, v: Tensor, t: int) -> Tensor:
        """What the square root is taken of, times 1 - beta2^t; without ``eps_root`` v itself."""
        return v + self.eps_root * (1 - self.beta2**t) if self.eps_root else v

    def step(self, state: State, grad: Tensor) -> State:
        """One update; differentiable in every tensor of ``state`` and in ``grad``."""
        t = state.t + 1
        m = self.beta1 * state.m + (1 - self.beta1) * grad
        v = self.beta2 * state.v + (1 - self.beta2) * grad * grad
        inside = self._inside(v, t)
        root = safe_sqrt(inside) if v.requires_grad else inside.sqrt()
        denominator = root / (1 - self.beta2**t) ** 0.5 + self.eps
        return State(state.theta - self.lr / (1 - self.beta1**t) * m / denominator, m, v, t)

    def step_sizes(self, new: State) -> Tensor:
        """D (P,): how far a unit of the first moment moved each parameter in the step that made ``new``."""
        denominator = self._inside(new.v, new.t).sqrt() / (1 - self.beta2**new.t) ** 0.5 + self.eps
        sizes: Tensor = self.lr / (1 - self.beta1**new.t) / denominator
        return sizes

    def pullback(self, cotangent: State, new: State, grad: Tensor) -> tuple[State, Tensor]:
        """The vector-Jacobian product of ``step``.

        Args:
            cotangent: of the state that ``step`` returned.
            new: that state.
            grad: the gradient that ``step`` was given.

        Returns:
            The cotangents of the state and of the gradient that ``step`` was given.
        """
        correction2 = (1 - self.beta2**new.t) ** 0.5
        root = self._inside(new.v, new.t).sqrt()
        denominator = root / correction2 + self.eps
        a = self.lr / (1 - self.beta1**new.t) * cotangent.theta / denominator
        m = cotangent.m - a
        # The derivative of the square root at 0 is taken as 0; see safe_sqrt.
        slope = torch.where(root > 0, a * new.m / (2 * correction2 * denominator * root), 0.0)
        v = cotangent.v + slope
        w = (1 - self.beta1) * m + 2 * (1 - self.beta2) * grad * v
        return State(cotangent.theta, self.beta1 * m, self.beta2 * v, new.t - 1), w


@dataclass(frozen=True)
class SGD:
    """SGD with momentum and weight decay as ``torch.optim.SGD`` computes it."""

    lr: float
    momentum: float = MOMENTUM
    weight_decay: float = WEIGHT_DECAY

    def step(self, state: State, grad: Tensor) -> State:
        """One update; differentiable in every tensor of ``state`` and in ``grad``."""
        m = self.momentum * state.m + grad + self.weight_decay * state.theta
        return State(state.theta - self.lr * m, m, state.v, state.t + 1)

    def step_sizes(self, new: State) -> Tensor:
        """D (P,), the same for all parameters; see ``Adam.step_sizes``."""
        return torch.full_like(new.theta, self.lr)

    def pullback(self, cotangent: State, new: State, grad: Tensor) -> tuple[State, Tensor]:
        """The vector-Jacobian product of ``step``; see ``Adam.pullback``."""
        w = cotangent.m - self.lr * cotangent.theta
        theta = cotangent.theta + self.weight_decay * w
        return State(theta, self.momentum * w, cotangent.v, new.t - 1), w


@dataclass(frozen=True)
class PlainSGD:
    """SGD without momentum whose learning rate is learnt: a () tensor of the state, so that it has a cotangent too.

    Trajectory matching differentiates towards it (Cazenavette et al. 2022, arXiv 2203.11932, section 3.2). Graphs and
    compiled steps take it as an input like all of a state. Its cotangent is summed in float64 where it is float64.
    """

    @staticmethod
    def start(theta: Tensor, lr: Tensor) -> State:
        """The state before the first step, from parameters (P,) and the learning rate ()."""
        return State(theta, theta.new_empty(0), lr)

    def step(self, state: State, grad: Tensor) -> State:
        """One update; differentiable in every tensor of ``state`` and in ``grad``."""
        return State(state.theta - state.v * grad, state.m, state.v, state.t + 1)

    def step_sizes(self, new: State) -> Tensor:
        """D (P,), the same for all parameters; see ``Adam.step_sizes``."""
        return new.v.to(new.theta.dtype).expand_as(new.theta)

    def pullback(self, cotangent: State, new: State, grad: Tensor) -> tuple[State, Tensor]:
        """The vector-Jacobian product of ``step``; see ``Adam.pullback``."""
        lr = cotangent.v - torch.dot(cotangent.theta.to(new.v.dtype), grad.to(new.v.dtype))
        return State(cotangent.theta, cotangent.m, lr, new.t - 1), -new.v * cotangent.theta


@dataclass(frozen=True)
class Transformed:
    """An optimiser that steps by a function of the gradient, through which it is differentiated too.

    Args:
        rule: the optimiser.
        transform: (P,) to (P,), by differentiable operations; not elementwise, so a state is that of one network.
    """

    rule: "Optimizer"
    transform: Callable[[Tensor], Tensor]

    def step(self, state: State, grad: Tensor) -> State:
        """One update; differentiable in every tensor of ``state`` and in ``grad``."""
        return self.rule.step(state, self.transform(grad))

    def step_sizes(self, new: State) -> Tensor:
        """See ``Adam.step_sizes``, of the transformed gradient."""
        return self.rule.step_sizes(new)

    def pullback(self, cotangent: State, new: State, grad: Tensor) -> tuple[State, Tensor]:
        """The vector-Jacobian product of ``step``; see ``Adam.pullback``."""
        transformed, vjp = torch.func.vjp(self.transform, grad)  # type: ignore[misc]  # three with has_aux alone
        before, w = self.rule.pullback(cotangent, new, transformed)
        return before, vjp(w)[0]


Optimizer = Adam | SGD | PlainSGD | Transformed


def make_optimizer(name: str, lr: float, eps_root: float = 0.0) -> Optimizer:
    """The inner optimiser of ``--inner_optim``, ``--inner_lr`` and ``--inner_eps_root``, which Adam alone reads."""
    return Adam(lr, eps_root=eps_root) if name == "Adam" else SGD(lr)


class ModuleAdam(torch.optim.Optimizer):
    """``Adam`` for a module's parameters, since PyTorch's own has no ``eps_root``.

    Args:
        parameters: of the module.
        rule: what each group's options start as; they can be changed as PyTorch's, by a schedule for example.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], rule: Adam) -> None:
        betas = (rule.beta1, rule.beta2)
        super().__init__(parameters, {"lr": rule.lr, "betas": betas, "eps": rule.eps, "eps_root": rule.eps_root})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """See ``torch.optim.Optimizer.step``."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            rule = Adam(group["lr"], beta1, beta2, group["eps"], group["eps_root"])
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                kept = self.state[parameter]
                old = State(parameter, **kept) if kept else State.fresh(parameter)
                new = rule.step(old, parameter.grad)
                parameter.copy_(new.theta)
                self.state[parameter] = {"m": new.m, "v": new.v, "t": new.t}
        return loss
