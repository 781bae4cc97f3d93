"""FGM: training on embeddings that were moved where the loss rises fastest (OneSearch-V2).

    δ = ε · g / ‖g‖₂        g = ∂(CE + α_KL · KL) / ∂(input embeddings)

The norm is taken over an example's own tokens: packed rows hold several examples, and a long
example must not take the others' share.
"""

from __future__ import annotations

import torch

EPSILON = 0.6


def perturbation(
    gradient: torch.Tensor, example: torch.Tensor, examples: int, epsilon: float = EPSILON
) -> torch.Tensor:
    """δ, of the gradient's shape and dtype.

    gradient (rows, tokens, d); example int64 (rows, tokens): which of `examples` a token belongs
    to, negative for padding, whose δ is 0. An example with gradient 0 has δ = 0.
    """
    exact = torch.promote_types(gradient.dtype, torch.float32)
    norms = torch.linalg.vector_norm(gradient.detach(), dim=-1, dtype=exact)
    squares = norms.square().flatten()
    belongs = example.flatten()
    # Padding goes to a place of its own: no shape depends on the data.
    place = torch.where(belongs < 0, examples, belongs)
    sums = squares.new_zeros(examples + 1).index_add_(0, place, squares)
    factors = epsilon * sums.rsqrt().nan_to_num(posinf=0.0)
    factors[examples] = 0.0
    scale = factors[place]
    return gradient.detach() * scale.view(*example.shape, 1).to(gradient.dtype)
