"""Requests made from the OpenAPI description, legal and not: never a 5xx, always as described."""

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
EXAMPLES = 120
ROUTES = [
    ("POST", "/v1/search"),
    ("GET", "/v1/search"),
    ("GET", "/v1/items/{item_id}"),
    ("GET", "/v1/models"),
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
]
CHANGES = [
    ("PUT", "/v1/items"),
    ("PATCH", "/v1/items"),
    ("DELETE", "/v1/items"),
    ("DELETE", "/v1/items/{item_id}"),
]
EVENTS = ("POST", "/v1/events")
ADMIN = [
    ("GET", "/admin/generations"),
    *(
        ("POST", f"/admin/generations/{{version}}:{what}")
        for what in ("load", "promote", "rollback", "canary", "canary-stop")
    ),
]


@pytest.fixture(scope="module")
def description(tiny_url: str) -> Any:
    """The API's description, read from the running server."""
    return schemathesis.openapi.from_url(f"{tiny_url}/openapi.json")


def test_all_routes_are_fuzzed(description: Any):
    found = [(o.ok().method.upper(), o.ok().path) for o in description.get_all_operations()]
    assert sorted(found) == sorted([*ROUTES, *CHANGES, EVENTS, *ADMIN])


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [(*route, GenerationMode.POSITIVE) for route in ROUTES]
    + [(*route, GenerationMode.NEGATIVE) for route in ROUTES[:2]],
)
def test_generated_requests(description: Any, method: str, path: str, mode: GenerationMode):
    operation = description[path][method]
    examples = EXAMPLES if path.startswith("/v1/") else 3

    @settings(
        max_examples=examples,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        response = case.call()
        case.validate_response(response, checks=CHECKS)
        if mode is GenerationMode.POSITIVE:
            assert response.status_code in (200, 404, 422)

    run()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(("method", "path"), CHANGES)
def test_generated_changes(changing: Any, method: str, path: str, mode: GenerationMode):
    client = changing()
    described = schemathesis.openapi.from_url(str(client.base_url.join("/openapi.json")))
    operation = described[path][method]
    if mode is GenerationMode.NEGATIVE and "{" in path:
        pytest.skip("any text is an item id")

    @settings(
        max_examples=60,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        case.validate_response(case.call(), checks=CHECKS)
        answer = client.post("/v1/search", json={"query": "desk"})
        assert [answer.status_code, answer.json()["degraded"]] == [200, []]

    run()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(query=st.text(max_size=600), limit=st.integers(1, 100))
def test_any_text_is_answered_or_refused(tiny: httpx.Client, query: str, limit: int):
    response = tiny.post("/v1/search", json={"query": query, "limit": limit})
    assert response.status_code in (200, 422), response.text
    if response.status_code == 200:
        assert response.json()["query"] == query


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=st.binary(max_size=300))
def test_any_bytes_are_answered(tiny: httpx.Client, body: bytes):
    response = tiny.post("/v1/search", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    assert response.headers["content-type"] == "application/problem+json"
