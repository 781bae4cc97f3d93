"""The rate that is called sustainable: it lasts, and no slow moment decides on it."""

import asyncio
from collections.abc import Callable

from loadtest.bench import swaps
from loadtest.bench.load import Tally
from loadtest.bench.sustainable import FULL, Plan, lasting_rate

Tried = list[tuple[float, float]]


def found_by(
    plan: Plan, carries: Callable[[float, Tried], float], less: float
) -> tuple[float, Tried]:
    """The rate that is found of a server that carries so much in a run of so many seconds, and all
    that was tried before; and what was tried."""
    tried: Tried = []

    async def at(rate: float, seconds: float) -> Tally:
        carried = carries(seconds, tried)
        tried.append((rate, seconds))
        found = Tally(seconds=seconds, offered=2)
        found.add("200", 0.05)
        found.add("200" if rate <= carried else "503", 0.05)
        return found

    rate = asyncio.run(lasting_rate(at, plan, refused_share=0.0, first=30.0, less=less))
    return rate, tried


def test_the_rate_is_one_that_lasts():
    """For five seconds this server lets in half as much again as it answers."""
    plan = swaps.PLANS["native", False]
    rate, tried = found_by(
        plan.search, lambda seconds, _: 150.0 if seconds < 5 else 100.0, plan.less
    )
    assert 100 * plan.less <= rate <= 100
    assert [one for one in tried if one[0] == rate] == [
        (rate, lasts) for lasts in plan.search.lasts
    ]


def test_what_a_slow_moment_hid_is_found():
    """In the first runs the machine carries a third of what it carries later."""
    less = 0.93
    rate, tried = found_by(FULL, lambda _, before: 80.0 if len(before) < 12 else 240.0, less)
    assert len(tried) > 12
    assert 240 * less <= rate <= 240
