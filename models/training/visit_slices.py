"""Slices of visits: how often the query is asked, what it asks, who asks, how new the answer is.

head, middle, tail   queries by how often they were searched (sessions of all splits): the
                     commonest that together make a third of these visits, the next third, rest
question             begins with a question word, or asks for what is needed
negation             says what is not wanted: no, not, without, free of, …
cold item            nothing that was wanted was chosen in any training search
history, no history  whether the user chose anything before
"""

# pyarrow has no types of its own.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index.dataset import Dataset
from index.text import normalise
from models.training.visits import Visit

_QUESTION = re.compile(
    r"^(?:what|which|how|where|who|why|when|is|are|can|do|does|things|essentials)\b"
    r"|\b(?:do i need|to buy|essentials)\b|\?"
)
_NEGATION = re.compile(r"\b(?:no|not|non|without|except|excluding|never|free of|but)\b|\w-free\b")

Mask = NDArray[np.bool_]


def slices_of(
    visits: Sequence[Visit], training: Sequence[Visit], searched: Counter[str]
) -> dict[str, Mask]:
    """Slice → bool (N,) over `visits`. `searched`: query → number of searches."""
    texts = [normalise(visit.query) for visit in visits]
    chosen = {row for visit in training for row in visit.clicked}
    third = _thirds([searched[visit.query] for visit in visits], [v.query for v in visits])
    past = _mask([bool(visit.history) for visit in visits])
    return {
        "head": third == 0,
        "middle": third == 1,
        "tail": third == 2,
        "question": _mask([bool(_QUESTION.search(text)) for text in texts]),
        "negation": _mask([bool(_NEGATION.search(text)) for text in texts]),
        "cold item": _mask([chosen.isdisjoint(visit.clicked) for visit in visits]),
        "history": past,
        "no history": ~past,
    }


def searches_by_query(dataset: Dataset) -> Counter[str]:
    """query → number of sessions that asked it."""
    events = dataset.events
    pairs = zip(
        events.column("query").to_pylist(), events.column("session_id").to_pylist(), strict=True
    )
    return Counter(query for query, _ in set(pairs) if query is not None)


def _mask(values: Sequence[bool]) -> Mask:
    return np.array(values, np.bool_)


def _thirds(counts: Sequence[int], queries: Sequence[str]) -> NDArray[np.int64]:
    """0, 1 or 2 for each visit; visits of one query share it."""
    share = Counter(queries)
    by_query = dict(zip(queries, counts, strict=True))
    third: dict[str, int] = {}
    before = 0
    for query in sorted(by_query, key=lambda query: (-by_query[query], query)):
        third[query] = min(3 * before // max(len(queries), 1), 2)
        before += share[query]
    return np.array([third[query] for query in queries], np.int64)
