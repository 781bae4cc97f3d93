"""Validation: a sound dataset passes, each kind of damage is a problem by name."""

from pathlib import Path
from typing import Any

import pytest

from index.dataset import write_dataset
from index.errors import ArtifactError
from index.validation import Validation, validate_dataset

ITEMS: list[dict[str, Any]] = [
    {"item_id": "1", "title": "Steel pipe", "price": 1.0},
    {"item_id": "2", "title": "Steel pipe"},
]
JUDGMENTS: list[dict[str, Any]] = [
    {"query": "pipe", "item_id": "1", "grade": 3.0},
    {"query": "pipe", "item_id": "2", "grade": 1.0},
    {"query": "hose", "item_id": "2", "grade": 1.0},
]
EVENT: dict[str, Any] = {
    "session_id": "s",
    "user_id": "u",
    "query": "pipe",
    "item_id": "1",
    "kind": "click",
    "time": 1.0,
}


def check(path: Path, relevant_from: float | None = None, **tables: Any) -> Validation:
    rows: dict[str, Any] = {"items": ITEMS, "judgments": JUDGMENTS, "events": [EVENT], **tables}
    write_dataset(path / "d", **rows)
    return validate_dataset(path / "d", relevant_from=relevant_from)


def test_a_sound_dataset(tmp_path: Path) -> None:
    validation = check(tmp_path)
    assert validation.ok
    assert validation.warnings == []
    facts = validation.facts
    assert facts["items"]["rows"] == 2
    assert facts["items"]["duplicate_titles"] == 1
    assert facts["items"]["missing_share"]["price"] == 0.5
    assert facts["judgments"] == {
        "rows": 3,
        "queries": 2,
        "grades": {"1": 2, "3": 1},
        "relevant_from": 2.5,
        "queries_without_relevant": 1,
    }
    assert facts["events"]["kinds"] == {"click": 1}
    assert facts["splits"]["leaks"] == 0
    assert facts["splits"]["clusters"] == 2
    assert validation.to_json()["ok"] is True


def test_the_relevant_grade_can_be_given(tmp_path: Path) -> None:
    validation = check(tmp_path, relevant_from=1.0)
    assert validation.facts["judgments"]["queries_without_relevant"] == 0


def test_the_relevant_grade_is_what_the_dataset_states(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", items=ITEMS, judgments=JUDGMENTS, relevant_from=1)
    stated = validate_dataset(tmp_path / "d").facts["judgments"]
    assert [stated["relevant_from"], stated["queries_without_relevant"]] == [1, 0]
    given = validate_dataset(tmp_path / "d", relevant_from=3.0).facts["judgments"]
    assert [given["relevant_from"], given["queries_without_relevant"]] == [3.0, 1]


def test_a_stated_grade_that_is_no_number_is_a_problem(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", items=ITEMS, judgments=JUDGMENTS, relevant_from="high")
    validation = validate_dataset(tmp_path / "d")
    assert validation.problems == ["manifest: relevant_from is 'high', it must be a number"]
    assert validation.facts["judgments"]["relevant_from"] == 2.5


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ({"items": [*ITEMS, ITEMS[0]]}, "items: repeated item_id: 1 ('1')"),
        ({"items": [*ITEMS, {"item_id": "", "title": "x"}]}, "items: empty item_id"),
        ({"items": [*ITEMS, {"item_id": "3", "title": ""}]}, "items: empty title: 1 ('3')"),
        ({"items": [*ITEMS, {"item_id": "3", "title": "x", "price": -1.0}]}, "negative"),
        ({"items": [], "judgments": [], "events": []}, "the catalogue is empty"),
        ({"items": ITEMS[:1]}, "judgments: unknown item: 1 ('2')"),
        ({"judgments": [*JUDGMENTS, JUDGMENTS[0]]}, "1 repeated pairs"),
        ({"judgments": [{**JUDGMENTS[0], "grade": float("nan")}]}, "grade is not finite"),
        ({"events": [{**EVENT, "item_id": "9"}]}, "events: unknown item: 1 ('9')"),
        ({"events": [{**EVENT, "kind": "hover"}]}, "events: unknown kind: 1 ('hover')"),
        ({"events": [{**EVENT, "time": float("inf")}]}, "time is not finite"),
        ({"users": [{"user_id": "u"}, {"user_id": "u"}]}, "users: repeated user_id"),
        ({"splits": {"pipe": "train"}}, "query of judgments without a split: 1 ('hose')"),
        (
            {"splits": {"pipe": "train", "hose": "train", "steel pipe": "train"}}
            | {"splits": {"pipe": "train", "Pipes": "test", "hose": "train"}},
            "respellings in different splits: 1 (['Pipes', 'pipe'])",
        ),
    ],
)
def test_damage_is_a_problem(tmp_path: Path, tables: dict[str, Any], problem: str) -> None:
    validation = check(tmp_path, **tables)
    assert not validation.ok
    assert any(problem in found for found in validation.problems), validation.problems


def test_oddities_are_warnings(tmp_path: Path) -> None:
    validation = check(tmp_path, relevant_from=9.0, users=[{"user_id": "other"}])
    assert validation.ok
    assert validation.warnings == [
        "judgments: no query has an item of grade ≥ 9",
        "events: 1 users are not in the users table",
    ]


def test_many_grades_are_counted_in_ranges(tmp_path: Path) -> None:
    judgments = [{"query": f"q{n}", "item_id": "1", "grade": n / 10} for n in range(40)]
    grades = check(tmp_path, judgments=judgments).facts["judgments"]["grades"]
    assert len(grades) == 10
    assert sum(grades.values()) == 40


def test_a_damaged_directory_is_an_error(tmp_path: Path) -> None:
    check(tmp_path)
    with (tmp_path / "d" / "items.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match=r"items\.parquet"):
        validate_dataset(tmp_path / "d")
