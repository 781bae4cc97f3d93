import numpy as np
import pytest
import torch

from decoding.native.kv import BeamKV
from decoding.native.transformer import Decoder

PROMPTS = [
    np.random.default_rng(row).integers(0, 40, length).astype(np.int32)
    for row, length in enumerate((5, 11, 1, 11))
]


def expected(tiny, sequences: list[list[int]]) -> torch.Tensor:
    with torch.no_grad():
        states = [tiny.model.hidden(torch.tensor([sequence]))[0, -1] for sequence in sequences]
    return torch.stack(states)


@pytest.mark.parametrize("tied", [False, True])
def test_prefill_equals_the_training_module(make_decoder, tied: bool):
    tiny = make_decoder(tied=tied)
    decoder = Decoder(tiny.weights)
    for prompts in (PROMPTS, PROMPTS[1::2], PROMPTS[2:3]):
        _, hidden = decoder.prefill(prompts)
        truth = expected(tiny, [prompt.tolist() for prompt in prompts])
        torch.testing.assert_close(hidden, truth, atol=1e-5, rtol=1e-5)
        for level, offset in enumerate(tiny.weights.sid_offset):
            logits = tiny.model.logits(truth)[:, offset : offset + 16]
            torch.testing.assert_close(
                decoder.level_logits(hidden, level), logits, atol=1e-4, rtol=1e-4
            )


@pytest.mark.parametrize("widths", [(3, 3, 3, 3), (1, 5, 2, 4), (4, 0, 1, 0)])
def test_steps_with_reordered_beams_equal_whole_sequences(decoder, widths: tuple[int, ...]):
    """Random parents at each step: every row must see its own ancestors and its own prompt."""
    random = np.random.default_rng(sum(widths))
    native = Decoder(decoder.weights)
    beams = BeamKV(native.shape, 4, sum(widths), native.dtype)
    context, _ = native.prefill(PROMPTS)
    sequences = [prompt.tolist() for prompt in PROMPTS]
    owners, counts = list(range(4)), (1, 1, 1, 1)
    for _ in range(4):
        parents: list[int] = []
        for prompt, width in enumerate(widths):
            mine = [row for row, owner in enumerate(owners) if owner == prompt]
            parents += random.choice(mine, width).tolist() if mine else []
        tokens = random.integers(40, 88, len(parents))
        sequences = [
            [*sequences[row], int(token)] for row, token in zip(parents, tokens, strict=True)
        ]
        owners = [owners[row] for row in parents]
        counts = [owners.count(prompt) for prompt in range(4)]
        hidden = native.step(tokens, np.array(parents), counts, context, beams)
        torch.testing.assert_close(hidden, expected(decoder, sequences), atol=2e-5, rtol=2e-5)


def test_bfloat16_stays_near(make_decoder):
    exact, narrow = make_decoder(), make_decoder(dtype=torch.bfloat16)
    _, hidden = Decoder(narrow.weights).prefill(PROMPTS)
    truth = expected(exact, [prompt.tolist() for prompt in PROMPTS])
    assert hidden.dtype == torch.float32  # Only the body is narrow.
    cosine = torch.nn.functional.cosine_similarity(hidden, truth)
    assert cosine.min() > 0.99
