from collections.abc import Callable
from typing import Any

import orjson
import pytest

from index.errors import ConfigError
from models.registry.aliases import Canary
from models.registry.canary import CanaryRuns, NoCanary, start_canary, stop_canary
from models.registry.promotion import AliasMoved, challenge, promote, rollback
from models.registry.publication import publish
from models.registry.registry import Provenance, Registry

Both = Callable[[], tuple[str, str]]


@pytest.fixture
def pair(registry: Registry, published: Both) -> tuple[str, str]:
    """Champion and another."""
    first, second = published()
    promote(registry, first)
    return first, second


def test_a_canary_is_one_change_with_its_history(registry: Registry, pair: tuple[str, str]) -> None:
    first, second = pair
    state = start_canary(registry, second, 0.05, expected=first, by=Provenance("ann", "try it"))
    assert state.canary == Canary(f"canary-{second}", 0.05)
    assert state.named() == {"champion": first, "challenger": second}
    assert registry.aliases() == state
    assert start_canary(registry, second, 0.05).revision == state.revision
    # With a larger share it is the same experiment: who was in it stays in it.
    assert start_canary(registry, second, 0.2).canary == Canary(f"canary-{second}", 0.2)
    named = start_canary(registry, second, 0.2, experiment="autumn")
    assert start_canary(registry, second, 0.5).canary == Canary("autumn", 0.5)
    ended = stop_canary(registry, expected=second, by=Provenance("bob", "enough"))
    assert [ended.canary, ended.challenger, ended.revision] == [None, second, named.revision + 2]
    told = [event for event in registry.events() if event["what"].startswith("canary")]
    assert [event.get("share") for event in told] == [0.05, 0.2, 0.2, 0.5, None]
    assert [told[0]["who"], told[0]["why"], told[2]["experiment"]] == ["ann", "try it", "autumn"]
    assert [told[-1]["what"], told[-1]["who"]] == ["canary-stop", "bob"]


def test_it_ends_when_champion_or_challenger_change(
    registry: Registry, pair: tuple[str, str]
) -> None:
    first, second = pair
    start_canary(registry, second, 0.1)
    promoted = promote(registry, second)
    assert [promoted.canary, promoted.challenger] == [None, None]
    assert start_canary(registry, first, 0.1).canary is not None
    assert challenge(registry, first).canary is not None
    assert challenge(registry, None).canary is None
    start_canary(registry, first, 0.1)
    assert rollback(registry).canary is None


def test_another_ones_canary_ends_only_by_name(
    registry: Registry, pair: tuple[str, str], sources: Any
) -> None:
    _, second = pair
    third = publish(registry, sources.other, sources.foreign).record.version
    running = start_canary(registry, second, 0.1)
    with pytest.raises(CanaryRuns, match=f"the canary of {second} .* would end"):
        start_canary(registry, third, 0.1)
    for wrong in (third, None):
        with pytest.raises(AliasMoved, match=f"challenger is {second}"):
            start_canary(registry, third, 0.1, expected_challenger=wrong)
    assert registry.aliases() == running
    taken = start_canary(registry, third, 0.1, expected_challenger=second)
    assert [taken.challenger, taken.canary] == [third, Canary(f"canary-{third}", 0.1)]
    # One that was stopped is in nobody's way.
    stop_canary(registry)
    assert start_canary(registry, second, 0.1).challenger == second


def test_what_is_wrong_is_refused(registry: Registry, pair: tuple[str, str]) -> None:
    first, second = pair
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="above 0 and below 1"):
            start_canary(registry, second, share)
    for name in ("a\nb", "  ", " a", "a "):
        with pytest.raises(ConfigError, match="printable"):
            start_canary(registry, second, 0.1, experiment=name)
    with pytest.raises(ConfigError, match="is the champion"):
        start_canary(registry, first, 0.1)
    with pytest.raises(AliasMoved, match=f"champion is {first} by now"):
        start_canary(registry, second, 0.1, expected=second)
    with pytest.raises(NoCanary):
        stop_canary(registry)
    start_canary(registry, second, 0.1)
    with pytest.raises(AliasMoved, match="challenger is"):
        stop_canary(registry, expected=first)


def test_a_state_without_one_is_written_as_before(
    registry: Registry, pair: tuple[str, str]
) -> None:
    newest = max((registry.path / "aliases").glob("*.json"))
    assert "canary" not in orjson.loads(newest.read_bytes())["body"]
    start_canary(registry, pair[1], 0.1)
    newest = max((registry.path / "aliases").glob("*.json"))
    assert orjson.loads(newest.read_bytes())["body"]["canary"]["share"] == 0.1
    assert registry.alias_history.damaged() == []
