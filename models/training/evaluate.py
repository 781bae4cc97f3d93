"""Evaluation: the served ranking beside everything that it must beat, on the same judgments.

    generative       the served ranking: beam → postings → rescoring
    generative_only  SID log-probability alone (within a SID: popularity order)
    codec_only       no decoder: SIDs nearest by centroid, as many candidate items as the beam gave,
                     rescored with weights fitted for it in the same way
    bm25             lexical, tuned for product titles
    dense            exact search with the snapshot's encoder
    hybrid           reciprocal rank fusion of bm25 and dense
    hybrid_rescored  the top of bm25 and dense together, rescored without a SID score

Recall@k counts relevant items among the first k; HR@k whether there is one; MRR@10 the reciprocal
rank of the first. Intervals are 95 % percentile bootstraps over queries, the same resamples for
every method. The unconstrained valid rate is measured over level slices without the trie: a health
metric of the decoder, nothing that is served.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from decoding.engine import Hypotheses, Prompt
from index.errors import ConfigError
from index.rescoring import RescoringWeights, fit, reciprocal_rank_fusion
from index.snapshot import Snapshot
from models.query import QueryPrompts
from models.ranking import (
    Candidates,
    candidates_of,
    rank_candidates,
    rank_hypotheses,
)
from models.tokenizer import Tokenizer
from models.transformer import Qwen3

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
SearchBatch = Callable[[Sequence[Prompt], int], list[Hypotheses]]

METHODS = ("generative", "generative_only", "codec_only", "bm25", "dense", "hybrid")
EXTRA_METHODS = ("hybrid_rescored",)
SERVED = "generative"
METRICS = ("recall@10", "recall@50", "hr@10", "mrr@10")
DEPTH = 50
FUSION_DEPTH = 300
RESCORED_DEPTH = 200
BOOTSTRAP_SAMPLES = 1000
LATENCY_QUERIES = 200
UNCONSTRAINED_QUERIES = 200
UNCONSTRAINED_BEAM = 10
SEARCH_BATCH = 16
CODEC_LEAVES_MARGIN = 4


@dataclass(frozen=True, slots=True, eq=False)
class Searchers:
    """What answers the queries: a snapshot, prompts, an engine's batch search, fitted weights."""

    snapshot: Snapshot
    prompts: QueryPrompts
    search: SearchBatch
    beam_width: int
    weights: RescoringWeights
    codec_weights: RescoringWeights
    retrieval_weights: RescoringWeights


@dataclass(frozen=True, slots=True, eq=False)
class _Answers:
    """What the engine said of every query, computed once and shared by the methods."""

    texts: list[str]
    embeddings: FloatArray
    hypotheses: list[Hypotheses]


def evaluate(
    searchers: Searchers,
    relevant: Mapping[str, IntArray],
    methods: Sequence[str] = METHODS,
    *,
    seed: int = 7,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Metrics of each method over the queries of `relevant` (query → relevant item rows).

    Raises ConfigError for an unknown method or when there is no query.
    """
    unknown = [name for name in methods if name not in METHODS + EXTRA_METHODS]
    if unknown:
        known = ", ".join(METHODS + EXTRA_METHODS)
        raise ConfigError(f"unknown method {unknown[0]!r}; there are {known}")
    if not methods:
        raise ConfigError(f"no method to evaluate; there are {', '.join(METHODS + EXTRA_METHODS)}")
    if not relevant:
        raise ConfigError("no query has a relevant item; check --relevant-from and the item ids")
    texts = list(relevant)
    truth = [relevant[text] for text in texts]
    generative = any(name.startswith("generative") or name == "codec_only" for name in methods)
    answers = answer(searchers, texts, progress) if generative else _embedded(searchers, texts)
    resamples = np.random.default_rng(seed).integers(
        len(texts), size=(BOOTSTRAP_SAMPLES, len(texts))
    )
    table: dict[str, dict[str, Any]] = {}
    per_query: dict[str, dict[str, NDArray[np.float64]]] = {}
    for name in methods:
        ranker = _ranker(name, searchers, answers)
        ranked: list[IntArray] = []
        counts: list[int] = []
        for i in range(len(texts)):
            rows, count = ranker(i)
            ranked.append(rows[:DEPTH])
            counts.append(count)
        per_query[name] = per_query_metrics(ranked, truth)
        table[name] = _summary(per_query[name], resamples)
        table[name]["candidates"] = float(np.mean(counts))
        table[name]["latency_ms"] = _latency(name, searchers, texts, round(float(np.mean(counts))))
        if name.startswith("generative"):
            table[name]["legal_rate"] = legal_rate(searchers.snapshot, answers.hypotheses)
    return {
        "queries": len(texts),
        "beam_width": searchers.beam_width,
        "methods": table,
        "differences": _differences(per_query, resamples),
    }


def answer(
    searchers: Searchers,
    texts: Sequence[str],
    progress: Callable[[str, int, int], None] | None = None,
) -> _Answers:
    """Embeddings and hypotheses of queries, in batches."""
    embedded = _embedded(searchers, texts)
    hypotheses: list[Hypotheses] = []
    for start in range(0, len(texts), SEARCH_BATCH):
        part = slice(start, start + SEARCH_BATCH)
        chosen = embedded.texts[part]
        prompts = searchers.prompts.prompts(chosen, embedded.embeddings[part], [()] * len(chosen))
        hypotheses += searchers.search(prompts, searchers.beam_width)
        if progress is not None:
            progress("searching", len(hypotheses), len(texts))
    return _Answers(embedded.texts, embedded.embeddings, hypotheses)


def fit_weights(
    searchers: Searchers, relevant: Mapping[str, IntArray]
) -> tuple[RescoringWeights, RescoringWeights, RescoringWeights]:
    """Rescoring weights for generative, codec_only and hybrid_rescored, fitted on these queries.

    Only queries with a relevant item among the candidates teach anything; with none the defaults
    are returned.
    """
    texts = list(relevant)
    answers = answer(searchers, texts)
    kinds: dict[str, list[tuple[FloatArray, FloatArray]]] = {"beam": [], "codec": [], "both": []}
    for i, text in enumerate(texts):
        found = {
            "beam": candidates_of(
                searchers.snapshot, answers.hypotheses[i].leaves, answers.hypotheses[i].scores
            )
        }
        found["codec"] = _codec_candidates(searchers, answers, i, len(found["beam"].rows))
        found["both"] = _retrieved(searchers, text, answers.embeddings[i])
        for kind, candidates in found.items():
            ranked = rank_candidates(
                searchers.snapshot,
                searchers.weights,
                text,
                answers.embeddings[i],
                candidates,
            )
            gains = np.isin(ranked.rows, relevant[text]).astype(np.float32)
            if gains.any():
                kinds[kind].append((ranked.features, gains))
    fitted = [fit(examples) if examples else RescoringWeights() for examples in kinds.values()]
    return fitted[0], fitted[1], fitted[2]


def per_query_metrics(
    ranked: Sequence[IntArray], relevant: Sequence[IntArray]
) -> dict[str, NDArray[np.float64]]:
    """Each metric per query, float64 (Q,)."""
    values = {name: np.zeros(len(ranked)) for name in METRICS}
    for i, (rows, truth) in enumerate(zip(ranked, relevant, strict=True)):
        hits = np.isin(rows, truth)
        values["recall@10"][i] = hits[:10].sum() / len(truth)
        values["recall@50"][i] = hits[:50].sum() / len(truth)
        values["hr@10"][i] = float(hits[:10].any())
        if hits[:10].any():
            values["mrr@10"][i] = 1.0 / (1 + int(np.argmax(hits[:10])))
    return values


def legal_rate(snapshot: Snapshot, hypotheses: Sequence[Hypotheses]) -> float:
    """Share of returned SIDs that are in the trie; anything below 1 is a bug."""
    codes = np.concatenate([found.codes for found in hypotheses])
    if len(codes) == 0:
        return 1.0
    return float((snapshot.trie.find(snapshot.layout.pack(codes)) >= 0).mean())


def unconstrained_valid_rate(
    model: Qwen3,
    tokenizer: Tokenizer,
    snapshot: Snapshot,
    prompts: Sequence[Prompt],
    beam: int = UNCONSTRAINED_BEAM,
) -> float:
    """Share of legal SIDs among the `beam` best of each prompt when nothing forbids others."""
    legal = total = 0
    model.eval()
    with torch.inference_mode():
        for prompt in prompts[:UNCONSTRAINED_QUERIES]:
            codes = _free_beam(model, tokenizer, prompt, snapshot.layout.levels, beam)
            legal += int((snapshot.trie.find(snapshot.layout.pack(codes)) >= 0).sum())
            total += len(codes)
    return legal / max(total, 1)


def _free_beam(
    model: Qwen3, tokenizer: Tokenizer, prompt: Prompt, levels: int, beam: int
) -> NDArray[np.int32]:
    """Beam search over whole codebooks, codes int32 (beam, L)."""
    start = torch.from_numpy(prompt.token_ids.astype(np.int64))
    codes = torch.zeros((1, 0), dtype=torch.int64)
    scores = torch.zeros(1)
    for level in range(levels):
        offsets = torch.tensor(tokenizer.sid_offset[:level], dtype=torch.int64)
        rows = torch.cat([start.expand(len(codes), -1), codes + offsets], dim=1)
        hidden = model.hidden(rows)[:, -1]
        logits = model.level_logits(hidden, tokenizer.level_slice(level)).float()
        if prompt.level_prior is not None:
            logits = logits + torch.from_numpy(prompt.level_prior[level])
        total = scores[:, None] + torch.log_softmax(logits, dim=-1)
        size = total.shape[1]
        scores, best = total.flatten().topk(min(beam, total.numel()))
        codes = torch.cat([codes[best // size], (best % size)[:, None]], dim=1)
    return codes.numpy().astype(np.int32)


def _embedded(searchers: Searchers, texts: Sequence[str]) -> _Answers:
    return _Answers(list(texts), searchers.snapshot.embed_queries(texts), [])


def _ranker(
    name: str, searchers: Searchers, answers: _Answers, fixed_budget: int | None = None
) -> Callable[[int], tuple[IntArray, int]]:
    """query number → (ranked rows, number of candidates).

    `fixed_budget`: candidate items of codec_only where there is no beam to count them from.
    """
    snapshot = searchers.snapshot
    texts, embeddings, hypotheses = answers.texts, answers.embeddings, answers.hypotheses

    def generative(i: int) -> tuple[IntArray, int]:
        ranked = rank_hypotheses(
            snapshot, searchers.weights, texts[i], embeddings[i], hypotheses[i]
        )
        return ranked.rows, len(ranked.rows)

    def generative_only(i: int) -> tuple[IntArray, int]:
        found = candidates_of(snapshot, hypotheses[i].leaves, hypotheses[i].scores)
        return found.rows, len(found.rows)

    def codec_only(i: int) -> tuple[IntArray, int]:
        budget = fixed_budget
        if budget is None:
            beam = hypotheses[i]
            budget = len(candidates_of(snapshot, beam.leaves, beam.scores).rows)
        found = _codec_candidates(searchers, answers, i, budget)
        ranked = rank_candidates(snapshot, searchers.codec_weights, texts[i], embeddings[i], found)
        return ranked.rows, len(ranked.rows)

    def bm25(i: int) -> tuple[IntArray, int]:
        rows, _ = snapshot.lexical.search(texts[i], FUSION_DEPTH)
        return rows, len(rows)

    def dense(i: int) -> tuple[IntArray, int]:
        rows, _ = snapshot.dense.search(embeddings[i][None], FUSION_DEPTH)
        return rows[0], len(rows[0])

    def hybrid(i: int) -> tuple[IntArray, int]:
        rows, _ = reciprocal_rank_fusion([bm25(i)[0], dense(i)[0]])
        return rows, len(rows)

    def hybrid_rescored(i: int) -> tuple[IntArray, int]:
        found = _retrieved(searchers, texts[i], embeddings[i])
        ranked = rank_candidates(
            snapshot, searchers.retrieval_weights, texts[i], embeddings[i], found
        )
        return ranked.rows, len(ranked.rows)

    rankers = {
        "generative": generative,
        "generative_only": generative_only,
        "codec_only": codec_only,
        "bm25": bm25,
        "dense": dense,
        "hybrid": hybrid,
        "hybrid_rescored": hybrid_rescored,
    }
    return rankers[name]


def _codec_candidates(searchers: Searchers, answers: _Answers, i: int, budget: int) -> Candidates:
    """Items of the SIDs nearest by centroid, the first `budget` of them."""
    snapshot = searchers.snapshot
    wanted = max(CODEC_LEAVES_MARGIN * searchers.beam_width, 1)
    while True:
        leaves, scores = snapshot.candidate_sids(answers.embeddings[i], wanted)
        found = candidates_of(snapshot, leaves, scores)
        if len(found.rows) >= budget or wanted >= snapshot.trie.n_leaves:
            break
        wanted *= 2
    return Candidates(found.rows[:budget], found.sid_scores[:budget], found.hypothesis[:budget])


def _retrieved(searchers: Searchers, text: str, embedding: FloatArray) -> Candidates:
    """The top of BM25 and dense together, without SID scores."""
    lexical, _ = searchers.snapshot.lexical.search(text, RESCORED_DEPTH)
    dense, _ = searchers.snapshot.dense.search(embedding[None], RESCORED_DEPTH)
    rows = np.union1d(lexical, dense[0]).astype(np.int64)
    return Candidates(rows, np.zeros(len(rows), np.float32), np.full(len(rows), -1, np.int64))


def _summary(
    values: Mapping[str, NDArray[np.float64]], resamples: NDArray[np.int64]
) -> dict[str, Any]:
    summary: dict[str, Any] = {name: float(column.mean()) for name, column in values.items()}
    summary["ci95"] = {
        name: [float(edge) for edge in np.percentile(column[resamples].mean(axis=1), [2.5, 97.5])]
        for name, column in values.items()
    }
    return summary


def _differences(
    per_query: Mapping[str, Mapping[str, NDArray[np.float64]]], resamples: NDArray[np.int64]
) -> dict[str, Any]:
    """The served ranking less each other method, query by query: mean and paired interval."""
    served = per_query.get(SERVED)
    if served is None:
        return {}
    return {
        f"{SERVED} - {name}": _summary(
            {metric: served[metric] - column for metric, column in columns.items()}, resamples
        )
        for name, columns in per_query.items()
        if name != SERVED
    }


def _latency(
    name: str, searchers: Searchers, texts: Sequence[str], budget: int
) -> dict[str, float]:
    """Milliseconds a query, one at a time, from its text to ranked rows.

    codec_only runs no decoder here: its budget of candidate items is the mean one.
    """
    durations: list[float] = []
    for text in texts[:LATENCY_QUERIES]:
        started = time.perf_counter()
        if name.startswith("generative"):
            one = answer(searchers, [text])
        else:
            one = _embedded(searchers, [text])
        _ranker(name, searchers, one, budget)(0)
        durations.append(1000 * (time.perf_counter() - started))
    p50, p99 = np.percentile(durations, [50, 99])
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}
