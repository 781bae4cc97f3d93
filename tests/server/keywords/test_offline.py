"""Keyword files made without a queue, read back as training reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from index.dataset import Dataset
from index.errors import DataError
from index.importers.demo_shop import generate
from index.importers.formats import import_dataset
from index.snapshot import Snapshot
from models.training.build import BuildSettings, build_snapshot
from models.training.encoder import EncoderSettings
from models.training.keyword_table import read_keywords
from models.training.material import read_material
from server.keywords.offline import make_keyword_file


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Snapshot]:
    folder = tmp_path_factory.mktemp("shop")
    generate(folder / "source", n_items=120, n_users=20, n_sessions=150)
    import_dataset("jsonl", folder / "source", folder / "dataset")
    encoder = EncoderSettings(dimension=32, bucket_count=1 << 12, batch=128)
    dataset = Dataset.open(folder / "dataset")
    settings = BuildSettings(encoder=encoder, encoder_steps=10)
    return dataset, build_snapshot(dataset, folder / "snapshot", settings)


def test_all_three_kinds_of_rows_are_there(shop: tuple[Dataset, Snapshot], tmp_path: Path):
    dataset, snapshot = shop
    path = tmp_path / "new" / "keywords.parquet"
    counts = make_keyword_file(dataset, snapshot, path, pseudo_queries=50)
    table, material = read_keywords(path), read_material(dataset)
    assert counts["queries"] == len(material.queries)
    known = [query for query in material.queries if table.of(query)]
    assert len(known) > 0.5 * len(material.queries)
    users = {(visit.query, visit.user) for visit in material.visits if visit.history}
    assert counts["personalised"] == len(users)
    assert len(table.personal) > 0.5 * len(users)
    assert len(table.derived) > 20
    rows = snapshot.items.rows_of([item for _, item in table.derived])
    assert (rows >= 0).all()


def test_no_query_of_another_split_is_in_the_file(shop: tuple[Dataset, Snapshot], tmp_path: Path):
    dataset, snapshot = shop
    make_keyword_file(dataset, snapshot, tmp_path / "keywords.parquet", pseudo_queries=0)
    table = read_keywords(tmp_path / "keywords.parquet")
    asked = {*table.generic, *(query for query, _ in table.personal)}
    assert asked
    assert not asked & {*dataset.queries("validation"), *dataset.queries("test")}


def test_a_place_that_cannot_be_written_is_named(shop: tuple[Dataset, Snapshot], tmp_path: Path):
    dataset, snapshot = shop
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        make_keyword_file(dataset, snapshot, tmp_path / "file" / "x.parquet", pseudo_queries=0)
