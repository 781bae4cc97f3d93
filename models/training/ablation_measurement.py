"""How well one node's weights find what users went on to choose, search by search.

    decoder   items of the beam's SIDs, best SID first: what the trained components change
    served    the same candidates under ranking weights fitted on validation searches: what a user
              sees. Searches with a history have weights of their own, with taste.

HR@10 and MRR@10, for what was clicked and for what was ordered, as in `personal_evaluation`. The
values of every search are kept, so that rows can be compared search by search; a search without an
order has zeros there, and whoever reads them leaves it out. The unconstrained valid rate is that
of the same prompts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoding.engine import Hypotheses, Prompt
from index.dataset import Dataset
from index.rescoring import FEATURES, RescoringWeights
from index.snapshot import Snapshot
from index.taste import MAX_HISTORY, PersonalWeights, TasteWeights
from models.checkpoint import Checkpoint
from models.ranking import Candidates, candidates_of
from models.training.evaluate import UNCONSTRAINED_QUERIES
from models.training.keyword_table import Terms
from models.training.leakage import check_leakage
from models.training.personal_evaluation import TARGETS, metrics_of
from models.training.personal_weights import SEARCH_BATCH, VisitSearch, fit_weights, gains_of
from models.training.publishing import valid_rate
from models.training.run_personal import visit_search
from models.training.visit_slices import searches_by_query, slices_of
from models.training.visits import Visit, read_visits

FloatArray = NDArray[np.float32]
KeywordsOf = Callable[[Sequence[Visit]], list[Terms]]

METRICS = ("hr@10", "mrr@10")
RANKINGS = ("decoder", "served")
_SAMPLE_SEED = 7


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredVisits:
    """Validation and test searches of a dataset, and the slices of the latter. `version`: digest of
    both."""

    validation: list[Visit]
    test: list[Visit]
    slices: dict[str, NDArray[np.bool_]]
    version: str

    @classmethod
    def read(cls, dataset: Dataset, validation: int, test: int) -> MeasuredVisits:
        """Seeded samples of at most so many. Raises DataError where training knows the rest."""
        training = read_visits(dataset, "train")
        check_leakage(dataset, training)
        held = [
            _sample(read_visits(dataset, split, max_history=MAX_HISTORY), count)
            for split, count in (("validation", validation), ("test", test))
        ]
        slices = slices_of(held[1], training, searches_by_query(dataset))
        digest = hashlib.sha256()
        for visit in (*held[0], *held[1]):
            digest.update(f"{visit.session}\0{visit.query}\0{visit.wanted}\n".encode())
        return cls(held[0], held[1], slices, digest.hexdigest()[:12])

    def kept(self, target: str) -> NDArray[np.bool_]:
        """The test searches that have this target, bool (N,)."""
        return np.array([bool(_chosen(visit, target)) for visit in self.test], np.bool_)


def measure(
    dataset: Dataset,
    snapshot: Snapshot,
    checkpoint: Checkpoint,
    visits: MeasuredVisits,
    beam_width: int,
    keywords_of: KeywordsOf | None = None,
) -> dict[str, Any]:
    """ranking → target → metric → value of each test search; with the valid rate. `keywords_of`:
    what the prompts show, None for nothing."""
    searcher = visit_search(dataset, snapshot, checkpoint, beam_width)
    validation, _ = _found(searcher, visits.validation, keywords_of)
    known, nobody = _fit(visits.validation, validation)
    test, prompts = _found(searcher, visits.test, keywords_of)
    values = {
        ranking: {target: {metric: list[float]() for metric in METRICS} for target in TARGETS}
        for ranking in RANKINGS
    }
    for visit, (candidates, table) in zip(visits.test, test, strict=True):
        weights = known if visit.history else nobody
        orders = {"decoder": candidates.rows, "served": _ranked(candidates, table, weights)}
        for ranking, rows in orders.items():
            for target in TARGETS:
                hit, _, reciprocal = metrics_of(rows, _chosen(visit, target))
                values[ranking][target]["hr@10"].append(hit)
                values[ranking][target]["mrr@10"].append(reciprocal)
    asked = prompts[:: max(1, len(prompts) // UNCONSTRAINED_QUERIES)]
    rate = valid_rate(checkpoint.load_model(), checkpoint.tokenizer, snapshot, asked)
    return {"values": values, "valid_rate": rate, "visits": visits.version}


def _found(
    searcher: VisitSearch, visits: Sequence[Visit], keywords_of: KeywordsOf | None
) -> tuple[list[tuple[Candidates, FloatArray]], list[Prompt]]:
    """Candidates of each search with their features (n, F + T), and the prompts."""
    embedded = searcher.embed(visits)
    terms: Sequence[Terms] = keywords_of(visits) if keywords_of is not None else ()
    leaf_of_row, trie = searcher.snapshot.postings.leaf_of_row, searcher.snapshot.trie
    prompts: list[Prompt] = []
    beams: list[Hypotheses] = []
    for start in range(0, len(visits), SEARCH_BATCH):
        part = visits[start : start + SEARCH_BATCH]
        past = [np.array(visit.history, np.int64) for visit in part]
        sids = [list(trie.codes_of_leaves(leaf_of_row[rows].astype(np.int64))) for rows in past]
        vectors = np.stack([embedded[visit.query] for visit in part])
        shown = terms[start : start + SEARCH_BATCH]
        prompts += searcher.prompts.prompts([v.query for v in part], vectors, sids, shown)
        beams += searcher.search(prompts[start:], searcher.beam_width)
    found: list[tuple[Candidates, FloatArray]] = []
    for visit, beam in zip(visits, beams, strict=True):
        candidates = candidates_of(searcher.snapshot, beam.leaves, beam.scores)
        table = searcher.table(visit, embedded[visit.query], candidates, history=True)
        found.append((candidates, table))
    return found, prompts


def _fit(
    visits: Sequence[Visit], found: Sequence[tuple[Candidates, FloatArray]]
) -> tuple[PersonalWeights, PersonalWeights]:
    """Weights for searches with a history, and for those without; defaults where few teach."""
    heard: list[tuple[FloatArray, FloatArray]] = []
    plain: list[tuple[FloatArray, FloatArray]] = []
    for visit, (candidates, table) in zip(visits, found, strict=True):
        gains = gains_of(visit, candidates.rows)
        if visit.history:
            heard.append((table, gains))
        without = table.copy()
        without[:, len(FEATURES) :] = 0
        plain.append((without, gains))
    default = PersonalWeights(RescoringWeights(), TasteWeights())
    return fit_weights(heard) or default, fit_weights(plain) or default


def _ranked(
    candidates: Candidates, table: FloatArray, weights: PersonalWeights
) -> NDArray[np.int64]:
    score = table[:, : len(FEATURES)] @ weights.rescoring.vector()
    score = score + table[:, len(FEATURES) :] @ weights.taste.vector()
    return candidates.rows[np.lexsort((candidates.rows, -score))]


def _chosen(visit: Visit, target: str) -> list[int]:
    return visit.ordered if target == "order" else visit.clicked


def _sample(visits: list[Visit], count: int) -> list[Visit]:
    if len(visits) <= count:
        return visits
    random = np.random.default_rng(_SAMPLE_SEED)
    return [visits[i] for i in np.sort(random.choice(len(visits), count, replace=False))]
