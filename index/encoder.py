"""Text → unit vector, on the request path, without a deep-learning runtime.

`TextEncoder` is the protocol. The default is the *static two-tower*: a text's vector is the sum of
learned vectors of its hashed features (words, character 3–5-grams of each word, word bigrams),
normalised. Query and item share one table, which `models.training.encoder` learns; here it is
read-only int8 rows with one scale each, so a query costs a few dozen row additions.

Invariants: encoding depends on the saved table only (stable CRC-32 hashing, no process seed);
an empty text or one with unknown features only is the zero vector, every other one has norm 1.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from index.arrays import open_array, save_arrays
from index.errors import ArtifactError, ConfigError
from index.text import words

GRAM_SIZES = (3, 4, 5)
MAX_WORDS = 64
MAX_WORD_CHARACTERS = 40
MAX_TOKEN_CACHE = 50_000
CONFIG_FILE = "encoder.json"


@runtime_checkable
class TextEncoder(Protocol):
    """Anything that turns texts into unit vectors. Implementations are thread-safe."""

    @property
    def name(self) -> str: ...

    @property
    def dimension(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors, float32 (N, dimension), each of norm 1 (or 0 for a text without features)."""
        ...

    def save(self, directory: Path) -> None: ...


Opener = Callable[[Path, dict[str, Any]], TextEncoder]
_OPENERS: dict[str, Opener] = {}


def word_buckets(word: str, bucket_count: int) -> list[int]:
    """Hash buckets of one word: the word itself first, then its character n-grams."""
    word = word[:MAX_WORD_CHARACTERS]
    mask = bucket_count - 1
    buckets = [zlib.crc32(f"w {word}".encode()) & mask]
    padded = f"<{word}>"
    for size in GRAM_SIZES:
        if len(padded) < size:
            break
        for start in range(len(padded) - size + 1):
            gram = f"g {padded[start : start + size]}"
            buckets.append(zlib.crc32(gram.encode()) & mask)
    return buckets


def bigram_bucket(first: str, second: str, bucket_count: int) -> int:
    """Hash bucket of two neighbouring words."""
    return zlib.crc32(f"b {first} {second}".encode()) & (bucket_count - 1)


def text_tokens(text: str) -> list[str]:
    """The tokens whose vectors a text sums: its words, then its bigrams as `first second`."""
    found = words(text)[:MAX_WORDS]
    return found + [f"{a} {b}" for a, b in pairwise(found)]


def token_buckets(token: str, bucket_count: int) -> list[int]:
    """Buckets of a token of `text_tokens`."""
    first, space, second = token.partition(" ")
    if space:
        return [bigram_bucket(first, second, bucket_count)]
    return word_buckets(token, bucket_count)


@dataclass(frozen=True, slots=True, eq=False)
class StaticEncoder:
    """The static two-tower.

    Shapes: `row_of_bucket` int32 (buckets,) with −1 for unused; `table` int8 (rows, d);
    `scale` float32 (rows,). Row vector = table[row] * scale[row].
    """

    table: NDArray[np.int8]
    scale: NDArray[np.float32]
    row_of_bucket: NDArray[np.int32]
    _vectors: dict[str, NDArray[np.float32]] = field(default_factory=dict[str, Any])

    @property
    def name(self) -> str:
        return "static"

    @property
    def dimension(self) -> int:
        return int(self.table.shape[1])

    @classmethod
    def from_table(
        cls, vectors: NDArray[np.float32], row_of_bucket: NDArray[np.int32]
    ) -> StaticEncoder:
        """Quantise float32 (rows, d) to int8 with one scale a row."""
        scale = np.abs(vectors).max(axis=1) / 127.0
        safe = np.where(scale > 0, scale, 1.0)[:, None]
        table = np.rint(vectors / safe).astype(np.int8)
        return cls(table, scale.astype(np.float32), row_of_bucket.astype(np.int32))

    def token_vector(self, token: str) -> NDArray[np.float32]:
        """Vector of one token, float32 (d,), cached."""
        vector = self._vectors.get(token)
        if vector is None:
            rows = self.row_of_bucket[token_buckets(token, len(self.row_of_bucket))]
            rows = rows[rows >= 0]
            vector = self.scale[rows] @ self.table[rows].astype(np.float32)
            if len(self._vectors) < MAX_TOKEN_CACHE:
                self._vectors[token] = vector
        return vector

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        result = np.zeros((len(texts), self.dimension), np.float32)
        for position, text in enumerate(texts):
            row = result[position]
            for token in text_tokens(text):
                row += self.token_vector(token)
            norm = float(np.sqrt(row @ row))
            if norm > 0:
                row /= norm
        return result

    def save(self, directory: Path) -> None:
        arrays = {
            "table": self.table,
            "scale": self.scale,
            "row_of_bucket": self.row_of_bucket,
        }
        save_arrays(directory, arrays)
        write_config(directory, {"kind": "static", "dimension": self.dimension})

    @classmethod
    def open(cls, directory: Path) -> StaticEncoder:
        """Memory-map a saved encoder. Raises ArtifactError when it is missing or damaged."""
        names = ("table", "scale", "row_of_bucket")
        table, scale, row_of_bucket = (open_array(directory / f"{name}.npy") for name in names)
        fits = (
            table.ndim == 2
            and scale.shape == table.shape[:1]
            and row_of_bucket.size.bit_count() == 1
            and row_of_bucket.min() >= -1
            and row_of_bucket.max() < len(table)
        )
        if not fits:
            raise ArtifactError(f"the arrays of {directory} do not fit each other; build it again")
        return cls(table, scale, row_of_bucket)


@dataclass(frozen=True, slots=True)
class ConcatenatedEncoder:
    """Several encoders side by side: their vectors times `weights`, concatenated, normalised.

    The dot product is then the weighted mean (by squared weight) of the parts' cosines.
    """

    parts: tuple[TextEncoder, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.parts) != len(self.weights) or not self.parts:
            raise ConfigError("a concatenated encoder needs one weight for each of its parts")

    @property
    def name(self) -> str:
        return "+".join(part.name for part in self.parts)

    @property
    def dimension(self) -> int:
        return sum(part.dimension for part in self.parts)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        columns = [w * p.encode(texts) for w, p in zip(self.weights, self.parts, strict=True)]
        return unit_rows(np.concatenate(columns, axis=1))

    def save(self, directory: Path) -> None:
        for position, part in enumerate(self.parts):
            part.save(directory / str(position))
        write_config(directory, {"kind": "concatenated", "weights": list(self.weights)})


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to norm 1; zero rows stay zero. Shape and dtype are kept."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1.0)).astype(np.float32, copy=False)


def register_kind(kind: str, opener: Opener) -> None:
    """Let `open_encoder` open encoders of a further kind.

    For encoders that need what `index` may not import; registering a kind again replaces it.
    """
    _OPENERS[kind] = opener


def kind_modules() -> list[str]:
    """The modules whose import registers the kinds that are known here."""
    return sorted({opener.__module__ for opener in _OPENERS.values()} - {__name__})


def open_encoder(directory: Path) -> TextEncoder:
    """The encoder saved in `directory`. Raises ArtifactError for an unknown or damaged one."""
    path = directory / CONFIG_FILE
    try:
        config = cast(dict[str, Any], json.loads(path.read_text()))
        kind = str(config["kind"])
        weights = tuple(float(weight) for weight in config.get("weights", ()))
    except FileNotFoundError:
        raise ArtifactError(f"{directory} holds no {CONFIG_FILE}; build it again") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error!r}); build it again") from None
    match kind:
        case "static":
            return StaticEncoder.open(directory)
        case "concatenated":
            parts = tuple(open_encoder(directory / str(i)) for i in range(len(weights)))
            return ConcatenatedEncoder(parts, weights)
        case "external":
            from index.external_encoder import open_external

            return open_external(directory, config)
        case _:
            opener = _OPENERS.get(kind)
    if opener is None:
        known = ", ".join(sorted({"static", "concatenated", "external", *_OPENERS}))
        raise ArtifactError(
            f"{directory} holds an encoder of kind {kind!r}, known here are {known}; "
            "import the module that registers it (models.text_encoders) before opening it"
        )
    return opener(directory, config)


def write_config(directory: Path, config: dict[str, Any]) -> None:
    """Write `encoder.json`, which `open_encoder` dispatches on; `config` names its kind."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG_FILE).write_text(json.dumps(config, sort_keys=True))
