import pytest
import torch
import torch.nn.functional as functional

from decoding.cuda.kernels import (
    Placement,
    add_and_normalise,
    embed_and_normalise,
    silu_multiply,
    turn_heads,
)

EPSILON = 1e-6


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = 1e-5 if found.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected.to(found.dtype), atol=tolerance, rtol=tolerance)


def normal(seed: int, *size: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("width", [32, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms(device, width, dtype):
    embedding, weight = normal(0, 9, width, dtype=dtype).to(device), normal(1, width, dtype=dtype)
    weight = weight.to(device)
    tokens = torch.tensor([3, 8, 0, 3], dtype=torch.int32, device=device)
    state, normed = embed_and_normalise(tokens, embedding, weight, EPSILON)
    assert torch.equal(state, embedding[tokens.long()])
    close(normed, functional.rms_norm(state.float(), (width,), weight.float(), EPSILON))
    update = normal(2, 4, width, dtype=dtype).to(device)
    total = (state.float() + update.float()).to(dtype)
    normed = add_and_normalise(state, update, weight, EPSILON)
    close(state, total)
    close(normed, functional.rms_norm(state.float(), (width,), weight.float(), EPSILON))


def test_silu(device):
    gate_up = normal(0, 5, 96).to(device)
    close(silu_multiply(gate_up), functional.silu(gate_up[:, :48]) * gate_up[:, 48:])


@pytest.mark.parametrize("generated", [False, True])
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(4, 2, 8), (3, 3, 12), (6, 2, 16)])
def test_heads_are_normalised_turned_and_placed(device, generated, heads, key_heads, size):
    queries, per_query, offset = 2, 3, 2
    rows, all_heads = queries * per_query, heads + 2 * key_heads
    projected = normal(0, rows, all_heads * size).to(device)
    norm = normal(1, heads + key_heads, size).to(device)
    angles = normal(2, 20, size // 2).to(device)
    keys = torch.full((queries, key_heads, per_query, size), 99.0, device=device)
    values = torch.full_like(keys, 99.0)
    lengths = torch.tensor([5, 9], dtype=torch.int32, device=device) if generated else None
    strides = (keys.stride(0), keys.stride(2), keys.stride(1))

    given = projected.view(rows, all_heads, size).clone()
    position = torch.arange(per_query, device=device).repeat(queries)
    if lengths is not None:
        position = lengths.long().repeat_interleave(per_query) + offset
    x = functional.rms_norm(given[:, : heads + key_heads], (size,), None, EPSILON) * norm
    cosine, sine = angles.cos()[position][:, None], angles.sin()[position][:, None]
    first, second = x.chunk(2, -1)
    x = torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)

    turn_heads(
        projected,
        norm,
        angles.cos(),
        angles.sin(),
        heads,
        key_heads,
        EPSILON,
        Placement(keys, values, strides, per_query, lengths, offset if generated else 0),
    )
    close(projected.view(given.shape)[:, :heads], x[:, :heads])
    assert torch.equal(projected.view(given.shape)[:, heads:], given[:, heads:])

    def place(part: torch.Tensor) -> torch.Tensor:
        return part.view(queries, per_query, key_heads, size).transpose(1, 2)

    close(keys, place(x[:, heads:]))
    assert torch.equal(values, place(given[:, heads + key_heads :]))
