"""A right body takes a shorter way than others: nobody can tell, but by the clock."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.routes.search import right_body
from server.schemas import SearchRequest

SHORT, LONG = "application/json", "application/json; charset=utf-8"
BODIES = (
    b'{"query":"oak desk"}',
    b'\xef\xbb\xbf{"query":"a byte order mark"}',
    '{"query":"UTF-16"}'.encode("utf-16"),
    b'{"query":"twice","query":"second"}',
    b'{"query":"\\ud800"}',
    b'{"query":"\\u0000"}',
    b'{"query":"\xff"}',
    b'{"query":"x","limit":NaN}',
    b'{"query":"x","limit":10.0}',
    b'{"query":"x","limit":99999999999999999999999}',
    b'{"query":"x","filters":{"price_max":1e400}}',
    b'{"query":"x","filters":{"price_max":99999999999999999999999}}',
    b'{"query":"x","filters":{"price_min":2,"price_max":1}}',
    b'{"query":"x","filters":{"price_max":5,"in_stock":1}}',
    b'{"query":"x","unknown":1,"limit":0}',
    b'{"query":"x"} trailing',
    b'{"query":"x","limit":"3"}',
    b'"x"',
    b"[]",
    b"null",
    b"{",
    b"",
    b'{"query":""}',
    b'{"query":"%s"}' % (b"x" * 600),
    b'{"query":"x","history":%s1%s}' % (b"[" * 2000, b"]" * 2000),
    b'{"query":"x","timeout_ms":9}',
)


def told(client: httpx.Client, body: bytes, media_type: str) -> tuple[int, dict[str, Any]]:
    answer = client.post("/v1/search", content=body, headers={"Content-Type": media_type})
    facts = answer.json()
    assert facts.pop("request_id") == answer.headers["x-request-id"]
    return answer.status_code, facts


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_both_ways_answer_alike(plain: httpx.Client, body: bytes):
    assert told(plain, body, SHORT) == told(plain, body, LONG)


def test_another_method_and_another_path_go_the_way_of_all(plain: httpx.Client):
    assert plain.get("/v1/search", params={"query": "x"}).status_code == 200
    refused = plain.request("DELETE", "/v1/search", json={"query": "x"})
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, POST")


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.text(max_size=3), max_size=3),
)
FIELDS = st.dictionaries(st.sampled_from([*SearchRequest.model_fields, "other"]), VALUES)


@settings(max_examples=300, deadline=None)
@given(FIELDS, st.booleans())
def test_what_is_read_is_what_python_reads(fields: dict[str, Any], ascii_only: bool):
    text = json.dumps({"query": "x"} | fields, ensure_ascii=ascii_only)
    body = text.encode("utf-8", "surrogatepass")
    headers = [(b"content-type", b"application/json")]
    found = right_body({"headers": headers, "onesearch.body": body})
    if found is not None:
        assert found == SearchRequest.model_validate(json.loads(body))
