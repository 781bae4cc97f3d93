import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as functional

from decoding.native import kernels
from decoding.native.numbers import raw
from decoding.team import ALONE, Team, torch_team

DTYPES = (torch.float32, torch.bfloat16)
PRINTS_SUMS = """
import numpy as np
from decoding.native.kernels import normalise
from decoding.team import ALONE
for width in (8, 24, 32, 48, 100, 500):
    state = np.random.default_rng(width).standard_normal((7, width), dtype=np.float32)
    out = np.empty_like(state)
    normalise(ALONE, state, np.ones(width, np.float32), 1e-6, out)
    print(out.tobytes().hex())
"""


@pytest.fixture(params=[1, 2])
def team(request) -> Team:
    if request.param == 1:
        return ALONE
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    found = torch_team()
    torch.set_num_threads(before)
    return found


def close(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Equal to the last places of the type that was written."""
    tolerance = 2e-6 if found.dtype == torch.float32 else 2**-8
    torch.testing.assert_close(found.float(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_narrow_numbers_are_rounded_to_nearest_even(team: Team, dtype: torch.dtype):
    state = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    state[0, :3] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8)])  # Ties.
    out = torch.empty(state.shape, dtype=dtype)
    unit, scale = np.ones(500, np.float32), state.square().mean(1, keepdim=True).add(1e-6).rsqrt()
    kernels.normalise(team, raw(state), unit, 1e-6, raw(out))
    close(out, state * scale)
    # With rows of unit norm the kernel only rounds.
    signs = torch.where(state < 0, -1.0, 1.0)
    kernels.normalise(team, raw(signs), state[0].numpy(), 0.0, raw(out))
    assert torch.equal(out, (signs * state[0]).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gate_is_silu_times_up_everywhere(team: Team, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(1)
    both = torch.randn(7, 80, generator=generator) * 8
    both[0, :6] = torch.tensor([0.0, -0.0, 200.0, -200.0, 3e4, -3e4])
    both = both.to(dtype)
    out = torch.empty(7, 40, dtype=dtype)
    kernels.gate(team, raw(both), raw(out))
    exact = functional.silu(both[:, :40].float()) * both[:, 40:].float()
    close(out, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("height", [1.0, 60.0, 3000.0])
def test_attention_over_context_and_own_positions(team: Team, dtype: torch.dtype, height: float):
    """Two heads on one key head, three rows with 5, 1 and 9 of 9 context positions."""
    generator = torch.Generator().manual_seed(2)
    seen, steps, size = np.array([5, 1, 9]), 2, 8
    scores = (torch.randn(6, 9, generator=generator) * height).to(dtype)
    queries, mixed = (torch.randn(6, size, generator=generator).to(dtype) for _ in range(2))
    keys, values = (torch.randn(steps, 3, 1, size, generator=generator).to(dtype) for _ in range(2))
    ancestry = np.array([[2, 2, 0], [0, 1, 2]])
    first, stride = np.arange(3), np.full(3, 3)
    expected = scores.float().clone()
    own, out = np.empty((3, 2, steps), np.float32), torch.empty(3, 2 * size, dtype=dtype)
    place = (0, 0, 3, first, stride)
    kernels.soften(team, raw(scores), raw(queries), *place, seen, raw(keys), ancestry, own)
    kernels.blend(team, raw(mixed), *place, raw(values), ancestry, own, raw(out))
    for row in range(3):
        for head in range(2):
            slot = row + 3 * head
            mine = [(keys[s, ancestry[s, row], 0].float() @ queries[slot].float()) for s in (0, 1)]
            line = torch.cat((expected[slot, : seen[row]], torch.stack(mine)))
            weights = torch.softmax(line.double(), 0).float()
            close(scores[slot, : seen[row]], weights[:-2])
            assert not scores[slot, seen[row] :].any()
            torch.testing.assert_close(
                torch.from_numpy(own[row, head]), weights[-2:], rtol=1e-4, atol=1e-6
            )
            taken = mixed[slot].float()
            for s in (0, 1):
                taken = taken + own[row, head, s] * values[s, ancestry[s, row], 0].float()
            close(out[row, head * size : (head + 1) * size], taken)


def test_compiled_or_loaded_a_kernel_gives_the_same_to_the_bit(tmp_path: Path):
    """A training that was killed goes on in a process that loads what the first one compiled."""
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path.cwd()),
    }
    printed: list[str] = []
    for _ in ("compiles", "loads"):
        command = [sys.executable, "-c", PRINTS_SUMS]
        printed.append(subprocess.check_output(command, text=True, env=environment))
    assert list(tmp_path.rglob("kernels.normalise*.nbc"))
    assert printed[0] == printed[1]
