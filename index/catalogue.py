"""What can be searched: the surface that a `Snapshot` and a `CatalogueView` share.

Searching, ranking and answering are written against these protocols, so that they work on an
immutable snapshot and on one with changes (`index.live`) alike. Rows are item rows, leaves are
leaves of the trie; a row that was deleted is never found, nor is it among the rows of its leaf.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from index.attributes import AttributeDictionary, AttributeMatcher
from index.codec import Codec
from index.encoder import TextEncoder
from index.items import ItemFilter
from index.live.trie import AnyTrie
from index.sid import SidLayout

Rows = NDArray[np.integer[Any]]


class RowValues(Protocol):
    """One value for each row: an array, or something that is read like one."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> NDArray[Any]: ...


class Items(Protocol):
    """See `index.items.ItemTable`."""

    @property
    def price(self) -> RowValues: ...

    @property
    def stock(self) -> RowValues: ...

    @property
    def popularity_score(self) -> RowValues: ...

    def __len__(self) -> int: ...

    def item_ids(self, rows: Rows) -> list[str]: ...

    def rows_of(self, item_ids: Sequence[str]) -> NDArray[np.int64]: ...

    def row_of(self, item_id: str) -> int | None: ...

    def get(self, row: int) -> dict[str, Any]: ...

    def get_many(self, rows: Rows, names: Sequence[str] | None = None) -> list[dict[str, Any]]: ...

    def values(self, name: str) -> list[str]: ...

    def mask(self, filters: ItemFilter) -> NDArray[np.bool_]: ...


class LeafItems(Protocol):
    """See `index.postings.Postings`."""

    @property
    def leaf_of_row(self) -> RowValues: ...

    @property
    def n_leaves(self) -> int: ...

    @property
    def n_items(self) -> int: ...

    def rows_of(self, leaves: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...

    def leaf_mask(self, item_mask: NDArray[np.bool_]) -> NDArray[np.bool_]: ...


class DenseSearch(Protocol):
    """See `index.dense.DenseIndex`."""

    @property
    def n_items(self) -> int: ...

    @property
    def dimension(self) -> int: ...

    def search(
        self, queries: NDArray[np.float32], k: int, mask: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]: ...

    def similarity(self, query: NDArray[np.float32], rows: Rows) -> NDArray[np.float32]: ...

    def vectors(self, rows: Rows) -> NDArray[np.float32]: ...


class LexicalSearch(Protocol):
    """See `index.lexical.LexicalIndex`."""

    @property
    def n_items(self) -> int: ...

    def scores(self, query: str, rows: Rows) -> NDArray[np.float32]: ...

    def coverage(self, query: str, rows: Rows) -> NDArray[np.float32]: ...

    def search(
        self, query: str, k: int, mask: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]: ...

    def rows_with_all(self, tokens: Sequence[str]) -> NDArray[np.int64]: ...

    def upper_bound(self, query: str) -> float: ...


class Catalogue(Protocol):
    """See `index.snapshot.Snapshot`."""

    @property
    def version(self) -> str: ...

    @property
    def manifest(self) -> dict[str, Any]: ...

    @property
    def keyword_fusion(self) -> float: ...

    @property
    def items(self) -> Items: ...

    @property
    def encoder(self) -> TextEncoder: ...

    @property
    def attributes(self) -> AttributeDictionary: ...

    @property
    def matcher(self) -> AttributeMatcher: ...

    @property
    def codec(self) -> Codec: ...

    @property
    def trie(self) -> AnyTrie: ...

    @property
    def postings(self) -> LeafItems: ...

    @property
    def dense(self) -> DenseSearch: ...

    @property
    def lexical(self) -> LexicalSearch: ...

    @property
    def layout(self) -> SidLayout: ...

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]: ...

    def query_sid(self, embeddings: NDArray[np.float32]) -> NDArray[np.int32]: ...

    def candidate_sids(
        self, embedding: NDArray[np.float32], n: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]: ...
