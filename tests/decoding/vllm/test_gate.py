import asyncio

import pytest

from decoding.errors import EngineClosed
from decoding.vllm.gate import Gate

pytestmark = pytest.mark.anyio


class Searches:
    """Searches that end when told to."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.running: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def begin(self, name: str, rows: int) -> None:
        self.ends[name] = asyncio.Event()

        async def search() -> None:
            async with self.gate.search(rows, 1):
                self.running.append(name)
                await self.ends[name].wait()
                self.running.remove(name)

        self.tasks[name] = asyncio.create_task(search())
        await settle()

    async def end(self, name: str) -> None:
        self.ends[name].set()
        await self.tasks[name]
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_searches_run_as_far_as_rows_allow_and_in_their_order():
    searches = Searches(gate := Gate(100))
    for name, rows in (("a", 60), ("b", 50), ("c", 10), ("d", 400)):
        await searches.begin(name, rows)
    # c would fit, but came after b.
    assert searches.running == ["a"] and gate.queued_rows == 460 and gate.queued_prompts == 3
    await searches.end("a")
    assert searches.running == ["b", "c"] and gate.running_rows == 60
    await searches.end("b")
    assert searches.running == ["c"]
    await searches.end("c")
    # Larger than all there is: alone.
    assert searches.running == ["d"]
    await searches.end("d")
    assert gate.running_rows == gate.running_prompts == gate.queued_rows == 0


async def test_a_fence_waits_for_running_searches_and_holds_new_ones():
    searches = Searches(gate := Gate(100))
    await searches.begin("a", 10)
    events: list[str] = []

    async def replace() -> None:
        async with gate.fence():
            events.append("begun")
            assert not searches.running
            await settle()
            events.append("ended")

    tasks = [asyncio.create_task(replace()), asyncio.create_task(replace())]
    await searches.begin("b", 10)
    assert searches.running == ["a"] and not events
    await searches.end("a")
    await asyncio.gather(*tasks)
    # One fence at a time, and no search between them.
    assert events == ["begun", "ended"] * 2
    await settle()
    assert searches.running == ["b"]
    await searches.end("b")


async def test_who_gives_up_makes_room():
    searches = Searches(gate := Gate(10))
    await searches.begin("a", 10)
    await searches.begin("b", 10)
    await searches.begin("c", 10)
    searches.tasks["b"].cancel()
    await settle()
    assert gate.queued_prompts == 1
    searches.tasks["a"].cancel()
    await settle()
    assert searches.running[-1] == "c" and gate.running_rows == 10
    await searches.end("c")


async def test_who_gives_up_when_let_in_makes_room_too():
    searches = Searches(gate := Gate(10))
    await searches.begin("a", 10)
    await searches.begin("b", 10)
    searches.ends["a"].set()
    for _ in range(5):
        if not gate.queued_prompts:
            break
        await asyncio.sleep(0)
    searches.tasks["b"].cancel()
    await settle()
    assert gate.running_rows == 0
    await searches.begin("c", 10)
    assert searches.running == ["c"]
    await searches.end("c")


async def test_a_fence_that_is_given_up_lets_searches_go_on():
    searches = Searches(gate := Gate(10))
    await searches.begin("a", 10)

    async def replace() -> None:
        async with gate.fence():
            raise AssertionError("nobody waits for it any more")

    task = asyncio.create_task(replace())
    await settle()
    task.cancel()
    await settle()
    await searches.end("a")
    await searches.begin("b", 10)
    assert searches.running == ["b"]
    await searches.end("b")


async def test_closing_ends_those_that_wait_and_waits_for_those_that_run():
    searches = Searches(gate := Gate(10))
    await searches.begin("a", 10)
    await searches.begin("b", 10)
    closing = asyncio.create_task(gate.close())
    await settle()
    with pytest.raises(EngineClosed):
        await searches.tasks["b"]
    assert not closing.done()
    await searches.end("a")
    await closing
    with pytest.raises(EngineClosed):
        async with gate.search(1, 1):
            pass
