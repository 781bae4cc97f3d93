"""Home Depot: a small folder in its format, and the real one."""

import gzip
import json
from pathlib import Path

import pytest

from index.dataset import Dataset
from index.errors import DataError
from index.importers.formats import import_dataset
from index.importers.homedepot import CATALOGUE, JUDGMENTS
from index.splits import cluster_queries


def test_a_small_folder(tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    item = {"product_uid": 7, "title": "Mower &amp; bag", "brand": "Toro", "colors": ["Red"]}
    item["materials"] = []
    (source / CATALOGUE).write_bytes(gzip.compress(json.dumps(item).encode()))
    with pytest.raises(DataError, match=JUDGMENTS):
        import_dataset("homedepot", source, tmp_path / "d")
    rows = "id,product_uid,product_title,search_term,relevance\n1,7,x,gas  mowe,2.67\n2,8,x,y,1\n"
    (source / JUDGMENTS).write_bytes(gzip.compress(rows.encode()))
    imported = import_dataset("homedepot", source, tmp_path / "d")
    dataset = Dataset.open(tmp_path / "d")
    (row,) = dataset.items.to_pylist()
    assert (row["item_id"], row["title"], row["color"], row["material"]) == (
        "7",
        "Mower & bag",
        ["Red"],
        None,
    )
    expected = [{"query": "gas mowe", "item_id": "7", "grade": 2.67}]
    assert dataset.judgments.to_pylist() == expected
    assert imported.summary.rejected == {"judgments": {"item_id: unknown item": 1}}


@pytest.mark.shared_data
def test_the_real_folder(shared_data: Path, tmp_path: Path) -> None:
    imported = import_dataset("homedepot", shared_data / "homedepot", tmp_path / "d")
    dataset = Dataset.open(tmp_path / "d")
    assert imported.summary.rows == {"items": 54667, "users": 0, "judgments": 63078, "events": 0}
    assert imported.summary.rejected == {"judgments": {"query: duplicate": 5}}
    assert not any("&amp;" in title for title in dataset.items.column("title").to_pylist())
    assert sum(imported.summary.splits.values()) == 10053
    split_of = dataset.split_of()
    clusters = cluster_queries(split_of)
    assert sum(len(cluster) > 1 for cluster in clusters) > 150
    assert all(len({split_of[query] for query in cluster}) == 1 for cluster in clusters)
