import pytest
import torch

import decoding.cuda.attention as attention
from decoding.cuda.attention import OwnPositions, attend, tiles

HEADS, KEY_HEADS, SIZE = 4, 2, 16


def expected(projected, keys, values, lengths, own):
    """Row by row, in float64."""
    rows, width = len(projected), len(projected) // len(lengths)
    query = projected[:, : HEADS * SIZE].view(rows, HEADS, SIZE).double()
    result = torch.empty_like(query)
    for row in range(rows):
        owner, length = row // width, int(lengths[row // width])
        key, value = keys[owner, :, :length].double(), values[owner, :, :length].double()
        for step in range(0 if own is None else own.steps):
            at = row if step == own.steps - 1 else int(own.ancestry[step, row])
            key = torch.cat((key, own.keys[step, at].double()[:, None]), 1)
            value = torch.cat((value, own.values[step, at].double()[:, None]), 1)
        key, value = (part.repeat_interleave(HEADS // KEY_HEADS, 0) for part in (key, value))
        share = torch.softmax((key @ query[row, :, :, None]).squeeze(-1), -1)
        result[row] = (share[:, None] @ value).squeeze(1)
    return result.view(rows, -1)


# The interpreter multiplies matrices of bfloat16 as if they were integers.
NARROW = torch.bfloat16 if torch.cuda.is_available() else torch.float16


@pytest.mark.parametrize("dtype", [torch.float32, NARROW])
@pytest.mark.parametrize("programs", [1, 1000])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_context_and_own_positions(device, monkeypatch, dtype, programs, steps):
    # Few programs wanted: the context stays in one part. Many: it is split.
    monkeypatch.setattr(attention, "PROGRAMS", programs)
    random = torch.Generator().manual_seed(steps)
    queries, width, longest = 2, 11, 200
    rows = queries * width

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=random).to(device, dtype)

    projected = normal(rows, (HEADS + 2 * KEY_HEADS) * SIZE)
    keys, values = (normal(queries, KEY_HEADS, longest, SIZE) for _ in range(2))
    lengths = torch.tensor([3, 187], dtype=torch.int32, device=device)
    for owner, length in enumerate(lengths.tolist()):
        keys[owner, :, length:] = 50.0  # Padding holds anything finite.
    own = None
    if steps:
        place = torch.arange(rows) // width * width
        ancestry = place + torch.randint(0, width, (steps, rows), generator=random)
        own_keys, own_values = (normal(steps, rows, KEY_HEADS, SIZE) for _ in range(2))
        ancestry = ancestry.to(device, torch.int32)
        own = OwnPositions(own_keys, own_values, ancestry, steps)
    split = tiles(width * 2, queries * KEY_HEADS, longest, dtype).splits
    assert (split > 1) == (programs > 1)
    found = attend(projected, keys, values, lengths, HEADS, own)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(
        found.double(),
        expected(projected, keys, values, lengths, own),
        atol=tolerance,
        rtol=tolerance,
    )


def test_tiles_fit_the_rows_and_fill_the_device():
    for rows in (1, 16, 40, 256, 2048):
        for pairs in (1, 8, 64):
            for longest in (64, 300, 5000):
                tile = tiles(rows, pairs, longest, torch.bfloat16)
                assert 16 <= tile.rows <= 128
                assert 1 <= tile.splits <= longest // tile.positions + 1
    # One query with few beams over a long context is split.
    assert tiles(64, 8, 5000, torch.bfloat16).splits >= 16
    assert tiles(512, 64, 1000, torch.bfloat16).splits == 1
