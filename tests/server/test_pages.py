"""The pages need nothing from elsewhere and cannot be made to run markup from a catalogue."""

import base64
import hashlib
import re
from typing import Any

import pytest

from server.routes.pages import read_page

PAGES = ("search.html", "docs.html")


@pytest.mark.parametrize("name", PAGES)
def test_texts_enter_a_page_as_text_only(name: str):
    html = read_page(name).html.decode()
    for sink in (
        *("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("),
        *("setAttribute(", "srcdoc", "javascript:", "createContextualFragment"),
    ):
        assert sink not in html
    assert not re.search(r"<[^>]+\son\w+=", html)
    assert "textContent" in html


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_fetched_from_elsewhere(name: str):
    html = read_page(name).html.decode()
    hosts = set(re.findall(r"(?:https?:)?//([a-z0-9.-]+\.[a-z]+)", html))
    assert hosts <= {"www.w3.org"}  # the SVG namespace, a name and no address
    assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?!data:|/)", html)


@pytest.mark.parametrize("name", PAGES)
def test_the_policy_allows_exactly_the_pages_own_script_and_style(name: str):
    page = read_page(name)
    assert "unsafe" not in page.policy
    for tag in ("script", "style"):
        blocks = re.findall(f"<{tag}[^>]*>(.*?)</{tag}>", page.html.decode(), re.DOTALL)
        assert len(blocks) == 1
        digest = base64.b64encode(hashlib.sha256(blocks[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in page.policy
    assert " style=" not in page.html.decode()


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_are_served_with_their_policy(plain: Any, path: str):
    response = plain.get(path)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "script-src 'sha256-" in response.headers["content-security-policy"]


def test_markup_in_a_title_stays_json_text(tiny: Any):
    response = tiny.post("/v1/search", json={"query": "img src onerror alert", "limit": 100})
    assert response.headers["content-type"] == "application/json"
    titles = [hit["title"] for hit in response.json()["hits"]]
    assert "<img src=x onerror=alert(1)> white glass chair" in titles


def test_the_description_covers_every_route(plain: Any):
    description = plain.get("/openapi.json").json()
    assert description["paths"].keys() == {
        *("/v1/search", "/v1/items", "/v1/items/{item_id}", "/livez", "/readyz", "/metrics"),
        *("/v1/models", "/v1/events", "/admin/generations"),
        *(
            f"/admin/generations/{{version}}:{what}"
            for what in ("load", "promote", "rollback", "canary", "canary-stop")
        ),
    }
    assert "ProblemDetails" in description["components"]["schemas"]
    assert "HTTPValidationError" not in str(description)
