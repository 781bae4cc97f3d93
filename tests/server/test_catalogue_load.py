"""10,000 changes of a served catalogue beside searches, merges and a compaction, and a kill −9."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from models.registry import promotion
from models.registry.publication import publish
from models.registry.registry import Registry

ROUNDS = 100
ADDED, UPDATED, DELETED = 70, 20, 10
"""Changes of a round: 100 in all."""
SEARCHERS = 2
STARTING_S = 90
RUN = "from server.cli.main import run; run()"
THINGS = ("desk", "lamp", "shelf", "chair")
Stocks = dict[str, int]


@pytest.fixture
def registry(tiny_pair: tuple[Path, Path], tmp_path: Path) -> Registry:
    registry = Registry(tmp_path / "registry")
    promotion.promote(registry, publish(registry, *tiny_pair).record.version)
    return registry


@contextmanager
def serving(registry: Registry) -> Generator[tuple["subprocess.Popen[str]", httpx.Client]]:
    """`onesearch serve` as a process of its own, and a client; it is killed in the end."""
    settings = {
        "REGISTRY": str(registry.path),
        "CATALOGUE_CHANGES": "true",
        "MERGE_MIN_ITEMS": "1000",
        "MERGE_SHARE": "0.2",
        "COMPACTION_CHANGES": "2000",
        "PATIENCE": "0",
        "ENGINE_DTYPE": "float32",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, "serve", "--port", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=registry.path.parent,
        env=os.environ
        | {f"ONESEARCH_{name}": value for name, value in settings.items()}
        | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert process.stderr is not None
    lines: list[str] = []
    url = threading.Event()

    def listen() -> None:
        for line in process.stderr or ():
            lines.append(line)
            if re.search(r"http://[\d.]+:\d+", line):
                url.set()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        assert url.wait(STARTING_S), "".join(lines)
        found = re.search(r"http://[\d.]+:\d+", "".join(lines))
        assert found is not None
        with httpx.Client(base_url=found.group(), timeout=60) as client:
            end = time.monotonic() + STARTING_S
            while client.get("/readyz").status_code != 200:
                assert time.monotonic() < end
                time.sleep(0.05)
            yield process, client
    finally:
        process.kill()
        process.wait()
        listener.join()
        process.stderr.close()


def batch(number: int) -> list[dict[str, object]]:
    """The items that a round adds, of one brand."""
    return [
        {
            "item_id": f"r{number}/{place}",
            "title": f"round{number} {THINGS[place % 4]} {place % 9}",
            "brand": f"Round {number}",
            "price": float(place),
            "stock": 1,
        }
        for place in range(ADDED)
    ]


def found(client: httpx.Client, number: int) -> Stocks:
    """What a search finds of a round's items, with their stock."""
    body = {
        "query": f"round{number} desk",
        "limit": 100,
        "beam_width": 1024,
        "timeout_ms": 30_000,
        "filters": {"brand": [f"round {number}"]},
    }
    response = client.post("/v1/search", json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["degraded"] == []
    return {hit["item_id"]: hit["stock"] for hit in answer["hits"]}


def changed(response: httpx.Response, count: int) -> None:
    assert response.status_code == 200, response.text
    assert [response.json()["applied"], response.json()["rejected"]] == [count, []]


def play(client: httpx.Client, number: int) -> Stocks:
    """A round's 100 changes, each seen by the next search; what is left of it."""
    items = batch(number)
    ids = [str(one["item_id"]) for one in items]
    changed(client.put("/v1/items", json={"items": items}), ADDED)
    expected = dict.fromkeys(ids, 1)
    assert found(client, number) == expected
    updates = [{"item_id": one, "stock": 7} for one in ids[:UPDATED]]
    changed(client.patch("/v1/items", json={"items": updates}), UPDATED)
    expected |= dict.fromkeys(ids[:UPDATED], 7)
    gone = ids[-DELETED:]
    changed(client.request("DELETE", "/v1/items", json={"item_ids": gone}), DELETED)
    for one in gone:
        del expected[one]
    assert found(client, number) == expected
    return expected


def test_ten_thousand_changes_beside_searches(registry: Registry):
    done: list[Stocks] = []
    stop = threading.Event()
    first = registry.aliases().champion

    def search(seed: int, url: httpx.URL) -> int:
        """Rounds that are over are found as they were left, whatever goes on."""
        random, asked = np.random.default_rng(seed), 0
        with httpx.Client(base_url=url, timeout=60) as own:
            while not stop.wait(0.02):
                if done:
                    number = int(random.integers(len(done)))
                    assert found(own, number) == done[number]
                    asked += 1
        return asked

    with serving(registry) as (process, client), ThreadPoolExecutor(SEARCHERS) as threads:
        searches = [threads.submit(search, seed, client.base_url) for seed in range(SEARCHERS)]
        try:
            for number in range(ROUNDS):
                done.append(play(client, number))
                assert not any(one.done() for one in searches), [one.result() for one in searches]
            # The champion was compacted meanwhile, or is soon.
            end = time.monotonic() + 60
            while registry.aliases().champion == first:
                assert time.monotonic() < end
                time.sleep(0.1)
        finally:
            stop.set()
        assert sum(one.result() for one in searches) > ROUNDS / 2
        facts = client.get("/readyz").json()
        assert facts["catalogue"]["sequence"] == ROUNDS * (ADDED + UPDATED + DELETED) == 10_000
        metrics = client.get("/metrics").text
        merges = re.search(r"^onesearch_catalogue_merges_total (\S+)$", metrics, re.MULTILINE)
        assert merges is not None
        assert float(merges.group(1)) >= 1
        # Killed in the midst of more of the same.
        with ThreadPoolExecutor(1) as changing:
            acknowledged: list[int] = []
            killed = changing.submit(go_on, client.base_url, acknowledged)
            while not acknowledged:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed.result()
    with serving(registry) as (_, client):
        for number, expected in enumerate(done):
            assert found(client, number) == expected
        for number in acknowledged:
            assert len(found(client, number)) == ADDED
        # What was under way is there as a whole or not at all.
        assert len(found(client, max(acknowledged) + 1)) in (0, ADDED)
        sequence = client.get("/readyz").json()["catalogue"]["sequence"]
        assert (sequence - 10_000) // ADDED - len(acknowledged) in (0, 1)
        # A batch that is sent again, since nobody knew, leaves no trace.
        changed(client.put("/v1/items", json={"items": batch(acknowledged[0])}), ADDED)
        assert client.get("/readyz").json()["catalogue"]["sequence"] == sequence


def go_on(url: httpx.URL, acknowledged: list[int]) -> None:
    """Add items, round after round, until nobody answers."""
    with httpx.Client(base_url=url, timeout=60) as own:
        for number in range(ROUNDS, 10 * ROUNDS):
            try:
                response = own.put("/v1/items", json={"items": batch(number)})
            except httpx.TransportError:
                return
            changed(response, ADDED)
            acknowledged.append(number)
