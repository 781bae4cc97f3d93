"""Evaluation: the served ranking beside everything that it must beat, on the same judgments.

The methods are those of `models.training.rankers`.

Recall@k counts relevant items among the first k; HR@k whether there is one; MRR@10 the reciprocal
rank of the first. Intervals are 95 % percentile bootstraps over queries, the same resamples for
every method. The unconstrained valid rate is measured over level slices without the trie: a health
metric of the decoder, nothing that is served.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from decoding.engine import Hypotheses, Prompt
from index.errors import ConfigError
from index.snapshot import Snapshot
from models.tokenizer import Tokenizer
from models.training.rankers import (
    EXTRA_METHODS,
    METHODS,
    SERVED,
    Searchers,
    answer,
    embedded,
    needs_beam,
    ranker,
)
from models.transformer import Qwen3

IntArray = NDArray[np.int64]

METRICS = ("recall@10", "recall@50", "hr@10", "mrr@10")
BEAMS = ("generative_beam", "codec_beam")
DEPTH = 50
BOOTSTRAP_SAMPLES = 1000
LATENCY_QUERIES = 200
UNCONSTRAINED_QUERIES = 200
UNCONSTRAINED_BEAM = 10


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
    answers = (
        answer(searchers, texts, progress)
        if any(needs_beam(name) for name in methods)
        else embedded(searchers, texts)
    )
    resamples = np.random.default_rng(seed).integers(
        len(texts), size=(BOOTSTRAP_SAMPLES, len(texts))
    )
    sizes = [len(searchers.snapshot.postings.rows_of(h.leaves)[0]) for h in answers.hypotheses]
    inside = round(float(np.mean(sizes))) if sizes else 0
    table: dict[str, dict[str, Any]] = {}
    per_query: dict[str, dict[str, NDArray[np.float64]]] = {}
    for name in methods:
        rank = ranker(name, searchers, answers)
        ranked: list[IntArray] = []
        counts: list[int] = []
        for i in range(len(texts)):
            rows, count = rank(i)
            ranked.append(rows[:DEPTH])
            counts.append(count)
        per_query[name] = per_query_metrics(ranked, truth)
        table[name] = _summary(per_query[name], resamples)
        table[name]["candidates"] = float(np.mean(counts))
        table[name]["latency_ms"] = _latency(name, searchers, texts, inside)
        if name.startswith("generative"):
            table[name]["legal_rate"] = legal_rate(searchers.snapshot, answers.hypotheses)
    return {
        "queries": len(texts),
        "beam_width": searchers.beam_width,
        "methods": table,
        "differences": _differences(per_query, resamples),
    }


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
    """The served ranking less each other method, and the decoder's items less those of nearest
    SIDs, query by query: mean and paired interval."""
    pairs = [(SERVED, name) for name in per_query if name != SERVED]
    pairs = [pair for pair in (*pairs, BEAMS) if per_query.keys() >= set(pair)]
    return {
        f"{one} - {other}": _summary(
            {name: per_query[one][name] - per_query[other][name] for name in METRICS}, resamples
        )
        for one, other in pairs
    }


def _latency(
    name: str, searchers: Searchers, texts: Sequence[str], inside: int
) -> dict[str, float]:
    """Milliseconds a query, one at a time, from its text to ranked rows.

    Methods of the codec run no decoder here: their SIDs hold `inside` items, the beams' mean.
    """
    durations: list[float] = []
    for text in texts[:LATENCY_QUERIES]:
        started = time.perf_counter()
        ask = answer if name.startswith("generative") else embedded
        ranker(name, searchers, ask(searchers, [text]), inside)(0)
        durations.append(1000 * (time.perf_counter() - started))
    p50, p99 = np.percentile(durations, [50, 99])
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}
