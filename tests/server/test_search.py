"""Searches over HTTP on a real tiny generation with the real engine."""

from typing import Any

import httpx
import pytest

from index.text import normalise


def search(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = client.post("/v1/search", json=fields)
    assert response.status_code == 200, response.text
    return response.json()


def test_an_answer_has_items_versions_and_timings(tiny: httpx.Client):
    response = tiny.post("/v1/search", json={"query": "red oak desk", "limit": 5})
    answer = response.json()
    assert [len(answer["hits"]), answer["complete"], answer["degraded"]] == [5, True, []]
    assert answer["simulated"] is True
    assert answer["request_id"] == response.headers["x-request-id"]
    scores = [hit["score"] for hit in answer["hits"]]
    assert scores == sorted(scores, reverse=True)
    assert len({hit["item_id"] for hit in answer["hits"]}) == 5
    assert {"prepare", "engine", "rank", "total"} <= answer["timings_ms"].keys()
    assert "engine;dur=" in response.headers["server-timing"]
    ready = tiny.get("/readyz").json()
    assert answer["model_version"] == ready["model_version"]
    assert answer["index_version"] == ready["index_version"]


def test_every_legal_sid_in_the_beam_ranks_the_whole_catalogue(tiny: httpx.Client):
    answer = search(tiny, query="black steel lamp", limit=100, beam_width=1024)
    assert len(answer["hits"]) == answer["total_candidates"] == 36
    assert answer["complete"] is False
    assert answer["notes"]


def test_explanations_add_up(tiny: httpx.Client):
    for hit in search(tiny, query="white glass shelf", explain=True)["hits"]:
        explain = hit["explain"]
        features, weights = explain["features"], explain["weights"]
        total = sum(features[name] * weights[name] for name in weights)
        assert hit["score"] == pytest.approx(total, abs=1e-3)
        if explain["source"] == "retrieval":
            assert explain["level_log_probabilities"] is None
            continue
        assert features["sid"] == pytest.approx(sum(explain["level_log_probabilities"]), abs=1e-3)
        assert hit["sid"] == "<a_{}><b_{}><c_{}>".format(*explain["codes"])
        assert explain["source"] == "beam"
        assert len(explain["branching"]) == 3


def test_a_link_and_a_body_give_the_same_answer(tiny: httpx.Client):
    by_link = tiny.get(
        "/v1/search",
        params={"query": "oak chair", "limit": 4, "color": ["red", "black"], "price_max": 20},
    ).json()
    by_body = search(
        tiny, query="oak chair", limit=4, filters={"color": ["red", "black"], "price_max": 20}
    )
    assert by_link["hits"] == by_body["hits"]
    assert by_link["hits"]


@pytest.mark.parametrize(
    ("filters", "holds"),
    [
        ({"color": ["RED", "white"]}, lambda hit: hit["color"] in (["red"], ["white"])),
        ({"brand": ["acme"]}, lambda hit: hit["brand"] == "Acme"),
        ({"category": ["lamp"]}, lambda hit: "lamp" in hit["category"]),
        ({"price_min": 5, "price_max": 9}, lambda hit: 5 <= hit["price"] <= 9),
        ({"in_stock": True}, lambda hit: hit["stock"] != 0),
        ({"brand": ["nord"], "color": ["black"]}, lambda hit: hit["brand"] == "Nord"),
    ],
)
def test_filters_hold_exactly_and_leave_nothing_out(tiny: httpx.Client, filters: Any, holds: Any):
    everything = search(tiny, query="desk", limit=100, beam_width=1024)["hits"]
    filtered = search(tiny, query="desk", limit=100, beam_width=1024, filters=filters)["hits"]
    assert all(holds(hit) for hit in filtered)
    if len(filters) == 1:
        expected = {hit["item_id"] for hit in everything if hit["price"] is not None and holds(hit)}
        assert {hit["item_id"] for hit in filtered} - {"i35"} == expected
    assert filtered


def test_a_filter_that_leaves_nothing_is_an_empty_answer(tiny: httpx.Client):
    answer = search(tiny, query="desk", filters={"brand": ["nobody"]})
    assert [answer["hits"], answer["complete"], answer["total_candidates"]] == [[], False, 0]
    assert answer["notes"] == ["no item passes the filters"]


def test_a_query_of_which_nothing_is_known_says_so(tiny: httpx.Client):
    note = "nothing in the query is known to this catalogue; the hits are only guesses"
    assert note in search(tiny, query="🪑🪑🪑", limit=3)["notes"]
    assert search(tiny, query="desk 🪑", limit=3)["notes"] == []


def test_one_item_is_not_items(tiny: httpx.Client):
    notes = search(tiny, query="desk", beam_width=1)["notes"]
    assert not any("1 items" in note for note in notes)
    everything = search(tiny, query="desk", limit=100, beam_width=1024)["hits"]
    prices = sorted(hit["price"] for hit in everything if hit["price"] is not None)
    [lowest, second] = prices[:2]
    if lowest < second:
        notes = search(tiny, query="desk", filters={"price_max": lowest})["notes"]
        assert notes == ["only 1 item passes the filters"]


def test_unknown_history_is_ignored_and_said(tiny: httpx.Client):
    answer = search(tiny, query="desk", history=["i1", "nope", "neither"])
    assert "history items not in the catalogue: 2" in answer["notes"]


def test_history_enters_the_prompt_and_is_remembered_for_the_user(
    degraded_client: Any, stub_engine: Any
):
    client = degraded_client()
    search(client, query="desk")
    search(client, query="desk", history=["i1"], user_id="u")
    search(client, query="desk", user_id="u")
    search(client, query="desk", user_id="somebody else")
    lengths = [len(prompt.token_ids) for prompt in stub_engine.prompts]
    assert lengths[1] == lengths[2] > lengths[0] == lengths[3]


def test_the_checkpoints_prior_is_handed_to_the_engine(degraded_client: Any, stub_engine: Any):
    search(degraded_client(), query="desk")
    assert [len(level) for level in stub_engine.prompts[0].level_prior] == [8, 4, 4]


@pytest.mark.parametrize(
    "query",
    [
        "<a_1><b_2><c_3>",
        "<|query|> <|item|>",
        "🪑🪑🪑",
        "красный стол",
        "红色 桌子",
        "مكتب أحمر",
        "desk\u0007\u001b[31m\u200b",
        "'; DROP TABLE items; --",
        "<script>alert(1)</script>",
        "{{7*7}} ${7*7} %s %n",
        "a" * 512,
        "\u0301" * 100,
        '1/2 in. x 3-1/4"',
        "ﷺ" * 50,
    ],
)
def test_strange_queries_get_a_sane_answer(tiny: httpx.Client, query: str):
    answer = search(tiny, query=query, limit=3)
    assert normalise(answer["query"]) == normalise(query)
    assert len(answer["hits"]) == 3
    assert not answer["degraded"]


@pytest.mark.parametrize("query", ["", "   ", "\n\t", "\u0001\u0002", "\u200b", "a" * 513])
def test_queries_without_text_or_too_long_are_refused_with_the_reason(
    tiny: httpx.Client, query: str
):
    response = tiny.post("/v1/search", json={"query": query})
    assert response.status_code == 422
    assert response.json()["errors"][0]["place"] == "body.query"


def test_an_item_by_its_id(tiny: httpx.Client):
    item = tiny.get("/v1/items/i0").json()
    assert item["title"] == "red oak desk"
    assert item["sid"].startswith("<a_")
    response = tiny.get("/v1/items/none/such")
    assert [response.status_code, response.json()["type"]] == [404, "/problems/item-not-found"]


def test_concurrent_searches_answer_as_alone(tiny: httpx.Client, tiny_url: str):
    from concurrent.futures import ThreadPoolExecutor

    queries = [f"{color} {thing}" for color in ("red", "black") for thing in ("desk", "lamp")]
    alone = [search(tiny, query=query)["hits"] for query in queries]
    with ThreadPoolExecutor(8) as threads, httpx.Client(base_url=tiny_url, timeout=30) as client:
        together = list(threads.map(lambda q: search(client, query=q)["hits"], queries * 4))
    for expected, found in zip(alone * 4, together, strict=True):
        assert [hit["item_id"] for hit in expected] == [hit["item_id"] for hit in found]
