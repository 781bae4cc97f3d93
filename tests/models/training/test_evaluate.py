"""Metrics by hand, methods and their honesty, judgment files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from decoding.engine import Hypotheses
from index.errors import ArtifactError, ConfigError, DataError
from index.snapshot import Snapshot
from models.checkpoint import Checkpoint
from models.training.evaluate import (
    evaluate,
    legal_rate,
    per_query_metrics,
    unconstrained_valid_rate,
)
from models.training.judgments_file import read_judgments
from models.training.rankers import EXTRA_METHODS, METHODS
from models.training.run_evaluate import searchers_of


def rows(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_metrics_by_hand() -> None:
    ranked = [rows(7, 3, 9), rows(*range(20)), rows(5)]
    relevant = [rows(3, 9), rows(10, 30), rows(1)]
    values = per_query_metrics(ranked, relevant)
    assert values["recall@10"].tolist() == [1.0, 0.0, 0.0]
    assert values["recall@50"].tolist() == [1.0, 0.5, 0.0]
    assert values["hr@10"].tolist() == [1.0, 0.0, 0.0]
    assert values["mrr@10"].tolist() == [0.5, 0.0, 0.0]


def test_all_methods_report_intervals_differences_and_legality(tiny_pair: Any) -> None:
    snapshot = Snapshot.open(tiny_pair.snapshot)
    searchers = searchers_of(snapshot, Checkpoint.open(tiny_pair.checkpoint), 8)
    relevant = {"red desk": rows(0, 4), "steel lamp": rows(5), "white chair": rows(35)}
    report = evaluate(searchers, relevant, METHODS + EXTRA_METHODS)
    assert report["queries"] == 3
    assert set(report["methods"]) == set(METHODS + EXTRA_METHODS)
    for name, row in report["methods"].items():
        low, high = row["ci95"]["recall@10"]
        assert low <= row["recall@10"] <= high, name
        assert row["latency_ms"]["p50"] <= row["latency_ms"]["p99"]
    served = report["methods"]["generative"]
    assert served["legal_rate"] == 1.0
    # No decoder gets as many candidate items as the beam gave, no more.
    assert report["methods"]["codec_only"]["candidates"] <= served["candidates"]
    difference = report["differences"]["generative - bm25"]
    expected = served["recall@10"] - report["methods"]["bm25"]["recall@10"]
    assert difference["recall@10"] == pytest.approx(expected)
    beams = [report["methods"][name]["recall@50"] for name in ("generative_beam", "codec_beam")]
    difference = report["differences"]["generative_beam - codec_beam"]
    assert difference["recall@50"] == pytest.approx(beams[0] - beams[1])


def test_a_full_beam_ranks_like_rescoring_everything(tiny_pair: Any) -> None:
    """With every legal SID in the beam the candidates are the whole catalogue."""
    snapshot = Snapshot.open(tiny_pair.snapshot)
    searchers = searchers_of(
        snapshot, Checkpoint.open(tiny_pair.checkpoint), snapshot.trie.n_leaves
    )
    report = evaluate(searchers, {"oak shelf": rows(2)}, ["generative", "generative_beam"])
    assert report["methods"]["generative"]["candidates"] == len(snapshot.items)
    assert report["methods"]["generative_beam"]["candidates"] == len(snapshot.items)


def test_unknown_method_and_no_queries_are_named(tiny_pair: Any) -> None:
    snapshot = Snapshot.open(tiny_pair.snapshot)
    searchers = searchers_of(snapshot, Checkpoint.open(tiny_pair.checkpoint), 4)
    with pytest.raises(ConfigError, match="unknown method 'magic'"):
        evaluate(searchers, {"desk": rows(0)}, ["magic"])
    with pytest.raises(ConfigError, match="no query has a relevant item"):
        evaluate(searchers, {}, ["bm25"])


def test_legal_rate_sees_an_illegal_sid(tiny_pair: Any) -> None:
    snapshot = Snapshot.open(tiny_pair.snapshot)
    legal = snapshot.trie.codes_of_leaves(np.arange(3))
    space = {
        tuple(codes)
        for codes in snapshot.trie.codes_of_leaves(np.arange(snapshot.trie.n_leaves)).tolist()
    }
    illegal = next(
        (a, b, c) for a in range(8) for b in range(4) for c in range(4) if (a, b, c) not in space
    )
    codes = np.concatenate([legal, np.array([illegal], np.int32)])
    nothing = np.zeros((4, 3), np.float32)
    found = Hypotheses(np.arange(4), codes, nothing[:, 0], nothing, codes, complete=True)
    assert legal_rate(snapshot, [found]) == 0.75


def test_unconstrained_rate_is_the_share_of_legal_paths_for_an_untrained_decoder(
    tiny_pair: Any,
) -> None:
    snapshot, checkpoint = Snapshot.open(tiny_pair.snapshot), Checkpoint.open(tiny_pair.checkpoint)
    searchers = searchers_of(snapshot, checkpoint, 4)
    prompts = searchers.prompts.prompts(["desk"], snapshot.embed_queries(["desk"]), [()])
    model = checkpoint.load_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    free = [type(prompts[0])(prompts[0].token_ids, None)]
    everything = unconstrained_valid_rate(
        model, checkpoint.tokenizer, snapshot, free, beam=8 * 4 * 4
    )
    assert everything == pytest.approx(snapshot.trie.n_leaves / (8 * 4 * 4))


def test_a_checkpoint_of_another_codec_is_refused(tiny_pair: Any, other_snapshot: Path) -> None:
    other = Snapshot.open(other_snapshot)
    with pytest.raises(ArtifactError, match="do not belong together"):
        searchers_of(other, Checkpoint.open(tiny_pair.checkpoint), 4)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_judgment_files_keep_relevant_rows(tiny_pair: Any, tmp_path: Path, kind: str) -> None:
    items = Snapshot.open(tiny_pair.snapshot).items
    table = pa.table(
        {
            "query": ["desk", "desk", "lamp", "sofa", 'a "quoted", query'],
            "item_id": ["i0", "i1", "i5", "gone", "i2"],
            "grade": [3.0, 1.0, 2.5, 3.0, 2.5],
        }
    )
    path = tmp_path / f"judgments.{kind}"
    if kind == "csv":
        lines = ["query,item_id,grade", "desk,i0,3", "desk,i1,1", "lamp,i5,2.5", "sofa,gone,3"]
        path.write_text("\n".join([*lines, '"a ""quoted"", query",i2,2.5']) + "\n")
    else:
        pq.write_table(table, path)
    found = read_judgments(path, 2.5, items)
    assert {query: rows.tolist() for query, rows in found.relevant.items()} == {
        "desk": [0],
        "lamp": [5],
        'a "quoted", query': [2],
    }
    assert (found.rows, found.unknown_items, found.queries_without_relevant) == (5, 1, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("query,item_id\na,i0\n", "no column 'grade'"),
        ("query,item_id,grade\na,i0,good\n", "row 1, field 'grade': 'good' is no number"),
        ("query,item_id,grade\n,i0,1\n", "row 1, field 'query'"),
        ("query,item_id,grade\na,i0,1,9\n", "cannot be read"),
    ],
)
def test_bad_judgment_files_name_the_place(
    tiny_pair: Any, tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "judgments.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_judgments(path, 1.0, Snapshot.open(tiny_pair.snapshot).items)


def test_a_missing_judgment_file_is_named(tiny_pair: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv: the file is not there"):
        read_judgments(tmp_path / "none.csv", 1.0, Snapshot.open(tiny_pair.snapshot).items)
