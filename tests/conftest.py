"""Shared by all tests: a tiny real generation (36 items, 3 levels, 2 layers, random weights), and a
collector of traces."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch

from index.attributes import AttributeDictionary
from index.codec import Codec
from index.dataset import ITEMS
from index.encoder import StaticEncoder
from index.sid import SidLayout
from index.snapshot import Snapshot, texts_of
from models.checkpoint import CheckpointSettings, save_checkpoint
from models.tokenizer import Tokenizer
from models.transformer import Qwen3, Qwen3Config

LAYOUT = SidLayout((8, 4, 4))
DIMENSION = 16
BUCKETS = 512
COLORS = ("red", "black", "white")
MATERIALS = ("oak", "steel", "glass")
THINGS = ("desk", "lamp", "shelf", "chair")
COLLECTING_S = 60.0


class TinyPair(NamedTuple):
    """Directories of a snapshot and a checkpoint that belong together."""

    snapshot: Path
    checkpoint: Path


@pytest.fixture(scope="session", autouse=True)
def settings_of_tests() -> Generator[None, None, None]:
    """What every server of a test has, unless the test says otherwise.

    It starts no Redis in the working directory by itself, and computes in float32: "auto" is
    measured, and on a busy machine two engines of one test could choose two types.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESEARCH_EVENTS", "false")
        patch.setenv("ONESEARCH_ENGINE_DTYPE", "float32")
        yield


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    folder = tmp_path_factory.mktemp("tiny")
    snapshot = write_tiny_snapshot(folder / "snapshot")
    return TinyPair(snapshot.path, write_tiny_checkpoint(folder / "checkpoint", snapshot))


@pytest.fixture(scope="session")
def other_snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same catalogue under another codec: nothing of `tiny_pair` fits it."""
    return write_tiny_snapshot(tmp_path_factory.mktemp("other") / "snapshot", seed=5).path


def tiny_items() -> pa.Table:
    """Item i0 … i35; the last has markup for a title, no price and no lists."""
    rows = [
        {
            "item_id": f"i{number}",
            "title": f"{color} {material} {thing}",
            "brand": "Acme" if number % 2 else "Nord",
            "category": ["home", thing],
            "color": [color],
            "material": [material],
            "price": float(number + 1),
            "stock": number % 3,
            "popularity": float(number % 5),
        }
        for number, (color, material, thing) in enumerate(
            (color, material, thing)
            for color in COLORS
            for material in MATERIALS
            for thing in THINGS
        )
    ]
    rows[-1] = {"item_id": "i35", "title": "<img src=x onerror=alert(1)> white glass chair"}
    return pa.Table.from_pylist(rows, schema=ITEMS)


def write_tiny_snapshot(path: Path, seed: int = 0) -> Snapshot:
    random = np.random.default_rng(seed)
    items = tiny_items()
    table = random.standard_normal((BUCKETS, DIMENSION)).astype(np.float32)
    encoder = StaticEncoder.from_table(table, np.arange(BUCKETS, dtype=np.int32))
    embeddings = encoder.encode(texts_of(items))
    centroids = tuple(
        embeddings[random.choice(len(items), size, replace=False)] / (level + 1) ** 2
        for level, size in enumerate(LAYOUT.level_sizes)
    )
    codec = Codec(LAYOUT, centroids, ("rq",) * LAYOUT.levels)
    Snapshot.write(
        path,
        items=items,
        encoder=encoder,
        attributes=AttributeDictionary.of({"Color": {color: [] for color in COLORS}}),
        codec=codec,
        codes=codec.encode(embeddings),
        embeddings=embeddings,
        report={},
        simulated=True,
        keyword_fusion=0.0,
        dataset_version="tiny",
    )
    return Snapshot.open(path)


def write_tiny_checkpoint(path: Path, snapshot: Snapshot, *, level_prior_beta: float = 2.0) -> Path:
    titles = texts_of(snapshot.items.table)
    tokenizer = Tokenizer.train(titles, 280, layout=snapshot.layout)
    config = Qwen3Config(
        vocab_size=tokenizer.size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        # vLLM's attention on a CPU takes heads of 32 and larger.
        head_dim=32,
    )
    settings = CheckpointSettings(
        level_sizes=snapshot.layout.level_sizes,
        sid_offset=tokenizer.sid_offset,
        level_prior_beta=level_prior_beta,
        snapshot_version=snapshot.version,
        codec_id=snapshot.codec.id,
        simulated=True,
    )
    model = Qwen3(config).initialise(torch.Generator().manual_seed(0))
    save_checkpoint(path, model, tokenizer, settings, {})
    return path


@dataclass(frozen=True, slots=True)
class Seen:
    """A span that arrived; ids in hexadecimal digits, `parent` "" for none."""

    service: str
    name: str
    trace: str
    span: str
    parent: str
    began_ns: int
    ended_ns: int
    kind: int
    error: bool
    facts: dict[str, Any]


class Collector:
    """An OpenTelemetry collector: takes OTLP over HTTP on a free port of this machine and keeps the
    spans, within a `with` block."""

    def __init__(self) -> None:
        self._seen: list[Seen] = []
        self._bodies: list[bytes] = []
        self._lock = threading.Lock()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                collector._take(self.rfile.read(int(self.headers["Content-Length"])))
                # An empty message of protobuf is no bytes.
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def seen(self) -> list[Seen]:
        with self._lock:
            return list(self._seen)

    @property
    def text(self) -> bytes:
        """All that was sent, as it was sent."""
        with self._lock:
            return b"".join(self._bodies)

    def trace(self, trace: str) -> list[Seen]:
        """The spans of one trace."""
        return [span for span in self.seen if span.trace == trace]

    def wait_for(self, found: Callable[[list[Seen]], Any]) -> Any:
        """What `found` gives of all spans, once that is something."""
        until = time.monotonic() + COLLECTING_S
        while not (wanted := found(self.seen)):
            assert time.monotonic() < until, sorted({span.name for span in self.seen})
            time.sleep(0.05)
        return wanted

    def _take(self, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )

        request = ExportTraceServiceRequest.FromString(body)
        spans: list[Seen] = []
        for resource in request.resource_spans:
            service = _facts(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                spans += [
                    Seen(
                        service,
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        span.kind,
                        span.status.code == 2,
                        _facts(span.attributes),
                    )
                    for span in scope.spans
                ]
        with self._lock:
            self._seen += spans
            self._bodies.append(body)


def _facts(attributes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in attributes:
        kind = one.value.WhichOneof("value")
        value = getattr(one.value, kind) if kind else None
        if kind == "array_value":
            value = [part.string_value for part in value.values]
        found[one.key] = value
    return found


@pytest.fixture(scope="session")
def collecting() -> type[Collector]:
    """`with collecting() as collector: … collector.url`"""
    return Collector
