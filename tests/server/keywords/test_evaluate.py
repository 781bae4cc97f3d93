"""The measurement of keywords."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index.errors import ConfigError, DataError
from index.snapshot import Snapshot
from server.keywords.evaluate import evaluate, run_evaluate
from server.keywords.statistical import StatisticalGenerator
from server.keywords.vocabulary import Vocabulary


def test_refused_items_make_room(shop: Snapshot, vocabulary: Vocabulary) -> None:
    generator = StatisticalGenerator(shop, vocabulary=vocabulary)
    rugs = shop.items.rows_with("category", "rugs")
    wool = shop.items.rows_with("material", "wool")
    relevant = {
        "rug not wool": np.setdiff1d(rugs, wool).astype(np.int64),
        "red rug": np.intersect1d(rugs, shop.items.rows_with("color", "red")).astype(np.int64),
        "blak frying pan": shop.items.rows_with("category", "frying pans").astype(np.int64),
    }
    report = evaluate(generator, shop, relevant)
    assert report["queries"] == 3
    bm25 = report["baselines"]["bm25"]
    assert bm25["all"]["queries"] == 3
    assert bm25["negation"]["queries"] == bm25["complex"]["queries"] == 1
    assert bm25["respelt"]["queries"] == 1
    for group in bm25.values():
        for method in ("appended", "weighted", "used"):
            low, high = group[method]["ci95"]
            difference = group[method]["recall"] - group["plain"]["recall"]
            assert group[method]["difference"] == pytest.approx(difference)
            assert low <= difference + 1e-9 and difference - 1e-9 <= high


def test_judgments_from_a_file(shop: Snapshot, tmp_path: Path) -> None:
    file = tmp_path / "judgments.csv"
    file.write_text("query,item_id,grade\nred rug,g41,3\nred rug,g42,1\n")
    report = run_evaluate(shop.path, file, 2.0)
    assert report["queries"] == 1
    assert report["co_clicks"] is False
    assert report["notes"] == []


def test_wrong_input_says_so(shop: Snapshot, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--judgments"):
        run_evaluate(shop.path, None, 2.0)
    with pytest.raises(DataError, match="not there"):
        run_evaluate(shop.path, tmp_path / "missing.csv", 2.0)
    file = tmp_path / "judgments.csv"
    file.write_text("query,item_id,grade\nred rug,g41,1\n")
    with pytest.raises(ConfigError, match="--relevant-from"):
        run_evaluate(shop.path, file, 2.0)
