from index.dataset import EVENTS
from server.events.joined import join
from server.events.records import Entry, Event, Log, exposure_to_json, table_of
from server.experiment.records import Exposure


def test_clicks_join_the_search_that_they_name():
    shown = [
        Exposure("e", "champion", "user:a", "r1", 1.0, ("i1", "i2"), "desk"),
        Exposure("e", "champion", "user:a", "r1", 1.0, ("i1", "i2"), "desk"),
        Exposure("", "champion", "request:r2", "r2", 2.0, ("i1",)),
    ]
    done = [
        Event("1", "click", "r1", "i2", "a", 1.5),
        Event("2", "click", "r1", "i2", "a", 1.6),
        Event("3", "order", "r1", "i2", "a", 2.5),
        Event("4", "impression", "r1", "i1", "a", 1.1),
        Event("5", "click", "r2", "i2", None, 2.2),
        Event("6", "click", "r9", "i1", None, 2.3),
    ]
    exposures = table_of(
        Log.EXPOSURES, [(Entry(1, n), exposure_to_json(one)) for n, one in enumerate(shown)]
    )
    events = table_of(Log.EVENTS, [(Entry(1, n), one.to_json()) for n, one in enumerate(done)])
    joined = join(exposures, events)
    assert joined.rows.schema == EVENTS
    assert [joined.unmatched, joined.simulated] == [2, False]
    rows = joined.rows.to_pylist()
    assert [(row["kind"], row["item_id"], row["position"], row["time"]) for row in rows] == [
        ("impression", "i1", 1, 1.0),
        ("impression", "i2", 2, 1.0),
        ("click", "i2", 2, 1.5),
        ("impression", "i1", 1, 2.0),
        ("order", "i2", 2, 2.5),
    ]
    assert [rows[0][name] for name in ("session_id", "user_id", "query")] == ["r1", "a", "desk"]
    assert [rows[3][name] for name in ("session_id", "user_id", "query")] == ["r2", None, None]
