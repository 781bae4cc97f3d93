"""Learns the RQ-OPQ codebooks (`index.codec.Codec`) and chooses their sizes.

    r_1 = e;  level l: k-means on r_l (items and queries together), r_{l+1} = r_l − C_l[code]
    level 3 of a layout may be balanced: items take the nearest code that still has room
    OPQ: rotation R and two codebooks on the last residual, kept as R-rotated-back centroids

Published sizes are 4096-1024-512 with OPQ 2×256 for tens of millions of items. Smaller catalogues
need a wide first level and no third, so `choose_layout` builds a small grid of sizes
from the item count and keeps the one whose *candidate recall at a beam budget* is best: the share
of relevant items held by the SIDs that a beam search over centroid scores reaches.
Balancing all levels collapses the hierarchy, so only level 3 is ever balanced (METHOD §2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from index.codec import Codec, half_square_norms, nearest, usage_report
from index.errors import ConfigError
from index.sid import MAX_LEVEL_SIZE, SidLayout
from index.trie import Trie

FloatArray = NDArray[np.float32]
KMEANS_ITERATIONS = 25
OPQ_ITERATIONS = 20
BALANCE_SLACK = 1.15
BALANCE_ROUNDS = 60
BALANCE_BLOCK = 1 << 15
QUERY_TRAINING_SHARE = 0.3
TRAINING_POINTS_PER_CODE = 256
PUBLISHED_FROM_ITEMS = 3_000_000
BEAM_BUDGET = 100
ITEMS_PER_SID = 5.0
ITEMS_PER_FIRST_CODE = 7
WIDEST_LEVEL = 16_384


@dataclass(frozen=True, slots=True)
class CodecSettings:
    """`residual_sizes` codes of each residual level; `product_sizes` of the OPQ sub-quantizers."""

    residual_sizes: tuple[int, ...]
    product_sizes: tuple[int, ...] = ()
    balance_third_level: bool = False
    seed: int = 7

    @property
    def layout(self) -> SidLayout:
        return SidLayout(self.residual_sizes + self.product_sizes)

    @property
    def label(self) -> str:
        text = "RQ " + "-".join(map(str, self.residual_sizes))
        if self.balance_third_level:
            text += " L3-balanced"
        if self.product_sizes:
            text += " + OPQ " + "-".join(map(str, self.product_sizes))
        return text


PUBLISHED = CodecSettings((4096, 1024, 512), (256, 256), balance_third_level=True)


def train_codec(
    items: FloatArray, queries: FloatArray, settings: CodecSettings
) -> tuple[Codec, NDArray[np.int32]]:
    """Codebooks and the items' codes, int32 (N, L).

    `items` (N, d) and `queries` (Q, d) are unit vectors; at most 30 % of the training points are
    queries. A level that wants more codes than there are points repeats points, so those codes
    stay unused. Raises ConfigError for no items or a layout that cannot work.
    """
    if len(items) == 0:
        raise ConfigError("a codec needs at least one item")
    if len(settings.product_sizes) not in (0, 2):
        raise ConfigError("OPQ has two sub-quantizers: give two product sizes or none")
    layout = settings.layout
    if settings.product_sizes and items.shape[1] % 2:
        raise ConfigError(f"OPQ splits the embedding in two; its dimension {items.shape[1]} is odd")
    random = np.random.default_rng(settings.seed)
    limit = int(len(items) * QUERY_TRAINING_SHARE / (1 - QUERY_TRAINING_SHARE))
    if len(queries) > limit:
        queries = queries[np.sort(random.choice(len(queries), limit, replace=False))]
    item_residual = np.ascontiguousarray(items, np.float32)
    query_residual = np.ascontiguousarray(queries, np.float32)
    centroids: list[FloatArray] = []
    codes: list[NDArray[np.int64]] = []
    for level, size in enumerate(settings.residual_sizes):
        points = np.concatenate([item_residual, query_residual])
        book = _kmeans(points, size, settings.seed + level)
        balanced = settings.balance_third_level and level == 2
        chosen = (
            balanced_assignment(item_residual, book) if balanced else nearest(item_residual, book)
        )
        centroids.append(book)
        codes.append(chosen)
        item_residual = item_residual - book[chosen]
        if len(query_residual):
            query_residual = query_residual - book[nearest(query_residual, book)]
    kinds = ["rq"] * len(centroids)
    if settings.product_sizes:
        for book in _product_books(item_residual, settings.product_sizes, settings.seed):
            chosen = nearest(item_residual, book)
            centroids.append(book)
            codes.append(chosen)
            item_residual = item_residual - book[chosen]
            kinds.append("opq")
    codec = Codec(layout, tuple(centroids), tuple(kinds))
    return codec, np.stack(codes, axis=1).astype(np.int32)


def balanced_assignment(
    vectors: FloatArray, centroids: FloatArray, slack: float = BALANCE_SLACK
) -> NDArray[np.int64]:
    """Nearest centroid with room: none takes more than ceil(N / K · slack) vectors.

    Rounds: every unplaced vector asks its nearest centroid that has room, which takes the closest
    askers. Deterministic; int64 (N,). Raises ConfigError for a slack below 1.
    """
    if slack < 1:
        raise ConfigError(f"slack {slack} leaves vectors without a place; it must be at least 1")
    count, size = len(vectors), len(centroids)
    room = np.full(size, int(np.ceil(count / size * slack)), np.int64)
    chosen = np.full(count, -1, np.int64)
    waiting = np.arange(count)
    half_norms = half_square_norms(centroids)
    for _ in range(BALANCE_ROUNDS):
        if len(waiting) == 0:
            break
        bias = np.where(room > 0, half_norms, np.inf)
        asked, value = _closest(vectors, waiting, centroids, bias)
        order = np.lexsort((waiting, -value, asked))
        sorted_asked = asked[order]
        first = np.searchsorted(sorted_asked, sorted_asked)
        accepted = order[np.arange(len(order)) - first < room[sorted_asked]]
        chosen[waiting[accepted]] = asked[accepted]
        room -= np.bincount(asked[accepted], minlength=size)
        waiting = waiting[np.isin(np.arange(len(waiting)), accepted, invert=True)]
    if len(waiting):
        chosen[waiting] = np.repeat(np.arange(size), room)[: len(waiting)]
    return chosen


def _closest(
    vectors: FloatArray, rows: NDArray[np.int64], centroids: FloatArray, bias: FloatArray
) -> tuple[NDArray[np.int64], FloatArray]:
    """The nearest centroid of the vectors `rows`, and −½‖v − c‖², in blocks.

    `bias`: ½‖c‖², or infinity for a centroid without room.
    """
    asked = np.empty(len(rows), np.int64)
    value = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), BALANCE_BLOCK):
        part = slice(start, start + BALANCE_BLOCK)
        asking = vectors[rows[part]]
        closeness = asking @ centroids.T - bias - half_square_norms(asking)[:, None]
        asked[part] = closeness.argmax(axis=1)
        value[part] = np.take_along_axis(closeness, asked[part, None], axis=1)[:, 0]
    return asked, value


def candidate_recall(
    codec: Codec,
    codes: NDArray[np.int32],
    queries: FloatArray,
    relevant: Sequence[NDArray[np.int64]],
    beams: Sequence[int] = (50, 100, 300),
) -> dict[str, float]:
    """Recall of the items that a beam search over centroid scores ⟨q, Σ C⟩ reaches.

    `queries` (Q, d), `relevant[i]` the item rows relevant to query i (at least one each). Also the
    mean number of candidate items, since larger SIDs buy recall with candidates.
    """
    trie = Trie.build(codec.layout, np.unique(codec.layout.pack(codes)))
    leaf_of_row = trie.find(codec.layout.pack(codes))
    items_in_leaf = np.bincount(leaf_of_row, minlength=trie.n_leaves)
    report: dict[str, float] = {}
    for beam in beams:
        recalls: list[float] = []
        counts: list[int] = []
        for query, rows in zip(queries, relevant, strict=True):
            leaves = centroid_beam(codec, trie, query, beam)
            found = np.isin(leaf_of_row[rows], leaves)
            recalls.append(float(found.mean()))
            counts.append(int(items_in_leaf[leaves].sum()))
        report[f"recall@beam{beam}"] = float(np.mean(recalls))
        report[f"candidates@beam{beam}"] = float(np.mean(counts))
    return report


def centroid_beam(codec: Codec, trie: Trie, query: FloatArray, beam: int) -> NDArray[np.int64]:
    """Leaves reached by a beam search on ⟨query, centroid⟩ alone, best first."""
    level_scores = codec.level_scores(query)
    nodes = np.arange(trie.node_counts[0])
    scores = level_scores[0][trie.codes[0]]
    for level in range(codec.layout.levels):
        if level > 0:
            starts = trie.child_start[level - 1][nodes].astype(np.int64)
            counts = trie.child_start[level - 1][nodes + 1].astype(np.int64) - starts
            offsets = np.cumsum(counts) - counts
            parents = np.repeat(np.arange(len(nodes)), counts)
            nodes = np.arange(counts.sum()) - offsets[parents] + starts[parents]
            scores = scores[parents] + level_scores[level][trie.codes[level][nodes]]
        if len(nodes) > beam:
            kept = np.argpartition(-scores, beam - 1)[:beam]
            nodes, scores = nodes[kept], scores[kept]
    return nodes[np.argsort(-scores, kind="stable")]


def layout_grid(item_count: int) -> list[CodecSettings]:
    """Sizes worth trying for a catalogue, the likeliest first; the published ones for tens of
    millions of items.

    A wide first level near N/7 (at most WIDEST_LEVEL, but N/50 in a large catalogue) quantises the
    items of a query so finely that few beams hold them; the second tells a SID's items apart.
    """
    if item_count > PUBLISHED_FROM_ITEMS:
        return [PUBLISHED]
    first = _power_of_two(max(min(item_count / ITEMS_PER_FIRST_CODE, WIDEST_LEVEL), 2))
    first = min(max(first, _power_of_two(item_count / 50)), MAX_LEVEL_SIZE // 2)
    grid = [
        CodecSettings((first, 256)),
        CodecSettings((first, 64)),
        CodecSettings((max(first // 4, 2), 16)),
    ]
    return [s for s in grid if max(s.residual_sizes) * 4 <= max(item_count, 16)] or [
        CodecSettings((max(min(item_count // 4, 16), 1), max(min(item_count // 4, 8), 1)))
    ]


def choose_layout(
    items: FloatArray,
    validation_queries: FloatArray,
    relevant: Sequence[NDArray[np.int64]],
    grid: Sequence[CodecSettings],
    budget_items: float = BEAM_BUDGET * ITEMS_PER_SID,
) -> tuple[Codec, NDArray[np.int32], list[dict[str, object]]]:
    """The codec of the grid with the best candidate recall, its codes, and the whole table.

    Candidates are compared at an equal budget of items: each layout's beam is the budget divided
    by its items per SID, so that large SIDs have no advantage. Equal recall, or no queries to
    measure it with: the earlier entry of the grid.
    """
    best: tuple[float, Codec, NDArray[np.int32]] | None = None
    table: list[dict[str, object]] = []
    for settings in grid:
        codec, codes = train_codec(items, items[:0], settings)
        usage = usage_report(codes, codec.layout.level_sizes)
        beam = max(1, round(budget_items / float(usage["items_per_sid"])))
        recall = (
            candidate_recall(codec, codes, validation_queries, relevant, [beam])
            if len(relevant)
            else {f"recall@beam{beam}": 0.0, f"candidates@beam{beam}": 0.0}
        )
        score = recall[f"recall@beam{beam}"]
        table.append(
            {
                "layout": settings.label,
                "level_sizes": list(codec.layout.level_sizes),
                "beam": beam,
                "candidate_recall": score,
                "candidates": recall[f"candidates@beam{beam}"],
                **usage,
            }
        )
        if best is None or score > best[0]:
            best = (score, codec, codes)
    if best is None:
        raise ConfigError("no layout to choose from")
    return best[1], best[2], table


def _kmeans(points: FloatArray, size: int, seed: int) -> FloatArray:
    """Codebook float32 (size, d). With fewer points than codes the rest repeat points."""
    dimension = points.shape[1]
    if len(points) <= size:
        extra = np.resize(points, (size, dimension))
        return extra.astype(np.float32)
    means = faiss.Kmeans(
        dimension,
        size,
        niter=KMEANS_ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=TRAINING_POINTS_PER_CODE,
    )
    means.train(np.ascontiguousarray(points))
    return np.array(means.centroids, np.float32)


def _product_books(residual: FloatArray, sizes: tuple[int, ...], seed: int) -> list[FloatArray]:
    """OPQ: learn a rotation, cluster each half, return both codebooks rotated back."""
    dimension = residual.shape[1]
    # The rotation is fitted for sub-quantizers of these sizes; they want a point for each code, and
    # faiss writes past its buffers when there are fewer points than dimensions.
    bits = max(1, (max(sizes) - 1).bit_length())
    quantizer = faiss.ProductQuantizer(dimension, 2, bits)
    quantizer.cp.min_points_per_centroid = 1
    points = np.resize(residual, (max(len(residual), 1 << bits, dimension), dimension))
    rotation = faiss.OPQMatrix(dimension, 2)
    rotation.niter = OPQ_ITERATIONS
    rotation.pq = quantizer
    rotation.verbose = False
    rotation.train(np.ascontiguousarray(points))
    matrix = faiss.vector_to_array(rotation.A).reshape(dimension, dimension)
    rotated = np.ascontiguousarray(residual @ matrix.T)
    half = dimension // 2
    books: list[FloatArray] = []
    for part, size in enumerate(sizes):
        columns = slice(part * half, (part + 1) * half)
        book = _kmeans(np.ascontiguousarray(rotated[:, columns]), size, seed + 100 + part)
        full = np.zeros((size, dimension), np.float32)
        full[:, columns] = book
        books.append(np.ascontiguousarray(full @ matrix))
    return books


def _power_of_two(value: float) -> int:
    return 1 << max(1, round(float(np.log2(max(value, 2.0)))))
