"""What keywords are worth: Recall@50 of BM25 and dense search without and with them.

Methods, for each of the two baselines:

    plain       the query as it is
    appended    the query and all terms, as one text
    weighted    BM25: score(query) + BM25_WEIGHT · score(words of the terms that the query lacks)
                dense: direction of e(query) + DENSE_WEIGHT · e(terms)
    used        weighted, and items that have something refused are left out

The weights were chosen on validation queries. A query is *complex* if it has COMPLEX_WORDS words or
more, refuses something, or asks a question or for advice. Differences to `plain` are paired: the
same resampled queries for both, 95 % percentile bootstrap.
"""

# pyarrow has no types of its own.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.dataset import Dataset
from index.errors import ConfigError
from index.ranking import best_rows
from index.snapshot import Snapshot
from index.text import words
from models.training.judgments_file import read_judgments
from server.keywords.associations import Associations, clicks_of
from server.keywords.keywords import Intent, KeywordRequest, Keywords
from server.keywords.reading import read
from server.keywords.refusal import Refusal
from server.keywords.statistical import StatisticalGenerator
from server.keywords.vocabulary import Vocabulary

DEPTH = 50
# Refused items are taken out of a longer list, so that DEPTH remain.
SEARCHED = 200
BM25_WEIGHT = 0.15
DENSE_WEIGHT = 0.1
COMPLEX_WORDS = 5
BOOTSTRAP_SAMPLES = 1000
BATCH = 64
METHODS = ("plain", "appended", "weighted", "used")
_ASKING = frozenset((Intent.QUESTION, Intent.RECOMMENDATION))

Relevant = Mapping[str, NDArray[np.int64]]
Progress = Callable[[str, int, int], None]


def run_evaluate(
    snapshot_path: Path,
    judgments: Path | None,
    relevant_from: float,
    dataset: Path | None = None,
    *,
    seed: int = 7,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The report of `onesearch keywords evaluate`.

    `judgments`: CSV or Parquet with query, item_id, grade; None: the dataset's test queries.
    `dataset`: where co-clicks of training queries come from; None: no co-clicks. Queries that the
    dataset trains on are left out. Raises DataError, ArtifactError or ConfigError.
    """
    snapshot = Snapshot.open(snapshot_path)
    opened = None if dataset is None else Dataset.open(dataset)
    if judgments is not None:
        relevant: Relevant = read_judgments(judgments, relevant_from, snapshot.items).relevant
    elif opened is not None:
        relevant = relevant_of(opened, "test", relevant_from, snapshot)
    else:
        raise ConfigError("nothing to measure with; give --judgments, --dataset or both")
    notes: list[str] = []
    started = time.perf_counter()
    vocabulary = Vocabulary.build(snapshot)
    build_s = time.perf_counter() - started
    associations = None
    if opened is not None:
        associations = Associations.build(
            clicks_of(opened, snapshot.items), vocabulary, version=opened.version
        )
        trained = queries_of(opened, "train")
        if seen := trained & relevant.keys():
            notes.append(f"{len(seen)} queries are training queries of the dataset: left out")
            relevant = {query: rows for query, rows in relevant.items() if query not in seen}
    generator = StatisticalGenerator(snapshot, associations, vocabulary=vocabulary)
    report = evaluate(generator, snapshot, relevant, seed=seed, progress=progress)
    report["vocabulary_s"] = build_s
    report["co_clicks"] = associations is not None
    report["simulated"] = bool(snapshot.manifest.get("simulated"))
    report["notes"] = notes
    return report


def evaluate(
    generator: StatisticalGenerator,
    snapshot: Snapshot,
    relevant: Relevant,
    *,
    seed: int = 7,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Recall@50 of each baseline and method, by group of queries; `relevant`: query → item rows.

    Raises ConfigError when there is no query.
    """
    if not relevant:
        raise ConfigError("no query has a relevant item; check --relevant-from and the item ids")
    texts = list(relevant)
    keywords: list[Keywords] = []
    started = time.perf_counter()
    for start in range(0, len(texts), BATCH):
        batch = [KeywordRequest(text) for text in texts[start : start + BATCH]]
        keywords += generator.generate_batch(batch)
        if progress is not None:
            progress("keywords", len(keywords), len(texts))
    duration = time.perf_counter() - started
    truth = [relevant[text] for text in texts]
    groups = _groups(texts, keywords, generator.vocabulary)
    table: dict[str, Any] = {}
    for baseline, rankings in (
        ("bm25", _bm25(snapshot, texts, keywords, generator.vocabulary)),
        ("dense", _dense(snapshot, texts, keywords, generator.vocabulary)),
    ):
        recall: dict[str, list[float]] = {method: [] for method in METHODS}
        for number, found in enumerate(rankings):
            for method, rows in zip(METHODS, found, strict=True):
                hits = np.isin(rows[:DEPTH], truth[number]).sum()
                recall[method].append(float(hits) / len(truth[number]))
            if progress is not None and number % BATCH == 0:
                progress(baseline, number, len(texts))
        values = {method: np.array(column) for method, column in recall.items()}
        table[baseline] = {
            group: _summary(values, np.flatnonzero(members), seed)
            for group, members in groups.items()
            if members.any()
        }
    return {
        "queries": len(texts),
        "metric": f"recall@{DEPTH}",
        "keywords_per_s": len(texts) / duration,
        "vocabulary_bytes": generator.vocabulary.n_bytes,
        "weights": {"bm25": BM25_WEIGHT, "dense": DENSE_WEIGHT},
        "baselines": table,
    }


def relevant_of(
    dataset: Dataset, split: str, relevant_from: float, snapshot: Snapshot
) -> dict[str, NDArray[np.int64]]:
    """Relevant item rows of the judged queries of one split."""
    queries = queries_of(dataset, split)
    judged = dataset.judgments
    rows = snapshot.items.rows_of(judged["item_id"].to_pylist()).tolist()
    found: dict[str, set[int]] = defaultdict(set)
    columns = (judged[name].to_pylist() for name in ("query", "grade"))
    for query, grade, row in zip(*columns, rows, strict=True):
        if row >= 0 and grade >= relevant_from and query in queries:
            found[query].add(row)
    return {query: np.array(sorted(rows), np.int64) for query, rows in sorted(found.items())}


def queries_of(dataset: Dataset, split: str) -> set[str]:
    """The queries of one split."""
    columns = (dataset.splits[name].to_pylist() for name in ("query", "split"))
    return {query for query, name in zip(*columns, strict=True) if name == split}


def _groups(
    texts: Sequence[str], keywords: Sequence[Keywords], vocabulary: Vocabulary
) -> dict[str, NDArray[np.bool_]]:
    long = np.array([len(words(text)) >= COMPLEX_WORDS for text in texts])
    refusing = np.array([Intent.NEGATION in k.analysis.intents for k in keywords])
    asking = np.array([bool(_ASKING & set(k.analysis.intents)) for k in keywords])
    respelt = np.array([read(text, vocabulary).corrected for text in texts])
    return {
        "all": np.ones(len(texts), np.bool_),
        "complex": long | refusing | asking,
        "long": long,
        "negation": refusing,
        "question": asking,
        "respelt": respelt,
    }


def _bm25(
    snapshot: Snapshot,
    texts: Sequence[str],
    keywords: Sequence[Keywords],
    vocabulary: Vocabulary,
) -> Iterator[list[NDArray[np.int64]]]:
    lexical = snapshot.lexical

    def ranked(scores: NDArray[np.float32]) -> NDArray[np.int64]:
        hits = np.flatnonzero(scores)
        return hits[best_rows(scores[hits], SEARCHED)]

    for text, found in zip(texts, keywords, strict=True):
        query = lexical.score_all(text)
        named = frozenset(words(text))
        said = [word for term in found.terms for word in words(term)]
        new = dict.fromkeys(word for word in said if word not in named)
        every = query + lexical.score_all(" ".join(said))
        added = (BM25_WEIGHT * lexical.score_all(" ".join(new))).astype(np.float32)
        weighted = ranked(query + added)
        yield [ranked(query), ranked(every), weighted, _allowed(weighted, found, vocabulary)]


def _dense(
    snapshot: Snapshot,
    texts: Sequence[str],
    keywords: Sequence[Keywords],
    vocabulary: Vocabulary,
) -> Iterator[list[NDArray[np.int64]]]:
    for start in range(0, len(texts), BATCH):
        part = slice(start, start + BATCH)
        terms = [" ".join(found.terms) for found in keywords[part]]
        query = snapshot.embed_queries(texts[part])
        both = [f"{text} {more}" for text, more in zip(texts[part], terms, strict=True)]
        # A sum has the right direction, and nothing but directions ranks the items of one query.
        weighted = query + (DENSE_WEIGHT * snapshot.embed_queries(terms)).astype(np.float32)
        searched = [
            snapshot.dense.search(vectors, SEARCHED)[0]
            for vectors in (query, snapshot.embed_queries(both), weighted)
        ]
        for number, found in enumerate(keywords[part]):
            rows = [list_of[number] for list_of in searched]
            yield [*rows, _allowed(rows[2], found, vocabulary)]


def _allowed(
    rows: NDArray[np.int64], keywords: Keywords, vocabulary: Vocabulary
) -> NDArray[np.int64]:
    return rows[Refusal(keywords.excluded, vocabulary).allowed(rows)]


def _summary(
    recall: Mapping[str, NDArray[np.float64]], members: NDArray[np.int64], seed: int
) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    resampled = members[random.integers(len(members), size=(BOOTSTRAP_SAMPLES, len(members)))]
    summary: dict[str, Any] = {"queries": len(members)}
    for method, values in recall.items():
        summary[method] = {"recall": float(values[members].mean())}
        if method != "plain":
            difference = values - recall["plain"]
            edges = np.percentile(difference[resampled].mean(axis=1), [2.5, 97.5])
            summary[method]["difference"] = float(difference[members].mean())
            summary[method]["ci95"] = [float(edge) for edge in edges]
    return summary
