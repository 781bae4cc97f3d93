"""Parts of a change of generation add up and are forgotten with the next."""

import time

from server.laps import Laps


def test_parts_come_in_order_and_add_up():
    laps = Laps()
    laps.begin()
    started = time.perf_counter()
    laps.lap("open")
    laps.lap("flip")
    laps.lap("open")
    whole_ms = (time.perf_counter() - started) * 1000
    assert list(laps.parts_ms) == ["open", "flip"]
    assert 0 <= sum(laps.parts_ms.values()) <= whole_ms + 1
    laps.begin()
    assert laps.parts_ms == {}
