"""The pages: search at `/`, the API at `/docs`, the kinds of problem at `/problems/…`.

Each page is one file with its own script and style, allowed by hash in its Content-Security-Policy,
so nothing is fetched from elsewhere and injected markup cannot run.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources
from typing import NamedTuple

from fastapi import APIRouter
from starlette.responses import Response

from server.errors import PROBLEMS, Problem
from server.schemas import problem_responses

router = APIRouter(include_in_schema=False)


class Page(NamedTuple):
    """The HTML and the policy that lets only its own script and style run."""

    html: bytes
    policy: str


@router.get("/")
async def search_page() -> Response:
    """The search page."""
    return _page_response("search.html")


@router.get("/docs")
async def docs_page() -> Response:
    """The HTTP surface, drawn from /openapi.json."""
    return _page_response("docs.html")


@router.get("/problems/{slug}", responses=problem_responses(404))
async def problem_kind(slug: str) -> dict[str, str | int]:
    """What a problem type means and what to do about it."""
    kind = PROBLEMS.get(slug)
    if kind is None:
        raise Problem("not-found", "there is no such kind of problem")
    return {
        "type": f"/problems/{kind.slug}",
        "title": kind.title,
        "status": kind.status,
        "remedy": kind.remedy,
    }


@cache
def read_page(name: str) -> Page:
    """A page of server/web with its policy."""
    html = resources.files("server").joinpath("web", name).read_text("utf-8")
    scripts = " ".join(_hashes(html, "script"))
    styles = " ".join(_hashes(html, "style"))
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
    return Page(html.encode(), policy)


def _hashes(html: str, tag: str) -> list[str]:
    """CSP sources of the inline elements; the browser hashes the text between the tags."""
    return [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    ]


def _page_response(name: str) -> Response:
    page = read_page(name)
    return Response(
        page.html,
        media_type="text/html; charset=utf-8",
        headers={"Content-Security-Policy": page.policy, "Cache-Control": "no-cache"},
    )
