from server.events.records import Entry, Event, Log, exposure_to_json, table_of
from server.experiment.records import Exposure

EVENT = Event("e", "click", "r", "i", None, 0.0)
EXPOSURE = Exposure("", "champion", "user:u", "r", 5.0, ("i", "j"), "desk", None, 0)


def test_what_is_kept_comes_back():
    rows = table_of(Log.EVENTS, [(Entry(7000, 1), EVENT.to_json())]).to_pylist()
    assert rows == [
        {
            "entry": "7000-1",
            "received": 7.0,
            "event_id": "e",
            "kind": "click",
            "request_id": "r",
            "item_id": "i",
            "user_id": None,
            "time": 0.0,
            "position": None,
            "simulated": False,
        }
    ]
    [row] = table_of(Log.EXPOSURES, [(Entry(7000, 2), exposure_to_json(EXPOSURE))]).to_pylist()
    assert [row["experiment"], row["items"], row["history_items"]] == ["", ["i", "j"], 0]
    assert [row["share"], row["simulated"], row["model_version"]] == [None, False, ""]


def test_what_cannot_be_read_is_no_row():
    kept = [b"", b"[]", b"{torn", b'{"kind":"click"}', EVENT.to_json()]
    entries = [(Entry(1, number), one) for number, one in enumerate(kept)]
    assert table_of(Log.EVENTS, entries).column("entry").to_pylist() == ["1-4"]
    assert table_of(Log.EVENTS, []).num_rows == 0


def test_entries_are_ordered_as_the_stream_orders_them():
    entries = [Entry.of(text) for text in ("9-10", "9-9", "10-0", "0")]
    assert [str(one) for one in sorted(entries)] == ["0-0", "9-9", "9-10", "10-0"]
    assert sorted(one.padded for one in entries) == [one.padded for one in sorted(entries)]
