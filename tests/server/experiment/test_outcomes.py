from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.errors import ConfigError, DataError
from server.experiment.metrics import sums_of
from server.experiment.outcomes import UNKNOWN, join
from server.experiment.records import (
    Exposure,
    Rejected,
    ShownEvent,
    read_events,
    read_exposures,
)
from server.experiment.segments import ItemFact, segments_of

PAGES = [
    Exposure("e", "champion", "user:a", "r1", 1.0, ("i1", "i2"), "desk", 0.5, 0),
    Exposure("e", "champion", "user:a", "r2", 2.0, ("i2",), "lamp", 0.5, 7),
    Exposure("e", "challenger", "user:b", "r3", 3.0, ("i1", "i3"), "desk", 0.5, 6),
    Exposure("e", "challenger", "user:c", "r4", 4.0, (), "desk", 0.5),
]
EVENTS = [
    ShownEvent("r1", "i1", "click", 1.5),
    ShownEvent("r1", "i1", "click", 1.6),
    ShownEvent("r1", "i1", "order", 1.7),
    ShownEvent("r3", "i3", "click", 3.5),
    ShownEvent("r3", "i9", "click", 3.6),
    ShownEvent("r9", "i1", "click", 3.7),
]


def test_pages_and_events_are_joined() -> None:
    outcomes, notes = join([PAGES[2], *PAGES, PAGES[0]], EVENTS)
    assert outcomes.arms == ("challenger", "champion")
    assert [outcomes.n_units, outcomes.n_pages] == [3, 4]
    assert outcomes.unit_arm.tolist() == [1, 0, 0]
    assert outcomes.unit_history.tolist() == [0, 6, UNKNOWN]
    assert outcomes.clicked.tolist() == [True, False, False, False, True]
    assert outcomes.ordered.tolist() == [True, False, False, False, False]
    assert notes.assigned == {"champion": 1, "challenger": 2}
    assert notes.shares == {"champion": 0.5, "challenger": 0.5}
    assert [notes.repeated_exposures, notes.repeated_events, notes.unmatched_events] == [2, 1, 2]
    sums = sums_of(outcomes)
    assert [sums["item_ctr"].x.tolist(), sums["item_ctr"].y.tolist()] == [[1, 1, 0], [3, 2, 0]]
    assert [sums["page_ctr"].x.tolist(), sums["page_ctr"].y.tolist()] == [[1, 1, 0], [2, 1, 1]]
    assert [sums["page_cvr"].x.tolist(), sums["buyers"].y.tolist()] == [[1, 0, 0], [1, 1, 1]]
    assert sums["orders"].x.tolist() == [1, 0, 0]


def test_units_in_two_arms_are_left_out_and_counted() -> None:
    stray = Exposure("e", "challenger", "user:a", "r5", 5.0, ("i1",), "desk", 0.5)
    outcomes, notes = join([*PAGES, stray], EVENTS)
    assert [notes.crossed, outcomes.n_units] == [1, 2]
    assert notes.assigned == {"champion": 1, "challenger": 2}
    assert notes.unmatched_events == 2
    assert not outcomes.ordered.any()


def test_one_experiment_at_a_time() -> None:
    other = Exposure("f", "champion", "user:a", "r6", 5.0, ())
    with pytest.raises(ConfigError, match="there are several experiments, name one: e, f"):
        join([*PAGES, other], [])
    assert join([*PAGES, other], [], "f")[0].n_pages == 1
    with pytest.raises(ConfigError, match="no exposures of experiment 'g'; there are: e"):
        join(PAGES, [], "g")


def test_segments() -> None:
    outcomes, _ = join(PAGES, EVENTS)
    facts = {
        "i1": ItemFact("tables", 100.0),
        "i2": ItemFact("lamps", 0.0),
        "x": ItemFact("lamps", 3.0),
        "y": ItemFact("lamps", 2.0),
    }
    found = {(one.kind, one.value): one for one in segments_of(outcomes, facts)}
    # Two queries are too few for thirds.
    assert {kind for kind, _ in found} == {"user", "item", "category"}
    new = found["user", "new"].pages
    assert new is not None
    # All pages of a user belong to where the first one was.
    assert new.tolist() == [True, True, False, False]
    cold, hot = found["item", "cold"].shown, found["item", "hot"].shown
    assert cold is not None
    assert hot is not None
    assert cold.tolist() == [False, True, True, False, False]
    assert hot.tolist() == [True, False, False, True, False]
    tables = sums_of(outcomes, shown=found["category", "tables"].shown)
    assert [tables["item_ctr"].x.tolist(), tables["item_ctr"].y.tolist()] == [[1, 0, 0], [1, 1, 0]]
    assert tables["buyers"].y.tolist() == [1, 1, 0]
    pages = sums_of(outcomes, pages=new)
    assert pages["item_ctr"].y.tolist() == [3, 0, 0]


def test_queries_are_split_into_thirds_of_the_pages() -> None:
    queries = ["often"] * 6 + ["now", "now", "then", "then"] + [f"once {n}" for n in range(6)]
    pages = [
        Exposure("e", "champion", f"user:{n}", f"r{n}", float(n), (), query)
        for n, query in enumerate(queries)
    ]
    outcomes, _ = join(pages, [])
    found = [one.pages for one in segments_of(outcomes, None)]
    counts = [int(np.count_nonzero(one)) for one in found if one is not None]
    assert counts == [6, 4, 6]


def test_files_are_read_and_bad_rows_counted(tmp_path: Path) -> None:
    file = tmp_path / "exposures.jsonl"
    good = '{"experiment":"e","arm":"a","unit":"user:1","request_id":"r","time":1,"items":["i"]}'
    lines = [good, "{torn", good.replace('"time":1', '"time":"x"'), good.replace('["i"]', "7")]
    lines += ['{"arm":"a"}', good[:-1] + ',"history_items":3,"extra":1,"simulated":true}']
    file.write_text("\n".join(lines))
    rejected = Rejected()
    rows = list(read_exposures(file, rejected))
    assert [row.history_items for row in rows] == [None, 3]
    assert rows[1].simulated
    assert sum(rejected.reasons.values()) == 4
    assert rejected.first.endswith("row 2: malformed JSON")
    table = pa.Table.from_pylist([row.to_json() | {"share": 0.5} for row in rows])
    pq.write_table(table, tmp_path / "exposures.parquet")
    again = list(read_exposures(tmp_path / "exposures.parquet", Rejected()))
    assert [row.items for row in again] == [("i",), ("i",)]
    events = tmp_path / "events.jsonl"
    events.write_text('{"request_id":"r","item_id":"i","kind":"view","time":1}\n')
    with pytest.raises(DataError, match=r"no row can be used.*neither click nor order"):
        list(read_events(events, Rejected()))
    with pytest.raises(ConfigError, match="no such file or directory"):
        list(read_events(tmp_path / "events.txt", Rejected()))
    (tmp_path / "events.txt").touch()
    with pytest.raises(ConfigError, match="unknown kind of file"):
        list(read_events(tmp_path / "events.txt", Rejected()))
