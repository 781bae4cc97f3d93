"""The plan of the benchmark against a server that exists only as numbers."""

import asyncio

import numpy as np
import pytest

from index.errors import OnesearchError
from loadtest.bench import overload, sustainable
from loadtest.bench.load import Ended, Tally
from loadtest.bench.overload import LOADS, Server
from loadtest.bench.sustainable import FULL, QUICK, Plan

CAPACITY = 150.0


def tally(rate: float, seconds: float) -> Tally:
    offered = round(rate * seconds)
    served = min(offered, round(CAPACITY * seconds))
    found = Tally(seconds=seconds, offered=offered, started_late=[0.0])
    for _ in range(served):
        found.add("200", 0.05 + 0.05 * (rate > CAPACITY))
    for _ in range(offered - served):
        found.add("503", 0.001)
    return found


@pytest.mark.parametrize("plan", [QUICK, FULL])
def test_the_sustainable_load_is_found(plan: Plan):
    async def at(rate: float, seconds: float) -> Tally:
        return tally(rate, seconds)

    found = asyncio.run(sustainable.sustainable_rate(at, plan))
    assert found == pytest.approx(CAPACITY, rel=0.05)


@pytest.mark.parametrize("capacity", [8.0, 20.0])
def test_a_server_that_carries_little_is_not_given_more(capacity: float):
    tried: list[float] = []

    async def at(rate: float, seconds: float) -> Tally:
        tried.append(rate)
        found = Tally(seconds=seconds, offered=100)
        for _ in range(100):
            found.add("200" if rate <= capacity else "503", 0.05)
        return found

    found = asyncio.run(sustainable.sustainable_rate(at, QUICK, refused_share=0))
    assert found in tried
    assert capacity / 1.1 <= found <= capacity
    capacity = 0
    with pytest.raises(OnesearchError, match="does not carry"):
        asyncio.run(sustainable.sustainable_rate(at, QUICK))


def test_a_load_that_is_answered_late_or_degraded_is_not_sustained():
    slow = Tally(seconds=1, offered=1000)
    for _ in range(1000):
        slow.add("200", 0.3)
    assert not sustainable.is_carried(slow)
    degraded = Tally(seconds=1, offered=1000)
    for number in range(1000):
        degraded.add("degraded" if number < 20 else "200", 0.05)
    assert not sustainable.is_carried(degraded)
    one = Tally(seconds=1, offered=1000)
    for number in range(1000):
        one.add("503" if number == 0 else "200", 0.05)
    assert sustainable.is_carried(one)
    assert not sustainable.is_carried(one, refused_share=0)


def test_rows_compare_each_load_with_eighty_percent(monkeypatch: pytest.MonkeyPatch):
    async def offer(port, requests, *, rate, seconds, random, seen=None):
        assert requests
        if seen is not None:
            # Half as late again while the load is new.
            for due in np.linspace(0, seconds, 100):
                late = 0.03 if due < seconds / 4 else 0.02
                seen(Ended(b"", "200", 7 + due, late, b""))
                seen(Ended(b"", "503", 7 + due, 0.5, b""))
        return tally(rate, seconds)

    monkeypatch.setattr(overload, "offer", offer)
    monkeypatch.setattr(overload, "PAUSE_S", 0.0)
    rows = asyncio.run(overload._rates(Server(0, ["x"]), QUICK))
    latency = {row["setting"]["load"]: row for row in rows if row["unit"] == "ms"}
    assert set(latency) == {f"{load:.0%}" for load in LOADS} | {"80% after 400%"}
    assert latency["400%"]["ratio"] == {"at 80%": 0.5}
    assert latency["400%"]["percent"]["refused"] == pytest.approx(75, abs=3)
    assert latency["80% after 400%"]["percent"]["whole"] == 100
    assert latency["200%"]["lasting_p99_ms"] == 20
    goodput = [row for row in rows if row["unit"] == "1/s"]
    assert [row["setting"]["load"] for row in goodput] == ["80%", "100%", "200%", "400%"]
    assert all(np.isfinite(row["ours"]) for row in rows)
