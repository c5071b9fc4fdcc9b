"""Every truncation policy by its name in ``--truncation``.

Its module is imported when the policy is made: the names are needed where PyTorch is not, as in ``--help``.
"""

from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from framework.outer.policies.policy import Policy


@dataclass(frozen=True)
class Settings:
    """What policies are made from; each takes what it needs. See the classes for the meaning of each."""

    steps: int
    window: int
    minimum: int = 0
    seed: int = 0
    every_step: bool = False
    radius: int = 0
    tau: float = 1.0
    measure: str = "rank"
    rule: str = "adaptive"
    anchor: str = "first"
    scale: str = "raw"
    late: str = "inverse"
    reweight: bool = False
    gains: tuple[float, float] = (1.5, 1.0)
    patience: tuple[int, int] = (1, 1)
    plateau: str = "consecutive"
    probe_every: int = 1
    bins: int = 9
    decay: float = 0.9
    uniform: float = 0.2
    cost: tuple[float, float] = (3.0, 12.0)
    pool: int = 16
    pool_choice: str = "turns"
    bias: float = 0.1
    roulette: float = 0.0
    kl_weight: float = 1.0
    reference_rate: float = 0.05
    length_temperature: float = 1.0


@dataclass(frozen=True)
class Entry:
    """A policy: its class as ``module:name`` in this package, and which settings it reads.

    Args:
        policy: the class.
        places: reads ``minimum``.
        automatic: looks at gradient norms, in stages, and reads their settings.
        resizes: changes the window's length, within ``radius``.
        learns: learns where windows lie, and reads the settings of that.
        options: more arguments of its ``make``.
    """

    policy: str
    places: bool = False
    automatic: bool = False
    resizes: bool = False
    learns: bool = False
    options: dict[str, Any] = field(default_factory=dict)


POLICIES = {
    "bptt": Entry("plain:BPTT"),
    "t-bptt": Entry("plain:TruncatedBPTT"),
    "fixed": Entry("plain:Fixed"),
    "forward": Entry("plain:Forward", places=True),
    "rat-bptt": Entry("rat_bptt:RaTBPTT", places=True),
    "rat-is": Entry("rat_is:ImportanceSampled", places=True),
    "rat-pool": Entry("rat_pool:Pool", places=True),
    "rat-bias": Entry("rat_bias:LengthByBias", places=True),
    "at-bptt": Entry("at_bptt:ATBPTT", places=True, automatic=True, resizes=True),
    "at-bptt-positions": Entry("at_bptt:ATBPTT", places=True, automatic=True, options={"resize": False}),
    "at-bptt-windows": Entry("at_bptt:ATBPTT", places=True, automatic=True, resizes=True, options={"move": False}),
    "at-bptt-pp": Entry("at_bptt_pp:ATBPTTPP", learns=True),
}

RECOMMENDED = "rat-bptt"
"""What ``--truncation auto`` stands for: see "What auto stands for" in docs/windows.md."""


def that(reads: str) -> tuple[str, ...]:
    """The names of the policies of which a field of ``Entry`` is true."""
    return tuple(name for name, entry in POLICIES.items() if getattr(entry, reads))


def make(name: str, settings: Settings) -> "Policy":
    """The policy called ``name``."""
    entry = POLICIES[name]
    policy: Policy = resolve_name(f"framework.outer.policies.{entry.policy}").make(settings, **entry.options)
    return policy
