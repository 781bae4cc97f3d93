"""Changes of a served catalogue, from a request to its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from structlog.typing import FilteringBoundLogger

from index.live.catalogue import CatalogueBusy, CatalogueClosed, CatalogueUnsure
from index.live.changes import Change
from server.errors import Problem
from server.generation import Generation
from server.search import ChangeOutcome
from server.settings import Settings


async def change_catalogue(
    generation: Generation,
    changes: Sequence[Change],
    settings: Settings,
    log: FilteringBoundLogger,
) -> ChangeOutcome:
    """Make changes; on return they are on disk and in the next search.

    Raises Problem where the catalogue takes none, too many wait, or what became of them is not
    known.
    """
    if generation.catalogue is None:
        raise Problem("catalogue-read-only", "this server only reads its catalogue")
    try:
        made = asyncio.wrap_future(generation.catalogue.submit(changes))
        # What was handed in is done, whoever still waits for it; nobody may any more.
        made.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        applied = await asyncio.shield(made)
    except CatalogueBusy:
        raise Problem(
            "overloaded",
            "more changes wait than the catalogue takes",
            retry_after_s=settings.retry_after_s,
        ) from None
    except CatalogueClosed as error:
        unsure = isinstance(error, CatalogueUnsure)
        event = "changes may not be made" if unsure else "changes not made"
        log.error(event, changes=len(changes), detail=str(error))
        raise Problem(
            "changes-unavailable",
            "whether the changes were made is not known; send them again"
            if unsure
            else "the changes were not made; the server's log says why",
            retry_after_s=settings.retry_after_s,
        ) from None
    return ChangeOutcome(
        applied.sequence,
        applied.applied,
        tuple((bad.index, bad.reason) for bad in applied.rejected),
        generation.index_version_at(applied.sequence),
    )
