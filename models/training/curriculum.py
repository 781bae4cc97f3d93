"""The examples of supervised fine-tuning, stage by stage (METHOD §3, the V1 row: no CoT tasks).

    stage 1  semantic alignment   query → SID, title → SID, SID → title, any → category
    stage 2  co-occurrence        SID_q → SID, query → title, title → query
    stage 3  search               the full student prompt → SID

A *chunk* is a few thousand examples and a pure function of (seed, chunk number): pseudo-queries of
random items mixed with training queries and, where the data has them, real searches with the
user's history. SID targets come from the teacher and from what people did.
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
from models.training.examples import ExampleSet
from models.training.material import Material
from models.training.pseudo_queries import PseudoQueryModel
from models.training.teacher import Teacher

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
MAX_TEXT_TOKENS = 20


@dataclass(frozen=True, slots=True)
class Mixture:
    """Shares of the curriculum. `stage_shares` of all steps; the rest of a stage's examples."""

    stage_shares: tuple[float, float, float] = (0.08, 0.07, 0.85)
    pseudo_share: float = 0.7
    visit_share_of_real: float = 0.7
    history_dropout: float = 0.2

    def stage_of(self, progress: float) -> int:
        """Stage (1, 2, 3) at a share of the training done."""
        first, second, _ = self.stage_shares
        return 1 if progress < first else 2 if progress < first + second else 3


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Queries with what is known of them, before prompts are made."""

    texts: list[str]
    known: list[tuple[tuple[int, float], ...]]
    histories: list[tuple[int, ...]]


class Curriculum:
    """Makes chunks. Holds the item side as arrays; nothing in it changes."""

    def __init__(
        self,
        snapshot: Snapshot,
        material: Material,
        prompts: PromptBuilder,
        pseudo_queries: PseudoQueryModel,
        teacher: Teacher,
        *,
        mixture: Mixture,
        chunk_examples: int,
        seed: int,
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

    def chunk(self, number: int, stage: int) -> ExampleSet:
        """Examples of chunk `number` in `stage`."""
        random = np.random.default_rng([self._seed, stage, number])
        match stage:
            case 1:
                return self._semantic_alignment(random)
            case 2:
                return self._co_occurrence(random)
            case _:
                asked = self._ask(random, self._chunk_examples, with_history=True)
                return self._search(asked, random)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer.encode_batch([prompt_text(text) for text in texts])

    def _ask(self, random: np.random.Generator, count: int, *, with_history: bool) -> Asked:
        """Pseudo-queries, training queries and searches of users, in the mixture's shares."""
        material, mixture = self._material, self._mixture
        real = int(count * (1 - mixture.pseudo_share)) if self._queries else 0
        visits = int(real * mixture.visit_share_of_real) if self._real_visits else 0
        rows = random.integers(len(material.titles), size=count - real)
        texts = self._pseudo_queries.sample([material.titles[row] for row in rows], random)
        known: list[tuple[tuple[int, float], ...]] = [((int(row), 1.0),) for row in rows]
        histories: list[tuple[int, ...]] = [() for _ in rows]
        for index in random.integers(max(len(self._queries), 1), size=real - visits).tolist():
            query = self._queries[index]
            texts.append(query)
            known.append(material.known[query])
            histories.append(())
        for index in random.integers(max(len(self._real_visits), 1), size=visits).tolist():
            visit = self._real_visits[index]
            texts.append(visit.query)
            known.append(visit.wanted)
            keep = with_history and random.random() >= mixture.history_dropout
            histories.append(visit.history if keep else ())
        return Asked(texts, known, histories)

    def _search(self, asked: Asked, random: np.random.Generator) -> ExampleSet:
        """Stage 3: full student prompts with taught SID distributions."""
        embeddings = self._snapshot.embed_queries(asked.texts)
        sids = self._snapshot.codec.encode(embeddings)
        nearest = nearest_codes(
            embeddings,
            self._snapshot.codec.centroids[0],
            self._prompts.settings.query_code_count,
        )
        tokens = self._encode(asked.texts)
        prompts = [
            self._prompts.student(
                tokens[i],
                sids[i],
                [self._codes_of_row[row] for row in asked.histories[i]],
                query_codes=nearest[i],
            ).tolist()
            for i in range(len(tokens))
        ]
        return self._taught(prompts, asked, embeddings)

    def _semantic_alignment(self, random: np.random.Generator) -> ExampleSet:
        count = self._chunk_examples
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
        return _join(parts)

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
            row = pairs.known[i][int(random.integers(len(pairs.known[i])))][0]
            title, query = self._title_tokens[row], query[:MAX_TEXT_TOKENS]
            first, second = (QUERY, TITLE) if i % 2 else (TITLE, QUERY)
            prompts.append([marker[first], *(query if i % 2 else title), marker[second]])
            texts.append(title if i % 2 else query)
        return _join([between, self._written(prompts, texts)])

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
        levels = self._codes_of_row.shape[1]
        return ExampleSet(
            prompts,
            np.zeros((len(prompts), 1, levels), np.int32),
            np.zeros((len(prompts), 1), np.float32),
            [[*text, self._tokenizer.end] for text in texts],
            self._no_query(len(prompts)),
        )

    def _no_query(self, count: int) -> FloatArray:
        return np.zeros((count, self._snapshot.codec.dimension), np.float32)

    def _sid(self, row: int) -> list[int]:
        return self._tokenizer.sid_tokens(self._codes_of_row[row].tolist())


def _join(parts: Sequence[ExampleSet]) -> ExampleSet:
    """One set of several; narrower target lists are padded with weight 0."""
    width = max(part.target_weights.shape[1] for part in parts)
    codes = [
        np.pad(part.target_codes, ((0, 0), (0, width - part.target_codes.shape[1]), (0, 0)))
        for part in parts
    ]
    weights = [
        np.pad(part.target_weights, ((0, 0), (0, width - part.target_weights.shape[1])))
        for part in parts
    ]
    return ExampleSet(
        [prompt for part in parts for prompt in part.prompts],
        np.concatenate(codes),
        np.concatenate(weights),
        [text for part in parts for text in part.texts],
        np.concatenate([part.embeddings for part in parts]),
    )
