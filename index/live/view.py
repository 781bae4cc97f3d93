"""A view: the state of a changing catalogue at one moment, and how changes lead to the next one.

A view reads like a `Snapshot` (`index.catalogue.Catalogue`) and never changes. It shares almost
everything with the views before and after it: the base snapshot, what was added to it (which only
grows; a view sees its beginning) and columns that change in place and leave behind what earlier
views read. Views of one base form one line: only the newest may be changed further, by one writer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.attributes import AttributeDictionary, AttributeMatcher
from index.codec import Codec
from index.encoder import TextEncoder
from index.fusion import fuse
from index.items import ItemFilter
from index.live.arrays import Tail
from index.live.changes import Record
from index.live.delta import Delta
from index.live.dense import LiveDense
from index.live.filters import Allowed, FilterCache, History
from index.live.items import LiveItems
from index.live.kernels import exchanged
from index.live.lexical import LiveLexical
from index.live.plan import Plan
from index.live.postings import LivePostings
from index.live.prepare import additions_of, prepared
from index.live.trie import AnyTrie, LiveTrie
from index.ranking import best_rows
from index.sid import SidLayout
from index.snapshot import Snapshot, texts_of
from index.text import item_text, normalise, words


@dataclass(slots=True, eq=False)
class _Grown:
    """Arrays that the views of a base share; see `Tail`."""

    sids: Tail[np.int64]
    vectors: Tail[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class CatalogueView:
    """A snapshot with changes. Immutable; safe to share between threads.

    `sequence`: number of the last change in it, over all bases. `batch`: batches of changes since
    the base. `empty_leaves`: SID numbers (`index.live.postings`) of leaves without an item.
    """

    base: Snapshot
    sequence: int
    batch: int
    n_items: int
    items: LiveItems
    live_trie: LiveTrie
    postings: LivePostings
    dense: LiveDense
    lexical: LiveLexical
    empty_leaves: NDArray[np.int64]
    history: History
    _grown: _Grown
    _filters: FilterCache = field(default_factory=FilterCache)

    @classmethod
    def of(cls, base: Snapshot) -> CatalogueView:
        """A snapshot without changes."""
        if base.lexical.lengths is None:
            counts = [len(words(text)) for text in texts_of(base.items.table)]
            lexical = replace(base.lexical, lengths=np.array(counts, dtype=np.uint32))
            base = replace(base, lexical=lexical)
        items = LiveItems.of(base.items)
        trie = LiveTrie.of(base.trie, np.empty(0, dtype=np.uint64))
        vectors = np.empty((0, base.dense.dimension), dtype=np.float32)
        nothing = np.empty(0, dtype=np.int64)
        return cls(
            base,
            int(base.manifest.get("live", {}).get("sequence", 0)),
            0,
            len(items),
            items,
            trie,
            LivePostings.of(base.postings, trie, items.popularity_score),
            LiveDense(base.dense, vectors, None),
            LiveLexical.of(base.lexical),
            nothing,
            History(),
            _Grown(Tail(nothing), Tail(vectors)),
        )

    @property
    def trie(self) -> AnyTrie:
        """The legal SIDs: the base's trie itself while no SID was added."""
        return self.live_trie if len(self.live_trie.added_keys) else self.base.trie

    @property
    def path(self) -> Path:
        return self.base.path

    @property
    def origin_version(self) -> str:
        """Version of the snapshot that all changes started from: encoder and codec are its own."""
        return str(self.base.manifest.get("live", {}).get("origin", self.base.version))

    @property
    def version(self) -> str:
        """Names the catalogue's state: the same whether changes were merged or not."""
        return f"{self.origin_version}+{self.sequence}" if self.sequence else self.origin_version

    @property
    def manifest(self) -> dict[str, Any]:
        """The base's, with the view's own counts; nodes count while no item is left below, too."""
        counts = {
            "items": self.n_items,
            "sids": self.live_trie.n_leaves - len(self.empty_leaves),
            "nodes": list(self.live_trie.node_counts),
        }
        return self.base.manifest | {"counts": self.base.manifest["counts"] | counts}

    @property
    def report(self) -> dict[str, Any]:
        return self.base.report

    @property
    def keyword_fusion(self) -> float:
        return self.base.keyword_fusion

    @property
    def encoder(self) -> TextEncoder:
        return self.base.encoder

    @property
    def attributes(self) -> AttributeDictionary:
        return self.base.attributes

    @property
    def matcher(self) -> AttributeMatcher:
        return self.base.matcher

    @property
    def codec(self) -> Codec:
        return self.base.codec

    @property
    def layout(self) -> SidLayout:
        return self.base.layout

    @property
    def n_rows(self) -> int:
        """Rows, deleted ones too: what masks of rows are as long as."""
        return len(self.items)

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Keyword-enhanced unit embeddings of texts, float32 (N, d)."""
        return self.base.embed_queries([normalise(text) for text in texts])

    def embed_items(self, items: Sequence[dict[str, Any]]) -> NDArray[np.float32]:
        """Embeddings of items as a build makes them, float32 (N, d)."""
        texts = [item_text(item) for item in items]
        return fuse(self.encoder, self.matcher, texts, self.keyword_fusion)

    def query_sid(self, embeddings: NDArray[np.float32]) -> NDArray[np.int32]:
        """SID_q of query embeddings (N, d), int32 (N, L). It need not be legal."""
        return self.base.query_sid(embeddings)

    def candidate_sids(
        self, embedding: NDArray[np.float32], n: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As `Snapshot.candidate_sids`, without SIDs that have no item; ties by leaf."""
        scores = self.base.leaf_scores(embedding)
        if len(self.live_trie.added_keys):
            codes = self.layout.unpack(self.live_trie.added_keys)
            of_code = self.codec.level_scores(embedding.astype(np.float32))
            added = sum(level[codes[:, i]] for i, level in enumerate(of_code))
            scores = np.concatenate([scores, np.asarray(added, dtype=np.float32)])
        allowed = self.filter(ItemFilter())
        if allowed is None:
            leaves = best_rows(scores, n)
            return leaves, scores[leaves]
        legal = np.flatnonzero(allowed.trie.bits[-1])
        leaves = legal[best_rows(scores[legal], n)]
        return leaves, scores[leaves]

    def filter(self, filters: ItemFilter) -> Allowed | None:
        """What a filter lets through; None for everything, when no condition is given and every
        SID has an item. Deleted items pass no filter. `n_items` 0: nothing passes."""
        if filters.is_empty and not len(self.empty_leaves):
            return None
        return self._filters.allowed(filters, self)

    @property
    def filter_counts(self) -> dict[str, int]:
        """How filters were answered since the last merge: hits, patches, misses."""
        cache = self._filters
        return {"hit": cache.hits, "patch": cache.patches, "miss": cache.misses}

    def after(self, plan: Plan, record: Record) -> CatalogueView:
        """The next view: a plan made for this one, and the record of its changes.

        Call it on the newest view of a base only, in one thread.
        """
        return self.with_delta(prepared(self, plan, record))

    def with_delta(self, delta: Delta) -> CatalogueView:
        """The next view: a delta made for this one, or for its like in another process.

        Call it on the newest view of a base only, in one thread.
        """
        assert delta.batch == self.batch + 1, "a delta fits the view that it was made for"
        items = self.items.with_delta(delta)
        trie, dense, grown = self.live_trie, self.dense, self._grown
        if delta.n_added:
            trie = trie.with_additions(additions_of(delta))
            grown.sids.append(delta.sids)
            grown.vectors.append(delta.vectors.reshape(-1, dense.dimension))
        empty = self.empty_leaves
        if len(delta.emptied) or len(delta.filled):
            empty = exchanged(empty, delta.filled, delta.emptied_places, delta.emptied)
        self.history.append(delta.touched, delta.price_rows, delta.stock_rows)
        return CatalogueView(
            self.base,
            delta.sequence,
            delta.batch,
            self.n_items + delta.n_added - len(delta.dead),
            items,
            trie,
            self.postings.with_delta(
                delta, trie, grown.sids.values, items.alive, items.popularity_score
            ),
            LiveDense(dense.base, grown.vectors.values, items.alive),
            self.lexical.with_delta(delta, items.alive),
            empty,
            self.history,
            grown,
            self._filters,
        )
