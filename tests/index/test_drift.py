"""Drift: added items beside the snapshot's own, measured piece by piece."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index.attributes import AttributeDictionary
from index.codec import Codec
from index.dataset import ITEMS
from index.drift import MIN_ITEMS, DriftMeter
from index.encoder import StaticEncoder
from index.live.catalogue import LiveCatalogue, LiveSettings
from index.live.changes import Delete, Upsert
from index.sid import SidLayout
from index.snapshot import Snapshot, texts_of

LAYOUT = SidLayout((16, 8))
QUIET = LiveSettings(merge_automatically=False, publish_interval_s=0.0)
OWN = ("red", "black", "white", "grey")
THINGS = ("desk", "lamp", "shelf", "chair", "stool", "table")


def items(count: int, words: Sequence[str], prefix: str, seed: int) -> list[dict[str, Any]]:
    """Titles of a color, a thing and a number, drawn at random."""
    random = np.random.default_rng(seed)
    return [
        {
            "item_id": f"{prefix}{number}",
            "title": f"{random.choice(OWN)} {random.choice(words)} {random.integers(9)}",
        }
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(3)
    table = pa.Table.from_pylist(items(900, THINGS, "i", 0), schema=ITEMS)
    vectors = random.standard_normal((2048, 24)).astype(np.float32)
    encoder = StaticEncoder.from_table(vectors, np.arange(2048, dtype=np.int32))
    embeddings = encoder.encode(texts_of(table))
    centroids: list[np.ndarray[Any, np.dtype[np.float32]]] = []
    residual = embeddings
    for size in LAYOUT.level_sizes:
        # A few rounds of k-means: what is learned from these items describes their like only.
        level = residual[random.choice(len(residual), size, replace=False)]
        for _ in range(8):
            nearest = np.argmin(((residual[:, None] - level[None]) ** 2).sum(2), axis=1)
            level = np.stack(
                [
                    residual[nearest == code].mean(0) if (nearest == code).any() else level[code]
                    for code in range(size)
                ]
            )
        centroids.append(level.astype(np.float32))
        residual = residual - level[nearest]
    codec = Codec(LAYOUT, tuple(centroids), ("rq",) * LAYOUT.levels)
    path = tmp_path_factory.mktemp("drift") / "snapshot"
    Snapshot.write(
        path,
        items=table,
        encoder=encoder,
        attributes=AttributeDictionary.of({}),
        codec=codec,
        codes=codec.encode(embeddings),
        embeddings=embeddings,
        report={},
        keyword_fusion=0.0,
    )
    return path


def test_items_of_the_same_kind_are_no_drift_and_others_are(snapshot: Path, tmp_path: Path):
    meter = DriftMeter()
    with LiveCatalogue.open(snapshot, tmp_path / "same", QUIET) as catalogue:
        none = meter.measure(catalogue.view)
        assert [none.items, none.error_ratio, none.verdict] == [0, 1.0, "too few"]
        catalogue.apply([Upsert(one) for one in items(400, THINGS, "n", 1)])
        same = meter.measure(catalogue.view)
        assert [same.items, same.verdict] == [400, "steady"]
        assert 0.8 < same.error_ratio < 1.2
        assert same.codes / same.expected_codes == pytest.approx(1, abs=0.1)
        assert same.sids / same.expected_sids == pytest.approx(1, abs=0.1)
    with LiveCatalogue.open(snapshot, tmp_path / "other", QUIET) as catalogue:
        strange = ("trout", "salmon", "herring", "pike")
        catalogue.apply([Upsert(one) for one in items(400, strange, "n", 2)])
        other = DriftMeter().measure(catalogue.view)
    assert other.verdict == "drifted"
    assert other.error_ratio > 1.5
    with LiveCatalogue.open(snapshot, tmp_path / "crowd", QUIET) as catalogue:
        catalogue.apply(
            [Upsert({"item_id": f"c{n}", "title": "red desk 1"}) for n in range(MIN_ITEMS)]
        )
        crowd = DriftMeter().measure(catalogue.view)
    assert [crowd.codes, crowd.sids, crowd.new_sids, crowd.verdict] == [1, 1, 0, "drifted"]
    assert crowd.error_ratio < 1.5


def test_the_numbers_are_those_of_the_definition(snapshot: Path, tmp_path: Path):
    opened = Snapshot.open(snapshot)
    added = items(50, (*THINGS, "trout"), "n", 5)
    with LiveCatalogue.open(snapshot, tmp_path / "live", QUIET) as catalogue:
        catalogue.apply([Upsert(one) for one in added])
        found = DriftMeter().measure(catalogue.view)
    vectors = opened.embed_queries([one["title"] for one in added])
    codes = opened.codec.encode(vectors)
    error = ((vectors - opened.codec.reconstruct(codes)) ** 2).sum(1).mean()
    assert found.error == pytest.approx(error, rel=1e-2)
    own = opened.trie.codes_of_leaves(opened.postings.leaf_of_row)
    stored = opened.dense.vectors(np.arange(900)).astype(np.float32)
    assert found.own_error == pytest.approx(
        ((stored - opened.codec.reconstruct(own)) ** 2).sum(1).mean(), rel=1e-5
    )
    assert found.codes == len(np.unique(codes[:, 0]))
    assert found.sids == len(np.unique(codes, axis=0))
    known = {tuple(row) for row in own.tolist()}
    assert found.new_sids == len({tuple(row) for row in codes.tolist()} - known)
    # What 50 of the snapshot's items use, drawn again and again.
    random = np.random.default_rng(0)
    drawn = [own[random.integers(0, 900, 50)] for _ in range(300)]
    used = np.mean([len(np.unique(part[:, 0])) for part in drawn])
    assert found.expected_codes == pytest.approx(used, rel=0.05)
    used = np.mean([len(np.unique(part, axis=0)) for part in drawn])
    assert found.expected_sids == pytest.approx(used, rel=0.05)


def test_what_was_measured_is_not_measured_again_and_merges_change_nothing(
    snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    meter, looked = DriftMeter(), list[int]()
    reconstruct = Codec.reconstruct

    def counting(codec: Codec, codes: Any) -> Any:
        looked.append(len(codes))
        return reconstruct(codec, codes)

    monkeypatch.setattr(Codec, "reconstruct", counting)
    added = items(300, (*THINGS, "trout"), "n", 7)
    with LiveCatalogue.open(snapshot, tmp_path / "live", QUIET) as catalogue:
        catalogue.apply([Upsert(one) for one in added[:200]])
        meter.measure(catalogue.view)
        catalogue.apply([Upsert(one) for one in added[200:]])
        looked.clear()
        pieces = meter.measure(catalogue.view)
        assert sum(looked) == 100
        looked.clear()
        assert meter.measure(catalogue.view) == pieces
        assert looked == []
        catalogue.merge()
        merged = meter.measure(catalogue.view)
        assert merged == DriftMeter().measure(catalogue.view)
        for name in ("items", "codes", "sids", "new_sids", "error"):
            assert getattr(merged, name) == pytest.approx(getattr(pieces, name), rel=1e-6)
        catalogue.apply([Delete(one["item_id"]) for one in added[:100]])
        assert meter.measure(catalogue.view).items == 300
        catalogue.merge()
        assert meter.measure(catalogue.view).items == 200
