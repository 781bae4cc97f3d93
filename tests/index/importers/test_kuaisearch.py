"""KuaiSearch: sessions to events, titles to judgments, no recently_* fields."""

import json
from pathlib import Path
from typing import Any

import pytest

from index.dataset import Dataset
from index.errors import ConfigError
from index.importers.formats import import_dataset

TABLES: dict[str, list[Any]] = {
    "items": [
        {"item_id": 1, "item_title": "女士连衣裙", "brand_name": "无品牌", "seller_name": "店"},
        {
            "item_id": 2,
            "item_title": "跑步鞋",
            "brand_name": "雅鹿",
            "category_level1_name": "鞋",
            "category_level2_name": "运动鞋",
            "category_level3_name": "UNKNOWN",
        },
        {"item_id": 3, "item_title": "跑步鞋"},
    ],
    "users": [{"user_id": 5, "gender": "M", "fre_city": "UNKNOWN"}],
    "recall": [
        {
            "user_id": 5,
            "session_id": 1,
            "query": "鞋",
            "impressed_item_ids": [9, 2, 1],
            "clicked_item_ids": [2],
            "purchased_item_ids": [2],
            "recently_clicked_item_ids": [3],
            "time_index": 100,
            "split": "train",
        },
        {"user_id": 5, "session_id": 2, "query": "鞋"},
    ],
    "relevance": [
        {"query": "运动鞋", "item_title": "跑步鞋", "score": 3},
        {"query": "裙子", "item_title": "没有", "score": 0},
    ],
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "s"
    folder.mkdir()
    for name, rows in TABLES.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


def test_a_small_folder(source: Path, tmp_path: Path) -> None:
    imported = import_dataset("kuaisearch", source, tmp_path / "d")
    dataset = Dataset.open(tmp_path / "d")
    items = dataset.items.to_pylist()
    assert [item["brand"] for item in items] == [None, "雅鹿", None]
    assert items[0]["attributes"] == [("seller", ["店"])]
    assert items[1]["category"] == ["鞋", "运动鞋"]
    assert dataset.users.to_pylist() == [{"user_id": "5", "attributes": [("gender", "M")]}]
    events = [(e["kind"], e["item_id"], e["position"]) for e in dataset.events.to_pylist()]
    assert events == [
        ("impression", "2", 2),
        ("impression", "1", 3),
        ("click", "2", 2),
        ("order", "2", 2),
    ]
    assert dataset.events.column("split").to_pylist() == ["train"] * 4
    expected = [{"query": "运动鞋", "item_id": "2", "grade": 3.0}]
    assert dataset.judgments.to_pylist() == expected
    assert imported.summary.rejected == {
        "events": {"item_id: unknown item": 1, "no impressed_item_ids": 1},
        "judgments": {"no item has this title": 1},
    }
    assert any("recently_*" in note for note in imported.summary.notes)


def test_only_items_are_needed(source: Path, tmp_path: Path) -> None:
    for name in ("users", "recall", "relevance"):
        (source / f"{name}.jsonl").unlink()
    assert import_dataset("kuaisearch", source, tmp_path / "d").summary.rows["items"] == 3
    (source / "items.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"no items\.jsonl"):
        import_dataset("kuaisearch", source, tmp_path / "e")


@pytest.mark.shared_data
def test_the_demonstration_excerpt(shared_data: Path, tmp_path: Path) -> None:
    imported = import_dataset("kuaisearch", shared_data / "kuaisearch_demo", tmp_path / "d")
    assert imported.summary.rows == {"items": 200, "users": 200, "judgments": 0, "events": 2}
    assert imported.summary.rejected["events"] == {"item_id: unknown item": 26030}
    assert imported.summary.rejected["judgments"] == {"no item has this title": 200}
