"""The file of API keys: JSON, without anything that could be sent as a key.

    {"format": 1, "keys": [{"id", "name", "sha256", "scopes", "created", "expires", "rate"}, …]}

Written whole under a temporary name, readable by its owner alone, then renamed; changes of two
programs at a time follow each other. A file that anybody may write is not believed.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import orjson

from index.errors import ConfigError
from server.keys import Key

FORMAT = 1
MAX_BYTES = 16 * 1024 * 1024
_OWNER_ONLY = 0o600
_FIELDS = {"id", "name", "sha256", "scopes", "created", "expires", "rate"}

Stamp = tuple[int, int, int]
"""Of a file: where it lies, when it was written, its size. Another file, another stamp."""


def stamp_of(path: Path) -> Stamp | None:
    """None where there is no file."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file. Raises ConfigError saying what is wrong with it."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & stat.S_IWOTH:
                raise ConfigError(f"keys file {path} can be written by anybody; chmod 600 it")
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(
            f"keys file {path} is not there; make it with `onesearch keys create`"
        ) from None
    except OSError as error:
        raise ConfigError(f"keys file {path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"keys file {path} is larger than {MAX_BYTES} bytes")
    try:
        raw = cast(dict[str, Any], orjson.loads(data))
        if raw.get("format") != FORMAT:
            raise ConfigError(f"it is not of format {FORMAT}")
        keys = tuple(_key_of(entry) for entry in raw["keys"])
    except orjson.JSONDecodeError:
        raise ConfigError(f"keys file {path} is not valid JSON") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # Of what was read nothing is repeated: somebody may have put a whole key there.
        raise ConfigError(
            f"keys file {path} has an entry that is none ({type(error).__name__})"
        ) from None
    except ConfigError as error:
        raise ConfigError(f"keys file {path}: {error}") from None
    if len({key.id for key in keys}) < len(keys):
        raise ConfigError(f"keys file {path} has two keys of one id")
    return keys


def change_keys(path: Path, change: Callable[[Sequence[Key]], Sequence[Key]]) -> tuple[Key, ...]:
    """Replace the keys of a file by what `change` makes of them; no file: of none. Returns them.

    Raises ConfigError as `read_keys` does, or where the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            known = read_keys(path) if path.exists() else ()
            keys = tuple(change(known))
            _write(path, keys)
    except OSError as error:
        raise ConfigError(f"keys file {path} cannot be written: {error.strerror}") from None
    return keys


def _write(path: Path, keys: Sequence[Key]) -> None:
    raw = {"format": FORMAT, "keys": [_entry_of(key) for key in keys]}
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, _OWNER_ONLY), "wb") as file:  # noqa: PTH123
            file.write(orjson.dumps(raw, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _alone(path: Path) -> Generator[None, None, None]:
    """One program at a time. The lock is a file beside: the keys' own is replaced."""
    lock = path.with_name(f".{path.name}.lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _OWNER_ONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _entry_of(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "sha256": key.digest.hex(),
        "scopes": sorted(key.scopes),
        "created": key.created,
        "expires": key.expires,
        "rate": key.rate,
    }


def _key_of(entry: dict[str, Any]) -> Key:
    if unknown := entry.keys() - _FIELDS:
        raise ConfigError(f"a key has {len(unknown)} fields that are none of a key's")
    expires, rate = entry.get("expires"), entry.get("rate")
    return Key(
        str(entry["id"]),
        str(entry["name"]),
        bytes.fromhex(entry["sha256"]),
        frozenset(entry["scopes"]),
        float(entry["created"]),
        None if expires is None else float(expires),
        None if rate is None else float(rate),
    )
