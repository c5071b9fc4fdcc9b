"""Engines side by side: what a time limit leaves out is said."""

import argparse
import math

import pytest
from problems import CPU

from metagrad import case


@pytest.mark.parametrize(("deadline", "measured"), [(math.inf, ["ancestor", "replay"]), (-math.inf, ["ancestor"])])
def test_variants_that_no_time_is_left_for_are_named(deadline: float, measured: list[str]) -> None:
    a = argparse.Namespace(
        variants=["ancestor", "replay"],
        real=10,
        width=4,
        repeats=1,
        no_memory=True,
        error_limit=0,
        case_seconds=math.inf,
    )
    entry = case(10, 2, a, CPU, deadline)
    assert list(entry["variants"]) == measured
    assert all(result["all"] > 0 for result in entry["variants"].values())
    others = {"replay"} - set(measured)
    assert entry["left out"] == dict.fromkeys(others, "no time was left for it")
