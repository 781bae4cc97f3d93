"""The four keyword tasks of stage 1: thoughts about a query, before any item (METHOD §3, CoT).

    query_keywords         query                → its keywords
    sid_keyword_sid        SID_q                → SIDs of its keywords
    personal_keywords      query + history      → one to five keywords of this user's
    personal_keyword_sid   SID_q + history      → SIDs of these

    <|query|> text [<|history|> SIDs] <|keywords|> → text        <|sid|> SID_q … <|keywords|> → SID

The SID of a keyword is the codec's, of the encoder's vector of its text; all keywords of a query
are targets of the same weight. Deviation: it need not be the SID of an item. The sources leave open
whether it is one SID of all keywords or one of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.errors import ConfigError
from index.snapshot import Snapshot
from models.prompt import PromptBuilder, prompt_text
from models.tokenizer import HISTORY, KEYWORDS, QUERY, SID
from models.training.example_set import ExampleSet, join, written
from models.training.keyword_table import KeywordTable, Terms
from models.training.visits import Visit

TASKS = ("query_keywords", "sid_keyword_sid", "personal_keywords", "personal_keyword_sid")
MAX_PERSONAL = 5
MAX_KEYWORD_SIDS = 8


@dataclass(frozen=True, slots=True)
class _Thought:
    """A query with the keywords to be thought of, and the rows that its user chose before."""

    query: str
    terms: Terms
    history: tuple[int, ...] = ()


class Thoughts:
    """Makes examples of the chosen tasks, as far as the table has keywords for them."""

    def __init__(
        self,
        snapshot: Snapshot,
        prompts: PromptBuilder,
        table: KeywordTable,
        queries: Sequence[str],
        visits: Sequence[Visit],
        codes_of_row: NDArray[np.int32],
        tasks: Sequence[str] = TASKS,
    ) -> None:
        """`queries`: of the training split, `visits` too. Raises ConfigError for an unknown task or
        when no task has any keywords."""
        if unknown := [name for name in tasks if name not in TASKS]:
            raise ConfigError(f"unknown keyword task {unknown[0]!r}; there are {', '.join(TASKS)}")
        self._snapshot = snapshot
        self._prompts = prompts
        self._codes_of_row = codes_of_row
        asked = [*queries, *(query for query, _ in table.derived)]
        general = [_Thought(query, terms) for query in asked if (terms := table.of(query))]
        own = [
            _Thought(visit.query, terms[:MAX_PERSONAL], visit.history)
            for visit in visits
            if visit.history and visit.user is not None
            if (terms := table.of(visit.query, visit.user))
        ]
        makers = (
            (TASKS[0], general, self._texts),
            (TASKS[1], general, self._sids),
            (TASKS[2], own, self._texts),
            (TASKS[3], own, self._sids),
        )
        self._makers = [(made, maker) for name, made, maker in makers if name in tasks and made]
        if tasks and not self._makers:
            raise ConfigError(
                "the keyword file has no keywords of this dataset's training queries; "
                "make one with `onesearch train keywords`, or train without --keywords"
            )

    def examples(self, count: int, random: np.random.Generator) -> ExampleSet:
        """`count` examples, the tasks in equal shares."""
        shares = np.diff(np.linspace(0, count, len(self._makers) + 1).astype(np.int64)).tolist()
        parts = [
            maker([known[i] for i in random.integers(len(known), size=share).tolist()])
            for share, (known, maker) in zip(shares, self._makers, strict=True)
            if share
        ]
        return join(parts)

    def _texts(self, thoughts: list[_Thought]) -> ExampleSet:
        builder, tokenizer = self._prompts, self._prompts.tokenizer
        tokens = tokenizer.encode_batch([prompt_text(thought.query) for thought in thoughts])
        limit = builder.settings.max_query_tokens
        prompts = [
            self._framed([tokenizer.special[QUERY], *ids[:limit]], thought)
            for ids, thought in zip(tokens, thoughts, strict=True)
        ]
        most = builder.settings.max_keyword_tokens
        texts = [
            [*builder.keyword_tokens(thought.terms)[:most], tokenizer.end] for thought in thoughts
        ]
        return written(prompts, texts, self._codes_of_row.shape[1], self._snapshot.codec.dimension)

    def _sids(self, thoughts: list[_Thought]) -> ExampleSet:
        tokenizer, codec = self._prompts.tokenizer, self._snapshot.codec
        sids = codec.encode(self._snapshot.embed_queries([thought.query for thought in thoughts]))
        prompts = [
            self._framed([tokenizer.special[SID], *tokenizer.sid_tokens(sid)], thought)
            for sid, thought in zip(sids, thoughts, strict=True)
        ]
        terms = [thought.terms[:MAX_KEYWORD_SIDS] for thought in thoughts]
        flat = codec.encode(self._snapshot.embed_queries([term for own in terms for term in own]))
        codes = np.zeros((len(thoughts), MAX_KEYWORD_SIDS, flat.shape[1]), np.int32)
        weights = np.zeros((len(thoughts), MAX_KEYWORD_SIDS), np.float32)
        first = 0
        for i, own in enumerate(terms):
            codes[i, : len(own)] = flat[first : first + len(own)]
            weights[i, : len(own)] = 1 / len(own)
            first += len(own)
        nothing = np.zeros((len(thoughts), codec.dimension), np.float32)
        return ExampleSet(prompts, codes, weights, [()] * len(thoughts), nothing)

    def _framed(self, start: list[int], thought: _Thought) -> list[int]:
        """The prompt: `start`, the user's history, and the marker after which keywords follow."""
        tokenizer, most = self._prompts.tokenizer, self._prompts.settings.max_history
        if thought.history and most:
            start.append(tokenizer.special[HISTORY])
            for row in thought.history[-most:]:
                start += tokenizer.sid_tokens(self._codes_of_row[row])
        return [*start, tokenizer.special[KEYWORDS]]
