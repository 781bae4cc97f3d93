"""What serves clearly worse is taken back, once, and stays so."""

import asyncio
import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from models.registry import promotion
from models.registry.aliases import Aliases
from models.registry.canary import start_canary
from models.registry.registry import Registry
from server.figures import Figures, Sample, Seen
from server.logs import make_logger
from server.pipeline import Pipeline
from server.rollout_guard import Guard
from server.settings import Settings

SLOW_S = 1.0
"""Slower than a champion is on a busy machine, where half a second counts as slow."""
OWN = {"rollback_searches": 40, "patience": 0}
Spoil = Callable[[str, Callable[[], None]], None]


@pytest.fixture
def spoil(published: Any, monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """`spoil(version, work)`: each search of that generation does `work` before it ranks."""
    rank = Pipeline._rank

    def apply(version: str, work: Callable[[], None]) -> None:
        checkpoint = published.registry.record(version).pairing.checkpoint

        def spoiled(pipeline: Pipeline, generation: Any, *rest: Any) -> Any:
            # Golden queries are explained; searches here are not.
            if generation.model_version == checkpoint and not rest[1].explain:
                work()
            return rank(pipeline, generation, *rest)

        monkeypatch.setattr(Pipeline, "_rank", spoiled)

    return apply


def fail() -> None:
    raise RuntimeError("made to fail")


def search(client: httpx.Client, user: int) -> int:
    body = {"query": "red oak desk", "user_id": f"u{user}", "timeout_ms": 5000}
    return client.post("/v1/search", json=body).status_code


def searches(client: httpx.Client, count: int) -> list[int]:
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(lambda user: search(client, user), range(count)))


def generation(client: httpx.Client) -> dict[str, Any]:
    return client.get("/readyz").json()["generation"]


def until_searched(
    clients: list[httpx.Client], condition: Callable[[], bool], at_once: int = 20
) -> None:
    """Search until it holds."""
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        for client in clients:
            searches(client, at_once)


def until_judged(registry: Registry) -> None:
    """The aliases move first, and what the verdict was is written after."""
    ends = time.monotonic() + 60
    while registry.events()[-1]["what"] != "verdict":
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_a_failing_generation_is_rolled_back_once_by_several_servers_and_stays_so(
    published: Any, follow: Callable[..., httpx.Client], spoil: Spoil
):
    registry, clients = published.registry, [follow(**OWN), follow(**OWN)]
    spoil(published.second, fail)
    for client in clients:
        assert set(searches(client, 100)) == {200}
    promotion.promote(registry, published.second)
    until_searched(clients[:1], lambda: generation(clients[0])["version"] == published.second, 1)
    [trial] = clients[0].get("/admin/generations").json()["trials"]
    assert [trial["generation"], trial["against"]] == [published.second, published.first]
    until_searched(clients, lambda: registry.aliases().champion == published.first)
    until_searched(
        clients, lambda: {generation(one)["version"] for one in clients} == {published.first}
    )
    until_judged(registry)
    done = [event for event in registry.events() if event["what"] in ("rollback", "verdict")]
    assert [event["what"] for event in done] == ["rollback", "verdict"]
    assert "by itself" in done[0]["who"]
    assert "100.0% of" in done[0]["why"] and "failed" in done[0]["why"]
    assert [done[1]["rule"], done[1]["share"], done[1]["generation"]] == [
        "failed",
        1.0,
        published.second,
    ]
    told = [client.get("/admin/generations").json() for client in clients]
    [condemned] = [one["condemned"] for one in told if one["condemned"]]
    assert [condemned["action"], condemned["rule"], condemned["problem"]] == [
        "rollback",
        "failed",
        "",
    ]
    rolled = [client.get("/metrics").text for client in clients]
    assert sum("onesearch_generation_rollbacks_total 1.0" in text for text in rolled) == 1
    assert any(generation(client)["condemned"] for client in clients)
    # A rollback is not on trial, and an older state of the aliases leads nobody back.
    assert [one["trials"] for one in told] == [[], []]
    (registry.path / "aliases" / f"{registry.aliases().revision:08d}.json").write_bytes(b"{")
    assert registry.aliases().champion == published.second
    by = clients[
        ["onesearch_generation_rollbacks_total 1.0" in text for text in rolled].index(True)
    ]
    until_searched([by], lambda: generation(by)["problem"] != "", 5)
    assert "was taken back" in generation(by)["problem"]
    assert generation(by)["version"] == published.first
    assert set(searches(by, 10)) == {200}


def test_a_slow_canary_is_stopped(
    published: Any, follow: Callable[..., httpx.Client], spoil: Spoil
):
    client, registry = follow(**OWN, worker_threads=16), published.registry
    spoil(published.second, lambda: time.sleep(SLOW_S))
    start_canary(registry, published.second, 0.25)
    until_searched([client], lambda: generation(client).get("canary", {}).get("served", False), 1)
    until_searched([client], lambda: registry.aliases().canary is None, 80)
    until_judged(registry)
    done = [event for event in registry.events() if event["what"] in ("canary-stop", "verdict")]
    assert [event["what"] for event in done] == ["canary-stop", "verdict"]
    assert [done[1]["rule"], done[1]["action"]] == ["slow", "canary-stop"]
    assert done[1]["limit_ms"] < SLOW_S * 1000
    assert done[1]["share"] > done[1]["allowed"] > done[1]["before"]
    state = registry.aliases()
    assert [state.champion, state.challenger] == [published.first, published.second]
    until_searched([client], lambda: "canary" not in generation(client), 1)
    assert "onesearch_canary_stops_total 1.0" in client.get("/metrics").text
    assert set(searches(client, 20)) == {200}


def test_a_trial_goes_on_when_the_catalogue_is_compacted(published: Any):
    def loaded(version: str, model: str) -> Any:
        return SimpleNamespace(version=version, generation=SimpleNamespace(parts=(model, "s")))

    def begin(live: Any, was: Any, what: str, previous: str) -> None:
        state = Aliases(1, live.version, previous=previous, what=what)
        guard.begin(live, was, figures.last(was.generation.parts, 60), state)

    figures, log = Figures(), make_logger("error", io.StringIO())
    guard = Guard(published.registry, figures, Settings(**OWN), log, str)
    old, new, compacted = loaded("g1", "m1"), loaded("g2", "m2"), loaded("g3", "m2")
    begin(new, old, "promote", "g1")
    assert guard.trial is not None
    assert [guard.trial.generation, guard.trial.against] == ["g2", "g1"]
    begin(compacted, new, "compact", "g1")
    assert guard.trial is not None
    assert [guard.trial.generation, guard.trial.against] == ["g3", "g1"]
    begin(old, compacted, "rollback", "g3")
    assert guard.trial is None


def test_a_server_that_is_started_again_goes_on_judging(
    published: Any, follow: Callable[..., httpx.Client], spoil: Spoil
):
    registry, client = published.registry, follow(**OWN)
    assert set(searches(client, 100)) == {200}
    path = f"/admin/generations/{published.second}:promote"
    assert client.post(path, json={}).status_code == 200
    revision = registry.aliases().revision
    until_searched([client], lambda: registry.trials.read(revision) is not None, 1)
    again = follow(**OWN)
    [trial] = again.get("/admin/generations").json()["trials"]
    assert [trial["generation"], trial["against"]] == [published.second, published.first]
    assert trial["before"] == 100
    assert 0 < trial["seconds_left"] < 300
    spoil(published.second, fail)
    until_searched([again], lambda: registry.aliases().champion == published.first)
    until_judged(registry)
    done = [event["what"] for event in registry.events()][-2:]
    assert done == ["rollback", "verdict"]
    # What a rollback led to is not on trial.
    assert follow(**OWN).get("/admin/generations").json()["trials"] == []


def test_what_was_promoted_without_figures_is_not_on_trial(
    published: Any, follow: Callable[..., httpx.Client]
):
    promotion.promote(published.registry, published.second)
    assert follow(**OWN).get("/admin/generations").json()["trials"] == []


def test_a_trial_whose_window_has_passed_is_not_resumed(published: Any):
    registry = published.registry
    state = promotion.promote(registry, published.second)
    before = Sample.of([Seen(0.0, 0.01, "whole", None)] * 50, 10.0)
    registry.trials.keep(state.revision, before.summary())
    live = SimpleNamespace(version=published.second, generation=SimpleNamespace(parts=("m", "s")))
    log = make_logger("error", io.StringIO())
    for window_s, resumed in ((300, True), (1e-6, False), (0, False)):
        settings = Settings(**(OWN | {"rollback_window_s": window_s}))
        guard = Guard(registry, Figures(), settings, log, str)
        asyncio.run(guard.resume(live))  # type: ignore[arg-type]
        assert (guard.trial is not None) == resumed
    (registry.path / "trials" / f"{state.revision:08d}.json").write_bytes(b'{"span_s": 1}')
    guard = Guard(registry, Figures(), Settings(**OWN), log, str)
    asyncio.run(guard.resume(live))  # type: ignore[arg-type]
    assert guard.trial is None


def test_without_a_window_nothing_is_judged(
    published: Any, follow: Callable[..., httpx.Client], spoil: Spoil
):
    client = follow(**OWN, rollback_window_s=0)
    spoil(published.second, fail)
    searches(client, 60)
    promoted = client.post(f"/admin/generations/{published.second}:promote", json={}).json()
    assert promoted["trials"] == []
    assert set(searches(client, 60)) == {500}
    assert generation(client)["version"] == published.second
