"""Query text → what the engine reads. Serving, evaluation and training prompts meet here.

text → embedding e → SID_q, nearest level-1 codes, codebook prior β·⟨e, C_l⟩ → prompt token ids
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decoding.engine import Prompt
from index.codec import Codec

# Who embeds queries must be able to open every kind of encoder; this one registers itself.
from models import text_encoders as text_encoders
from models.checkpoint import Checkpoint
from models.prompt import PromptBuilder, prompt_text

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class QueryPrompts:
    """Makes prompts for one pair of codec and checkpoint. Stateless, thread-safe."""

    codec: Codec
    builder: PromptBuilder
    prior_beta: float

    @classmethod
    def of(cls, codec: Codec, checkpoint: Checkpoint) -> QueryPrompts:
        builder = PromptBuilder(checkpoint.tokenizer, checkpoint.settings.prompt)
        return cls(codec, builder, checkpoint.settings.level_prior_beta)

    def prompt(
        self,
        text: str,
        embedding: FloatArray,
        history_sids: Sequence[NDArray[np.int32]] = (),
        keywords: Sequence[str] = (),
    ) -> Prompt:
        """The prompt of one query; `embedding` float32 (d,), SIDs oldest first. With keywords, most
        important first, it is the teacher's, else the student's."""
        return self.prompts([text], embedding[None], [history_sids], [keywords])[0]

    def prompts(
        self,
        texts: Sequence[str],
        embeddings: FloatArray,
        histories: Sequence[Sequence[NDArray[np.int32]]],
        keywords: Sequence[Sequence[str]] = (),
    ) -> list[Prompt]:
        """Prompts of N queries; `embeddings` float32 (N, d), keywords of each query or of none."""
        sids = self.codec.encode(embeddings)
        tokens = self.builder.tokenizer.encode_batch([prompt_text(text) for text in texts])
        made: list[Prompt] = []
        for i, ids in enumerate(tokens):
            span = self.builder.keyword_tokens(keywords[i]) if keywords else ()
            scores = self.codec.level_scores(embeddings[i])
            nearest = largest(scores[0], self.builder.settings.query_code_count)
            token_ids = self.builder.teacher(ids, span, sids[i], histories[i], query_codes=nearest)
            made.append(Prompt(token_ids, self._prior(scores)))
        return made

    def next_item(self, history_sids: Sequence[NDArray[np.int32]]) -> Prompt:
        """The prompt that asks for what a user takes next, without a query."""
        token_ids = self.builder.student((), None, history_sids)
        nothing = np.zeros(self.codec.dimension, np.float32)
        return Prompt(token_ids, self._prior(self.codec.level_scores(nothing)))

    def _prior(self, level_scores: Sequence[FloatArray]) -> tuple[FloatArray, ...] | None:
        if self.prior_beta == 0:
            return None
        beta = np.float32(self.prior_beta)
        return tuple(beta * scores for scores in level_scores)


def largest(scores: FloatArray, count: int) -> NDArray[np.int64]:
    """Places of the `count` largest of scores (K,), best first, int64."""
    count = min(count, len(scores))
    if not count:
        return np.zeros(0, np.int64)
    top = np.argpartition(scores, len(scores) - count)[len(scores) - count :]
    return top[np.lexsort((top, -scores[top]))]


def nearest_codes(embeddings: FloatArray, centroids: FloatArray, count: int) -> NDArray[np.int64]:
    """Codes of the `count` largest ⟨embedding, centroid⟩, best first, int64 (N, count)."""
    found = [largest(scores, count) for scores in embeddings @ centroids.T]
    return np.array(found, np.int64).reshape(len(embeddings), min(count, len(centroids)))
