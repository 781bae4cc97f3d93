import asyncio
import io
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from server.generation import Generation
from server.logs import make_logger
from server.schemas import Hit, SearchRequest
from server.shadow import QUEUE, TRIES, Asked, Shadow, overlap, rank_biased_overlap

ASKED = Asked(SearchRequest(query="red oak desk"), ("i1",), ())


def test_overlap_is_of_the_longer_ranking():
    assert overlap("abc", "bcd") == pytest.approx(2 / 3)
    assert overlap("abcd", "ab") == 0.5
    assert overlap("", "") == 1
    assert overlap("a", "") == 0


def test_rank_biased_overlap():
    assert rank_biased_overlap("abcdefghij", "abcdefghij") == pytest.approx(1)
    assert rank_biased_overlap("ab", "cd") == 0
    assert rank_biased_overlap("", "") == 1
    # X/d is 0, 1: extrapolated 1·p² and (1 − p)/p · (0 + p²).
    assert rank_biased_overlap("ab", "ba", 0.9) == pytest.approx(0.81 + 0.1 / 0.9 * 0.81)
    # X/d is 1, 1/2.
    assert rank_biased_overlap("ab", "a", 0.5) == pytest.approx(0.5 * 0.25 + 1.0 * (0.5 + 0.125))
    better = rank_biased_overlap("abcd", "abdc")
    assert rank_biased_overlap("abcd", "bacd") < better < 1


class TryOut:
    """Finds `hits` of a generation; waits while `held`."""

    def __init__(self) -> None:
        self.hits: dict[int, list[Hit]] = {}
        self.degraded: dict[int, tuple[str, ...]] = {}
        self.asked: list[Generation] = []
        self.free = asyncio.Event()
        self.free.set()
        self.error: Exception | None = None

    async def __call__(self, generation: Generation, request: Any, *_: Any, **how: Any) -> Any:
        assert [request.limit, how["history"]] == [10, ("i1",)]
        self.asked.append(generation)
        await self.free.wait()
        if self.error is not None:
            raise self.error
        return self.hits.get(id(generation), []), self.degraded.get(id(generation), ())


def shadow_of(generation: Generation, try_out: Any, **changes: Any) -> tuple[Shadow, Generation]:
    challenger = Generation.of(generation.view, generation.checkpoint)
    given = {"share": 1.0, "is_idle": lambda: True} | changes
    log = make_logger("error", io.StringIO())
    own = given.pop("share")
    idle = given.pop("is_idle")
    return Shadow(lambda: generation, challenger, own, try_out, idle, log, **given), challenger


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0.005)


def test_both_are_asked_in_turns_and_compared(generation: Generation):
    async def scenario() -> None:
        try_out = TryOut()
        shadow, challenger = shadow_of(generation, try_out)
        real = Hit(
            item_id="none",
            title="t",
            brand=None,
            category=[],
            color=[],
            price=None,
            stock=None,
            sid="<a_1>",
            score=1,
        )
        try_out.hits[id(challenger)] = [real]
        shadow.offer(ASKED)
        shadow.offer(ASKED)
        await until(lambda: shadow.figures.compared == 2)
        assert try_out.asked == [generation, challenger, challenger, generation]
        figures = shadow.figures
        assert [figures.overlap, figures.rbo, figures.illegal] == [0, 0, 2]
        assert figures.latency_ratio is not None
        try_out.degraded[id(challenger)] = ("engine_error",)
        shadow.offer(ASKED)
        await until(lambda: shadow.figures.failed == 1)
        try_out.degraded[id(generation)] = ("engine_error",)
        shadow.offer(ASKED)
        await until(lambda: shadow.figures.dropped == 1)
        try_out.error = RuntimeError("broken")
        shadow.offer(ASKED)
        await until(lambda: shadow.figures.failed == 2)
        assert shadow.figures.compared == 2
        await shadow.close()

    asyncio.run(scenario())


def test_a_search_goes_first_and_what_waits_is_bounded(generation: Generation):
    async def scenario() -> None:
        try_out, idle = TryOut(), False
        shadow, _ = shadow_of(generation, try_out, is_idle=lambda: idle)
        for _ in range(QUEUE + 5):
            shadow.offer(ASKED)
        assert [shadow.figures.offered, shadow.figures.dropped] == [QUEUE + 5, 5]
        await asyncio.sleep(0.1)
        assert try_out.asked == []
        idle = True
        try_out.free.clear()
        for turn in range(1, 4):
            await until(lambda turn=turn: len(try_out.asked) == turn)
            shadow.give_way()
        await until(lambda: len(try_out.asked) == 4)
        await shadow.close()
        shadow.offer(ASKED)
        assert shadow.figures.offered == QUEUE + 5
        assert shadow.figures.compared == 0

        shadow, _ = shadow_of(generation, try_out)
        shadow.offer(ASKED)
        for _ in range(TRIES):
            asked = len(try_out.asked)
            await until(lambda asked=asked: len(try_out.asked) > asked)
            shadow.give_way()
        await until(lambda: shadow.figures.dropped == 1)
        await shadow.close()

    asyncio.run(scenario())


def test_a_share_is_offered(generation: Generation):
    async def scenario() -> None:
        draws = iter([0.1, 0.3, 0.2])
        shadow, _ = shadow_of(generation, TryOut(), share=0.25, chance=lambda: next(draws))
        for _ in range(3):
            shadow.offer(ASKED)
        assert shadow.figures.offered == 2
        await shadow.close()

    asyncio.run(scenario())


def test_a_challenger_is_compared_behind_real_searches(
    published: Any, follow: Callable[..., httpx.Client]
):
    from models.registry.promotion import challenge

    registry = published.registry
    challenge(registry, published.second)
    client = follow(shadow_share=1.0)

    def figures() -> dict[str, Any]:
        return client.get("/admin/generations").json()["shadow"] or {"compared": 0}

    ends = time.monotonic() + 30
    while figures()["compared"] < 6:
        assert time.monotonic() < ends
        found = client.post("/v1/search", json={"query": "red oak desk"}).json()
        assert [found["arm"], found["degraded"]] == [None, []]
        time.sleep(0.1)
    told = figures()
    assert 0 < told["overlap"] <= 1 and 0 < told["rbo"] <= 1
    assert [told["illegal"], told["failed"]] == [0, 0]
    assert told["latency_ratio"] > 0
    assert "onesearch_shadow_overlap" in client.get("/metrics").text
    challenge(registry, None)
    while figures()["compared"]:
        assert time.monotonic() < ends
        time.sleep(0.05)
    ends = time.monotonic() + 30
    while registry.events()[-1]["what"] != "shadow":
        assert time.monotonic() < ends
        time.sleep(0.05)
    event = registry.events()[-1]
    assert [event["generation"], event["champion"]] == [published.second, published.first]
    assert event["compared"] >= 6
