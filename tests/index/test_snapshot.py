from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index import rescoring
from index.attributes import AttributeDictionary
from index.codec import Codec
from index.dataset import ITEMS
from index.encoder import StaticEncoder, unit_rows
from index.errors import ArtifactError, ConfigError
from index.items import ItemFilter
from index.sid import SidLayout
from index.snapshot import Snapshot, texts_of

LAYOUT = SidLayout((8, 4, 4))
DIMENSION = 16
TITLES = [
    f"{color} {material} {thing}"
    for color in ("red", "black", "white")
    for material in ("oak", "steel", "glass")
    for thing in ("desk", "lamp", "shelf", "chair")
]


def parts(**changes: Any) -> dict[str, Any]:
    """Everything `Snapshot.write` wants: hashed random vectors, a codec of random items."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((512, DIMENSION)).astype(np.float32)
    encoder = StaticEncoder.from_table(table, np.arange(512, dtype=np.int32))
    attributes = AttributeDictionary.of({"Color": {"red": [], "black": []}})
    rows = [
        {"item_id": f"i{n}", "title": title, "price": float(n + 1), "popularity": float(n % 5)}
        for n, title in enumerate(TITLES)
    ]
    items = pa.Table.from_pylist(rows, schema=ITEMS)
    embeddings = encoder.encode(texts_of(items))
    centroids = tuple(
        (embeddings[rng.choice(len(rows), size, replace=False)] / (level + 1) ** 2)
        for level, size in enumerate(LAYOUT.level_sizes)
    )
    codec = Codec(LAYOUT, centroids, ("rq",) * LAYOUT.levels)
    defaults = {
        "items": items,
        "encoder": encoder,
        "attributes": attributes,
        "codec": codec,
        "codes": codec.encode(embeddings),
        "embeddings": embeddings,
        "report": {"icr": 0.5},
        "keyword_fusion": 0.5,
        "parents": ["abc"],
        "simulated": True,
        "dataset_version": "abc",
    }
    return defaults | changes


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    path = tmp_path_factory.mktemp("snapshots") / "one"
    Snapshot.write(path, **parts())
    return Snapshot.open(path)


def test_every_item_has_its_sid_and_every_sid_an_item(snapshot: Snapshot) -> None:
    expected = parts()["codes"]
    leaves = snapshot.postings.leaf_of_row
    np.testing.assert_array_equal(snapshot.trie.codes_of_leaves(leaves), expected)
    rows, _ = snapshot.postings.rows_of(np.arange(snapshot.trie.n_leaves))
    assert sorted(rows.tolist()) == list(range(len(TITLES)))
    assert snapshot.postings.counts().min() >= 1
    assert snapshot.layout == LAYOUT


def test_manifest_and_report(snapshot: Snapshot) -> None:
    assert snapshot.report == {"icr": 0.5}
    assert snapshot.manifest["simulated"] is True
    assert snapshot.manifest["parents"] == ["abc"]
    assert snapshot.manifest["counts"]["items"] == len(TITLES)
    assert snapshot.manifest["layout"] == {"level_sizes": [8, 4, 4]}
    assert len(snapshot.version) == 12


def test_an_item_is_found_by_its_own_words(snapshot: Snapshot) -> None:
    query = "BLACK steel  lamp"
    row = TITLES.index("black steel lamp")
    embedding = snapshot.embed_queries([query])
    assert snapshot.dense.search(embedding, 1)[0][0, 0] == row
    assert snapshot.lexical.search(query, 1)[0].tolist() == [row]


def test_fusion_by_hand(snapshot: Snapshot) -> None:
    encoder = snapshot.encoder
    own, red, black, plain = encoder.encode(["red black desk", "red", "black", "desk"])
    expected = unit_rows((0.5 * own + 0.25 * red + 0.25 * black)[None])
    fused = snapshot.embed_queries(["Red black  desk", "desk"])
    np.testing.assert_allclose(fused, [expected[0], plain], atol=1e-6)


def test_fusion_can_be_off(tmp_path: Path) -> None:
    Snapshot.write(tmp_path / "s", **parts(keyword_fusion=0.0))
    opened = Snapshot.open(tmp_path / "s")
    own = opened.encoder.encode(["red black desk"])
    np.testing.assert_array_equal(opened.embed_queries(["red black desk"]), own)


def test_candidate_sids_equal_brute_force(snapshot: Snapshot) -> None:
    embedding = snapshot.embed_queries(["white oak shelf"])[0]
    all_codes = snapshot.trie.codes_of_leaves(np.arange(snapshot.trie.n_leaves))
    oracle = snapshot.codec.reconstruct(all_codes) @ embedding
    leaves, scores = snapshot.candidate_sids(embedding, 7)
    np.testing.assert_allclose(scores, np.sort(oracle)[::-1][:7], atol=1e-5)
    np.testing.assert_allclose(oracle[leaves], scores, atol=1e-5)
    everything, _ = snapshot.candidate_sids(embedding, 10_000)
    assert sorted(everything.tolist()) == list(range(snapshot.trie.n_leaves))


def test_rescoring_features(snapshot: Snapshot) -> None:
    query = "black steel lamp"
    embedding = snapshot.embed_queries([query])[0]
    rows = np.arange(10)
    scores = np.full(10, np.nan, dtype=np.float32)
    scores[3] = -2.0
    x = rescoring.features(embedding, query, rows, scores, snapshot)
    assert x.shape == (10, len(rescoring.FEATURES))
    assert x.dtype == np.float32
    assert x[3, 0] == -2 > x[4, 0]
    np.testing.assert_allclose(x[:, 1], snapshot.dense.similarity(embedding, rows))
    assert 0 <= x[:, 2].min() <= x[:, 2].max() < 1
    assert not rescoring.features(embedding, "zzz", rows, None, snapshot)[:, [0, 2]].any()


def test_filtered_items_become_filtered_sids(snapshot: Snapshot) -> None:
    mask = snapshot.items.mask(ItemFilter(price_max=3))
    allowed = snapshot.trie.filter(snapshot.postings.leaf_mask(mask))
    assert allowed.n_leaves == len(np.unique(snapshot.postings.leaf_of_row[:3]))


def test_query_sids_are_codes_of_the_layout(snapshot: Snapshot) -> None:
    codes = snapshot.query_sid(snapshot.embed_queries(["red desk", "anything"]))
    assert codes.shape == (2, 3)
    LAYOUT.pack(codes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": np.zeros((3, 3), dtype=np.int32)}, "codes"),
        ({"embeddings": np.zeros((36, 5), dtype=np.float32)}, "embeddings"),
        ({"keyword_fusion": 1.0}, "keyword_fusion"),
        ({"items": ITEMS.empty_table()}, "at least one item"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Snapshot.write(tmp_path / "s", **parts(**change))
    assert not list(tmp_path.iterdir())


def test_an_existing_snapshot_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "s"
    Snapshot.write(path, **parts())
    first = Snapshot.open(path)
    with pytest.raises(ArtifactError, match="exists"):
        Snapshot.write(path, **parts())
    Snapshot.write(path, **parts(report={"icr": 0.6}), overwrite=True)
    assert Snapshot.open(path).version != first.version
    # The old one stays usable while somebody holds it: its files are mapped.
    assert first.items.get(0)["item_id"] == "i0"


def test_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "s"
    Snapshot.write(path, **parts())
    data = bytearray((path / "trie" / "codes_1.npy").read_bytes())
    data[-1] ^= 1
    (path / "trie" / "codes_1.npy").write_bytes(data)
    with pytest.raises(ArtifactError, match="codes_1"):
        Snapshot.open(path)
