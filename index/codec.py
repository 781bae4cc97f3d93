"""RQ-OPQ codec: embedding → semantic ID.

Residual levels first (each code's centroid is subtracted), then optionally two product
sub-quantizers on the rotated residual. All levels are kept in one *additive* form: level l has
centroids C_l of shape (K_l, d) in the embedding's own space, and

    reconstruct(codes) = Σ_l C_l[code_l]
    encode:  code_l = argmin_k ‖r_l − C_l[k]‖,  r_{l+1} = r_l − C_l[code_l]

For a product sub-quantizer C_l is its codebook rotated back, zero in the other subspace, so the
same greedy rule picks the same codes. Source: METHOD §2 (RQ 4096-1024-512, OPQ 2×256), Jégou et
al. for OPQ. Learned by `models.training.codec`; here it is arrays only.

An embedding's codes do not depend on what is encoded with it, on threads or on the processor: where
products in single precision cannot tell two centroids apart, double precision decides
(`surely_nearest`). So builds, live changes and shards on other machines agree.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from index.arrays import open_array, save_arrays
from index.errors import ArtifactError, ConfigError
from index.sid import SidLayout

_ENCODE_BLOCK = 4096
_NEAREST_BLOCK_SCORES = 1 << 24
_CLOSE_PAIRS = 1 << 14
_EPSILON = float(np.finfo(np.float32).eps)


@dataclass(frozen=True, slots=True, eq=False)
class Codec:
    """Codebooks in additive form: `centroids[l]` float32 (K_l, d); `kinds[l]` "rq" or "opq"."""

    layout: SidLayout
    centroids: tuple[NDArray[np.float32], ...]
    kinds: tuple[str, ...]
    _half_norms: tuple[NDArray[np.float32], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        sizes = tuple(len(level) for level in self.centroids)
        if sizes != self.layout.level_sizes or len(self.kinds) != len(sizes):
            raise ConfigError(f"codebooks of sizes {sizes} do not fit layout {self.layout}")
        half_norms = tuple(half_square_norms(level) for level in self.centroids)
        object.__setattr__(self, "_half_norms", half_norms)

    @property
    def dimension(self) -> int:
        return int(self.centroids[0].shape[1])

    @property
    def id(self) -> str:
        """Digest of layout and codebooks; a checkpoint names the codec that it was trained for."""
        digest = hashlib.sha256(repr(self.layout.level_sizes).encode())
        for level in self.centroids:
            digest.update(np.ascontiguousarray(level).tobytes())
        return digest.hexdigest()[:12]

    def encode(self, embeddings: NDArray[np.float32]) -> NDArray[np.int32]:
        """Codes of embeddings (N, d), int32 (N, L), each level's nearest centroid: of each row the
        same, whatever the others are."""
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dimension:
            raise ConfigError(
                f"embeddings of shape {embeddings.shape}, the codec expects (N, {self.dimension})"
            )
        codes = np.empty((len(embeddings), self.layout.levels), np.int32)
        for start in range(0, len(embeddings), _ENCODE_BLOCK):
            residual = embeddings[start : start + _ENCODE_BLOCK].astype(np.float32)
            levels = zip(self.centroids, self._half_norms, strict=True)
            for level, (centroids, half_norms) in enumerate(levels):
                chosen = surely_nearest(residual, centroids, half_norms)
                codes[start : start + len(residual), level] = chosen
                residual = residual - centroids[chosen]
        return codes

    def reconstruct(self, codes: NDArray[np.int32]) -> NDArray[np.float32]:
        """Sum of the codes' centroids, float32 (N, d). A prefix of levels (N, l) is allowed."""
        total = np.zeros((len(codes), self.dimension), np.float32)
        for level in range(codes.shape[1]):
            total += self.centroids[level][codes[:, level]]
        return total

    def level_scores(self, embedding: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """⟨embedding, centroid⟩ at each level, float32 (K_l,): the codebook prior before β."""
        return tuple(level @ embedding for level in self.centroids)

    def quantisation_error(
        self, embeddings: NDArray[np.float32], codes: NDArray[np.int32]
    ) -> float:
        """Mean squared distance between embeddings and their reconstruction."""
        difference = embeddings - self.reconstruct(codes)
        return float(np.einsum("nd,nd->n", difference, difference).mean())

    def save(self, directory: Path) -> None:
        save_arrays(directory, {f"level_{level}": c for level, c in enumerate(self.centroids)})
        config = {"level_sizes": list(self.layout.level_sizes), "kinds": list(self.kinds)}
        (directory / "codec.json").write_text(json.dumps(config, sort_keys=True))

    @classmethod
    def open(cls, directory: Path) -> Codec:
        """Read a saved codec. Raises ArtifactError when it is missing or damaged."""
        path = directory / "codec.json"
        try:
            config = cast(dict[str, Any], json.loads(path.read_text()))
            sizes = tuple(int(size) for size in config["level_sizes"])
            kinds = tuple(str(kind) for kind in config["kinds"])
        except FileNotFoundError:
            raise ArtifactError(f"{directory} holds no codec.json; build it again") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} cannot be read ({error!r}); build it again") from None
        # Small, and training makes tensors of them, which want writable memory: a copy each.
        books = tuple(
            np.array(open_array(directory / f"level_{level}.npy")) for level in range(len(sizes))
        )
        if tuple(map(len, books)) != sizes or len({book.shape[1:] for book in books}) != 1:
            raise ArtifactError(f"the codebooks of {directory} do not fit codec.json; build again")
        return cls(SidLayout(sizes), books, kinds)


def nearest(vectors: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.int64]:
    """Index of the nearest centroid (K, d) of each vector (N, d); ties to the smaller index.

    Works in blocks of vectors: a catalogue of millions needs no (N, K) matrix.
    """
    bias = half_square_norms(centroids)
    block = max(1, _NEAREST_BLOCK_SCORES // len(centroids))
    chosen = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), block):
        part = slice(start, start + block)
        chosen[part] = np.argmax(vectors[part] @ centroids.T - bias, axis=1)
    return chosen


def surely_nearest(
    vectors: NDArray[np.float32],
    centroids: NDArray[np.float32],
    half_norms: NDArray[np.float32] | None = None,
) -> NDArray[np.int64]:
    """`nearest`, but a function of each vector alone, int64 (N,). `half_norms`: those of the
    centroids, where they are known.

    The order in which a matrix product sums depends on its shape, on threads and on the processor.
    Centroids within its rounding error of the best (d·u·‖v‖‖c‖ on either side, u = 2⁻²⁴) are
    compared again in double precision, one pair at a time; ties to the smaller index.
    """
    bias = half_square_norms(centroids) if half_norms is None else half_norms
    furthest = float(bias.max())
    unit = (centroids.shape[1] + 3) * _EPSILON / 2
    block = max(1, _NEAREST_BLOCK_SCORES // len(centroids))
    chosen = np.zeros(len(vectors), np.int64)
    for start in range(0, len(vectors), block):
        part = vectors[start : start + block]
        scores = part @ centroids.T
        scores -= bias
        norms = np.sqrt(np.einsum("nd,nd->n", part, part))
        error = 2 * unit * (norms * np.sqrt(2 * furthest) + furthest)
        rows, found = np.nonzero(scores >= (scores.max(axis=1) - error)[:, None])
        if len(rows) > len(part):
            best = _exact_scores(part, centroids, rows, found)
            # By row, best first; `found` ascends within a row and the sort is stable.
            order = np.lexsort((-best, rows))
            rows, found = rows[order], found[order]
        first = np.searchsorted(rows, np.arange(len(part)))
        chosen[start : start + len(part)] = found[first]
    return chosen


def _exact_scores(
    vectors: NDArray[np.float32],
    centroids: NDArray[np.float32],
    rows: NDArray[np.int64],
    found: NDArray[np.int64],
) -> NDArray[np.float64]:
    """⟨v, c⟩ − ½‖c‖² of the rows that have several centroids, float64; 0 of the others."""
    scores = np.zeros(len(rows))
    several = np.flatnonzero(np.bincount(rows)[rows] > 1)
    for start in range(0, len(several), _CLOSE_PAIRS):
        pairs = several[start : start + _CLOSE_PAIRS]
        vector = vectors[rows[pairs]].astype(np.float64)
        centroid = centroids[found[pairs]].astype(np.float64)
        scores[pairs] = ((vector - 0.5 * centroid) * centroid).sum(axis=1)
    return scores


def half_square_norms(centroids: NDArray[np.float32]) -> NDArray[np.float32]:
    """½‖c‖², float32 (K,): nearest by ⟨v,c⟩ − ½‖c‖²."""
    return 0.5 * np.einsum("kd,kd->k", centroids, centroids)


def usage_report(codes: NDArray[np.int32], level_sizes: Sequence[int]) -> dict[str, float | int]:
    """How well the codes (N, L) spread: CUR_Lk (used / possible codes or paths) and ICR.

    ICR is the share of items whose SID is theirs alone. Source: METHOD §2.
    """
    report: dict[str, float | int] = {"items": len(codes)}
    possible = 1
    for level in range(len(level_sizes)):
        possible *= level_sizes[level]
        used = len(np.unique(codes[:, : level + 1], axis=0))
        name = "CUR_L1" + "".join(f"xL{k + 1}" for k in range(1, level + 1))
        if level == len(level_sizes) - 1:
            name = "CUR_total"
        report[name] = used / possible
        report[f"paths_L{level + 1}"] = used
    _, counts = np.unique(codes, axis=0, return_counts=True)
    report["sids"] = len(counts)
    report["items_per_sid"] = len(codes) / max(len(counts), 1)
    report["ICR"] = float((counts == 1).sum() / max(len(codes), 1))
    return report
