"""Inner networks that are kept from one outer step to the next, so that a window needs no prefix."""

from dataclasses import replace
from typing import Any

import torch

from framework.inner.optimizers import State
from framework.outer.method import Peers


class NetworkPool:
    """The networks of every slot: each rank's own, with their optimisers' moments, as the last window left them.

    Rank 0 keeps those of the others too, on the CPU, for the checkpoint; a rank that finds none of its own in a
    restored pool, as there were fewer ranks, starts with fresh ones.

    Args:
        peers: this rank and the others.
    """

    def __init__(self, peers: Peers) -> None:
        self.peers = peers
        self.kept: dict[int, dict[int, list[State]]] = {}  # by slot, by rank
        self.pending: int | None = None  # the slot of the last step, until that is applied

    def at(self, slot: int, steps: int, device: torch.device) -> list[State] | None:
        """This rank's networks of a slot, on ``device``; None where there are none that have taken so many steps."""
        states = self.kept.get(slot, {}).get(self.peers.rank)
        if states is None or states[0].t != steps:
            return None
        return [_on(state, device) for state in states]

    def keep(self, slot: int, states: list[State]) -> None:
        """Keep networks as an outer step has left them; every rank must call it."""
        own = {self.peers.rank: states}
        if self.peers.size > 1:
            told = self.peers.gather([_on(state, torch.device("cpu")) for state in states])
            own = dict(enumerate(told)) | own if self.peers.main else own
        self.kept[slot], self.pending = own, slot

    def confirm(self) -> None:
        """Take note that the last step was applied."""
        self.pending = None

    def drop_pending(self) -> int | None:
        """Drop the networks of a step that was never applied, as they have likely diverged; returns their slot."""
        slot, self.pending = self.pending, None
        if slot is not None:
            del self.kept[slot]
        return slot

    def state_dict(self) -> dict[str, Any]:
        """All networks, on the CPU."""
        cpu = torch.device("cpu")
        kept = {
            slot: {rank: [vars(_on(state, cpu)) for state in states] for rank, states in by_rank.items()}
            for slot, by_rank in self.kept.items()
        }
        return {"kept": kept, "pending": self.pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.pending = state["pending"]
        self.kept = {
            slot: {rank: [State(**fields) for fields in states] for rank, states in by_rank.items()}
            for slot, by_rank in state["kept"].items()
        }


def _on(state: State, device: torch.device) -> State:
    return replace(state, theta=state.theta.to(device), m=state.m.to(device), v=state.v.to(device))
