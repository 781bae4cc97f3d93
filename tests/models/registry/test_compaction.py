"""A champion's catalogue becomes a generation: nothing lost, nothing twice, whole at any step."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from index.errors import ArtifactError
from index.live.catalogue import LiveCatalogue, LiveSettings, live_directory, read_view
from index.live.changes import Delete, Update, Upsert
from models.registry import promotion
from models.registry.canary import start_canary
from models.registry.compaction import CompactionBarred, Due, compact, compact_view
from models.registry.promotion import AliasMoved
from models.registry.publication import publish
from models.registry.record import GenerationRecord
from models.registry.registry import Provenance, Registry

QUIET = LiveSettings(merge_automatically=False, publish_interval_s=0.0)
BY = Provenance("ann", "nightly")
NEW = Upsert({"item_id": "new", "title": "purple quartz stool", "price": 5.0})


@pytest.fixture
def champion(registry: Registry, published: Callable[[], tuple[str, str]]) -> GenerationRecord:
    """`second` champion, `first` previous, of one snapshot."""
    first, second = published()
    promotion.promote(registry, first)
    promotion.promote(registry, second)
    return registry.record(second)


def catalogue_of(registry: Registry, record: GenerationRecord) -> LiveCatalogue:
    snapshot, _ = registry.paths(record)
    live = live_directory(registry.snapshots.path(record.catalogue_origin))
    return LiveCatalogue.open(snapshot, live, QUIET)


def test_a_champion_is_replaced_by_its_compaction(registry: Registry, champion: GenerationRecord):
    before = registry.aliases()
    with catalogue_of(registry, champion) as catalogue:
        assert compact(registry, champion, catalogue, BY) == champion
        catalogue.apply([NEW, Delete("i0")])
        made = compact(registry, champion, catalogue, BY)
        # What comes later goes on in the same log.
        catalogue.apply([Delete("i1"), Update("new", {"price": 6.0})])
        assert catalogue.view.base.version == made.pairing.snapshot
    state = registry.aliases()
    assert [state.champion, state.previous] == [made.version, before.previous]
    assert [state.what, state.who, state.why] == ["compact", "ann", "nightly"]
    assert made.pairing.checkpoint == champion.pairing.checkpoint
    assert made.parents == (champion.version,)
    assert [made.catalogue_origin, made.catalogue_sequence] == [champion.pairing.snapshot, 2]
    assert registry.events()[-1]["what"] == "compact"
    assert registry.verify(made.version) == made
    # Whichever of the two a server comes up on, the catalogue is the same.
    for record in (made, champion):
        with catalogue_of(registry, record) as catalogue:
            view = catalogue.view
            assert [view.sequence, view.n_items, view.version] == [
                4,
                35,
                f"{champion.pairing.snapshot}+4",
            ]
            [row] = view.items.rows_of(["new"])
            assert view.items.get_many([row])[0]["price"] == 6.0
    with catalogue_of(registry, made) as catalogue:
        again = compact(registry, made, catalogue, BY)
    assert [again.catalogue_sequence, again.parents] == [4, (made.version,)]
    assert registry.aliases().previous == before.previous


def test_beside_a_process_that_writes(registry: Registry, champion: GenerationRecord):
    snapshot, _ = registry.paths(champion)
    with catalogue_of(registry, champion) as catalogue:
        catalogue.apply([NEW, Delete("i0")])
        made = compact_view(registry, champion, read_view(snapshot), BY)
        catalogue.apply([Delete("i1")])
    assert registry.aliases().champion == made.version
    assert list(registry.work.iterdir()) == []
    with catalogue_of(registry, made) as catalogue:
        assert [catalogue.view.sequence, catalogue.view.n_items] == [3, 35]
        assert catalogue.view.base.version == made.pairing.snapshot
    assert compact_view(registry, made, read_view(registry.paths(made)[0]), BY) == made


def test_who_was_faster_and_who_is_being_tried(registry: Registry, champion: GenerationRecord):
    first = registry.aliases().previous
    assert first is not None
    with catalogue_of(registry, champion) as catalogue:
        catalogue.apply([NEW])
        start_canary(registry, first, 0.1)
        with pytest.raises(CompactionBarred, match="is being tried against"):
            compact(registry, champion, catalogue, BY)
        promotion.promote(registry, first)
        with pytest.raises(AliasMoved):
            compact(registry, champion, catalogue, BY)
    assert registry.aliases().champion == first


def test_another_catalogue_takes_nobodys_place(
    registry: Registry, champion: GenerationRecord, sources: Any
):
    foreign = publish(registry, sources.other, sources.foreign).record
    with catalogue_of(registry, foreign) as catalogue:
        catalogue.apply([NEW])
        with pytest.raises(ArtifactError, match="trained for codec"):
            compact(registry, champion, catalogue, BY)
    assert registry.aliases().champion == champion.version


@pytest.mark.parametrize(
    ("due", "pending", "age_s", "expected"),
    [
        (Due(), 10, 1e9, False),
        (Due(changes=10), 10, 0, True),
        (Due(changes=10), 9, 1e9, False),
        (Due(age_s=60), 1, 60, True),
        (Due(age_s=60), 0, 1e9, False),
        (Due(age_s=60, changes=100), 5, 10, False),
    ],
)
def test_when_it_is_due(
    champion: GenerationRecord, due: Due, pending: int, age_s: float, expected: bool
):
    assert due.holds(champion, pending, champion.created + age_s) is expected


def test_killed_at_any_step(registry: Registry, champion: GenerationRecord, tmp_path: Path):
    killed_compaction = Path(__file__).with_name("killed_compaction.py")
    done = subprocess.run(
        [sys.executable, killed_compaction, registry.path, tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    whole, *cut = [json.loads(line) for line in done.stdout.splitlines()]
    assert whole["steps"] > 20
    assert not whole["killed"]
    served = set[bool]()
    for one in cut:
        assert [one["acknowledged"], one["killed"]] == [True, True]
        left = Registry(Path(one["copy"]))
        choice = left.choose()
        assert choice.problems == ()
        served.add(choice.record.version == champion.version)
        with catalogue_of(left, choice.record) as catalogue:
            assert [catalogue.view.sequence, catalogue.view.n_items] == [2, 34]
    assert True in served
    # What was left is no hindrance.
    left = Registry(Path(cut[len(cut) // 2]["copy"]))
    with catalogue_of(left, champion) as catalogue:
        made = compact(left, champion, catalogue, BY)
    assert left.aliases().champion == made.version
    assert made.catalogue_sequence == 2
