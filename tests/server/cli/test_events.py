"""`onesearch events` as processes: an export that follows, is killed, and goes on."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from server.events.log import BehaviourLog
from server.events.records import Event, Log
from server.events.segments import rows_after
from server.redis.connection import RedisConnection
from server.redis.embedded import EmbeddedServer, find_binary
from server.redis.keys import DAY_S, Keys

WAIT_S = 60.0
ONESEARCH = [sys.executable, "-c", "from server.cli.main import run; run()"]


@pytest.fixture
def url(tmp_path: Path) -> Generator[str, None, None]:
    server = EmbeddedServer(tmp_path / "redis", find_binary())
    server.start()
    yield server.url
    server.stop()


def take(url: str, first: int, last: int) -> None:
    async def work() -> None:
        redis = RedisConnection(url, 5.0)
        log = BehaviourLog(redis, Keys(), DAY_S, 10)
        events = [
            Event(f"e{number}", "click", "r", "i", f"u{number % 2}", 1.0)
            for number in range(first, last)
        ]
        assert all(await log.take(events))
        await redis.close()

    asyncio.run(work())


def exported(directory: Path) -> list[str]:
    found = rows_after(directory, Log.EVENTS)
    return [id for rows, _ in found for id in rows.column("event_id").to_pylist()]


def run(url: str, *arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [*ONESEARCH, "events", *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        env=os.environ | {"ONESEARCH_REDIS_URL": url},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_an_export_that_follows_is_killed_and_goes_on(url: str, tmp_path: Path):
    target = tmp_path / "export"
    take(url, 0, 10)
    following = subprocess.Popen(
        [*ONESEARCH, "events", "export", str(target), "--follow", "--every", "0.1"],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"ONESEARCH_REDIS_URL": url},
    )
    try:
        for first, last in ((0, 10), (10, 30)):
            if first:
                take(url, first, last)
            until = time.monotonic() + WAIT_S
            while len(exported(target)) < last:
                assert time.monotonic() < until
                time.sleep(0.05)
    finally:
        following.kill()
        following.wait(WAIT_S)
    take(url, 30, 50)
    told = run(url, "export", target)["events"]
    assert [told["rows"], told["gap_after"]] == [20, None]
    assert exported(target) == [f"e{number}" for number in range(50)]


@pytest.mark.parametrize("user", ["", "  "])
def test_nobody_is_no_user_to_be_forgotten(url: str, user: str):
    done = subprocess.run(
        [*ONESEARCH, "events", "forget", user],
        capture_output=True,
        text=True,
        env=os.environ | {"ONESEARCH_REDIS_URL": url},
        timeout=WAIT_S,
    )
    assert [done.returncode, done.stdout] == [2, ""]
    assert "USER_ID is empty" in done.stderr


def test_a_user_is_forgotten(url: str):
    take(url, 0, 10)
    assert run(url, "forget", "u1") == {"events": 5, "exposures": 0}
    assert run(url, "status")["events"]["entries"] == 5
