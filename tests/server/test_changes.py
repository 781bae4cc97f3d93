"""What PUT, PATCH and DELETE /v1/items take and refuse, and how they answer."""

import json
from typing import Any

import httpx
import pytest

from index.live.changes import Delete, Update, Upsert
from server.changes import MAX_CHANGES
from server.errors import Problem
from server.search import ChangeOutcome

ITEMS = "/v1/items"


def change(client: httpx.Client, method: str, body: Any, path: str = ITEMS) -> httpx.Response:
    return client.request(method, path, json=body)


def check_problem(response: httpx.Response, slug: str, status: int) -> dict[str, Any]:
    assert [response.status_code, response.json()["type"]] == [status, f"/problems/{slug}"]
    assert response.headers["content-type"] == "application/problem+json"
    return response.json()


def test_changes_are_handed_on_and_answered(stub_client: Any, stub: Any):
    client = stub_client()
    item = {"item_id": "n1", "title": "Oak desk", "color": ["red"], "price": 5, "stock": 3}
    answer = change(client, "PUT", {"items": [item]}).json()
    assert answer.pop("took_ms") >= 0
    assert answer == {"sequence": 7, "applied": 1, "rejected": [], "index_version": "i1+7"}
    change(client, "PATCH", {"items": [{"item_id": "n1", "stock": None, "price": 2.5}]})
    change(client, "DELETE", {"item_ids": ["n1", "n2"]})
    assert client.delete(f"{ITEMS}/a/b").status_code == 200
    put, patched, *removed = stub.changes
    assert isinstance(put, Upsert)
    given = {name: value for name, value in put.item.items() if value not in (None, [], {})}
    assert given == item
    assert patched == Update("n1", {"price": 2.5, "stock": None})
    assert removed == [Delete("n1"), Delete("n2"), Delete("a/b")]


def test_texts_are_cleaned_as_an_import_cleans_them(stub_client: Any, stub: Any):
    item = {
        "item_id": "n1",
        "title": "<b>Oak</b>&nbsp;desk\n",
        "brand": "<i></i>",
        "color": ["red", "red", "<br>"],
        "attributes": {"size": ["2 &times; 3"], "none": ["\u200b"]},
    }
    assert change(stub_client(), "PUT", {"items": [item]}).json()["applied"] == 1
    [put] = stub.changes
    given = {name: value for name, value in put.item.items() if value not in (None, [], {})}
    assert given == {
        "item_id": "n1",
        "title": "Oak desk",
        "color": ["red"],
        "attributes": {"size": ["2 × 3"]},
    }


GOOD = {"item_id": "good", "title": "Oak desk"}


@pytest.mark.parametrize(
    ("item", "item_id", "told"),
    [
        (7, None, "dictionary"),
        ({}, None, "item_id: Field required"),
        ({"item_id": "x"}, "x", "title: Field required"),
        ({"item_id": " x", "title": "x"}, "x", "begins or ends with a space"),
        ({"item_id": 7, "title": "x"}, None, "item_id: Input should be a valid string"),
        ({"item_id": "", "title": "x"}, None, "item_id"),
        ({"item_id": "a\nb", "title": "x"}, None, "item_id: is no id: control characters"),
        ({"item_id": "a" * 201, "title": "x"}, None, "item_id: String should have at most 200"),
        ({"item_id": "x", "title": "<p>"}, "x", "title: must hold at least one character"),
        ({"item_id": "x", "title": "x" * 1001}, "x", "title: String should have at most"),
        (GOOD | {"price": -1}, "good", "price: Input should be greater than or equal to 0"),
        (GOOD | {"price": "5"}, "good", "price: Input should be a valid number"),
        (GOOD | {"stock": 1.5}, "good", "stock: Input should be a valid integer"),
        (GOOD | {"stock": True}, "good", "stock: Input should be a valid integer"),
        (GOOD | {"stock": 2**40}, "good", "stock: Input should be less than"),
        (GOOD | {"color": "red"}, "good", "color: Input should be a valid list"),
        (GOOD | {"color": [1]}, "good", "color.0: Input should be a valid string"),
        (GOOD | {"category": ["x"] * 65}, "good", "category: List should have at most 64"),
        (GOOD | {"secret": 1}, "good", "has a field that does not exist"),
        (GOOD | {"attributes": {"secret": 1}}, "good", "attributes: Input should be a valid list"),
    ],
)
def test_a_bad_item_is_listed_and_the_others_go_on(
    stub_client: Any, stub: Any, item: Any, item_id: str | None, told: str
):
    client = stub_client()
    answer = change(client, "PUT", {"items": [item, GOOD]}).json()
    [rejected] = answer["rejected"]
    assert [answer["applied"], rejected["index"], rejected["item_id"]] == [1, 0, item_id]
    assert told in rejected["reason"]
    assert "secret" not in json.dumps(answer)
    assert len(stub.changes) == 1
    problem = check_problem(change(client, "PUT", {"items": [item]}), "no-valid-change", 422)
    assert problem["errors"][0]["place"] == "body.items.0"
    assert told in problem["errors"][0]["problem"]
    assert len(stub.changes) == 1


def test_what_the_catalogue_refuses_is_listed_at_its_place_in_the_request(
    stub_client: Any, stub: Any
):
    client = stub_client()
    stub.outcome = ChangeOutcome(9, 1, ((1, "no such item"),), "i1+9")
    updates = [{"item_id": "bad", "stock": -1}, {"item_id": "a", "stock": 1}]
    body = {"items": [*updates, {"item_id": "none", "stock": 1}, {"item_id": "b"}]}
    rejected = change(client, "PATCH", body).json()["rejected"]
    assert [(bad["index"], bad["item_id"]) for bad in rejected] == [
        (0, "bad"),
        (2, "none"),
        (3, "b"),
    ]
    assert rejected[1]["reason"] == "no such item"
    assert "names nothing to change" in rejected[2]["reason"]
    stub.outcome = ChangeOutcome(9, 0, ((0, "no such item"),), "i1+9")
    problem = check_problem(
        change(client, "DELETE", {"item_ids": ["none"]}), "no-valid-change", 422
    )
    assert problem["errors"] == [{"place": "body.item_ids.0", "problem": "no such item"}]
    check_problem(client.delete(f"{ITEMS}/none"), "item-not-found", 404)


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("PUT", {}),
        ("PUT", []),
        ("PUT", {"items": []}),
        ("PUT", {"items": {}}),
        ("PUT", {"items": [GOOD], "more": 1}),
        ("PATCH", {"items": [{"item_id": "x", "stock": 1}] * (MAX_CHANGES + 1)}),
        ("DELETE", {"item_ids": "x"}),
        ("DELETE", {"items": ["x"]}),
    ],
)
def test_bodies_of_another_form_are_refused_whole(
    stub_client: Any, stub: Any, method: str, body: Any
):
    check_problem(change(stub_client(), method, body), "invalid-request", 422)
    assert not stub.changes


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[" * 30_000, b'{"items": [NaN]}'])
def test_what_is_not_json_is_malformed(plain: httpx.Client, method: str, raw: bytes):
    headers = {"content-type": "application/json"}
    response = plain.request(method, ITEMS, content=raw, headers=headers)
    check_problem(response, "malformed-request", 400)


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_only_json_is_taken(plain: httpx.Client, media_type: str):
    body = json.dumps({"items": [GOOD]})
    response = plain.put(ITEMS, content=body, headers={"content-type": media_type})
    check_problem(response, "unsupported-media-type", 415)


def test_bodies_of_changes_have_a_limit_of_their_own(stub_client: Any):
    client = stub_client(body_bytes=1024, catalogue_body_bytes=4096)
    items = [GOOD | {"description": "x" * 1500}]
    assert change(client, "PUT", {"items": items}).status_code == 200
    check_problem(change(client, "PUT", {"items": items * 3}), "body-too-large", 413)


def test_failures_keep_their_problem(stub_client: Any, stub: Any):
    client = stub_client()
    for slug, status in (("catalogue-read-only", 409), ("changes-unavailable", 503)):
        stub.outcome = Problem(slug, "why", retry_after_s=2)
        response = change(client, "PUT", {"items": [GOOD]})
        check_problem(response, slug, status)
    stub.live = None
    check_problem(change(client, "PUT", {"items": [GOOD]}), "not-ready", 503)
