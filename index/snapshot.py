"""A snapshot: one immutable build of everything that can be found, and how texts map to it.

```
items/ encoder/ attributes/ codec/ trie/ postings/ dense/ lexical/   the parts, each its own format
report.json     what the build measured
manifest.json   kind "snapshot": layout, keyword_fusion, simulated, dataset_version, parents, counts
```
Invariants: every item has exactly one legal SID, every legal SID has an item; rows of items,
postings, dense and lexical index are the same rows. Opened by memory map, never written again.

`keyword_fusion` is the weight of matched keywords in embeddings (`index.fusion`); the items'
embeddings were made with the same one.
"""

# pyarrow has no types of its own: what it returns is unknown to the checker.
# pyright: reportUnknownParameterType=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from index import artifact
from index.attributes import AttributeDictionary, AttributeMatcher
from index.codec import Codec
from index.dense import DenseIndex
from index.encoder import TextEncoder, open_encoder
from index.errors import ArtifactError, ConfigError
from index.fusion import fuse
from index.items import ItemTable
from index.lexical import LexicalIndex
from index.postings import Postings
from index.ranking import best_rows
from index.sid import SidLayout
from index.text import item_text, normalise
from index.trie import Trie

KIND = "snapshot"


class TextParts(NamedTuple):
    """How texts become vectors and SIDs: what a merge of changes leaves as it is."""

    encoder: TextEncoder
    attributes: AttributeDictionary
    matcher: AttributeMatcher
    codec: Codec


_REPORT = "report.json"


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """An opened snapshot. Safe to share between threads."""

    path: Path
    version: str
    manifest: dict[str, Any]
    report: dict[str, Any]
    keyword_fusion: float
    items: ItemTable
    encoder: TextEncoder
    attributes: AttributeDictionary
    matcher: AttributeMatcher
    codec: Codec
    trie: Trie
    postings: Postings
    dense: DenseIndex
    lexical: LexicalIndex

    @classmethod
    def write(
        cls,
        path: Path,
        *,
        items: pa.Table,
        encoder: TextEncoder,
        attributes: AttributeDictionary,
        codec: Codec,
        codes: NDArray[np.integer[Any]],
        embeddings: NDArray[np.float32],
        report: Mapping[str, Any],
        keyword_fusion: float,
        parents: Sequence[str] = (),
        simulated: bool = False,
        dataset_version: str = "",
        overwrite: bool = False,
    ) -> None:
        """Build all parts and publish them at `path`.

        `items`: schema `index.dataset.ITEMS`; `codes`: (n_items, L) SIDs; `embeddings`: float32
        (n_items, d) unit vectors. Raises ConfigError when these do not fit each other, DataError
        for a bad item table, ArtifactError when `path` exists and `overwrite` is false.
        """
        _check_fit(items, encoder, codec, codes, embeddings, keyword_fusion)
        with artifact.create(Path(path), KIND, overwrite=overwrite) as draft:
            table = ItemTable.write(draft.path / "items", items)
            encoder.save(draft.path / "encoder")
            attributes.save(draft.path / "attributes")
            codec.save(draft.path / "codec")
            keys, leaf_of_row = np.unique(codec.layout.pack(codes), return_inverse=True)
            trie = Trie.build(codec.layout, keys, assume_sorted=True)
            trie.save(draft.path / "trie")
            Postings.build(leaf_of_row, trie.n_leaves, table.popularity).save(
                draft.path / "postings"
            )
            DenseIndex.build(embeddings).save(draft.path / "dense")
            LexicalIndex.build(texts_of(items)).save(draft.path / "lexical")
            options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY
            (draft.path / _REPORT).write_bytes(orjson.dumps(dict(report), option=options))
            draft.manifest.update(
                layout=codec.layout.to_json(),
                keyword_fusion=keyword_fusion,
                simulated=simulated,
                dataset_version=dataset_version,
                parents=list(parents),
                counts={
                    "items": len(table),
                    "sids": trie.n_leaves,
                    "nodes": list(trie.node_counts),
                    "dimension": encoder.dimension,
                },
            )

    @classmethod
    def open(
        cls, path: Path | str, *, verify: bool = True, text: TextParts | None = None
    ) -> Snapshot:
        """Open a published snapshot; with `verify` every file's hash is checked.

        `text`: parts opened before, equal to its own, to use in their place. Raises ArtifactError
        when something is missing, damaged or does not fit.
        """
        path = Path(path)
        manifest = artifact.read(path, KIND, verify=verify)
        if text is None:
            attributes = AttributeDictionary.open(path / "attributes")
            matcher, codec = AttributeMatcher(attributes), Codec.open(path / "codec")
            text = TextParts(open_encoder(path / "encoder"), attributes, matcher, codec)
        snapshot = cls(
            path=path,
            version=manifest.version,
            manifest=manifest.extra,
            report=cast(dict[str, Any], orjson.loads((path / _REPORT).read_bytes())),
            keyword_fusion=float(manifest.extra["keyword_fusion"]),
            items=ItemTable.open(path / "items"),
            encoder=text.encoder,
            attributes=text.attributes,
            matcher=text.matcher,
            codec=text.codec,
            trie=Trie.open(path / "trie"),
            postings=Postings.open(path / "postings"),
            dense=DenseIndex.open(path / "dense"),
            lexical=LexicalIndex.open(path / "lexical"),
        )
        n_items = len(snapshot.items)
        parts_agree = (
            n_items == snapshot.postings.n_items == snapshot.dense.n_items
            and n_items == snapshot.lexical.n_items
            and snapshot.trie.n_leaves == snapshot.postings.n_leaves
            and snapshot.trie.layout == snapshot.codec.layout
        )
        if not parts_agree:
            raise ArtifactError(f"the parts of snapshot {path} disagree; build it again")
        return snapshot

    @property
    def text_parts(self) -> TextParts:
        return TextParts(self.encoder, self.attributes, self.matcher, self.codec)

    @property
    def layout(self) -> SidLayout:
        return self.codec.layout

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Keyword-enhanced unit embeddings of texts, float32 (N, d)."""
        normal = [normalise(text) for text in texts]
        return fuse(self.encoder, self.matcher, normal, self.keyword_fusion)

    def query_sid(self, embeddings: NDArray[np.float32]) -> NDArray[np.int32]:
        """SID_q of query embeddings (N, d), int32 (N, L). It need not be legal."""
        return self.codec.encode(embeddings)

    def candidate_sids(
        self, embedding: NDArray[np.float32], n: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The decoder-free router: the n legal SIDs whose reconstruction is most similar.

        Similarity is ⟨embedding, Σ_l centroid_l⟩, summed level by level along the trie: exact over
        all legal SIDs. Returns leaves int64 and scores float32, best first, ties by SID order.
        """
        scores = self.leaf_scores(embedding)
        leaves = best_rows(scores, n)
        return leaves, scores[leaves]

    def leaf_scores(self, embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        """⟨embedding, Σ_l centroid_l⟩ of every legal SID, float32 (N,)."""
        trie = self.trie
        of_code = self.codec.level_scores(embedding.astype(np.float32))
        scores = of_code[0][trie.codes[0]]
        for level, starts in enumerate(trie.starts, start=1):
            scores = np.repeat(scores, np.diff(starts.plain()))
            scores += of_code[level][trie.codes[level]]
        return scores


def texts_of(items: pa.Table) -> list[str]:
    """`item_text` of every row: what the encoder and the lexical index read."""
    columns = [name for name in ("title", "brand") if name in items.column_names]
    return [item_text(row) for row in items.select(columns).to_pylist()]


def _check_fit(
    items: pa.Table,
    encoder: TextEncoder,
    codec: Codec,
    codes: NDArray[np.integer[Any]],
    embeddings: NDArray[np.float32],
    keyword_fusion: float,
) -> None:
    if not len(items):
        raise ConfigError("a snapshot needs at least one item")
    if codes.shape != (len(items), codec.layout.levels):
        raise ConfigError(
            f"codes have shape {codes.shape}, "
            f"expected {(len(items), codec.layout.levels)} for these items and this codec"
        )
    if embeddings.shape != (len(items), encoder.dimension):
        raise ConfigError(
            f"embeddings have shape {embeddings.shape}, "
            f"expected {(len(items), encoder.dimension)} for these items and this encoder"
        )
    if encoder.dimension != codec.dimension:
        raise ConfigError(
            f"the encoder gives {encoder.dimension} dimensions, the codec reads {codec.dimension}"
        )
    if not 0 <= keyword_fusion < 1:
        raise ConfigError(f"keyword_fusion must lie in [0, 1), got {keyword_fusion}")
