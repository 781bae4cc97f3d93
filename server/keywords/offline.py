"""Keywords of a dataset's training queries, made by the statistical generator without any queue.

For datasets whose searches never ran here, so that training has a keyword file all the same. Three
kinds of rows in the form of `onesearch keywords export`: training queries; training searches of
users with a history (personalised by the titles of what they chose before); pseudo-queries derived
from items, with the item in `item_id`. Nothing of the other splits is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index import artifact
from index.dataset import Dataset
from index.errors import DataError
from index.snapshot import Snapshot
from models.training.build import fit_pseudo_queries
from models.training.material import Material, read_material
from server.keywords.associations import Associations, clicks_of
from server.keywords.export import SCHEMA, row_of
from server.keywords.keywords import MAX_QUERY_LENGTH, MAX_RECENT, MAX_TEXT_LENGTH, KeywordRequest
from server.keywords.statistical import StatisticalGenerator
from server.keywords.vocabulary import Vocabulary

PSEUDO_QUERIES = 20_000
BATCH = 256
_SCHEMA = SCHEMA.append(pa.field("item_id", pa.string()))
Progress = Callable[[int, int], None]


def make_keyword_file(
    dataset: Dataset,
    snapshot: Snapshot,
    path: Path,
    *,
    pseudo_queries: int = PSEUDO_QUERIES,
    seed: int = 7,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Write the file in one step; returns the number of rows of each kind."""
    vocabulary = Vocabulary.build(snapshot)
    clicks = clicks_of(dataset, snapshot.items)
    associations = Associations.build(clicks, vocabulary, version=dataset.version)
    generator = StatisticalGenerator(snapshot, associations, vocabulary=vocabulary)
    material = read_material(dataset)
    queries = [KeywordRequest(query[:MAX_QUERY_LENGTH]) for query in material.queries]
    personal = list(_personal(material, snapshot))
    derived = _derived(material, pseudo_queries, seed)
    asked = [(request, None) for request in [*queries, *personal]]
    asked += [
        (KeywordRequest(text), snapshot.items.item_ids(np.array([row]))[0]) for text, row in derived
    ]
    rows: list[dict[str, Any]] = []
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        made = generator.generate_batch([request for request, _ in part])
        for (request, item), keywords in zip(part, made, strict=True):
            user = request.user_id if keywords.personalised and request.user_id else ""
            rows.append(row_of(keywords, user) | {"item_id": item})
        if progress is not None:
            progress(len(rows), len(asked))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), sink)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        artifact.write_file(path, sink.getvalue().to_pybytes())
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", path=path) from None
    return {"queries": len(queries), "personalised": len(personal), "derived": len(derived)}


def _personal(material: Material, snapshot: Snapshot) -> Iterator[KeywordRequest]:
    """One request for each user and query that were seen with a history, the last one counts."""
    titles = snapshot.items.table.column("title")
    last = {
        (visit.query, visit.user): visit.history
        for visit in material.visits
        if visit.user is not None and visit.history
    }
    for (query, user), history in last.items():
        chosen = [str(titles[row]) for row in history[-MAX_RECENT:]]
        yield KeywordRequest(
            query[:MAX_QUERY_LENGTH],
            user,
            clicked_titles=tuple(title[:MAX_TEXT_LENGTH] for title in chosen),
        )


def _derived(material: Material, count: int, seed: int) -> list[tuple[str, int]]:
    """Pseudo-queries and the rows that they were made from."""
    random = np.random.default_rng([seed, 8])
    rows = random.integers(len(material.titles), size=count).tolist()
    texts = fit_pseudo_queries(material).sample([material.titles[row] for row in rows], random)
    return [(text[:MAX_QUERY_LENGTH], row) for text, row in zip(texts, rows, strict=True) if text]
