"""GET /v1/items/{item_id}."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.errors import Problem
from server.gateway import gateway_of
from server.schemas import Item, problem_responses

router = APIRouter(tags=["items"])


@router.get(
    "/v1/items/{item_id:path}",
    response_model=Item,
    responses=problem_responses(404, 422, 500, 503),
    summary="One item of the catalogue",
)
async def item(item_id: str, request: Request) -> Response:
    """All fields of an item, and its semantic ID."""
    gateway = gateway_of(request)
    gateway.serving()
    found = await gateway.searcher.item(item_id)
    if found is None:
        raise Problem("item-not-found", "the catalogue has no item with this id")
    return Response(found.model_dump_json(), media_type="application/json")
