"""SID beam search over vLLM: at each level one round of requests, a row of the beam each.

The logits processor writes log-probabilities by the scoring rule, so what comes back are the scores
of a level; beams grow from them by the very code of the native engine (decoding/beam.py), ties and
filters and changes of the catalogue included. What a row may generate is said in its request, as
codes, so the processor needs to know no filter, no added node and no generation.

A row returns its best children, as many as the beam is wide. Those it leaves out cannot be among
the best of the beam, unless one of them ties with the beam's last: then that row is asked for all.

Rows are prompts one or two tokens longer than each other's; vLLM finds their common beginning in
its prefix cache, in whole blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoding.beam import Beam, Step, grow_all
from decoding.engine import Hypotheses, Prompt
from decoding.vllm.arguments import ALLOWED, PREFIX, PRIOR, allowed_bits
from decoding.vllm.children import allowed_codes
from decoding.vllm.rounds import Answer, Rounds, Row
from decoding.vllm.rows import Vocabulary
from index.live.trie import AnyTrie
from index.trie import TrieFilter


@dataclass(slots=True, eq=False)
class _Level:
    """A level of one beam while it is asked for. `table` float32 (rows, K): log-probabilities, -inf
    where none is known. `cut` float32 (rows,): the least that came of rows that left some out, -inf
    of the others."""

    rows: list[Row]
    children: NDArray[np.int64]
    table: NDArray[np.float32]
    cut: NDArray[np.float32]


class BeamDriver:
    """Searches one prompt at a time; as many at once as are asked for."""

    def __init__(self, rounds: Rounds, vocabulary: Vocabulary) -> None:
        self._rounds = rounds
        self._vocabulary = vocabulary

    async def search(
        self, prompt: Prompt, beam_width: int, filter: TrieFilter | None, trie: AnyTrie
    ) -> Hypotheses:
        """The best SIDs. Cancelled, it leaves nothing in vLLM."""
        beam = Beam(trie, beam_width, filter)
        token_ids: list[int] = prompt.token_ids.tolist()
        prefixes = np.zeros((1, 0), dtype=np.int64)
        for level in range(trie.layout.levels):
            asked = self._level(beam, level, prompt, token_ids, prefixes)
            if not len(asked.children) or not asked.children.any():
                beam.drop()
                break
            self._fill(asked, level, np.arange(len(asked.rows)), await self._rounds.ask(asked.rows))
            before = beam.nodes, beam.scores, beam.ranks
            step = _grow(beam, asked)
            if len(missed := _tied(beam, before[1], asked.cut)):
                rows = [
                    asked.rows[row]._replace(wanted=int(asked.children[row]))
                    for row in missed.tolist()
                ]
                self._fill(asked, level, missed, await self._rounds.ask(rows))
                beam.nodes, beam.scores, beam.ranks = before
                beam.steps.pop()
                step = _grow(beam, asked)
            prefixes = np.column_stack([prefixes[step.parents], step.codes])
        return beam.hypotheses()

    def _level(
        self,
        beam: Beam,
        level: int,
        prompt: Prompt,
        token_ids: list[int],
        prefixes: NDArray[np.int64],
    ) -> _Level:
        """What is to be asked of each row of the beam."""
        bits = None if beam.filter is None else beam.filter.bits[level]
        size, count = beam.trie.layout.level_sizes[level], len(beam)
        row, code = allowed_codes(beam.trie, level, beam.nodes, bits)
        counts = np.bincount(row, minlength=count)
        raw = allowed_bits(row, code, count, size)
        prior = None
        if prompt.level_prior is not None:
            prior = prompt.level_prior[level].astype("<f4").tobytes()
        offsets = np.array(self._vocabulary.sid_offset[:level], dtype=np.int64)
        rows: list[Row] = []
        for prefix, tokens, allowed, children in zip(
            prefixes.tolist(), (prefixes + offsets).tolist(), raw, counts.tolist(), strict=True
        ):
            arguments: dict[str, Any] = {PREFIX: prefix, ALLOWED: allowed.tobytes()}
            if prior is not None:
                arguments[PRIOR] = prior
            # One row alone fills the beam: at the root all is wanted, ties are likely.
            wanted = children if level == 0 else min(children, beam.width)
            rows.append(Row(token_ids + tokens, arguments, wanted))
        table = np.full((len(rows), size), -np.inf, dtype=np.float32)
        return _Level(rows, counts, table, np.full(len(rows), -np.inf, dtype=np.float32))

    def _fill(
        self, level: _Level, number: int, rows: NDArray[np.int64], answers: list[Answer]
    ) -> None:
        """Write answers, of the given rows, into a level's table."""
        lengths = [len(answer.scores) for answer in answers]
        tokens = np.concatenate([answer.token_ids for answer in answers])
        scores = np.concatenate([answer.scores for answer in answers])
        at = np.repeat(rows, lengths)
        finite = scores > -np.inf
        codes = tokens - self._vocabulary.sid_offset[number]
        level.table[at[finite], codes[finite]] = scores[finite]
        found = np.bincount(at[finite], minlength=len(level.rows))[rows]
        short = found < level.children[rows]
        last = scores[np.cumsum(lengths) - 1]
        level.cut[rows] = np.where(short, last, -np.inf)


def _grow(beam: Beam, level: _Level) -> Step:
    grow_all([beam], level.table, normalised=True)
    return beam.steps[-1]


def _tied(beam: Beam, parents: NDArray[np.float32], cut: NDArray[np.float32]) -> NDArray[np.int64]:
    """Rows that may have left out a child as good as the grown beam's last."""
    least = beam.scores[-1] if len(beam) == beam.width else -np.inf
    return np.flatnonzero((cut > -np.inf) & (parents + cut >= least))
