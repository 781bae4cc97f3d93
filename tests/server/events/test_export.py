"""Segments: each entry once, whatever happens to an export."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from index import artifact
from index.errors import ConfigError, DataError
from server.events.export import export, exporting
from server.events.log import pages_after
from server.events.records import START, Entry, Event, Log
from server.events.segments import last_entry, rows_after, segments_of
from server.experiment.records import Rejected, read_events, read_exposures
from server.redis.keys import DAY_S


def event(number: int, kind: str = "click") -> Event:
    return Event(f"e{number}", kind, "r1", f"i{number}", "u1", 1.0)


def ids(directory: Path, after: Entry = START) -> list[str]:
    found = rows_after(directory, Log.EVENTS, after)
    return [id for rows, _ in found for id in rows.column("event_id").to_pylist()]


def test_an_export_goes_on_where_the_last_one_stopped(with_log: Callable[..., Any], tmp_path: Path):
    async def work(parts: Any) -> None:
        rows: list[int] = []
        for first in (0, 0, 7, 12):
            await parts.log.take([event(number) for number in range(first, first + 5)])
            done = await export(parts.redis, parts.keys, tmp_path, Log.EVENTS)
            rows.append(done.rows)
            assert done.gap is None
        assert rows == [5, 0, 5, 5]

    with_log(work)
    assert ids(tmp_path) == [f"e{number}" for number in [*range(5), *range(7, 17)]]
    segments = segments_of(tmp_path, Log.EVENTS)
    assert len(segments) == 3
    assert segments[-1].last == last_entry(tmp_path, Log.EVENTS)
    inside = Entry.of(pq.read_table(segments[1].path).column("entry")[1].as_py())
    assert ids(tmp_path, inside) == [f"e{number}" for number in range(9, 17)]
    assert ids(tmp_path, segments[-1].last) == []


def test_a_killed_export_leaves_whole_segments_and_nothing_twice(
    with_log: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def work(parts: Any) -> None:
        await parts.log.take([event(number) for number in range(900)])
        write, written = artifact.write_file, list[Path]()

        def dies(path: Path, data: bytes) -> None:
            if len(written) == 2:
                # What a kill leaves: part of a file under a temporary name.
                path.with_name(f".{path.name}.tmp-1-x").write_bytes(data[:50])
                raise KeyboardInterrupt
            written.append(path)
            write(path, data)

        monkeypatch.setattr(artifact, "write_file", dies)
        pages = partial(pages_after, page_entries=100)
        monkeypatch.setattr("server.events.export.pages_after", pages)
        with pytest.raises(KeyboardInterrupt):
            await export(parts.redis, parts.keys, tmp_path, Log.EVENTS, segment_rows=300)
        monkeypatch.setattr(artifact, "write_file", write)
        assert len(ids(tmp_path)) == 600
        done = await export(parts.redis, parts.keys, tmp_path, Log.EVENTS, segment_rows=300)
        assert done.rows == 300

    with_log(work)
    assert ids(tmp_path) == [f"e{number}" for number in range(900)]


def test_entries_that_fell_out_before_they_were_exported_are_told(
    with_log: Callable[..., Any], tmp_path: Path
):
    async def work(parts: Any) -> None:
        await parts.log.take([event(1)])
        await export(parts.redis, parts.keys, tmp_path, Log.EVENTS)
        await parts.log.take([event(2), event(3)])
        await parts.redis.command("XTRIM", parts.keys.events, "MAXLEN", 1)
        done = await export(parts.redis, parts.keys, tmp_path, Log.EVENTS)
        assert done.gap == segments_of(tmp_path, Log.EVENTS)[0].last
        assert done.rows == 1

    with_log(work)


def test_since_leaves_out_what_came_before(with_log: Callable[..., Any], tmp_path: Path):
    async def work(parts: Any) -> None:
        await parts.log.take([event(1), event(2)])
        found = await parts.redis.command("XRANGE", parts.keys.events, "-", "+")
        since = Entry.of(found[0][0].decode())
        assert (await export(parts.redis, parts.keys, tmp_path, Log.EVENTS, since)).rows == 1

    with_log(work)
    assert ids(tmp_path) == ["e2"]


def test_one_export_at_a_time(tmp_path: Path):
    with (
        exporting(tmp_path / "out"),
        pytest.raises(ConfigError, match="another export"),
        exporting(tmp_path / "out"),
    ):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"), exporting(tmp_path / "file"):
        pass


def test_reports_read_an_export(with_log: Callable[..., Any], tmp_path: Path):
    async def work(parts: Any) -> None:
        await parts.log.take([event(1), event(2, "impression"), event(3, "order")])
        await export(parts.redis, parts.keys, tmp_path, Log.EVENTS)
        await export(parts.redis, parts.keys, tmp_path, Log.EXPOSURES)

    with_log(work, retention_s=DAY_S)
    rejected = Rejected()
    assert [one.kind for one in read_events(tmp_path, rejected)] == ["click", "order"]
    assert [one.item_id for one in read_events(tmp_path / "events", rejected)] == ["i1", "i3"]
    assert not rejected.reasons
    with pytest.raises(DataError, match="neither a Parquet file nor an export"):
        list(read_exposures(tmp_path, rejected))


def test_a_damaged_segment_is_named(tmp_path: Path):
    folder = tmp_path / "events"
    folder.mkdir()
    name = f"{Entry(1, 0).padded}_{Entry(2, 0).padded}.parquet"
    (folder / name).write_bytes(b"PAR1")
    (folder / "other.txt").write_text("")
    with pytest.raises(DataError, match=name):
        list(rows_after(tmp_path, Log.EVENTS))
    assert segments_of(tmp_path, Log.EXPOSURES) == []
