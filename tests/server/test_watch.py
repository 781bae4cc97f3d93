"""Servers learn of promotions: by announcements in Redis, and by the directory without it."""

import asyncio
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from typer.testing import CliRunner

from models.checkpoint import Checkpoint, save_checkpoint
from models.registry import promotion
from models.registry.publication import publish
from models.registry.registry import Registry
from server.choice import choose_registered
from server.cli.main import app
from server.logs import make_logger
from server.metrics import Metrics
from server.redis.announcements import Announcement, announce_once, announcements_of
from server.redis.embedded import answers, find_binary, socket_of
from server.rollout_start import start_rollout
from server.settings import Settings
from server.watch import Watch

PATIENCE_S = 180.0
"""Longer than three servers take that compile at once."""
QUERY = {"query": "red oak desk", "limit": 5}
START = "from server.cli.main import run; run()"


class Published(NamedTuple):
    """A registry with two generations of one snapshot; `first` is champion."""

    registry: Registry
    first: str
    second: str


@pytest.fixture
def published(tiny_pair: Any, tmp_path: Path) -> Published:
    opened = Checkpoint.open(tiny_pair.checkpoint)
    other = replace(opened.settings, level_prior_beta=1.0)
    save_checkpoint(tmp_path / "second", opened.load_model(), opened.tokenizer, other, {})
    registry = Registry(tmp_path / "registry")
    pairs = (tiny_pair, (tiny_pair.snapshot, tmp_path / "second"))
    first, second = (publish(registry, *pair).record.version for pair in pairs)
    promotion.promote(registry, first)
    return Published(registry, first, second)


@dataclass
class RedisProcess:
    """A Redis that can be killed and started again."""

    socket: Path
    running: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        options = ("--port", "0", "--unixsocket", self.socket, "--save", "")
        self.running = subprocess.Popen([find_binary().path, *options], stdout=subprocess.DEVNULL)
        until(lambda: answers(self.socket))

    def kill(self) -> None:
        if self.running is not None:
            self.running.kill()
            self.running.wait()
            self.running = None


@pytest.fixture
def redis(tmp_path: Path) -> Generator[RedisProcess, None, None]:
    process = RedisProcess(socket_of(tmp_path))
    process.socket.parent.mkdir(mode=0o700, exist_ok=True)
    process.start()
    yield process
    process.kill()


@dataclass
class Server:
    """A process of `onesearch serve` and a client of it."""

    process: subprocess.Popen[str]
    log: Path
    client: httpx.Client = field(init=False)

    def wait(self) -> None:
        until(lambda: bool(self.urls()) or self.process.poll() is not None)
        assert self.urls(), self.log.read_text()
        self.client = httpx.Client(base_url=self.urls()[0], timeout=30)
        until(lambda: self.client.get("/readyz").status_code == 200)

    def urls(self) -> list[str]:
        return [line["url"] for line in self.lines() if line["event"] == "serving"]

    def lines(self) -> list[dict[str, Any]]:
        whole = self.log.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines() if line[:1] == "{"]

    def told(self) -> dict[str, Any]:
        return self.client.get("/readyz").json()

    def counted(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.client.get("/metrics").text, re.M)
        assert found is not None
        return float(found[1])


@pytest.fixture
def fleet(
    published: Published, redis: RedisProcess, tmp_path: Path
) -> Generator[Callable[[int], list[Server]], None, None]:
    """`fleet(n)` → n more servers on one registry and one Redis, started together."""
    config = tmp_path / "settings.toml"
    config.write_text(
        f"drain_s = 0\nengine_threads = 1\ncatalogue_changes = false\nport = 0\npatience = 0\n"
        f'registry = "{published.registry.path}"\nredis_url = "{redis.url}"\n'
    )
    with contextlib.ExitStack() as stack:

        def start() -> Server:
            log = tmp_path / f"{time.monotonic_ns()}.log"
            with log.open("w") as output:
                process = subprocess.Popen(
                    [sys.executable, "-c", START, "serve", "--config", config],
                    stderr=output,
                    text=True,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return Server(process, log)

        def begin(count: int) -> list[Server]:
            servers = [start() for _ in range(count)]
            for server in servers:
                server.wait()
                stack.callback(server.client.close)
            return servers

        yield begin


def until(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_three_servers_converge_with_redis_without_it_and_after_a_restart(
    published: Published,
    redis: RedisProcess,
    fleet: Callable[[int], list[Server]],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("ONESEARCH_REDIS_URL", redis.url)
    monkeypatch.setenv("ONESEARCH_REGISTRY", str(published.registry.path))
    first, second, servers = published.first, published.second, fleet(3)
    for server in servers:
        until(lambda server=server: server.told()["discovery"]["announcements"] == "on")
        assert server.told()["discovery"]["learnt"] == "start"

    def generations(*command: str) -> str:
        done = CliRunner().invoke(app, ["generations", *command])
        assert done.exit_code == 0, done.output
        return done.output

    def all_serve(version: str) -> bool:
        return all(server.told()["generation"]["version"] == version for server in servers)

    def check_searches(version: str) -> None:
        model = published.registry.record(version).pairing.checkpoint
        for server in servers:
            answer = server.client.post("/v1/search", json=QUERY)
            assert answer.status_code == 200
            assert answer.json()["model_version"] == model

    # By the command line, announced.
    assert "note" not in generations("promote", second)
    until(lambda: all_serve(second))
    check_searches(second)
    for server in servers:
        assert server.counted('onesearch_announcements_total{what="heard"}') > 0
        assert server.told()["discovery"]["learnt"] in ("announcement", "directory")
    assert "note" not in generations("rollback")
    until(lambda: all_serve(first))
    # By one server's API, which announces it.
    one, *others = servers
    promoted = one.client.post(f"/admin/generations/{second}:promote", json={})
    assert promoted.status_code == 200
    until(lambda: all_serve(second))
    assert one.told()["discovery"]["learnt"] == "admin"
    until(lambda: one.counted('onesearch_announcements_total{what="sent"}') == 1)
    assert {server.told()["discovery"]["learnt"] for server in others} <= {
        "announcement",
        "directory",
    }
    # With Redis killed, by the directory.
    redis.kill()
    assert "note: not announced" in generations("rollback")
    until(lambda: all_serve(first))
    check_searches(first)
    until(lambda: all(server.told()["discovery"]["announcements"] == "away" for server in servers))
    assert one.client.post(f"/admin/generations/{second}:promote", json={}).status_code == 200
    until(lambda: all_serve(second))
    assert [server.told()["discovery"]["learnt"] for server in others] == ["directory"] * 2
    assert one.counted('onesearch_generation_learnt_total{way="admin"}') == 2
    # Redis comes back, and announcements with it.
    redis.start()
    until(lambda: all(server.told()["discovery"]["announcements"] == "on" for server in servers))
    heard = [server.counted('onesearch_announcements_total{what="heard"}') for server in servers]
    generations("rollback")
    until(lambda: all_serve(first))
    for server, before in zip(servers, heard, strict=True):
        assert server.counted('onesearch_announcements_total{what="heard"}') > before
    # A server that was killed comes up on `previous` where the champion is damaged.
    servers.remove(one)
    one.process.kill()
    record = published.registry.record(first)
    (published.registry.paths(record)[1] / "manifest.json").write_text("{")
    [again] = fleet(1)
    told = again.told()["generation"]
    assert [told["version"], told["alias"]] == [second, "previous"]
    assert record.pairing.checkpoint in told["problem"]
    assert any(line["event"] == "registry damaged" for line in again.lines())
    # What is in memory already is not touched.
    check_searches(first)


def test_an_announcement_is_followed_at_once_and_only_news_is_announced(
    published: Published, redis: RedisProcess
):
    settings = Settings(
        registry=published.registry.path,
        redis_url=redis.url,
        engine_threads=1,
        catalogue_changes=False,
    )
    registered = choose_registered(settings)
    assert registered is not None

    async def scenario() -> None:
        lines = io.StringIO()
        log = make_logger("info", lines)
        pipeline, rollout = await start_rollout(settings, registered, Metrics(), log)
        # Only announcements can wake these.
        watches = [Watch(rollout, log, announcements_of(settings), PATIENCE_S) for _ in range(2)]
        one, two = watches
        async with one.running(), two.running():
            await happens(lambda: [watch.status().channel for watch in watches] == ["on", "on"])
            announcements = announcements_of(settings)
            assert announcements is not None
            channel, connection = announcements._channel, announcements._redis
            # What is no announcement is no harm: there is nothing new to be seen.
            for message in (b"", b"[]", b'{"revision": "x", "champion": 3}', b"\xff"):
                assert await connection.command("PUBLISH", channel, message) == 2
            await announcements.close()
            await happens(lambda: [watch.status().messages["heard"] for watch in watches] == [4, 4])
            # From now on each looks because of an announcement, or not at all.
            await happens(lambda: not any(watch._awake.is_set() for watch in watches))
            assert [watch.status().learnt for watch in watches] == ["start", "start"]
            state = promotion.promote(published.registry, published.second)
            await announce_once(settings, state)
            await happens(lambda: rollout.status().generation == published.second)
            await happens(
                lambda: [watch.status().learnt for watch in watches] == ["announcement"] * 2
            )
            assert [watch.status().messages["sent"] for watch in watches] == [0, 0]
            # A decision of this server's own is announced by it, once.
            with one.deciding():
                promotion.rollback(published.registry)
                await rollout.converge()
            assert one.status().learnt == "admin"
            await happens(lambda: one.status().messages["sent"] == 1)
            assert rollout.status().generation == published.first
            await happens(lambda: two.status().messages["heard"] == 6)
            assert two.status().messages["sent"] == 0
        await rollout.close()
        await pipeline.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("message", "read"),
    [
        (Announcement(3, "v").message(), Announcement(3, "v")),
        (Announcement(0, None).message(), Announcement(0, None)),
        (b'{"revision": 1}', None),
        (b'{"revision": 1.5, "champion": "v"}', None),
        (b"nothing", None),
    ],
)
def test_announcements_are_read_or_passed_over(message: bytes, read: Announcement | None):
    assert Announcement.read(message) == read


async def happens(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  what is waited for has no event
            await asyncio.sleep(0.01)
