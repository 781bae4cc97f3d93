from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.dataset import Dataset, write_dataset
from index.text import words
from models.training.build import fit_pseudo_queries
from models.training.material import Material, read_material
from models.training.visits import Visit, read_visits

ITEMS = [
    {"item_id": "a", "title": "Oak desk", "brand": "Nord", "category": ["Home", "Desks"]},
    {"item_id": "b", "title": "Steel lamp", "brand": "Steel", "popularity": 3.0},
    {"item_id": "c", "title": "Glass shelf"},
    *[{"item_id": f"x{n}", "title": f"Thing {n}"} for n in range(30)],
]
A, B, C, X = 0, 1, 2, 3


def event(
    time: float,
    item: str,
    query: str | None = "desk",
    *,
    kind: str = "click",
    session: str = "s1",
    user: str | None = "u",
    split: str | None = None,
) -> dict[str, Any]:
    return {
        "session_id": session,
        "user_id": user,
        "query": query,
        "item_id": item,
        "kind": kind,
        "time": time,
        "split": split,
    }


def material(
    path: Path,
    *,
    judgments: list[tuple[str, str, float]] | None = None,
    events: list[dict[str, Any]] | None = None,
    splits: dict[str, str] | None = None,
) -> Material:
    rows = [{"query": q, "item_id": i, "grade": g} for q, i, g in judgments or []]
    asked = {row["query"] for row in [*rows, *(events or [])]} - {None}
    made = {str(query): "train" for query in asked} | (splits or {})
    dataset = write_dataset(
        path / "d", items=ITEMS, judgments=rows, events=events or [], splits=made
    )
    return read_material(dataset)


def test_items_come_as_texts(tmp_path: Path):
    found = material(tmp_path)
    assert found.item_texts[:2] == ["Oak desk Nord", "Steel lamp"]
    assert found.titles[0] == words("oak desk nord")
    assert found.categories[:2] == ["home desks", ""]
    assert found.popularity[:3].tolist() == [0, 3, 0]
    assert not found.known
    assert not found.visits
    assert [len(part) for part in found.pairs()] == [0, 0, 0]


def test_grades_in_the_upper_part_of_the_scale_count(tmp_path: Path):
    """Scale 1 to 3: from 1 + 0.6 · 2 = 2.2 on."""
    judged = [("desk", "a", 3.0), ("desk", "b", 2.2), ("desk", "c", 2.19), ("lamp", "b", 1.0)]
    found = material(tmp_path, judgments=judged)
    assert found.queries == ["desk"]
    rows, weights = zip(*found.known["desk"], strict=True)
    assert rows == (A, B)
    assert weights == pytest.approx((1.0, 0.6))
    query, row, weight = found.pairs()
    assert (query.tolist(), row.tolist()) == ([0, 0], [A, B])
    np.testing.assert_allclose(weight, (1.0, 0.6))


def test_one_grade_for_all_means_relevant(tmp_path: Path):
    found = material(tmp_path, judgments=[("desk", "a", 1.0), ("lamp", "b", 1.0)])
    assert found.known == {"desk": ((A, 1.0),), "lamp": ((B, 1.0),)}


def test_clicks_and_orders_add_to_judgments(tmp_path: Path):
    found = material(
        tmp_path,
        judgments=[("desk", "a", 0.7), ("lamp", "b", 0.0), ("shelf", "c", 1.0)],
        events=[
            event(1, "a"),
            event(2, "b", "lamp"),
            event(3, "b", "lamp", session="s2", kind="order"),
            event(4, "c", "lamp", kind="impression"),
        ],
    )
    assert dict(found.known["desk"])[A] == pytest.approx(0.7 + 0.25)
    assert dict(found.known["lamp"]) == pytest.approx({B: 0.25 + 0.5})
    many = [event(n, "a", session=f"s{n}") for n in range(9)]
    again = material(tmp_path / "m", events=many)
    assert again.known["desk"] == ((A, 1.0),)


def test_a_search_is_a_session_and_a_query(tmp_path: Path):
    found = material(
        tmp_path,
        events=[
            event(1, "c", kind="impression"),
            event(2, "a"),
            event(3, "a", kind="order"),
            event(4, "b"),
            event(5, "c", "lamp"),
            event(6, "c", "shelf", kind="impression"),
        ],
    )
    assert found.visits == [
        Visit("desk", ((A, 1.0), (B, 0.5)), ()),
        Visit("lamp", ((C, 0.5),), (A, B)),
    ]


def test_history_ends_where_the_search_begins(tmp_path: Path):
    """Two searches overlap in time: neither sees what was chosen after its own first event."""
    found = material(
        tmp_path,
        events=[
            event(1, "a", "desk"),
            event(5, "b", "lamp", session="s2"),
            event(10, "c", "desk"),
            event(11, "x0", "shelf", session="s3"),
        ],
    )
    history = {visit.query: visit.history for visit in found.visits}
    assert history == {"desk": (), "lamp": (A,), "shelf": (A, B, C)}


def test_order_of_rows_does_not_matter(tmp_path: Path):
    events = [
        event(float(n), f"x{n * 7 % 30}", f"q{n % 4}", session=f"s{n % 5}", user=f"u{n % 3}")
        for n in range(40)
    ]
    straight = material(tmp_path / "1", events=events)
    mixed = [events[i] for i in np.random.default_rng(0).permutation(len(events))]
    assert material(tmp_path / "2", events=mixed).visits == straight.visits


def test_history_against_brute_force(tmp_path: Path):
    random = np.random.default_rng(1)
    events = [
        event(
            float(random.integers(60)),
            f"x{random.integers(30)}",
            f"q{random.integers(5)}" if random.random() < 0.8 else None,
            kind=str(random.choice(["impression", "click", "order"])),
            session=f"s{random.integers(8)}",
            user=f"u{random.integers(2)}",
        )
        for _ in range(300)
    ]
    # A session belongs to one user.
    for row in events:
        row["user_id"] = f"u{int(row['session_id'][1:]) % 2}"
    found = material(tmp_path, events=events)
    begins: dict[tuple[str, str], float] = {}
    for row in events:
        if row["query"] is not None:
            key = (row["session_id"], row["query"])
            begins[key] = min(begins.get(key, np.inf), row["time"])
    expected = []
    for (session, query), begin in begins.items():
        rows = [e for e in events if (e["session_id"], e["query"]) == (session, query)]
        wanted = {X + int(e["item_id"][1:]) for e in rows if e["kind"] != "impression"}
        user = f"u{int(session[1:]) % 2}"
        earlier = {
            X + int(e["item_id"][1:])
            for e in events
            if e["user_id"] == user and e["kind"] != "impression" and e["time"] < begin
        }
        if wanted:
            expected.append((query, wanted, earlier))
    assert len(found.visits) == len(expected)
    for visit in found.visits:
        wanted = {row for row, _ in visit.wanted}
        match = [e for e in expected if e[0] == visit.query and e[1] == wanted]
        assert any(set(visit.history) <= earlier for _, _, earlier in match)
        assert any(len(visit.history) == len(e) for _, _, e in match)
        assert len(set(visit.history)) == len(visit.history)


def test_history_keeps_the_newest_distinct_items(tmp_path: Path):
    events = [event(float(n), f"x{n}", f"q{n}", session=f"s{n}") for n in range(25)]
    events += [event(30, "x20", "again", session="t"), event(40, "a", "last", session="z")]
    made = material(tmp_path, events=events)
    assert len(made.visits[-1].history) == 25
    last = read_visits(Dataset.open(tmp_path / "d"), "train", max_history=20)[-1]
    kept = [X + n for n in range(5, 25) if n != 20]
    assert last.history == (*kept, X + 20)
    assert len(last.history) == 20


def test_browsing_is_history_and_nobody_has_none(tmp_path: Path):
    found = material(
        tmp_path,
        events=[
            event(1, "c", None),
            event(2, "a", "desk", session="s2"),
            event(3, "a", "desk", session="s3", user=None),
        ],
    )
    assert [visit.history for visit in found.visits] == [(C,), ()]


def leaky(path: Path) -> Dataset:
    """Everything about "secret" words lies in the test or validation split."""
    return write_dataset(
        path / "d",
        items=ITEMS,
        judgments=[
            {"query": "desk", "item_id": "a", "grade": 1.0},
            {"query": "secret desk", "item_id": "a", "grade": 1.0},
            {"query": "hidden lamp", "item_id": "b", "grade": 1.0},
            {"query": "desk", "item_id": "b", "grade": 0.0},
        ],
        events=[
            event(1, "b", "secret desk"),
            event(2, "c", "hidden lamp"),
            # A source that splits by time marks events; both mark and query must say train.
            event(3, "c", "desk", split="test"),
            event(4, "x0", None, split="test"),
            event(5, "a", "desk", session="s9"),
            event(6, "x1", "desk", session="s10", split="validation"),
            event(7, "a", "desk", session="s11"),
        ],
        splits={"desk": "train", "secret desk": "test", "hidden lamp": "validation"},
    )


def test_only_the_training_split_is_read(tmp_path: Path):
    found = read_material(leaky(tmp_path))
    assert found.queries == ["desk"]
    assert found.known == {"desk": ((A, 1.0),)}
    assert [visit.query for visit in found.visits] == ["desk", "desk"]
    assert [visit.wanted for visit in found.visits] == [((A, 0.5),), ((A, 0.5),)]
    # What was chosen in held-out searches is in nobody's history.
    assert [visit.history for visit in found.visits] == [(), (A,)]


def test_held_out_words_are_in_no_table(tmp_path: Path):
    model = fit_pseudo_queries(read_material(leaky(tmp_path)))
    plain = [{"query": "desk", "item_id": "a", "grade": 1.0}]
    plain.append({"query": "desk", "item_id": "b", "grade": 0.0})
    clean = write_dataset(tmp_path / "c", items=ITEMS, judgments=plain, splits={"desk": "train"})
    expected = fit_pseudo_queries(read_material(clean))
    assert model.propensity == expected.propensity
    assert model.translations == expected.translations
    assert sorted(model.lengths.tolist()) == sorted(expected.lengths.tolist())
    np.testing.assert_array_equal(model.place_factor, expected.place_factor)
    titles = [words(str(item["title"])) for item in ITEMS]
    drawn = model.sample(titles * 50, np.random.default_rng(0))
    assert not {"secret", "hidden"} & {word for query in drawn for word in query.split()}
