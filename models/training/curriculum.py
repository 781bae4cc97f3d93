"""The examples of supervised fine-tuning, stage by stage (METHOD §3).

    stage 1  semantic alignment   query → SID, title → SID, SID → title, any → category;
                                  with keywords: the four tasks of thoughts.py
    stage 2  co-occurrence        SID_q → SID, query → title, title → query
    stage 3  search               the full student prompt → SID; with keywords: a share of the
                                  prompts has them, as a teacher or a keyword-reading server needs

A *chunk* is a few thousand examples and a pure function of (seed, chunk number): pseudo-queries of
random items mixed with training queries and, where the data has them, real searches with the
user's history. SID targets come from the teacher and from what people did. A keyword file that
brings pseudo-queries of its own replaces the freshly sampled ones of stage 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.snapshot import Snapshot
from models.prompt import PromptBuilder, prompt_text
from models.query import nearest_codes
from models.tokenizer import CATEGORY, ITEM, QUERY, SID, TITLE, Tokenizer
from models.training.example_set import ExampleSet, join, written
from models.training.keyword_table import KeywordTable, Terms
from models.training.material import Material
from models.training.next_item import NextItems
from models.training.pseudo_queries import PseudoQueryModel
from models.training.teacher import Teaches
from models.training.thoughts import TASKS, Thoughts

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
MAX_TEXT_TOKENS = 20


@dataclass(frozen=True, slots=True)
class Mixture:
    """Shares of the curriculum. `stage_shares` of all steps; the rest of a stage's examples.

    `next_item_share`: of stage 3, sequences of users without a query (`next_item`).
    What follows it counts only where there is a keyword file. `thought_share`: of
    stage 1, in equal parts for `thought_tasks`, () for none. `keyword_share`: of the stage 3
    prompts whose query has keywords, those that show them.
    """

    stage_shares: tuple[float, float, float] = (0.08, 0.07, 0.85)
    pseudo_share: float = 0.7
    visit_share_of_real: float = 0.7
    history_dropout: float = 0.2
    next_item_share: float = 0.0
    thought_share: float = 0.4
    thought_tasks: tuple[str, ...] = TASKS
    keyword_share: float = 0.5

    def stage_of(self, progress: float) -> int:
        """Stage (1, 2, 3) at a share of the training done."""
        first, second, _ = self.stage_shares
        return 1 if progress < first else 2 if progress < first + second else 3


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Queries with what is known of them, before prompts are made: per query the wanted rows with
    weights, the user's rows before, and keywords."""

    texts: list[str]
    known: list[tuple[tuple[int, float], ...]]
    histories: list[tuple[int, ...]]
    keywords: list[Terms]


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Students with their teachers: `examples` without keywords, and of those that `has_keywords`
    (N,) the same prompt with them; the prompts of the others are the student's."""

    examples: ExampleSet
    teacher_prompts: list[list[int]]
    has_keywords: NDArray[np.bool_]


class Curriculum:
    """Makes chunks. Holds the item side as arrays; nothing in it changes."""

    def __init__(
        self,
        snapshot: Snapshot,
        material: Material,
        prompts: PromptBuilder,
        pseudo_queries: PseudoQueryModel,
        teacher: Teaches,
        *,
        mixture: Mixture,
        chunk_examples: int,
        seed: int,
        keywords: KeywordTable | None = None,
    ) -> None:
        self._snapshot = snapshot
        self._material = material
        self._prompts = prompts
        self._tokenizer: Tokenizer = prompts.tokenizer
        self._pseudo_queries = pseudo_queries
        self._teacher = teacher
        self._mixture = mixture
        self._chunk_examples = chunk_examples
        self._seed = seed
        leaves = snapshot.postings.leaf_of_row.astype(np.int64)
        self._codes_of_row = snapshot.trie.codes_of_leaves(leaves)
        self._title_tokens = [ids[:MAX_TEXT_TOKENS] for ids in self._encode(material.item_texts)]
        self._category_tokens = [ids[:MAX_TEXT_TOKENS] for ids in self._encode(material.categories)]
        self._queries = material.queries
        self._real_visits = [visit for visit in material.visits if visit.wanted]
        self._next_items = NextItems(
            material.sequences, self._codes_of_row, prompts, snapshot.codec.dimension
        )
        self._keywords = keywords
        self._derived = self._derived_of(keywords) if keywords is not None else []
        self._thoughts: Thoughts | None = None
        if keywords is not None and mixture.thought_tasks and mixture.thought_share > 0:
            self._thoughts = Thoughts(
                snapshot,
                prompts,
                keywords,
                material.queries,
                self._real_visits,
                self._codes_of_row,
                mixture.thought_tasks,
            )

    def chunk(self, number: int, stage: int) -> ExampleSet:
        """Examples of chunk `number` in `stage`."""
        random = np.random.default_rng([self._seed, stage, number])
        match stage:
            case 1:
                return self._semantic_alignment(random)
            case 2:
                return self._co_occurrence(random)
            case _:
                return self._search(random)

    def pairs(self, number: int) -> Pairs:
        """Chunk `number` of stage 3 as students and teachers."""
        random = np.random.default_rng([self._seed, 3, number])
        asked = self._ask(random, self._chunk_examples, with_history=True, derived=True)
        has_keywords = np.array([bool(terms) for terms in asked.keywords])
        embeddings = self._snapshot.embed_queries(asked.texts)
        none = np.zeros(len(asked.texts), np.bool_)
        examples = self._taught(self._prompts_of(asked, embeddings, none), asked, embeddings)
        return Pairs(examples, self._prompts_of(asked, embeddings, has_keywords), has_keywords)

    def _derived_of(self, keywords: KeywordTable) -> list[tuple[str, int]]:
        """The file's pseudo-queries as (query, item row)."""
        names = [item for _, item in keywords.derived]
        rows = self._snapshot.items.rows_of(names)
        return [
            (query, int(row))
            for (query, _), row in zip(keywords.derived, rows, strict=True)
            if row >= 0
        ]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer.encode_batch([prompt_text(text) for text in texts])

    def _ask(
        self,
        random: np.random.Generator,
        count: int,
        *,
        with_history: bool,
        derived: bool = False,
    ) -> Asked:
        """Pseudo-queries, training queries and searches of users, in the mixture's shares.
        `derived`: take pseudo-queries of the keyword file, if it has any."""
        material, mixture = self._material, self._mixture
        real = int(count * (1 - mixture.pseudo_share)) if self._queries else 0
        visits = int(real * mixture.visit_share_of_real) if self._real_visits else 0
        if derived and self._derived:
            places = random.integers(len(self._derived), size=count - real)
            texts = [self._derived[place][0] for place in places]
            rows = [self._derived[place][1] for place in places]
        else:
            rows = random.integers(len(material.titles), size=count - real).tolist()
            texts = self._pseudo_queries.sample([material.titles[row] for row in rows], random)
        known: list[tuple[tuple[int, float], ...]] = [((row, 1.0),) for row in rows]
        histories: list[tuple[int, ...]] = [() for _ in rows]
        users: list[str | None] = [None] * len(rows)
        for index in random.integers(max(len(self._queries), 1), size=real - visits).tolist():
            query = self._queries[index]
            texts.append(query)
            known.append(material.known[query] if self._teacher.wants_pairs else ())
            histories.append(())
            users.append(None)
        for index in random.integers(max(len(self._real_visits), 1), size=visits).tolist():
            visit = self._real_visits[index]
            texts.append(visit.query)
            known.append(visit.wanted)
            keep = with_history and random.random() >= mixture.history_dropout
            histories.append(visit.history if keep else ())
            users.append(visit.user if keep else None)
        table = self._keywords
        keywords: list[Terms] = [()] * len(texts)
        if table is not None:
            keywords = [table.of(text, user) for text, user in zip(texts, users, strict=True)]
        return Asked(texts, known, histories, keywords)

    def _search(self, random: np.random.Generator) -> ExampleSet:
        """Stage 3: full prompts with taught SID distributions."""
        share = self._mixture.keyword_share if self._keywords is not None else 0.0
        count = self._chunk_examples
        following = int(count * self._mixture.next_item_share) if len(self._next_items) else 0
        asked = self._ask(random, count - following, with_history=True, derived=share > 0)
        shown = random.random(len(asked.texts)) < share
        embeddings = self._snapshot.embed_queries(asked.texts)
        found = self._taught(self._prompts_of(asked, embeddings, shown), asked, embeddings)
        return join([found, self._next_items.draw(following, random)]) if following else found

    def _prompts_of(
        self, asked: Asked, embeddings: FloatArray, shown: NDArray[np.bool_]
    ) -> list[list[int]]:
        """The serving prompts, with the keywords of those that are `shown` (N,)."""
        sids = self._snapshot.codec.encode(embeddings)
        nearest = nearest_codes(
            embeddings,
            self._snapshot.codec.centroids[0],
            self._prompts.settings.query_code_count,
        )
        tokens = self._encode(asked.texts)
        return [
            self._prompts.teacher(
                tokens[i],
                self._prompts.keyword_tokens(asked.keywords[i]) if shown[i] else (),
                sids[i],
                [self._codes_of_row[row] for row in asked.histories[i]],
                query_codes=nearest[i],
            ).tolist()
            for i in range(len(tokens))
        ]

    def _semantic_alignment(self, random: np.random.Generator) -> ExampleSet:
        count = self._chunk_examples
        thoughts = int(count * self._mixture.thought_share) if self._thoughts is not None else 0
        count -= thoughts
        categories = any(self._category_tokens)
        shares = (0.4, 0.25, 0.15, 0.2) if categories else (0.5, 0.3, 0.2, 0.0)
        n_query, n_title, n_write, n_category = (int(count * share) for share in shares)
        marker = self._tokenizer.special
        asked = self._ask(random, n_query, with_history=False)
        embeddings = self._snapshot.embed_queries(asked.texts)
        tokens = self._encode(asked.texts)
        prompts = [[marker[QUERY], *ids[:MAX_TEXT_TOKENS], marker[ITEM]] for ids in tokens]
        from_query = self._taught(prompts, asked, embeddings)
        rows = random.integers(len(self._title_tokens), size=n_title + n_write + n_category)
        title_rows, write_rows, category_rows = np.split(rows, [n_title, n_title + n_write])
        from_title = self._hard(
            [[marker[TITLE], *self._title_tokens[row], marker[ITEM]] for row in title_rows],
            title_rows,
        )
        write = self._written(
            [[marker[SID], *self._sid(row), marker[TITLE]] for row in write_rows],
            [self._title_tokens[row] for row in write_rows],
        )
        parts = [from_query, from_title, write]
        if n_category:
            parts.append(self._categories(category_rows, random))
        if self._thoughts is not None and thoughts:
            parts.append(self._thoughts.examples(thoughts, random))
        return join(parts)

    def _categories(self, rows: IntArray, random: np.random.Generator) -> ExampleSet:
        """query | title | SID → category."""
        marker = self._tokenizer.special
        queries = self._pseudo_queries.sample([self._material.titles[row] for row in rows], random)
        query_tokens = self._encode(queries)
        prompts: list[list[int]] = []
        for i, row in enumerate(rows.tolist()):
            source = (
                [marker[QUERY], *query_tokens[i][:MAX_TEXT_TOKENS]],
                [marker[TITLE], *self._title_tokens[row]],
                [marker[SID], *self._sid(row)],
            )[i % 3]
            prompts.append([*source, marker[CATEGORY]])
        return self._written(prompts, [self._category_tokens[row] for row in rows])

    def _co_occurrence(self, random: np.random.Generator) -> ExampleSet:
        count = self._chunk_examples
        marker = self._tokenizer.special
        asked = self._ask(random, int(count * 0.6), with_history=False)
        embeddings = self._snapshot.embed_queries(asked.texts)
        sids = self._snapshot.codec.encode(embeddings)
        sid_tokens = self._tokenizer.sid_tokens
        between = self._taught(
            [[marker[SID], *sid_tokens(codes.tolist()), marker[ITEM]] for codes in sids],
            asked,
            embeddings,
        )
        pairs = self._ask(random, count - len(asked.texts), with_history=False)
        tokens = self._encode(pairs.texts)
        prompts: list[list[int]] = []
        texts: list[list[int]] = []
        for i, query in enumerate(tokens):
            # Not every teacher is told the pairs of training queries; they are there all the same.
            known = pairs.known[i] or self._material.known[pairs.texts[i]]
            row = known[int(random.integers(len(known)))][0]
            title, query = self._title_tokens[row], query[:MAX_TEXT_TOKENS]
            first, second = (QUERY, TITLE) if i % 2 else (TITLE, QUERY)
            prompts.append([marker[first], *(query if i % 2 else title), marker[second]])
            texts.append(title if i % 2 else query)
        return join([between, self._written(prompts, texts)])

    def _taught(self, prompts: list[list[int]], asked: Asked, embeddings: FloatArray) -> ExampleSet:
        taught = self._teacher.teach(asked.texts, embeddings, asked.known)
        return ExampleSet(
            prompts,
            self._codes_of_row[taught.rows],
            taught.weights,
            [()] * len(prompts),
            embeddings,
        )

    def _hard(self, prompts: list[list[int]], rows: IntArray) -> ExampleSet:
        """One certain target each; without a query the prior is zero."""
        codes = self._codes_of_row[rows][:, None]
        weights = np.ones((len(rows), 1), np.float32)
        return ExampleSet(prompts, codes, weights, [()] * len(prompts), self._no_query(len(rows)))

    def _written(self, prompts: list[list[int]], texts: Sequence[Sequence[int]]) -> ExampleSet:
        ended = [[*text, self._tokenizer.end] for text in texts]
        levels = self._codes_of_row.shape[1]
        return written(prompts, ended, levels, self._snapshot.codec.dimension)

    def _no_query(self, count: int) -> FloatArray:
        return np.zeros((count, self._snapshot.codec.dimension), np.float32)

    def _sid(self, row: int) -> list[int]:
        return self._tokenizer.sid_tokens(self._codes_of_row[row].tolist())
