"""The statistical generator: keywords from the catalogue and the click log, no language model.

reading → analysis → feedback of the best items (BM25 and dense) and co-clicks → extraction →
calibration. A batch is embedded and searched in one go; that and the dense search leave the
interpreter's lock, the rest is a few tenths of a millisecond a query. The batch runs in a thread,
so that a worker's loop stays free.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from index.dense import MAX_SCANNED_QUERIES
from index.snapshot import Snapshot
from server.keywords.analysis import analyse
from server.keywords.associations import Associations
from server.keywords.calibration import calibrate
from server.keywords.expansion import Proposal, feedback_scores, propose
from server.keywords.extraction import extract
from server.keywords.generator import GenerationError
from server.keywords.keywords import Analysis, KeywordRequest, Keywords, Source
from server.keywords.reading import Reading, read
from server.keywords.refusal import Refusal
from server.keywords.vocabulary import Vocabulary

GENERATOR = "statistical"
RULES_VERSION = "rules1"
"""Raised whenever the same catalogue would give other keywords."""


@dataclass(frozen=True, slots=True)
class ExpansionSettings:
    """How many items give feedback, how many concepts they propose, what counts how much.

    The defaults were chosen on validation queries (docs/keywords-statistical.md). There, feedback
    of BM25 adds nothing to that of dense search, so it is off.
    """

    feedback_items: int = 20
    max_proposals: int = 3
    lexical_weight: float = 0.0
    dense_weight: float = 1.0
    click_weight: float = 1.0


class StatisticalGenerator:
    """Keywords for a snapshot. Safe to call from several threads."""

    def __init__(
        self,
        snapshot: Snapshot,
        associations: Associations | None = None,
        settings: ExpansionSettings | None = None,
        *,
        vocabulary: Vocabulary | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`vocabulary`: one that was built from this snapshot; else it is built now (seconds)."""
        self._snapshot = snapshot
        self.vocabulary = vocabulary or Vocabulary.build(snapshot)
        self._associations = associations
        self._settings = settings or ExpansionSettings()
        self._clock = clock
        rules = [RULES_VERSION, *map(str, astuple(self._settings))]
        if associations is not None:
            rules.append(associations.version)
        self._source = Source(
            GENERATOR,
            prompt_version="-".join(rules),
            catalogue_version=snapshot.version,
        )

    @property
    def name(self) -> str:
        return GENERATOR

    @property
    def version(self) -> str:
        return self._source.version

    async def generate(
        self, requests: Sequence[KeywordRequest]
    ) -> list[Keywords | GenerationError]:
        """Never fails for a request."""
        return [*await asyncio.to_thread(self.generate_batch, requests)]

    def generate_batch(self, requests: Sequence[KeywordRequest]) -> list[Keywords]:
        """Keywords of each request, in order."""
        readings = [read(request.query, self.vocabulary) for request in requests]
        analyses = [analyse(reading, self.vocabulary) for reading in readings]
        proposals = self.proposals(readings, analyses)
        now = self._clock()
        return [
            self._finish(request, analysis, proposed, now)
            for request, analysis, proposed in zip(requests, analyses, proposals, strict=True)
        ]

    def proposals(
        self, readings: Sequence[Reading], analyses: Sequence[Analysis]
    ) -> list[list[Proposal]]:
        """What the catalogue and the clicks propose for each query; nothing where no item fits."""
        wanted = [
            i for i, analysis in enumerate(analyses) if analysis.merchandise and readings[i].kept
        ]
        dense = self._dense_rows([readings[i].kept for i in wanted])
        found: list[list[Proposal]] = [[] for _ in readings]
        for i, rows in zip(wanted, dense, strict=True):
            refusal = Refusal(analyses[i].excluded, self.vocabulary)
            found[i] = self._propose(readings[i].kept, rows, refusal)
        return found

    def _dense_rows(self, texts: Sequence[str]) -> Sequence[NDArray[np.int64]]:
        settings = self._settings
        if not texts or not settings.dense_weight or not settings.max_proposals:
            return [np.empty(0, np.int64)] * len(texts)
        embeddings = self._snapshot.embed_queries(texts)
        found: list[NDArray[np.int64]] = []
        # In small groups the index is scanned as it lies, which here is twice as fast.
        for start in range(0, len(texts), MAX_SCANNED_QUERIES):
            group = embeddings[start : start + MAX_SCANNED_QUERIES]
            found.extend(self._snapshot.dense.search(group, settings.feedback_items)[0])
        return found

    def _propose(self, text: str, dense: NDArray[np.int64], refusal: Refusal) -> list[Proposal]:
        settings, vocabulary = self._settings, self.vocabulary
        if not settings.max_proposals:
            return []
        sources: list[tuple[float, dict[int, float]]] = []
        if settings.lexical_weight:
            rows, _ = self._snapshot.lexical.search(text, settings.feedback_items)
            sources.append((settings.lexical_weight, feedback_scores(rows, refusal, vocabulary)))
        if len(dense):
            sources.append((settings.dense_weight, feedback_scores(dense, refusal, vocabulary)))
        if self._associations is not None and settings.click_weight:
            clicked = self._associations.expand(text, vocabulary)
            sources.append((settings.click_weight, clicked))
        return propose(sources, refusal, vocabulary, settings.max_proposals)

    def _finish(
        self,
        request: KeywordRequest,
        analysis: Analysis,
        proposals: Sequence[Proposal],
        now: float,
    ) -> Keywords:
        candidates = extract(analysis, proposals, self.vocabulary)
        calibrated = calibrate(candidates, analysis, request, self.vocabulary)
        return Keywords(
            request.normalised,
            tuple(candidate.term for candidate in calibrated),
            analysis.excluded,
            analysis,
            self._source,
            now,
            request.personalised,
        )
