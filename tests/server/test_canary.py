"""A canary: the same users in the same arm on every server, and nobody worse off without it."""

import asyncio
import io
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from models.registry.aliases import Aliases, Canary
from models.registry.canary import start_canary, stop_canary
from models.registry.registry import Provenance
from server.canary import ONE_SET_OF_WEIGHTS, Challenger, experiment_of
from server.choice import choose_registered
from server.logs import make_logger
from server.metrics import Metrics
from server.rollout_start import start_rollout
from server.settings import Settings
from tests.server.followed import ask, damaged, until

USERS = [f"u{number}" for number in range(40)]
Follow = Callable[..., httpx.Client]


def canary_of(client: httpx.Client) -> dict[str, Any]:
    return client.get("/readyz").json()["generation"].get("canary") or {}


def search(client: httpx.Client, user: str) -> dict[str, Any]:
    answer = client.post("/v1/search", json={"query": "red oak desk", "user_id": user})
    assert answer.status_code == 200
    return answer.json()


def arms(client: httpx.Client) -> dict[str, str | None]:
    return {user: search(client, user)["arm"] for user in USERS}


def test_a_share_of_the_users_is_answered_by_the_challenger_on_every_server(
    published: Any, follow: Follow
):
    one, two = follow(), follow()
    registry = published.registry
    models = {
        "champion": registry.record(published.first).pairing.checkpoint,
        "challenger": registry.record(published.second).pairing.checkpoint,
    }
    assert set(arms(one).values()) == {None}
    facts = ask(one, published.second, "canary", share=0.25, why="try").json()
    assert facts["live"]["canary"] == {
        "experiment": f"canary-{published.second}",
        "generation": published.second,
        "share": 0.25,
        "served": True,
        "problem": "",
    }
    given = arms(one)
    experiment = experiment_of(Canary(f"canary-{published.second}", 0.25))
    assert given == {user: experiment.arm_of(f"user:{user}").name for user in USERS}
    until(lambda: canary_of(two).get("served") is True)
    assert arms(two) == given
    for user in USERS[:10]:
        found = search(one, user)
        assert found["model_version"] == models[found["arm"]]
        assert found["experiment"] == f"canary-{published.second}"
    shown = one.get("/v1/models").json()["models"]
    assert [(model["arm"], model["share"]) for model in shown] == [
        ("champion", 0.75),
        ("challenger", 0.25),
    ]
    assert [model["model_version"] for model in shown] == list(models.values())
    # Who was in it stays in it; any process may change the share.
    start_canary(registry, published.second, 0.75)
    until(lambda: canary_of(one)["share"] == 0.75)
    grown = arms(one)
    assert {user for user in USERS if given[user] == "challenger"} < {
        user for user in USERS if grown[user] == "challenger"
    }
    metrics = one.get("/metrics").text
    assert "onesearch_canary_share 0.75" in metrics
    assert 'onesearch_arm_searches_total{arm="challenger",outcome="whole"}' in metrics
    stop_canary(registry, by=Provenance("bob"))
    until(lambda: not canary_of(one) and not canary_of(two))
    assert set(arms(one).values()) == set(arms(two).values()) == {None}
    assert len(one.get("/v1/models").json()["models"]) == 1


def test_a_promotion_of_the_challenger_ends_the_canary(published: Any, follow: Follow):
    client = follow()
    assert ask(client, published.second, "canary", share=0.5).status_code == 200
    refused = ask(client, published.foreign, "load")
    assert "stop its canary first" in refused.json()["detail"]
    stale = ask(client, published.second, "canary", share=0.6, expected_champion=published.second)
    assert stale.json()["type"] == "/problems/champion-moved"
    promoted = ask(client, "challenger", "promote").json()
    assert [promoted["live"]["version"], promoted["live"]["canary"]] == [published.second, None]
    assert set(arms(client).values()) == {None}
    # Another one's promotion ends it as well, and so does taking it back by hand.
    assert ask(client, published.first, "canary", share=0.5).status_code == 200
    assert ask(client, published.foreign, "promote").json()["live"]["canary"] is None
    assert published.registry.aliases().canary is None
    named = ask(client, published.first, "canary", share=0.5, experiment="autumn").json()
    assert named["live"]["canary"]["experiment"] == "autumn"
    assert {search(client, user)["experiment"] for user in USERS[:3]} == {"autumn"}
    ended = ask(client, "challenger", "canary-stop", why="enough").json()
    assert ended["live"]["canary"] is None
    again = ask(client, "challenger", "canary-stop")
    assert [again.status_code, "no canary" in again.json()["detail"]] == [409, True]
    assert search(client, "u1")["arm"] is None


def test_a_second_canary_takes_the_place_of_the_first_only_by_name(published: Any, follow: Follow):
    client, registry = follow(), published.registry
    assert ask(client, published.second, "canary", share=0.5).status_code == 200
    running = registry.aliases()
    refused = ask(client, published.foreign, "canary", share=0.5)
    assert [refused.status_code, refused.json()["type"]] == [409, "/problems/generation-refused"]
    assert f"the canary of {published.second}" in refused.json()["detail"]
    wrong = ask(
        client, published.foreign, "canary", share=0.5, expected_challenger=published.foreign
    )
    assert [wrong.status_code, wrong.json()["type"]] == [409, "/problems/champion-moved"]
    assert registry.aliases() == running
    assert canary_of(client)["served"]
    assert set(arms(client).values()) == {"champion", "challenger"}
    taken = ask(client, published.foreign, "canary", share=0.5, expected_challenger="challenger")
    assert taken.json()["live"]["canary"]["generation"] == published.foreign
    assert registry.aliases().challenger == published.foreign


def test_where_the_challenger_cannot_be_loaded_everybody_gets_the_champion(
    published: Any, follow: Follow, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("server.rollout_retry.RETRY_S", 0.2)
    client, registry = follow(), published.registry
    with damaged(registry, published.second) as file:
        assert ask(client, published.second, "canary", share=0.5).status_code == 409
        assert registry.aliases().canary is None
        start_canary(registry, published.second, 0.5, verify=False)
        until(lambda: canary_of(client).get("problem", "") != "")
        assert file in canary_of(client)["problem"]
        assert not canary_of(client)["served"]
        assert set(arms(client).values()) == {None}
        assert "onesearch_canary_behind 1.0" in client.get("/metrics").text
    until(lambda: canary_of(client)["served"])
    assert canary_of(client)["problem"] == ""
    assert set(arms(client).values()) == {"champion", "challenger"}


def test_both_arms_see_the_catalogues_changes(published: Any, follow: Follow, tmp_path: Any):
    client = follow(catalogue_changes=True, live_directory=tmp_path / "live")
    assert client.delete("/v1/items/i0").status_code == 200
    assert ask(client, published.second, "canary", share=0.5).status_code == 200
    assert client.delete("/v1/items/i1").status_code == 200
    for user in USERS[:8]:
        answer = client.post(
            "/v1/search", json={"query": "red oak desk", "user_id": user, "limit": 36}
        ).json()
        assert answer["index_version"].endswith("+2")
        assert {hit["item_id"] for hit in answer["hits"]} == {f"i{n}" for n in range(2, 36)}
    assert ask(client, published.second, "canary-stop").status_code == 200
    assert client.delete("/v1/items/i2").status_code == 200
    assert ask(client, published.second, "promote").status_code == 200
    assert client.get("/readyz").json()["items"] == 33
    assert client.delete("/v1/items/i3").status_code == 200


def test_an_engine_with_one_set_of_weights_refuses(published: Any):
    async def scenario() -> None:
        settings = Settings(registry=published.path, engine_threads=1, catalogue_changes=False)
        registered = choose_registered(settings)
        assert registered is not None
        log = make_logger("error", io.StringIO())
        pipeline, rollout = await start_rollout(settings, registered, Metrics(), log)
        own = settings.model_copy(update={"engine": "vllm"})
        challenger = Challenger(rollout.registry, pipeline, own, log)
        state = Aliases(1, published.first, published.second, canary=Canary("c", 0.1))
        assert challenger.wanted(state, published.first) is None
        status = challenger.status(state)
        assert status is not None
        assert [status.served, status.problem] == [False, ONE_SET_OF_WEIGHTS]
        await rollout.close()
        await pipeline.close()

    asyncio.run(scenario())
