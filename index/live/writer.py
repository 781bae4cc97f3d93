"""The process that writes a catalogue for one that searches it.

It is forked from `index.live.nursery`, with one end of a channel and an order. It opens the
catalogue, tells the way from the base to its present state, and from then on takes calls and tells
each delta, its answers with it: a delta comes before the answers that it makes true. From its
beginning it says every BEAT_S that it is there. When the other end is gone it finishes what it was
handed and ends.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from struct import Struct
from typing import Any

import orjson

from index.errors import ArtifactError, OnesearchError
from index.live import wire
from index.live.catalogue import CatalogueBusy, CatalogueClosed, LiveSettings
from index.live.changes import Applied
from index.live.channel import Channel, Kind
from index.live.delta import Delta
from index.live.writing import WritingCatalogue

TAG = Struct("<I")
FLUSH_S = 5.0
BEAT_S = 4.0


@dataclass(frozen=True, slots=True)
class Order:
    """What to open. `modules` are imported first: they register kinds of encoders."""

    snapshot: str
    directory: str
    settings: dict[str, Any]
    owner: int
    modules: list[str]

    @classmethod
    def of(
        cls, snapshot: Path, directory: Path, settings: LiveSettings, modules: list[str]
    ) -> Order:
        return cls(str(snapshot), str(directory), asdict(settings), os.getpid(), modules)

    def to_json(self) -> bytes:
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, data: bytes) -> Order:
        return cls(**orjson.loads(data))


class Teller:
    """Tells the other end what happens; see `index.live.listener`."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.catalogue: WritingCatalogue | None = None
        self._readiness: Future[str] = Future()
        self._gone = False

    def made(self, tags: Sequence[int], answers: Sequence[Applied], delta: Delta | None) -> None:
        told = [
            [
                tag,
                answer.sequence,
                answer.applied,
                [[bad.index, bad.item_id, bad.reason] for bad in answer.rejected],
            ]
            for tag, answer in zip(tags, answers, strict=True)
        ]
        answered = (Kind.ANSWERS, orjson.dumps([told, self._counters()]))
        if delta is None:
            self.channel.send(answered)
        else:
            self.channel.send((Kind.DELTA, delta.to_bytes()), answered)

    def begun(self, base: Path) -> None:
        self.channel.send((Kind.BEGUN, orjson.dumps(str(base))))

    def replayed(self, delta: Delta) -> None:
        self.channel.send((Kind.REPLAYED, delta.to_bytes()))

    def prepare(self) -> None:
        self._readiness = Future()
        self.channel.send((Kind.PREPARE, b"null"))
        if self._gone:
            raise ArtifactError("the process that searches has ended")
        reason = self._readiness.result()
        if reason:
            raise ArtifactError(reason)

    def answered(self, reason: str) -> None:
        """The other end is ready ("") or says why it is not."""
        if not self._readiness.done():
            self._readiness.set_result(reason)

    def gone(self) -> None:
        """The other end has ended."""
        self._gone = True
        self.answered("the process that searches has ended")

    def moved(self) -> None:
        self.channel.send((Kind.MOVED, b"null"))

    def merging(self) -> None:
        self.channel.send((Kind.COUNTERS, orjson.dumps(self._counters())))

    def _counters(self) -> list[Any]:
        assert self.catalogue is not None
        now = self.catalogue.status()
        return [
            now.publications,
            now.log_bytes,
            now.merges,
            now.merging,
            now.last_merge_s,
            now.merge_error,
        ]


class _Notes(logging.Handler):
    """Hands log records to the other end, whose log is the one that is read."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(logging.WARNING)
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.send((Kind.NOTE, orjson.dumps([record.levelno, self.format(record)])))


def write(end: socket.socket, order: Order) -> None:
    """Write a catalogue for who has the other end of a channel, as long as it is there."""
    channel = Channel(end)
    threading.Thread(target=_beat, args=(channel,), name="catalogue-beat", daemon=True).start()
    logging.getLogger("index").addHandler(_Notes(channel))
    teller = Teller(channel)
    try:
        for module in order.modules:
            import_module(module)
        catalogue = WritingCatalogue.opened(
            Path(order.snapshot),
            Path(order.directory),
            LiveSettings(**order.settings),
            verify=False,
            listener=teller,
            owner=order.owner,
        )
    except (OnesearchError, OSError) as error:
        reason = str(error)
        if isinstance(error, OSError) and error.filename is None:
            reason = f"{order.directory} cannot be written: {error.strerror or error}"
        channel.send((Kind.REFUSED, orjson.dumps([type(error).__name__, reason])))
        channel.flush(FLUSH_S)
        return
    teller.catalogue = catalogue
    # A full collection over what was loaded would keep callers waiting.
    gc.collect()
    gc.freeze()
    teller.merging()
    channel.send((Kind.OPENED, orjson.dumps(catalogue.note)))
    try:
        for kind, body in channel.messages():
            _take(catalogue, teller, kind, body)
    finally:
        teller.gone()
        catalogue.close()
        channel.flush(FLUSH_S)


def _beat(channel: Channel) -> None:
    """As long as the process lives. To an end that is gone it is sent in vain."""
    while True:
        channel.send((Kind.ALIVE, b"null"))
        time.sleep(BEAT_S)


def _take(catalogue: WritingCatalogue, teller: Teller, kind: Kind, body: bytearray) -> None:
    """Do what a message asks for, or see to it that it is done."""
    channel = teller.channel
    if kind is Kind.CALL:
        (tag,) = TAG.unpack_from(body)

        def hear(done: Future[Applied]) -> None:
            error = done.exception()
            if error is not None and catalogue.failed:
                # The log may have them or not: a new process opens what it has.
                channel.flush(FLUSH_S)
                os._exit(1)
            if error is not None:
                channel.send((Kind.FAILED, orjson.dumps([tag, str(error)])))

        try:
            done = catalogue.submit(wire.from_bytes(body[TAG.size :]), tag)
        except (CatalogueClosed, CatalogueBusy) as error:
            channel.send((Kind.FAILED, orjson.dumps([tag, str(error)])))
        else:
            done.add_done_callback(hear)
    elif kind is Kind.READY:
        teller.answered(orjson.loads(body))
    elif kind in (Kind.MERGE, Kind.EXPORT):
        tag, *path = orjson.loads(body)
        work = threading.Thread(target=_merge, args=(catalogue, channel, tag, path), daemon=True)
        work.start()


def _merge(catalogue: WritingCatalogue, channel: Channel, tag: int, path: list[str]) -> None:
    """A merge, or an export where a path is given; tells how it ended."""
    told = None
    try:
        if path:
            catalogue.export(Path(path[0]))
        else:
            catalogue.merge()
    except (OnesearchError, OSError) as error:
        told = str(error)
    channel.send((Kind.DONE, orjson.dumps([tag, told])))
