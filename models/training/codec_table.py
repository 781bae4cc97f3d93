"""The codec table: what keywords, balancing and OPQ do to code usage and candidate recall.

plain RQ → + keywords (KHQE, published weight) → + level-3 balance → + OPQ, at one set of sizes
scaled from the published 4096-1024-512 (+ 256-256) to the catalogue, and the chosen layout.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.codec import usage_report
from index.dataset import Dataset
from index.fusion import PUBLISHED_WEIGHT, fuse
from index.snapshot import Snapshot
from models.training.codec import PUBLISHED, CodecSettings, candidate_recall, train_codec
from models.training.material import read_material
from models.training.relevance import relevant_rows

BEAMS = (50, 100, 300)
MAX_QUERIES = 500
PUBLISHED_FIRST_LEVEL_ITEMS = 100


def scaled_published(item_count: int) -> CodecSettings:
    """The published proportions 8:2:1 with a first level near N/100, at most the published."""
    first = 1 << max(3, round(float(np.log2(max(item_count / PUBLISHED_FIRST_LEVEL_ITEMS, 8)))))
    first = min(first, PUBLISHED.residual_sizes[0])
    return CodecSettings((first, max(first // 4, 2), max(first // 8, 2)))


def codec_table(dataset: Dataset, snapshot: Snapshot) -> list[dict[str, Any]]:
    """One row a codec: usage (CUR, ICR) and candidate recall on validation queries."""
    material = read_material(dataset)
    truth = relevant_rows(dataset, "validation")
    queries = sorted(truth)[:MAX_QUERIES]
    relevant = [truth[query] for query in queries]
    base = scaled_published(len(material.item_texts))
    balanced = CodecSettings(base.residual_sizes, (), balance_third_level=True)
    product = max(base.residual_sizes[0] // 16, 2)
    with_opq = CodecSettings(base.residual_sizes, (product, product), balance_third_level=True)
    steps = [
        ("plain RQ", base, 0.0),
        ("+ keywords", base, PUBLISHED_WEIGHT),
        ("+ level-3 balance", balanced, PUBLISHED_WEIGHT),
        ("+ OPQ", with_opq, PUBLISHED_WEIGHT),
    ]
    rows: list[dict[str, Any]] = []
    for name, settings, fusion in steps:
        items = fuse(snapshot.encoder, snapshot.matcher, material.item_texts, fusion)
        codec, codes = train_codec(items, items[:0], settings)
        asked = fuse(snapshot.encoder, snapshot.matcher, queries, fusion)
        recall = candidate_recall(codec, codes, asked, relevant, BEAMS)
        rows.append(_row(name, settings.label, codes, settings.layout.level_sizes, recall))
    chosen = snapshot.codec
    leaves = snapshot.postings.leaf_of_row.astype(np.int64)
    codes = snapshot.trie.codes_of_leaves(leaves)
    recall = candidate_recall(chosen, codes, snapshot.embed_queries(queries), relevant, BEAMS)
    label = "-".join(map(str, chosen.layout.level_sizes))
    rows.append(_row("chosen layout", label, codes, chosen.layout.level_sizes, recall))
    return rows


def _row(
    name: str,
    label: str,
    codes: NDArray[np.int32],
    level_sizes: tuple[int, ...],
    recall: dict[str, float],
) -> dict[str, Any]:
    usage = usage_report(codes, level_sizes)
    return {
        "codec": name,
        "layout": label,
        "CUR_L1": usage.get("CUR_L1", usage.get("CUR_total", 0.0)),
        "CUR_L1xL2": usage.get("CUR_L1xL2", usage.get("CUR_total", 0.0)),
        "CUR_total": usage["CUR_total"],
        "ICR": usage["ICR"],
        "items_per_sid": usage["items_per_sid"],
        **recall,
    }
