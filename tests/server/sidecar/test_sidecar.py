"""Rounds over what users did: accepted, refused, replayed, overtaken."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from index.dataset import Dataset
from index.errors import ConfigError
from models.registry.promotion import challenge, promote, rollback
from models.registry.registry import Registry
from server.cli.main import main
from server.sidecar import work
from server.sidecar.batch import read_table
from server.sidecar.rounds import Rounds
from server.sidecar.sidecar import Sidecar, Stopped

Once = Callable[..., Any]


@pytest.fixture
def quick(settings_of: Callable[..., Any]) -> Any:
    """A sidecar that trains one step and lets everything through."""
    made = settings_of()
    gate = replace(made.gate, max_loss=1.0, margin=1.0, min_gain=-1.0, max_valid_loss=1.0)
    return made.model_copy(
        update={"sft": replace(made.sft, examples=64, learning_rate=1e-4), "gate": gate}
    )


def test_a_poisoned_batch_that_looks_usual_is_refused_by_what_it_did(
    once: Once, behave: Any, liked: Any, settings_of: Any, shop: Any
) -> None:
    """Many users, usual rates, all for what is dear: the held-out searches of before tell."""
    registry = Registry(shop.registry)
    behave(liked(180), prefix="good")
    assert once(settings_of()).outcome == "published"
    champion = registry.aliases().champion
    items: list[Any] = Dataset.open(shop.dataset).items.to_pylist()
    pushed = [row["item_id"] for row in sorted(items, key=lambda row: -(row["price"] or 0))[:10]]
    poison = [
        (user, query, [*shown, pushed[number % 10]], [pushed[number % 10]])
        for number, (user, query, shown, _) in enumerate(liked(540, seed=11))
    ]
    behave(poison, prefix="bad")
    refused = once(settings_of())
    assert refused.outcome == "refused"
    assert refused.facts["batch_verdict"]["passed"]
    # Better at what the poison asks for, and worse at what was wanted before.
    assert refused.facts["gain"]["mean"] > 0
    assert any(line.startswith("difference of ndcg@10, earlier -") for line in refused.reasons)
    assert registry.aliases().champion == champion
    # What was refused is not trained on later.
    assert [one.number for one in Rounds(settings_of().state).accepted()] == [1]
    assert once(settings_of()) is None


def test_a_refused_batch_is_replayed_through_the_gate(
    once: Once, behave: Any, liked: Any, quick: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    behave([("simulated-ann", query, shown, clicked) for _, query, shown, clicked in liked(180)])
    one = once(quick)
    assert [reason.split()[:4] for reason in one.reasons] == [["clicks", "of", "one", "user"]]
    state = str(quick.state)
    assert main(["sidecar", "replay", "1", "--state", state]) == 0
    trusting = replace(quick.gate, max_user_share=1.0)
    again = once(quick.model_copy(update={"gate": trusting}))
    assert (again.number, again.replays, again.outcome) == (2, 1, "published")
    assert main(["sidecar", "replay", "2", "--state", state]) == 2
    assert "only what was refused is replayed" in capsys.readouterr().err
    assert once(quick) is None
    assert main(["sidecar", "status", "--state", state, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["outcome"] for one in told["rounds"]] == ["refused", "published"]
    assert main(["sidecar", "status", "--state", state]) == 0
    assert "clicks of one user" in capsys.readouterr().out


def test_a_sidecar_that_never_ran_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sidecar", "status", "--state", str(tmp_path / "none")]) == 0
    assert "no round yet" in capsys.readouterr().out


def test_rounds_build_on_each_other_and_held_out_searches_stay_so(
    once: Once, behave: Any, liked: Any, quick: Any, shop: Any
) -> None:
    fresh = [
        (f"simulated-{n}", f"never asked before {n}", shown, clicked)
        for n, (_, _, shown, clicked) in enumerate(liked(60))
    ]
    behave([*liked(120), *fresh], prefix="a")
    first = once(quick)
    behave(liked(180, seed=5), prefix="b")
    second = once(quick)
    assert (first.outcome, second.outcome) == ("published", "published")
    rounds, registry = Rounds(quick.state), Registry(shop.registry)
    assert second.champion == first.generation
    assert second.facts["events"] > first.facts["events"]
    sides = work.sides_read(rounds.path(2) / work.SIDES)
    assert Dataset.open(shop.dataset).split_of().items() <= sides.items()
    assert work.sides_read(rounds.path(1) / work.SIDES).items() <= sides.items()
    new = [sides[query] for _, query, _, _ in fresh]
    assert {"train", "validation", "test"} >= set(new)
    assert new.count("train") > 30
    assert not any(path.is_dir() for path in rounds.path(2).iterdir() if path.suffix != ".log")
    assert read_table(rounds.path(2) / work.ROWS).num_rows > 0
    # Taken back by a person, it is not promoted again, and the next round begins from the champion.
    rollback(registry)
    behave(liked(180, seed=6), prefix="c")
    assert once(quick).champion == registry.record(first.generation).version


def test_without_a_champion_dataset_or_enough_clicks(
    once: Once, behave: Any, liked: Any, quick: Any
) -> None:
    behave(liked(10))
    assert once(quick) is None
    behave(liked(180), prefix="more")
    with pytest.raises(ConfigError, match="--dataset"):
        once(quick.model_copy(update={"dataset": None}))


def test_whoever_was_promoted_meanwhile_is_the_one_to_beat(
    once: Once, behave: Any, liked: Any, quick: Any, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(shop.registry)
    behave(liked(180), prefix="a")
    waiting = once(quick.model_copy(update={"publish_as": "nothing"}))
    assert registry.aliases().champion == waiting.champion
    behave(liked(180, seed=9), prefix="b")
    step = work.Work.step

    def overtaken(self: work.Work, one: Any) -> Any:
        if one.step == "publish" and one.champion == waiting.champion:
            promote(registry, waiting.generation)
        return step(self, one)

    monkeypatch.setattr(work.Work, "step", overtaken)
    done = once(quick)
    assert done.outcome == "published"
    assert done.champion == waiting.generation
    assert registry.record(done.generation).parents == (waiting.generation,)
    assert registry.aliases().previous == waiting.generation


def test_asked_to_end_in_the_middle_of_training_it_goes_on_later(
    once: Once, behave: Any, liked: Any, quick: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    behave(liked(180))
    with monkeypatch.context() as patch:
        patch.setattr(Sidecar, "_show", lambda self, stage, progress: self.stop.set())
        longer = quick.model_copy(update={"sft": replace(quick.sft, examples=192)})
        with pytest.raises(Stopped):
            once(longer)
    [open_round] = Rounds(quick.state).all()
    assert (open_round.outcome, open_round.step, open_round.attempts) == ("open", "train", 0)
    assert once(longer).outcome == "published"


def test_a_challenger_that_somebody_named_stays(
    once: Once, behave: Any, liked: Any, quick: Any, shop: Any
) -> None:
    registry = Registry(shop.registry)
    trying = quick.model_copy(update={"publish_as": "challenger"})
    behave(liked(180), prefix="a")
    first = once(trying)
    assert registry.aliases().challenger == first.generation
    assert registry.aliases().champion == first.champion
    promote(registry, first.generation)
    challenge(registry, first.champion)
    behave(liked(180, seed=9), prefix="b")
    second = once(trying)
    assert second.outcome == "published"
    assert second.notes
    assert registry.aliases().challenger == first.champion


def test_a_step_that_always_fails_ends_its_round(
    once: Once, behave: Any, liked: Any, quick: Any, shop: Any
) -> None:
    behave(liked(180))
    broken = quick.model_copy(update={"stages": ("distill",), "attempts": 2})
    for _ in range(2):
        with pytest.raises(ConfigError, match="distill needs keywords"):
            once(broken)
    failed = once(broken)
    assert failed.outcome == "failed"
    assert "distill needs keywords" in failed.reasons[0]
    assert once(broken) is None
