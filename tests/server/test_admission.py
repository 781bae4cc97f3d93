"""The limit under a clock that the test turns; then refusals over HTTP."""

import heapq
import json
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx
import numpy as np
import pytest

from server.admission import (
    CROWD,
    CROWD_REST_S,
    CROWD_S,
    ENOUGH_ANSWERS,
    FIRST_LIMIT,
    MAX_HOLD_S,
    MEMORY_ANSWERS,
    MIN_LIMIT,
    REFUSALS_PER_S,
    RUSH_AT,
    SOON_S,
    Pace,
    Rush,
    SearchLimit,
    Visit,
)

PATIENCE = 8.0
SERVICE_S = 0.01


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


@dataclass
class House:
    """A limit before a simulated server: `width` searches at a time, each `service_s` long."""

    width: int = 1
    service_s: float = SERVICE_S
    most: int = 256
    degrades_above: int = 1000
    allowed_s: float = 0.1
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.limit = SearchLimit(self.most, PATIENCE, self.clock)

    def alone(self, count: int = ENOUGH_ANSWERS) -> None:
        for _ in range(count):
            visit = self.limit.enter()
            assert visit is not None
            self.clock.now += self.service_s
            self.limit.leave(visit, answered=True)
            self.clock.now += 0.1

    def storm(self, rate: float, seconds: float, seed: int = 0) -> tuple[list[float], int, int]:
        """Poisson arrivals → latencies of whole answers, number of degraded ones, of refusals."""
        random = np.random.default_rng(seed)
        start = self.clock.now
        due = np.cumsum(random.exponential(1 / rate, int(rate * seconds)))
        free = [start] * self.width
        leaving: list[tuple[float, int, Visit, bool]] = []
        latencies: list[float] = []
        degraded = refused = 0
        for number, instant in enumerate([*(start + due).tolist(), start + seconds + 60]):
            while leaving and leaving[0][0] <= instant:
                end, _, visit, whole = heapq.heappop(leaving)
                self.clock.now = end
                self.limit.leave(visit, answered=whole, late=not whole, allowed_s=self.allowed_s)
                if whole:
                    latencies.append(end - visit.entered)
                else:
                    degraded += 1
            self.clock.now = instant
            entered = self.limit.enter() if number < len(due) else None
            if entered is None:
                refused += 1
                continue
            whole = self.limit.inside <= self.degrades_above
            end = max(heapq.heappop(free), instant) + self.service_s / (1 if whole else 5)
            heapq.heappush(free, end)
            heapq.heappush(leaving, (end, number, entered, whole))
        return latencies, degraded, refused - 1


def p99(latencies: list[float]) -> float:
    return float(np.quantile(latencies, 0.99))


def test_before_anything_is_known_a_fixed_number_is_let_in():
    house = House()
    assert house.limit.limit == FIRST_LIMIT
    assert House(most=3).limit.limit == 3


def test_the_first_searches_may_come_together():
    """One was alone and quick; those that follow are slow, as caches are cold."""
    house = House()
    house.alone(1)
    visits: list[Visit] = []
    for _ in range(FIRST_LIMIT):
        house.clock.now += SERVICE_S
        visit = house.limit.enter()
        assert visit is not None
        visits.append(visit)
    assert house.limit.enter() is None
    for visit in visits:
        house.clock.now += SERVICE_S
        house.limit.leave(visit, answered=True)
    house.alone(1)
    assert house.limit.limit < FIRST_LIMIT


def test_a_server_that_works_in_turn_lets_in_as_many_as_its_patience():
    house = House()
    house.alone()
    assert house.limit.limit == PATIENCE
    house.storm(200, 5)
    assert house.limit.limit == PATIENCE


def test_nobody_is_refused_who_would_be_answered_soon():
    house = House(service_s=0.001)
    house.alone()
    assert house.limit.limit == round(SOON_S / 0.001)


def test_a_server_that_answers_many_at_once_lets_many_in():
    house = House(width=16)
    house.alone()
    latencies, _, refused = house.storm(1200, 4)
    assert refused < 0.01 * 4800
    assert house.limit.limit > 64
    assert p99(latencies) < 2.5 * SERVICE_S


@pytest.mark.parametrize("width", [1, 4])
def test_under_a_storm_latency_is_bounded_and_nothing_is_lost(width: int):
    capacity = width / SERVICE_S
    calm, storm, hurricane = (
        _answers(House(width=width), load * capacity) for load in (0.6, 2.0, 20.0)
    )
    assert calm[1] < 0.02
    assert storm[0] <= 2 * PATIENCE * SERVICE_S
    assert hurricane[0] <= 1.5 * PATIENCE * SERVICE_S
    for _, _, goodput in (storm, hurricane):
        assert goodput >= 0.95 * capacity


def _answers(house: House, rate: float) -> tuple[float, float, float]:
    """p99 of the answers, share of refusals, answers per second."""
    house.alone()
    latencies, _, refused = house.storm(rate, 5)
    return p99(latencies), refused / (rate * 5), len(latencies) / 5


def test_a_crowd_that_soon_goes_is_let_in():
    """Nothing is answered for as long as half a house takes, now and then, at 70 % of capacity."""
    house = House()
    house.alone()
    for seed in range(20):
        refused = house.storm(0.7 / SERVICE_S, CROWD_REST_S, seed)[2]
        assert refused == 0
        visits = [house.limit.enter() for _ in range(CROWD * int(PATIENCE))]
        assert None not in visits
        assert house.limit.enter() is None
        for visit in visits:
            assert visit is not None
            house.clock.now += SERVICE_S
            house.limit.leave(visit, answered=True)


def test_so_is_one_that_gathers_while_nothing_is_answered():
    house, every_s = House(), SERVICE_S / 0.7
    house.alone()
    house.storm(1 / every_s, 5)
    visits: list[Visit] = []
    house.clock.now += every_s
    while visit := house.limit.enter():
        visits.append(visit)
        house.clock.now += every_s
    # N has fallen by half meanwhile, as that time counts for what an answer takes.
    assert 0.9 * CROWD * PATIENCE <= len(visits) <= CROWD * PATIENCE


def test_a_crowd_that_stays_is_let_in_for_a_moment():
    house = House()
    house.alone()
    latencies, _, _ = house.storm(1.2 / SERVICE_S, 60.0)
    first, later = np.split(np.array(latencies), [int(15 * CROWD_S / SERVICE_S)])
    assert 1.5 * PATIENCE * SERVICE_S <= p99(first.tolist()) <= CROWD * PATIENCE * SERVICE_S
    # As the account fills up, one more is in the house now and then.
    assert p99(later.tolist()) <= 1.25 * PATIENCE * SERVICE_S


@pytest.mark.parametrize("load", [2, 3, 4, 20])
def test_where_more_come_than_could_be_answered_there_is_no_crowd(load: int):
    for seed in range(5):
        house = House()
        house.alone()
        house.storm(0.8 / SERVICE_S, 10, seed)
        latencies, _, _ = house.storm(load / SERVICE_S, 10, seed)
        # But for those who come before it can be told.
        first, later = np.split(np.array(latencies), [int(4 * RUSH_AT)])
        assert first.max() <= 1.1 * CROWD * PATIENCE * SERVICE_S
        assert later.max() <= 1.25 * PATIENCE * SERVICE_S
        assert len(latencies) >= 9.5 / SERVICE_S


def test_at_the_load_it_is_made_for_nobody_is_refused_for_a_rush(monkeypatch: pytest.MonkeyPatch):
    def refused() -> list[int]:
        house = House()
        house.alone()
        return [house.storm(0.8 / SERVICE_S, 60, seed)[2] for seed in range(10)]

    found = refused()
    monkeypatch.setattr(Rush, "on", False)
    assert found == refused()
    assert sum(found) < 0.002 * 10 * 60 * 0.8 / SERVICE_S


def test_a_rush_is_soon_forgotten():
    rush, now = Rush(0.0), 0.0
    for _ in range(10_000):
        now += SERVICE_S / 4
        rush.arrived(now, SERVICE_S)
    assert rush.on
    for _ in range(int(RUSH_AT)):
        now += SERVICE_S / 0.5
        rush.arrived(now, SERVICE_S)
    assert not rush.on


def test_where_answers_come_late_there_is_no_crowd():
    house = House(degrades_above=5)
    house.alone()
    house.storm(1000, 0.2)
    visits = [house.limit.enter() for _ in range(2 * int(PATIENCE))]
    assert len([visit for visit in visits if visit is not None]) <= house.limit.limit


def test_the_storm_is_forgotten():
    house = House()
    house.alone()
    before = house.storm(40, 5)[0]
    house.storm(1000, 5)
    after, _, refused = house.storm(40, 5)
    assert refused == 0
    assert p99(after) == pytest.approx(p99(before), rel=0.01)
    assert house.limit.inside == 0


def test_a_server_that_grew_slower_or_faster_is_noticed():
    house = House()
    house.alone()
    for service_s in (0.05, 0.002):
        house.service_s = service_s
        house.storm(0.3 / service_s, 300 * service_s)
        latencies, _, _ = house.storm(3 / service_s, 300 * service_s)
        assert p99(latencies) <= 1.5 * CROWD * max(PATIENCE * service_s, SOON_S)
        assert len(latencies) > 250
        # Once the account for crowds is used up.
        latencies, _, _ = house.storm(3 / service_s, 4 * CROWD_S + 300 * service_s)
        later = latencies[int(2 * CROWD_S / service_s) :]
        assert p99(later) <= 1.5 * max(PATIENCE * service_s, SOON_S)
        assert len(later) > 250


def test_where_many_make_answers_late_fewer_are_let_in():
    house = House(degrades_above=5)
    house.alone()
    house.storm(1000, 2)
    latencies, degraded, _ = house.storm(1000, 5)
    assert degraded < 0.2 * len(latencies)
    assert len(latencies) > 0.9 * 5 / SERVICE_S


def test_deadlines_that_no_search_could_meet_change_nothing():
    house = House(width=16, degrades_above=0, allowed_s=1.5 * SERVICE_S)
    house.alone()
    house.storm(1000, 2)
    house.degrades_above = 1000
    assert house.storm(1200, 4)[2] < 0.01 * 4800


def test_while_every_answer_is_degraded_some_are_let_in_and_recovery_is_quick():
    house = House(degrades_above=0)
    house.storm(1000, 20)
    assert house.limit.limit >= MIN_LIMIT
    house.degrades_above = 1000
    house.alone(4 * MEMORY_ANSWERS)
    assert house.limit.limit >= PATIENCE / 2


def test_searches_that_nobody_waited_for_or_that_were_wrong_teach_nothing_of_time():
    house = House()
    house.alone()
    for _ in range(100):
        visit = house.limit.enter()
        assert visit is not None
        house.clock.now += 1e-5
        house.limit.leave(visit, answered=False)
    house.alone(1)
    assert house.limit.limit == pytest.approx(PATIENCE, abs=1)


def test_refusals_are_paced_and_none_waits_long():
    clock = Clock()
    pace = Pace(clock)
    assert pace.hold() == 0
    holds = [pace.hold() for _ in range(1000)]
    assert holds[:4] == pytest.approx([n / REFUSALS_PER_S for n in range(1, 5)])
    assert max(holds) == pytest.approx(MAX_HOLD_S)
    clock.now += 1
    assert pace.hold() == 0


def test_clients_that_come_back_at_once_do_not_starve_searches(stub_client: Any, stub: Any):
    """A server that answers one at a time; sixteen clients that never wait."""
    turn = anyio.Lock()

    async def slow(_: Any) -> None:
        async with turn:
            await anyio.sleep(0.01)

    stub.answer = slow
    client = stub_client(log_level="error")
    body = json.dumps({"query": "x"}).encode()
    request = (
        b"POST /v1/search HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(body), body)
    )
    for _ in range(3):
        assert client.post("/v1/search", json={"query": "x"}).status_code == 200
    end = time.monotonic() + 60
    statuses: list[bytes] = []

    def press() -> None:
        with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as own:
            while statuses.count(b"200") < 100 and time.monotonic() < end:
                own.sendall(request)
                answer = _answer(own)
                statuses.append(answer[9:12])
                if statuses[-1] != b"200":
                    assert re.search(rb"(?i)\r\nretry-after: [12]\r\n", answer)

    threads = [threading.Thread(target=press) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {b"200", b"503"}
    assert statuses.count(b"200") >= 100
    metrics = client.get("/metrics").text
    assert f"onesearch_shed_total {float(statuses.count(b'503'))}" in metrics
    assert "onesearch_search_limit" in metrics
    assert client.post("/v1/search", json={"query": "x"}).status_code == 200


def _answer(connection: socket.socket) -> bytes:
    data = b""
    while (head := data.find(b"\r\n\r\n")) < 0:
        data += connection.recv(65536)
    found = re.search(rb"(?i)content-length: (\d+)", data)
    assert found is not None
    while len(data) < head + 4 + int(found.group(1)):
        data += connection.recv(65536)
    return data


def test_patience_zero_leaves_only_the_fixed_limit(stub_client: Any, stub: Any):
    async def slow(_: Any) -> None:
        await anyio.sleep(0.3)

    stub.answer = slow
    client = stub_client(patience=0, concurrent_requests=40)
    results: list[int] = []

    def search() -> None:
        with httpx.Client(base_url=client.base_url, timeout=10) as own:
            results.append(own.post("/v1/search", json={"query": "x"}).status_code)

    threads = [threading.Thread(target=search) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [200] * 30
