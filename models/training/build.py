"""Builds a snapshot from a dataset: encoder → embeddings → codec → trie, postings and the rest.

    onesearch index build DATASET SNAPSHOT

Everything is learned from the training split; validation queries choose the codec's sizes. The
same dataset and settings give the same snapshot (seeds everywhere, no timestamps in files), also
where the passes over the catalogue run on a cluster (`models.training.blocks`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index import artifact
from index.attributes import AttributeDictionary, AttributeMatcher
from index.codec import Codec, usage_report
from index.dataset import Dataset
from index.encoder import ConcatenatedEncoder, TextEncoder
from index.errors import ConfigError, DataError
from index.fusion import fuse
from index.snapshot import KIND as SNAPSHOT_KIND
from index.snapshot import Snapshot
from models.training.blocks import Embedding, OnThisMachine, Passes
from models.training.codec import (
    CodecSettings,
    candidate_recall,
    choose_layout,
    layout_grid,
    train_codec,
)
from models.training.encoder import EncoderSettings, Pairs, train_encoder
from models.training.material import Material, read_material
from models.training.pseudo_queries import PseudoQueryModel, fit
from models.training.relevance import relevant_rows

FloatArray = NDArray[np.float32]
MAX_LAYOUT_QUERIES = 500
REPORT_BEAMS = (50, 100, 300)
STEPS_PER_ITEM = 0.011
MIN_STEPS = 200
MAX_STEPS = 2_000

Report = Callable[[str, int, int, float], None]


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """What shapes a snapshot. `codec`: fixed sizes, or None to choose by candidate recall.
    `codec_items`: the codec is learned from so many items drawn at random, where there are more;
    None: from all."""

    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    encoder_steps: int | None = None
    codec: CodecSettings | None = None
    codec_items: int | None = None
    keyword_fusion: float = 0.0
    attributes_file: Path | None = None
    extra_encoders: tuple[tuple[TextEncoder, float], ...] = ()
    seed: int = 7

    def __post_init__(self) -> None:
        if self.codec_items is not None and self.codec_items < 1:
            raise ConfigError(f"codec_items {self.codec_items}: a codec needs at least one item")


def build_snapshot(
    dataset: Dataset,
    path: Path,
    settings: BuildSettings,
    *,
    overwrite: bool = False,
    report: Report | None = None,
    passes: Passes | None = None,
) -> Snapshot:
    """Learn and write the snapshot of a dataset; returns it opened.

    `passes`: who encodes the items and assigns their SIDs, this machine unless given.
    `report(phase, done, total, loss)` is called as work goes on. Raises DataError for a catalogue
    without items and ArtifactError when `path` is taken.
    """
    tell, passes = report or _silent, passes or OnThisMachine()
    artifact.check_free(path, SNAPSHOT_KIND, overwrite=overwrite)
    if dataset.items.num_rows == 0:
        raise DataError("the dataset has no items; import a catalogue first", path=dataset.path)
    material = read_material(dataset)
    pseudo_queries = fit_pseudo_queries(material)
    attributes = AttributeDictionary.build(dataset.items)
    if settings.attributes_file is not None:
        attributes = attributes.extend(settings.attributes_file)
    steps = settings.encoder_steps or encoder_steps(len(material.titles))
    encoder = _encoder(material, pseudo_queries, settings, steps, tell)
    tell("embeddings", 0, 1, 0.0)
    embedding = Embedding(encoder, attributes, settings.keyword_fusion)
    embeddings = passes.embed(embedding, material.item_texts)
    validation, relevant = _validation(dataset, encoder, AttributeMatcher(attributes), settings)
    tell("codec", 0, 1, 0.0)
    codec, learned_codes, table = _codec(embeddings, validation, relevant, settings)
    tell("assignment", 0, 1, 0.0)
    # A balanced level is placed over all items together, while it is learned.
    codes = passes.assign(codec, embeddings) if learned_codes is None else learned_codes
    facts: dict[str, object] = {
        "usage": usage_report(codes, codec.layout.level_sizes),
        "quantisation_error": codec.quantisation_error(embeddings, codes),
        "layouts_tried": table,
        "encoder": {**asdict(settings.encoder), "steps": steps, "name": encoder.name},
        "keyword_fusion": settings.keyword_fusion,
    }
    if relevant:
        facts["candidate_recall"] = candidate_recall(
            codec, codes, validation, relevant, REPORT_BEAMS
        )
        facts["candidate_recall_queries"] = len(relevant)
    tell("writing", 0, 1, 0.0)
    Snapshot.write(
        path,
        items=dataset.items,
        encoder=encoder,
        attributes=attributes,
        codec=codec,
        codes=codes,
        embeddings=embeddings,
        report=facts,
        parents=[dataset.version],
        simulated=dataset.simulated,
        dataset_version=dataset.version,
        keyword_fusion=settings.keyword_fusion,
        overwrite=overwrite,
    )
    return Snapshot.open(path, verify=False)


def _codec(
    embeddings: FloatArray,
    validation: FloatArray,
    relevant: Sequence[NDArray[np.int64]],
    settings: BuildSettings,
) -> tuple[Codec, NDArray[np.int32] | None, list[dict[str, object]]]:
    """The codec; the codes of all items where learning it places them (a balanced level), None
    where each item takes its nearest; the layouts that were tried."""
    learned_from = embeddings
    if settings.codec_items is not None and settings.codec_items < len(embeddings):
        random = np.random.default_rng(settings.seed)
        rows = np.sort(random.choice(len(embeddings), settings.codec_items, replace=False))
        learned_from = embeddings[rows]
        found = [np.searchsorted(rows, wanted[np.isin(wanted, rows)]) for wanted in relevant]
        kept = [query for query, wanted in enumerate(found) if len(wanted)]
        validation, relevant = validation[kept], [found[query] for query in kept]
    table: list[dict[str, object]] = []
    if settings.codec is not None:
        tried = [settings.codec]
        codec, codes = train_codec(learned_from, learned_from[:0], settings.codec)
    else:
        tried = layout_grid(len(embeddings))
        codec, codes, table = choose_layout(learned_from, validation, relevant, tried)
    balanced = any(one.balance_third_level for one in tried)
    whole = len(learned_from) == len(embeddings)
    return codec, codes if balanced and whole else None, table


def fit_pseudo_queries(material: Material) -> PseudoQueryModel:
    """The pseudo-query model of a dataset's training pairs."""
    from index.text import words

    return fit(
        (words(query), material.titles[row])
        for query, pairs in material.known.items()
        for row, _ in pairs
    )


def encoder_steps(item_count: int) -> int:
    """Steps for a catalogue: about 600 at 55,000 items, within fixed bounds."""
    return int(np.clip(item_count * STEPS_PER_ITEM, MIN_STEPS, MAX_STEPS))


def _encoder(
    material: Material,
    pseudo_queries: PseudoQueryModel,
    settings: BuildSettings,
    steps: int,
    tell: Report,
) -> TextEncoder:
    query, row, weight = material.pairs()

    def sample(rows: NDArray[np.int64], random: np.random.Generator) -> list[str]:
        return pseudo_queries.sample([material.titles[r] for r in rows], random)

    trained = train_encoder(
        material.item_texts,
        material.queries,
        Pairs(query, row, weight),
        sample,
        settings.encoder.with_steps(steps),
        lambda done, total, loss: tell("encoder", done, total, loss),
    )
    if not settings.extra_encoders:
        return trained
    parts = (trained, *(part for part, _ in settings.extra_encoders))
    weights = (1.0, *(weight for _, weight in settings.extra_encoders))
    return ConcatenatedEncoder(parts, weights)


def _validation(
    dataset: Dataset, encoder: TextEncoder, matcher: AttributeMatcher, settings: BuildSettings
) -> tuple[FloatArray, Sequence[NDArray[np.int64]]]:
    """Embedded validation queries and their relevant rows, at most MAX_LAYOUT_QUERIES."""
    truth = relevant_rows(dataset, "validation")
    chosen = sorted(truth)[:MAX_LAYOUT_QUERIES]
    embedded = fuse(encoder, matcher, chosen, settings.keyword_fusion)
    return embedded, [truth[query] for query in chosen]


def _silent(phase: str, done: int, total: int, loss: float) -> None:
    """Report to nobody."""
