"""The change log: every accepted change on disk before its caller hears of it.

A directory of segments, `NUMBER.log`, named by the sequence number of their first change. A segment
is a magic, then records:

    length u32 | changes u32 | first sequence u64 | crc32 of payload u32 | crc32 of header u32
    payload

little endian. Records are only appended; an append is synced before it returns. A writer that is
killed leaves an unfinished record at the end of the last segment at most: it was acknowledged to
nobody and is cut off, with a note. Anything else that does not fit is damage: ArtifactError.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Generator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from index.errors import ArtifactError

MAX_RECORD_BYTES = (1 << 32) - 1
_MAGIC = b"onelog\x00\x01"
_HEADER = struct.Struct("<IIQII")
_HEADER_CRC = struct.Struct("<I")
_SUFFIX = ".log"


class LogRecord(NamedTuple):
    """`payload` holds the changes first, …, last."""

    first: int
    last: int
    payload: bytes


class ChangeLog:
    """The writer's side. One at a time for a directory; see the lock of `LiveCatalogue`."""

    def __init__(self, directory: Path, sequence: int) -> None:
        """Append to the log in `directory` (made if need be) behind change `sequence`, the last
        that it or the snapshot holds. `repair` comes first."""
        self._directory = directory
        self.sequence = sequence
        directory.mkdir(parents=True, exist_ok=True)
        segments = segments_of(directory)
        self._older_bytes = sum(path.stat().st_size for path in segments[:-1])
        self._path = segments[-1] if segments else self._create()
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        self._size = os.fstat(self._file).st_size
        self._torn = False

    @property
    def n_bytes(self) -> int:
        """Bytes of all segments."""
        return self._older_bytes + self._size

    def append(self, payload: bytes, count: int) -> int:
        """Write and sync a record of `count` changes; returns the sequence number of the last.

        Raises OSError when the disk will not take it; nothing of the record is left then.
        """
        if len(payload) > MAX_RECORD_BYTES:
            raise ValueError(f"a record of {len(payload)} bytes; take fewer changes")
        head = _HEADER.pack(len(payload), count, self.sequence + 1, zlib.crc32(payload), 0)
        head = head[: -_HEADER_CRC.size]
        data = head + _HEADER_CRC.pack(zlib.crc32(head)) + payload
        if self._torn:
            self._cut_off()
        try:
            _write(self._file, data)
            os.fdatasync(self._file)
            if not os.fstat(self._file).st_nlink:
                raise FileNotFoundError(f"{self._path} was removed")
        except OSError:
            # A disk that fails may refuse this, too; then nothing is written behind the rest.
            self._torn = True
            self._cut_off()
            raise
        self._size += len(data)
        self.sequence += count
        return self.sequence

    def rotate(self) -> None:
        """Go on in a new segment, unless this one is empty."""
        if self._size == len(_MAGIC):
            return
        path = self._create()
        os.close(self._file)
        self._older_bytes += self._size
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._size = len(_MAGIC)

    def drop_through(self, sequence: int) -> None:
        """Remove the segments whose changes are all ≤ `sequence`. The last segment stays."""
        segments = segments_of(self._directory)
        for path, following in pairwise(segments):
            if _first_of(following) <= sequence + 1:
                self._older_bytes -= path.stat().st_size
                path.unlink()
        _sync(self._directory)

    def close(self) -> None:
        os.close(self._file)

    def _cut_off(self) -> None:
        os.ftruncate(self._file, self._size)
        self._torn = False

    def _create(self) -> Path:
        path = self._directory / f"{self.sequence + 1:020d}{_SUFFIX}"
        try:
            with path.open("wb") as file:
                file.write(_MAGIC)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            # Only the last segment may be one that was never begun.
            path.unlink(missing_ok=True)
            raise
        _sync(self._directory)
        return path


def segments_of(directory: Path) -> list[Path]:
    """The segments of a log, oldest first."""
    return sorted(path for path in directory.glob(f"*{_SUFFIX}") if path.stem.isdigit())


def repair(directory: Path) -> str | None:
    """Cut off what a killed writer left unfinished. Returns a note for a person, or None.

    Raises ArtifactError for damage that no killed writer leaves.
    """
    segments = segments_of(directory)
    if not segments:
        return None
    path = segments[-1]
    data = path.read_bytes()
    if len(data) < len(_MAGIC) and _MAGIC.startswith(data):
        path.unlink()
        return f"{path.name} was never begun; removed"
    end = _sound_end(path, data)
    if end == len(data):
        return None
    with path.open("r+b") as file:
        file.truncate(end)
        os.fsync(file.fileno())
    return (
        f"{path.name} ended in an unfinished record of {len(data) - end} bytes, which no caller "
        "was told of; cut off"
    )


def read_log(
    directory: Path, after: int, *, unfinished: bool = False
) -> Generator[LogRecord, None, None]:
    """The records behind change `after`, oldest first. `repair` comes first, or `unfinished` is
    set: then an unfinished record at the end of the last segment is left out.

    Raises ArtifactError for damage and for missing changes.
    """
    segments = segments_of(directory)
    expected: int | None = None
    for number, path in enumerate(segments):
        if number + 1 < len(segments) and _first_of(segments[number + 1]) <= after + 1:
            continue
        last = number + 1 == len(segments)
        for record in _records(path, unfinished=unfinished and last):
            if expected is None and record.first > after + 1:
                raise ArtifactError(
                    f"{path} begins at change {record.first}, the snapshot ends at change {after}; "
                    "changes between them are missing"
                )
            if expected is not None and record.first != expected:
                raise ArtifactError(
                    f"{path} goes on at change {record.first}, expected {expected}; it is damaged"
                )
            expected = record.last + 1
            if record.last > after:
                yield record


def _records(path: Path, *, unfinished: bool) -> Generator[LogRecord, None, None]:
    """All records of a segment, which must be whole unless its last may be `unfinished`."""
    data = path.read_bytes()
    if unfinished:
        if len(data) < len(_MAGIC) and _MAGIC.startswith(data):
            return
        data = data[: _sound_end(path, data)]
    if not data.startswith(_MAGIC):
        raise ArtifactError(f"{path} is no segment of a change log; it is damaged")
    at = len(_MAGIC)
    while at < len(data):
        record = _record(data, at)
        if record is None:
            raise ArtifactError(f"{path} is damaged at byte {at}")
        yield record
        at += _HEADER.size + len(record.payload)


def _record(data: bytes, at: int) -> LogRecord | None:
    """The record at an offset, or None where there is no sound one."""
    head = data[at : at + _HEADER.size]
    if not _is_header(head):
        return None
    length, count, first, crc, _ = _HEADER.unpack(head)
    start = at + _HEADER.size
    payload = data[start : start + length]
    if len(payload) != length or zlib.crc32(payload) != crc:
        return None
    return LogRecord(first, first + count - 1, payload)


def _sound_end(path: Path, data: bytes) -> int:
    """Where the sound records end. Raises ArtifactError when what follows is no unfinished one."""
    if not data.startswith(_MAGIC):
        raise ArtifactError(f"{path} is no segment of a change log; it is damaged")
    at = len(_MAGIC)
    while at < len(data):
        record = _record(data, at)
        if record is None:
            break
        at += _HEADER.size + len(record.payload)
    rest = data[at:]
    head = rest[: _HEADER.size]
    # Blocks that a file system had promised but not filled read as zeros.
    unfinished = len(rest) < _HEADER.size or not any(rest)
    if not unfinished and _is_header(head):
        length = _HEADER.unpack(head)[0]
        unfinished = len(rest) <= _HEADER.size + length
    if not unfinished:
        raise ArtifactError(
            f"{path} is damaged at byte {at}, and more follows; restore it from a backup, or "
            "remove it with the segments behind it and lose their changes"
        )
    return at


def _is_header(head: bytes) -> bool:
    if len(head) < _HEADER.size:
        return False
    (crc,) = _HEADER_CRC.unpack(head[-_HEADER_CRC.size :])
    return zlib.crc32(head[: -_HEADER_CRC.size]) == crc


def _write(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def _first_of(path: Path) -> int:
    return int(path.stem)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
