"""Items: GET one, and PUT, PATCH and DELETE, which change the catalogue while it is served."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from fastapi import APIRouter, Request
from starlette.responses import Response

from index.live.changes import Delete
from server.changes import (
    Batch,
    Changed,
    ItemRemovals,
    ItemUpdates,
    ItemUpserts,
    RejectedChange,
    id_of,
    nothing_applied,
    removals_of,
    updates_of,
    upserts_of,
)
from server.errors import Problem, declares_json
from server.gateway import gateway_of
from server.headers import arrived
from server.schemas import Item, problem_responses, takes_body
from server.search import ChangeOutcome

router = APIRouter(tags=["items"])
_READING = problem_responses(404, 422, 500, 503)
_CHANGING = problem_responses(400, 403, 408, 409, 413, 415, 422, 500, 503)
_NO_SUCH_ITEM = "the catalogue has no item with this id"


@router.get(
    "/v1/items/{item_id:path}",
    response_model=Item,
    responses=_READING,
    summary="One item of the catalogue",
)
async def item(item_id: str, request: Request) -> Response:
    """All fields of an item, and its semantic ID."""
    gateway = gateway_of(request)
    gateway.serving()
    found = await gateway.searcher.item(item_id)
    if found is None:
        raise Problem("item-not-found", _NO_SUCH_ITEM)
    return Response(found.model_dump_json(), media_type="application/json")


@router.put(
    "/v1/items",
    response_model=Changed,
    responses=_CHANGING,
    openapi_extra=takes_body(ItemUpserts),
    summary="Add items or replace them",
)
async def put_items(request: Request) -> Response:
    """Whole items, new ones or in place of those with the same ids. Each stands for itself: the
    good ones are applied, the others are listed."""
    return await _change(request, upserts_of, "items")


@router.patch(
    "/v1/items",
    response_model=Changed,
    responses=_CHANGING,
    openapi_extra=takes_body(ItemUpdates),
    summary="Restock, re-price, set popularity",
)
async def patch_items(request: Request) -> Response:
    """The given fields of known items; the rest of them stays."""
    return await _change(request, updates_of, "items")


@router.delete(
    "/v1/items",
    response_model=Changed,
    responses=_CHANGING,
    openapi_extra=takes_body(ItemRemovals),
    summary="Remove items",
)
async def delete_items(request: Request) -> Response:
    """Items that the next search does not find any more."""
    return await _change(request, removals_of, "item_ids")


@router.delete(
    "/v1/items/{item_id:path}",
    response_model=Changed,
    responses=problem_responses(403, 404, 409, 422, 500, 503),
    summary="Remove one item",
)
async def delete_item(item_id: str, request: Request) -> Response:
    """The same for one item, without a body."""
    gateway = gateway_of(request)
    gateway.serving()
    outcome = await gateway.searcher.change([Delete(item_id)])
    if not outcome.applied:
        raise Problem("item-not-found", _NO_SUCH_ITEM)
    return _answer(request, outcome, [])


async def _change(request: Request, read: Callable[[bytes], Batch], field: str) -> Response:
    gateway = gateway_of(request)
    gateway.serving()
    if not declares_json(request):
        raise Problem("unsupported-media-type", "send Content-Type: application/json")
    batch = await asyncio.to_thread(read, await request.body())
    if not batch.changes:
        raise nothing_applied(batch.rejected, field)
    outcome = await gateway.searcher.change([change for _, change in batch.changes])
    late = [
        RejectedChange(index=index, item_id=id_of(change), reason=reason)
        for place, reason in outcome.rejected
        for index, change in [batch.changes[place]]
    ]
    rejected = sorted([*batch.rejected, *late], key=lambda bad: bad.index)
    if not outcome.applied:
        raise nothing_applied(rejected, field)
    return _answer(request, outcome, rejected)


def _answer(request: Request, outcome: ChangeOutcome, rejected: list[RejectedChange]) -> Response:
    changed = Changed(
        sequence=outcome.sequence,
        applied=outcome.applied,
        rejected=rejected,
        index_version=outcome.index_version,
        took_ms=round((time.monotonic() - arrived(request.scope)) * 1000, 3),
    )
    request.scope["onesearch.facts"] = {
        "applied": changed.applied,
        "rejected": len(rejected),
        "index_version": changed.index_version,
    }
    return Response(changed.model_dump_json(), media_type="application/json")
