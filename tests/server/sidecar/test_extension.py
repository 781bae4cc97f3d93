"""Sides of queries stay; a round's dataset has everything and leaks nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from index.dataset import EVENTS, Dataset
from index.errors import ArtifactError
from index.snapshot import Snapshot
from models.registry.registry import Registry
from models.training.material import read_material
from models.training.publishing import check_belongs
from server.sidecar.extension import extend, sides_of


def test_a_query_keeps_its_side_and_its_respellings_share_it() -> None:
    known = {"steel stake": "test", "oak desk": "train", "red lamp": "validation"}
    sides = sides_of(known, ["steele stakes", "desk oak", "a red lamp", "blue chair"])
    assert sides.of["steele stakes"] == "test"
    assert sides.of["desk oak"] == "train"
    assert sides.of["a red lamp"] == "validation"
    assert sides.of["blue chair"] in ("train", "validation", "test")
    assert known.items() <= sides.of.items()
    assert sides.moved == frozenset()


def test_where_a_respelling_joins_both_sides_training_gives_way() -> None:
    known = {"under mount sink": "train", "undermount sink": "test"}
    sides = sides_of(known, ["undermount sinks"])
    assert set(sides.of.values()) == {"test"}
    assert sides.moved == {"under mount sink"}


def test_sides_do_not_depend_on_what_else_is_new() -> None:
    alone = sides_of({}, ["green sofa"]).of["green sofa"]
    among = sides_of({}, [f"lamp number {number}" for number in range(40)] + ["green sofa"])
    assert among.of["green sofa"] == alone


def rows(*searches: tuple[str, str, str, str]) -> pa.Table:
    found: list[dict[str, Any]] = [
        {"session_id": f"{user}-{query}", "user_id": user, "query": query, "item_id": item,
         "kind": kind, "position": 1, "time": float(number), "split": None}
        for number, (user, query, item, kind) in enumerate(searches)
    ]  # fmt: skip
    return pa.Table.from_pylist(found, schema=EVENTS)


def test_a_rounds_dataset_trains_with_the_champions_snapshot(shop: Any, tmp_path: Path) -> None:
    base = Dataset.open(shop.dataset)
    snapshot = Snapshot.open(Registry(shop.registry).choose().snapshot)
    item = base.items.column("item_id")[0].as_py()
    trained = base.queries("train")[0]
    behaviour = rows(
        ("ann", trained, item, "impression"),
        ("ann", trained, item, "click"),
        ("ann", "a new query of nobody", "no-such-item", "click"),
    )
    known, moved = base.split_of(), frozenset({"once trained"})
    dataset = extend(
        tmp_path / "dataset", base, snapshot, [behaviour], known, moved, simulated=False
    )
    assert dataset.events.num_rows == base.events.num_rows + 2
    assert dataset.simulated
    assert dataset.manifest["extends"] == [base.version]
    assert dataset.manifest["moved"] == ["once trained"]
    assert known.items() <= dataset.split_of().items()
    check_belongs(dataset, snapshot, tmp_path / "checkpoint", overwrite=False)
    assert trained in read_material(dataset).known
    # Doing it again replaces what a killed process left.
    again = extend(tmp_path / "dataset", base, snapshot, [behaviour], known, moved, simulated=False)
    assert again.version == dataset.version
    shutil.rmtree(tmp_path / "dataset")


def test_a_snapshot_of_another_dataset_is_refused(
    shop: Any, tiny_pair: Any, tmp_path: Path
) -> None:
    base, snapshot = Dataset.open(shop.dataset), Snapshot.open(tiny_pair.snapshot)
    with pytest.raises(ArtifactError, match="was not built from"):
        extend(tmp_path / "dataset", base, snapshot, [], {}, frozenset(), simulated=False)
