import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.codec import Codec
from index.encoder import open_encoder
from index.sid import SidLayout
from models.checkpoint import Checkpoint
from models.prompt import PromptBuilder, PromptSettings
from models.query import QueryPrompts, nearest_codes
from models.tokenizer import ITEM, QUERY, SID, Tokenizer

LAYOUT = SidLayout((8, 4, 4))
DIMENSION = 6
RANDOM = np.random.default_rng(0)
CODEC = Codec(
    LAYOUT,
    tuple(
        RANDOM.standard_normal((size, DIMENSION)).astype(np.float32) for size in LAYOUT.level_sizes
    ),
    ("rq",) * 3,
)
TOKENIZER = Tokenizer.train(["white drill", "oak shelf"] * 3, 280, layout=LAYOUT)
TEXTS = ["oak drill", "", "shelf"]
EMBEDDINGS = RANDOM.standard_normal((3, DIMENSION)).astype(np.float32)
HISTORY = [np.array([7, 0, 3], np.int32), np.array([1, 1, 1], np.int32)]


def prompts(beta: float = 2.0, **settings: int) -> QueryPrompts:
    return QueryPrompts(CODEC, PromptBuilder(TOKENIZER, PromptSettings(**settings)), beta)


def test_a_prompt_holds_text_sid_and_nearest_codes():
    made = prompts(query_code_count=3).prompt(TEXTS[0], EMBEDDINGS[0])
    sid = CODEC.encode(EMBEDDINGS[:1])[0]
    nearest = np.argsort(-(CODEC.centroids[0] @ EMBEDDINGS[0]))[:3]
    expected = [
        TOKENIZER.special[QUERY],
        *TOKENIZER.encode_text(TEXTS[0]),
        TOKENIZER.special[SID],
        *TOKENIZER.sid_tokens(sid.tolist()),
        *(TOKENIZER.sid_offset[0] + nearest),
        TOKENIZER.special[ITEM],
    ]
    assert made.token_ids.tolist() == expected


def test_the_prior_is_beta_times_centroid_scores():
    prior = prompts(beta=2.5).prompt(TEXTS[0], EMBEDDINGS[0]).level_prior
    assert prior is not None
    for scores, book in zip(prior, CODEC.centroids, strict=True):
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, 2.5 * (book @ EMBEDDINGS[0]), rtol=1e-5)
    assert prompts(beta=0.0).prompt(TEXTS[0], EMBEDDINGS[0]).level_prior is None


def test_a_prompt_is_the_same_alone_and_in_a_batch():
    maker = prompts(query_code_count=2)
    histories = [HISTORY, [], HISTORY[:1]]
    together = maker.prompts(TEXTS, EMBEDDINGS, histories)
    for i, made in enumerate(together):
        alone = maker.prompt(TEXTS[i], EMBEDDINGS[i], histories[i])
        assert alone.token_ids.tolist() == made.token_ids.tolist()
    assert maker.prompts([], EMBEDDINGS[:0], []) == []


def test_history_is_told_oldest_first():
    maker = prompts(max_history=1)
    without = maker.prompt("shelf", EMBEDDINGS[0]).token_ids.tolist()
    newest = maker.prompt("shelf", EMBEDDINGS[0], HISTORY).token_ids.tolist()
    assert TOKENIZER.sid_tokens([1, 1, 1]) == newest[-4:-1]
    assert newest[: len(without) - 1] == without[:-1]


def test_settings_come_from_the_checkpoint(tiny_pair: Any):
    checkpoint = Checkpoint.open(tiny_pair.checkpoint)
    codec = Codec.open(tiny_pair.snapshot / "codec")
    maker = QueryPrompts.of(codec, checkpoint)
    assert maker.prior_beta == checkpoint.settings.level_prior_beta > 0
    assert maker.builder.settings == checkpoint.settings.prompt
    embedding = open_encoder(tiny_pair.snapshot / "encoder").encode(["oak desk"])[0]
    assert maker.prompt("oak desk", embedding).level_prior is not None


@pytest.mark.parametrize("count", [0, 1, 3, 8, 50])
def test_nearest_codes_against_a_sort(count: int):
    found = nearest_codes(EMBEDDINGS, CODEC.centroids[0], count)
    assert found.shape == (3, min(count, 8))
    order = np.argsort(-(EMBEDDINGS @ CODEC.centroids[0].T), axis=1)
    np.testing.assert_array_equal(found, order[:, :count])


def test_importing_queries_registers_every_kind_of_encoder(tmp_path: Path):
    """In a process that imports nothing else: the error is the model's, not an unknown kind."""
    (tmp_path / "encoder.json").write_text(
        '{"kind": "huggingface", "dimension": 4, '
        '"settings": {"name": "x", "max_tokens": 8, "pooling": "mean"}}'
    )
    program = (
        "import sys, pathlib, models.query, index.encoder\n"
        "assert 'transformers' not in sys.modules\n"
        "index.encoder.open_encoder(pathlib.Path(sys.argv[1]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True
    )
    assert "is no text encoder: it needs" in ran.stderr
