"""Keywords in one search: what is asked for it, and what its answer says of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from index.live.view import CatalogueView
from server.keywords.keywords import MAX_RECENT, MAX_TEXT_LENGTH, KeywordRequest
from server.keywords.reader import Found
from server.schemas import KeywordFacts, SearchRequest


def keyword_request(
    view: CatalogueView, request: SearchRequest, history: Sequence[str]
) -> KeywordRequest:
    """What to ask for a search: generic keywords, or with a user and items those for the user.

    `history`: item ids, oldest first; those that the catalogue does not have are left out.
    """
    if request.user_id is None or not history:
        return KeywordRequest(request.query)
    rows = view.items.rows_of(history[-MAX_RECENT:])
    items = view.items.get_many(rows[rows >= 0]) if np.any(rows >= 0) else []
    titles = tuple(str(item["title"])[:MAX_TEXT_LENGTH] for item in items)
    return KeywordRequest(request.query, request.user_id, clicked_titles=titles)


def prompt_terms(found: Found | None) -> Sequence[str]:
    """What goes into the prompt's keyword span."""
    return () if found is None or found.keywords is None else found.keywords.terms


def keyword_facts(found: Found | None, *, in_prompt: bool) -> KeywordFacts | None:
    """What the answer says; None where keywords are off."""
    if found is None:
        return None
    keywords = found.keywords
    return KeywordFacts(
        state=found.state,
        terms=[] if keywords is None else list(keywords.terms),
        excluded=[] if keywords is None else list(keywords.excluded),
        personalised=keywords is not None and keywords.personalised,
        in_prompt=in_prompt and bool(prompt_terms(found)),
    )
