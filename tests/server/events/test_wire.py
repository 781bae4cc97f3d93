import orjson
import pytest
from fastapi.exceptions import RequestValidationError

from server.errors import Problem
from server.events.wire import MAX_EVENTS, events_of

NOW = 1_763_880_000.0
CLICK = {"kind": "click", "request_id": "r1", "item_id": "i1", "time": NOW}


def body(*events: object) -> bytes:
    return orjson.dumps({"events": list(events)})


def test_events_are_read_and_bad_ones_named_by_index():
    batch = events_of(
        body(
            CLICK | {"user_id": "u1", "position": 3, "event_id": "e1"},
            CLICK | {"kind": "view"},
            CLICK | {"colour": "red"},
            CLICK | {"time": NOW * 1000, "event_id": "e2"},
            CLICK | {"kind": "order", "time": 7, "simulated": True},
            7,
        ),
        NOW,
    )
    first, second = batch.events
    assert [first.event_id, first.kind, first.user_id, first.position] == ["e1", "click", "u1", 3]
    assert [second.kind, second.time, second.simulated] == ["order", 7.0, True]
    assert [(bad.index, bad.event_id) for bad in batch.rejected] == [
        (1, None),
        (2, None),
        (3, "e2"),
        (5, None),
    ]
    reasons = [bad.reason for bad in batch.rejected]
    assert reasons[0] == "kind: Input should be 'impression', 'click' or 'order'"
    assert reasons[1] == "has a field that does not exist; see /docs"
    assert "Unix time in seconds" in reasons[2]


def test_without_an_id_the_same_event_is_the_same_event():
    [one], [again], [other] = (
        events_of(body(event), NOW).events for event in (CLICK, CLICK, CLICK | {"item_id": "i2"})
    )
    assert one.event_id == again.event_id != other.event_id


def test_users_that_are_made_up_do_nothing_real():
    [event] = events_of(body(CLICK | {"user_id": "simulated-4"}), NOW).events
    assert event.simulated


@pytest.mark.parametrize(
    "raw",
    [
        b"[]",
        b'{"events": []}',
        b'{"events": 7}',
        b'{"events": [{}], "x": 1}',
        body(*[CLICK] * 1001),
    ],
)
def test_bodies_that_hold_no_events(raw: bytes):
    assert MAX_EVENTS == 1000
    with pytest.raises(RequestValidationError):
        events_of(raw, NOW)


def test_a_body_that_is_no_json():
    with pytest.raises(Problem) as caught:
        events_of(b'{"events": [', NOW)
    assert caught.value.kind.slug == "malformed-request"
