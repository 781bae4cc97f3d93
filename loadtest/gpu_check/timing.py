"""How long searches take on the card, beside the floor that its ceilings allow, and peers.

The floor of a search: the prompt's and the beams' products at the measured peak of a large product,
or the weights read once a step at the measured bandwidth of a large copy, whichever is longer, and
nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from decoding.cuda.runner import CudaRunner
from decoding.engine import Hypotheses
from decoding.native.runner import Search
from index.sid import SidLayout
from loadtest.bench.report import Row, race, row, verdict
from loadtest.gpu_check.machine import Ceilings
from loadtest.gpu_check.peers import Generate, RowExpanded, hugging_face_model
from loadtest.gpu_check.subjects import (
    FIVE_LEVELS,
    THREE_LEVELS,
    Subject,
    catalogue,
    prompts,
    qwen3_1_7b,
    small,
    subject,
)

WORDS = 150_000
SIDS = 1_000_000
LARGE_SECONDS = 1.2
"""Of one measurement with the large decoder."""

PUBLISHED_MS = {(1000, 1): 17.6, (1000, 8): 93.2, (5000, 1): 42.3, (5000, 8): 308.0}
"""NVIDIA's sid-gr-inference on an H100: beam 256, by context and queries."""

PUBLISHED_QPS = {50: 220.0, 128: 137.0, 512: 48.0, 1000: 25.0}
"""FlashRec 0.1.2 on an RTX 5090, 300-token prompts: another card, for orientation only."""


def measurements(ceilings: Ceilings) -> Iterator[Callable[[], list[Row]]]:
    """In order of weight; each gives rows. Subjects are made when first needed."""
    device: dict[str, Any] = {"dtype": torch.bfloat16, "device": "cuda"}
    large = subject(qwen3_1_7b(WORDS + sum(THREE_LEVELS.level_sizes)), THREE_LEVELS, **device)
    three = Runners(large, ceilings)
    five = Runners(with_layout(large, FIVE_LEVELS), ceilings)
    little = Runners(
        subject(small(8000 + sum(FIVE_LEVELS.level_sizes)), FIVE_LEVELS, **device), ceilings
    )

    def long_contexts() -> list[Row]:
        return [
            three.latency(
                "qwen3-1.7b, long contexts",
                *(queries, length, 256),
                published={"sid-gr-inference, published": PUBLISHED_MS[length, queries]},
            )
            for length in (1000, 5000)
            for queries in (1, 8)
        ]

    def short_prompts() -> list[Row]:
        return [five.latency("qwen3-1.7b, 300 tokens", 1, 300, width) for width in (32, 128, 512)]

    def throughput() -> list[Row]:
        return [
            three.throughput(width, {"FlashRec on RTX 5090, published": PUBLISHED_QPS[width]})
            for width in (50, 128, 512, 1000)
        ]

    def small_decoder() -> list[Row]:
        return [
            little.latency("small decoder", queries, 64, width)
            for width in (32, 128, 512)
            for queries in (1, 8)
        ]

    def small_peers() -> list[Row]:
        return little.peers("small decoder, peers", 64, (32, 128), rounds=5)

    def large_peers() -> list[Row]:
        return five.peers("qwen3-1.7b, peers", 300, (32, 128), rounds=3)

    yield long_contexts
    yield short_prompts
    yield small_decoder
    yield throughput
    yield small_peers
    yield large_peers


def with_layout(subject: Subject, layout: SidLayout) -> Subject:
    """The same tensors, read as those of another layout."""
    first = subject.config.vocab_size - sum(layout.level_sizes)
    offsets = first + np.concatenate(([0], np.cumsum(layout.level_sizes[:-1])))
    return subject._replace(layout=layout, sid_offset=tuple(offsets.tolist()))


class Runners:
    """A subject, its catalogue and its runner, made when first needed."""

    def __init__(self, subject: Subject, ceilings: Ceilings) -> None:
        self.subject, self.ceilings = subject, ceilings
        self._runner: CudaRunner | None = None

    @property
    def runner(self) -> CudaRunner:
        if self._runner is None:
            trie = catalogue(self.subject.layout, SIDS)
            self._runner = CudaRunner(self.subject.weights(torch.bfloat16, "cuda"), trie)
        return self._runner

    def searches(self, queries: int, length: int, width: int, seed: int = 0) -> list[Search]:
        words = self.subject.sid_offset[0]
        return [Search(prompt, width) for prompt in prompts(queries, length, words, seed)]

    def floor_s(self, queries: int, length: int, width: int) -> float:
        parameters, config = self.subject.layer_parameters, self.subject.config
        read_s = 2 * parameters / self.ceilings.bandwidth

        def step_s(rows: int, attended: float) -> float:
            operations = 2 * parameters * rows
            heads = config.num_attention_heads * config.head_dim * config.num_hidden_layers
            operations += 4 * heads * attended
            return max(operations / self.ceilings.operations, read_s)

        rows, steps = queries * width, self.subject.layout.levels - 1
        prefill_s = step_s(queries * length, queries * length**2 / 2)
        return prefill_s + steps * step_s(rows, rows * length)

    def latency(
        self,
        what: str,
        queries: int,
        length: int,
        width: int,
        published: dict[str, float] | None = None,
    ) -> Row:
        """Milliseconds of a wave, from the searches to their hypotheses on the host."""
        waves = [self.searches(queries, length, width, seed) for seed in range(4)]
        first_s = timed(lambda: self.runner.run(waves[0]))
        samples = repeated(
            [lambda wave=wave: self.runner.run(wave) for wave in waves], LARGE_SECONDS
        )
        floor_s = self.floor_s(queries, length, width)
        p50, p99 = (float(np.quantile(samples, q)) for q in (0.5, 0.99))
        return row(
            what,
            {
                "queries": queries,
                "context": length,
                "beam": width,
                "levels": self.subject.layout.levels,
            },
            [sample * 1000 for sample in samples],
            dict(published or {}),
            "ms",
            p99=round(p99 * 1000, 3),
            floor=round(floor_s * 1000, 3),
            over_floor=round(p50 / floor_s, 2),
            p99_over_p50=round(p99 / p50, 2),
            samples=len(samples),
            capture_ms=round(first_s * 1000, 1),
        )

    def throughput(self, width: int, published: dict[str, float]) -> Row:
        """Searches per second, in full waves of one thread."""
        budget_rows = 4096
        count = max(4, budget_rows // width) * 2
        words = self.subject.sid_offset[0]
        many = prompts(count, 300, words)

        def run() -> None:
            self.runner.search_batch(many, width, budget_rows=budget_rows)

        run()
        samples = repeated([run], LARGE_SECONDS)
        return row(
            "qwen3-1.7b, throughput",
            {"context": 300, "beam": width, "levels": self.subject.layout.levels},
            [count / sample for sample in samples],
            dict(published),
            "searches/s",
            higher_is_better=True,
            wave=max(1, budget_rows // width),
        )

    def peers(self, what: str, length: int, widths: Sequence[int], rounds: int) -> list[Row]:
        """One query: ours, transformers' generate, a row-expanded cache; in turns."""
        model = hugging_face_model(self.subject, torch.bfloat16, "cuda")
        trie = self.runner.trie
        generate = Generate(model, self.subject, trie, "cuda")
        expanded = RowExpanded(model, self.subject, trie, "cuda")
        rows: list[Row] = []
        for width in widths:
            (search,) = self.searches(1, length, width)

            def ours(search: Search = search) -> list[tuple[int, ...]]:
                (found,) = self.runner.run([search])
                assert isinstance(found, Hypotheses)
                return [tuple(sid) for sid in found.codes.tolist()]

            result = race(
                {
                    "ours": ours,
                    "transformers generate": lambda s=search, w=width: generate.search(s.prompt, w),
                    "row-expanded cache": lambda s=search, w=width: expanded.search(s.prompt, w),
                },
                rounds=rounds,
                budget_s=15.0,
            )
            answers = {
                name: verdict(result.answers["ours"], result.answers[name])
                for name in result.answers
                if name != "ours"
            }
            setting = {"queries": 1, "context": length, "beam": width}
            samples, others = result.scaled("ours", 1000), result.peers(1000)
            rows.append(row(what, setting, samples, others, "ms", answers=answers))
        return rows


def timed(work: Callable[[], Any]) -> float:
    """Wall seconds of work that ends with the device idle."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def repeated(works: Sequence[Callable[[], Any]], seconds: float) -> list[float]:
    """Wall seconds of each call, the works in turns, after one warm-up of each."""
    for work in works:
        work()
    samples: list[float] = []
    started = time.perf_counter()
    while len(samples) < 5 or (time.perf_counter() - started < seconds and len(samples) < 400):
        samples.append(timed(works[len(samples) % len(works)]))
    return samples
