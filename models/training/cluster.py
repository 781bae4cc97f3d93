"""Blocks of a catalogue on the machines of a Ray cluster, by Ray Data.

    onesearch index build DATASET SNAPSHOT --ray ADDRESS

This process learns the encoder and the codec, keeps the vectors and writes the snapshot; encoding
and SID assignment (`models.training.blocks`) run on the cluster, a block a row. A row of Ray's
tables is one block, since rows are what Ray never cuts or joins; it comes back with the number of
its first item, in any order. What an actor needs (encoder, attributes, codec) travels as the files
that a snapshot has, and is opened as a snapshot opens them.

Ray is imported when a cluster is joined: it is an optional dependency (`pip install
'onesearch[ray]'`). Every machine needs this package in the same version.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.attributes import AttributeMatcher
from index.codec import Codec
from index.encoder import kind_modules
from index.errors import ConfigError
from models.training.blocks import Codes, Embedding, FloatArray, blocks, embed_block, merged

CPUS_OF_AN_ACTOR = 1.0
"""Cores that Ray counts for an actor; its libraries compute in one thread."""

Files = Mapping[str, bytes]
Row = dict[str, NDArray[Any]]


class OnCluster:
    """`models.training.blocks.Passes` on the cluster that this process has joined."""

    def __init__(self, ray: Any, data: Any, actor_cpus: float = CPUS_OF_AN_ACTOR) -> None:
        """`ray`, `data`: the modules `ray` and `ray.data`."""
        self._ray = ray
        self._data = data
        self._actor_cpus = actor_cpus

    def embed(self, embedding: Embedding, texts: Sequence[str]) -> FloatArray:
        """Unit vectors of the items' texts, float32 (N, d)."""
        rows = [
            {"first": part.start, "block": "\n".join(texts[part]).encode()}
            for part in blocks(len(texts))
        ]
        # Texts are normalised: they have no line breaks.
        assert all(
            row["block"].count(b"\n") + 1 == part.stop - part.start
            for row, part in zip(rows, blocks(len(texts)), strict=True)
        )
        with tempfile.TemporaryDirectory() as folder:
            embedding.save(Path(folder))
            files = self._ray.put(read_files(Path(folder)))
        known = (files, embedding.keyword_fusion, kind_modules())
        found = self._map(rows, EmbedBlocks, known)
        width = embedding.encoder.dimension
        return merged(_arrays(found, np.float32, width), len(texts), width, np.float32)

    def assign(self, codec: Codec, embeddings: FloatArray) -> Codes:
        """Codes of embeddings (N, d), int32 (N, L)."""
        rows = [
            {"first": part.start, "block": embeddings[part].tobytes()}
            for part in blocks(len(embeddings))
        ]
        with tempfile.TemporaryDirectory() as folder:
            codec.save(Path(folder))
            files = self._ray.put(read_files(Path(folder)))
        found = self._map(rows, AssignBlocks, (files,))
        width = codec.layout.levels
        return merged(_arrays(found, np.int32, width), len(embeddings), width, np.int32)

    def _map(
        self, rows: Sequence[Mapping[str, Any]], work: type[Any], known: tuple[Any, ...]
    ) -> Iterable[Mapping[str, Any]]:
        """Rows (first item, block) → rows (first item, block), in any order."""
        pool = self._data.ActorPoolStrategy(min_size=1, max_size=max(len(rows), 1))
        return (
            self._data.from_items(rows, override_num_blocks=len(rows))
            .map_batches(
                work,
                batch_size=1,
                batch_format="numpy",
                compute=pool,
                fn_constructor_args=known,
                num_cpus=self._actor_cpus,
            )
            .iter_rows()
        )


class EmbedBlocks:
    """An actor: texts of a block, a line each → its vectors."""

    def __init__(self, files: Any, keyword_fusion: float, modules: Sequence[str]) -> None:
        """`files`: of an `Embedding`, in Ray's object store; `modules`: see `kind_modules`."""
        for module in modules:
            importlib.import_module(module)
        # The encoder reads its table from there as long as this object lives.
        self._folder = tempfile.TemporaryDirectory()
        write_files(Path(self._folder.name), importlib.import_module("ray").get(files))
        self._embedding = Embedding.open(Path(self._folder.name), keyword_fusion)
        self._matcher = AttributeMatcher(self._embedding.attributes)

    def __call__(self, batch: Row) -> Row:
        """One row → one row."""
        texts = bytes(batch["block"][0]).decode().split("\n")
        vectors = embed_block(self._embedding, self._matcher, texts)
        return {"first": batch["first"], "block": _bytes_column(vectors)}


class AssignBlocks:
    """An actor: vectors of a block → its codes."""

    def __init__(self, files: Any) -> None:
        """`files`: of a `Codec`, in Ray's object store."""
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder), importlib.import_module("ray").get(files))
            self._codec = Codec.open(Path(folder))

    def __call__(self, batch: Row) -> Row:
        """One row → one row."""
        vectors = np.frombuffer(batch["block"][0], np.float32).reshape(-1, self._codec.dimension)
        return {"first": batch["first"], "block": _bytes_column(self._codec.encode(vectors))}


@contextmanager
def joined(address: str, actor_cpus: float = CPUS_OF_AN_ACTOR) -> Generator[OnCluster, None, None]:
    """Join the cluster at `address` ("auto": the one that this machine belongs to) and leave it.

    Raises ConfigError when Ray is not installed or there is no cluster.
    """
    try:
        ray: Any = importlib.import_module("ray")
        data: Any = importlib.import_module("ray.data")
    except ModuleNotFoundError:
        raise ConfigError(
            "a build on a cluster needs Ray, which is not installed; "
            "run: pip install 'onesearch[ray]'"
        ) from None
    try:
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"no Ray cluster at {address!r}: {reason}") from None
    try:
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        yield OnCluster(ray, data, actor_cpus)
    finally:
        ray.shutdown()


def read_files(directory: Path) -> dict[str, bytes]:
    """Relative path → contents of every file below a directory."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def write_files(directory: Path, files: Files) -> None:
    """What `read_files` read, in another directory."""
    for name, contents in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)


def _bytes_column(array: NDArray[Any]) -> NDArray[Any]:
    column = np.empty(1, object)
    column[0] = array.tobytes()
    return column


def _arrays(
    rows: Iterable[Mapping[str, Any]], dtype: type[np.generic], width: int
) -> Generator[tuple[int, NDArray[Any]], None, None]:
    for row in rows:
        yield int(row["first"]), np.frombuffer(row["block"], dtype).reshape(-1, width)
