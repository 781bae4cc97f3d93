"""What is asked: queries by Zipf's law, histories and filters of a real log."""

from collections import Counter
from pathlib import Path

import numpy as np
import orjson
import pytest

from index.errors import ArtifactError, DataError
from index.importers.demo_shop import generate
from index.importers.formats import import_dataset
from loadtest.workload import Workload
from server.changes import BODIES
from server.schemas import SearchRequest


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    folder = tmp_path_factory.mktemp("shop")
    generate(folder / "shop", n_items=80, n_users=20, n_sessions=200)
    import_dataset("jsonl", folder / "shop", folder / "dataset")
    return Workload.of_dataset(folder / "dataset")


def test_queries_follow_zipfs_law():
    shop = Workload([f"q{rank}" for rank in range(100)])
    asked = shop.searches(50_000, 32, np.random.default_rng(0))
    counts = Counter(orjson.loads(one.body or b"")["query"] for one in asked)
    assert counts["q0"] / counts["q9"] == pytest.approx(10, rel=0.2)
    assert counts["q1"] / counts["q19"] == pytest.approx(10, rel=0.2)


def test_cold_searches_do_not_repeat(shop: Workload):
    asked = shop.first_searches(len(shop.queries), 32, np.random.default_rng(0))
    assert len({orjson.loads(one.body or b"")["query"] for one in asked}) == len(shop.queries)
    assert len(shop.first_searches(3 * len(shop.queries), 32, np.random.default_rng(0))) > 0


def test_searches_are_valid_and_of_all_kinds(shop: Workload):
    asked = [
        SearchRequest.model_validate_json(one.body or b"")
        for one in shop.searches(500, 32, np.random.default_rng(0))
    ]
    assert {one.beam_width for one in asked} == {32}
    assert 100 < sum(one.history is not None for one in asked) < 200
    assert 50 < sum(one.user_id is not None for one in asked) < 150
    filters = [one.filters for one in asked if one.filters is not None]
    assert 80 < len(filters) < 170
    assert any(one.color for one in filters)
    assert any(one.price_max for one in filters)


def test_changes_are_valid(shop: Workload):
    made = shop.changes(10, np.random.default_rng(0))
    assert Counter(one.method for one in made) == {"PUT": 2, "PATCH": 8}
    names = {model.__name__ for model in BODIES}
    assert names
    for one in made:
        body = orjson.loads(one.body or b"")
        ids = [item["item_id"] for item in body["items"]]
        assert len(ids) == len(set(ids)) > 1


def test_a_log_of_queries(tmp_path: Path):
    log = tmp_path / "log.csv"
    log.write_text("time,query\n1,lamp\n2,desk\n3,lamp\n", encoding="utf-8")
    assert Workload.of_log(log).queries == ["lamp", "desk"]


@pytest.mark.parametrize("text", ["time,words\n1,x\n", "query\n", None])
def test_a_log_without_queries_is_told(tmp_path: Path, text: str | None):
    log = tmp_path / "log.csv"
    if text is not None:
        log.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"log\.csv"):
        Workload.of_log(log)


def test_a_folder_that_is_no_dataset_is_told(tmp_path: Path):
    with pytest.raises(ArtifactError):
        Workload.of_dataset(tmp_path)
