"""The load that a server sustains, searched with short runs."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from index.errors import OnesearchError
from loadtest.bench.load import Tally

BOUND_S = 0.25
REFUSED_SHARE = 0.01
WARM_UP_RATE = 30.0
TRIES = 2
LESS = 0.93
"""Of a rate that did not last, what is tried next."""
MAX_RATE, LEAST_RATE = 4000.0, 0.5


class Plan(NamedTuple):
    """How long each step takes. `lasts`: seconds, in turn, that the rate found has to hold."""

    search_s: float
    steps: int
    phase_s: float
    repeats: int
    lasts: tuple[float, ...] = ()


QUICK = Plan(search_s=2.0, steps=4, phase_s=2.0, repeats=1)
FULL = Plan(search_s=4.0, steps=6, phase_s=6.0, repeats=3, lasts=(15.0,))


async def sustainable_rate(
    at: Callable[[float, float], Awaitable[Tally]],
    plan: Plan,
    refused_share: float = REFUSED_SHARE,
    bound_s: float = BOUND_S,
    first: float = WARM_UP_RATE,
) -> float:
    """Doubles `first` until it is too much, or halves it until it is not, then halves the gap;
    requests per second. What was not carried is tried once more: the machine's slow moments are no
    bound of the server's. Raises OnesearchError where not even LEAST_RATE is carried."""

    async def holds(rate: float) -> bool:
        for _ in range(TRIES):
            if is_carried(await at(rate, plan.search_s), refused_share, bound_s):
                return True
        return False

    low = first
    if await holds(low):
        while low < MAX_RATE and await holds(2 * low):
            low *= 2
    else:
        low /= 2
        while not await holds(low):
            low /= 2
            if low < LEAST_RATE:
                raise OnesearchError(f"the server does not carry {2 * low:g} requests a second")
    high = 2 * low
    for _ in range(plan.steps):
        middle = math.sqrt(low * high)
        if await holds(middle):
            low = middle
        else:
            high = middle
    return low


async def lasting_rate(
    at: Callable[[float, float], Awaitable[Tally]],
    plan: Plan,
    refused_share: float = REFUSED_SHARE,
    bound_s: float = BOUND_S,
    first: float = WARM_UP_RATE,
    less: float = LESS,
) -> float:
    """The rate that short runs find, lowered until it also holds for as long as `plan.lasts` says:
    for a while a server lets a crowd in that it could not go on answering. Before the second of
    these runs it is raised as far as the first still holds: a slow moment of the machine may have
    hidden what is carried. Raises OnesearchError where no rate is."""
    rate = await sustainable_rate(at, plan, refused_share, bound_s, first)

    async def lasts(seconds: float, rate: float) -> bool:
        return is_carried(await at(rate, seconds), refused_share, bound_s)

    for number, seconds in enumerate(plan.lasts):
        while not await lasts(seconds, rate):
            rate *= less
            if rate < LEAST_RATE:
                raise OnesearchError("no rate of requests is answered for long")
        while number == 0 and rate < MAX_RATE and await lasts(seconds, rate / less):
            rate /= less
    return rate


def is_carried(
    tally: Tally, refused_share: float = REFUSED_SHARE, bound_s: float = BOUND_S
) -> bool:
    """Whether a load was carried. A single refusal in a short run is no sign of more, unless none
    is to be."""
    refused = tally.offered - tally.outcomes["200"]
    allowed = max(1.0, refused_share * tally.offered) if refused_share else 0.0
    return refused <= allowed and tally.percentile(0.99) <= bound_s
