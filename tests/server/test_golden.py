import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.errors import ArtifactError, ConfigError
from server.generation import Generation
from server.golden import (
    AT_ONCE,
    CALM_S,
    GIVE_WAY,
    SAMPLED_TITLES,
    GoldenQuery,
    read_queries,
    run_golden,
    sampled_titles,
)
from server.schemas import Hit
from server.settings import GOLDEN_FLOOR


class Finding:
    """A pipeline that finds the given hits."""

    def __init__(self, hits: list[Hit], degraded: tuple[str, ...] = ()) -> None:
        self.found, self.asked = (hits, degraded), 0
        self.inside = self.most = 0
        self.waits: list[float] = []
        self.takes_s = 0.0

    async def calm(self, at_most_s: float) -> None:
        assert self.asked == len(self.waits)
        self.waits.append(at_most_s)

    async def try_out(self, *_: Any) -> Any:
        self.asked += 1
        self.inside += 1
        self.most = max(self.most, self.inside)
        await asyncio.sleep(self.takes_s)
        self.inside -= 1
        return self.found


def hit(generation: Generation, item_id: str, **changes: Any) -> Hit:
    view = generation.view
    row = view.items.row_of(item_id)
    assert row is not None
    codes = view.trie.codes_of_leaves(view.postings.leaf_of_row[np.array([row])])[0]
    given = {"sid": view.layout.format(codes), "score": 1.0} | changes
    return Hit(
        item_id=item_id,
        title="t",
        brand=None,
        category=[],
        color=[],
        price=None,
        stock=None,
        **given,
    )


def run(pipeline: Any, generation: Generation, *queries: GoldenQuery) -> Any:
    return asyncio.run(run_golden(pipeline, generation, list(queries), 0.9))


def test_queries_are_the_lines_of_a_file(tmp_path: Path):
    path = tmp_path / "golden.txt"
    path.write_text("red desk\n\n  oak lamp \n")
    assert [query.text for query in read_queries(path)] == ["red desk", "oak lamp"]
    path.write_text("\n")
    with pytest.raises(ConfigError, match="holds no query"):
        read_queries(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_queries(tmp_path / "none.txt")


def test_titles_are_spread_over_the_catalogue(generation: Generation):
    found = sampled_titles(generation.view, 4)
    assert [query.item_id for query in found] == ["i0", "i11", "i23", "i35"]


def test_what_was_found_is_counted(generation: Generation):
    good = hit(generation, "i3")
    golden = run(Finding([good]), generation, GoldenQuery("a", "i3"), GoldenQuery("b", "i4"))
    assert [golden.queries, golden.answered, golden.itself] == [2, 2, 1]
    assert run(Finding([good]), generation, GoldenQuery("a")).itself is None


def test_beside_searches_they_come_alone_and_else_together(generation: Generation):
    queries = [GoldenQuery(f"red desk {number}") for number in range(AT_ONCE + 3)]
    for beside, most in ((True, 1), (False, AT_ONCE)):
        pipeline: Any = Finding([hit(generation, "i3")])
        golden = asyncio.run(run_golden(pipeline, generation, queries, 0.9, beside=beside))
        assert [golden.answered, pipeline.asked] == [len(queries)] * 2
        assert pipeline.most == most
        assert len(pipeline.waits) == (len(queries) if beside else 0)
    broken: Any = Finding([hit(generation, "i3", score=float("inf"))])
    with pytest.raises(ArtifactError, match="'red desk 0'"):
        asyncio.run(run_golden(broken, generation, queries, 0.9, beside=False))


def test_they_wait_for_their_share_of_a_second_or_as_the_last_one_took(generation: Generation):
    queries = [GoldenQuery(f"red desk {number}") for number in range(100)]
    for takes_s, longer in ((0.0, False), (0.02, True)):
        pipeline: Any = Finding([hit(generation, "i3")])
        pipeline.takes_s = takes_s
        asyncio.run(run_golden(pipeline, generation, queries, 0.9))
        first, *others = pipeline.waits
        assert first == CALM_S / 100
        assert min(others) >= (GIVE_WAY * takes_s if longer else first)


def test_nothing_illegal_passes(generation: Generation):
    query = GoldenQuery("red desk")
    for bad in (
        hit(generation, "i3", sid="<a_9><b_9><c_9>"),
        hit(generation, "i3", score=float("nan")),
        hit(generation, "i3").model_copy(update={"item_id": "gone"}),
    ):
        with pytest.raises(ArtifactError, match="'red desk'"):
            run(Finding([hit(generation, "i4"), bad]), generation, query)


def test_of_sampled_titles_one_may_find_nothing(generation: Generation):
    class Missing(Finding):
        """Finds nothing for the first queries."""

        nothing_for = 1

        async def try_out(self, *_: Any) -> Any:
            found, degraded = await super().try_out()
            return (found if self.asked > self.nothing_for else []), degraded

    titles = [GoldenQuery(f"title {number}") for number in range(SAMPLED_TITLES)]
    some: Any = Missing([hit(generation, "i3")])
    golden = asyncio.run(run_golden(some, generation, titles, GOLDEN_FLOOR))
    assert golden.answered == SAMPLED_TITLES - 1
    fewer: Any = Missing([hit(generation, "i3")])
    fewer.nothing_for = 2
    with pytest.raises(ArtifactError, match=r"the floor is 0\.9"):
        asyncio.run(run_golden(fewer, generation, titles, GOLDEN_FLOOR))


def test_the_floor_and_a_busy_engine(generation: Generation):
    with pytest.raises(ArtifactError, match="0 of 1 found something"):
        run(Finding([]), generation, GoldenQuery("a"))
    busy = Finding([], ("engine_overload",))
    with pytest.raises(ArtifactError, match="no answer of the engine"):
        run(busy, generation, GoldenQuery("a"))
    assert busy.asked == 3
