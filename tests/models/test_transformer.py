import pytest
import torch

from index.errors import ConfigError
from models.dropout import Dropout
from models.rows import Points
from models.transformer import Qwen3, Qwen3Config

CONFIG = Qwen3Config(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
)


def model() -> Qwen3:
    generator = torch.Generator().manual_seed(0)
    made = Qwen3(CONFIG).initialise(generator)
    with torch.no_grad():
        for parameter in made.parameters():
            # Away from the initial state: unit norms would hide a norm in the wrong place.
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return made


def test_config_survives_its_json():
    assert Qwen3Config.from_json(CONFIG.to_json()) == CONFIG


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model_type": "llama"}, "llama"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "yarn"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
    ],
)
def test_config_refuses_what_the_model_cannot_do(change: dict[str, object], word: str):
    with pytest.raises(ConfigError, match=word):
        Qwen3Config.from_json(CONFIG.to_json() | change)


def test_gradients_equal_those_of_plain_operations():
    """The hand-written backward passes against autograd through the same formulas, in float64."""
    made = model().double()
    token_ids = torch.randint(0, 97, (2, 7), generator=torch.Generator().manual_seed(1))

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + CONFIG.rms_norm_eps) * weight

    def plain(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        x = tensors["model.embed_tokens.weight"][token_ids]
        angles = torch.arange(7.0)[:, None] * (1e4 ** (-torch.arange(0, 16, 2) / 16.0))
        angles = torch.cat((angles, angles), -1)
        cosine, sine = angles.cos().double(), angles.sin().double()

        def rotate(y: torch.Tensor) -> torch.Tensor:
            return y * cosine + torch.cat((-y[..., 8:], y[..., :8]), -1) * sine

        for layer in range(2):
            w = {
                k.removeprefix(f"model.layers.{layer}.").removesuffix(".weight"): v
                for k, v in tensors.items()
            }
            y = norm(x, w["input_layernorm"])
            q = (y @ w["self_attn.q_proj"].T).view(2, 7, 4, 16)
            k = (y @ w["self_attn.k_proj"].T).view(2, 7, 2, 16)
            v = (y @ w["self_attn.v_proj"].T).view(2, 7, 2, 16).transpose(1, 2)
            q = rotate(norm(q, w["self_attn.q_norm"]).transpose(1, 2))
            k = rotate(norm(k, w["self_attn.k_norm"]).transpose(1, 2)).repeat_interleave(2, 1)
            scores = q @ k.transpose(-1, -2) / 4
            scores = scores.masked_fill(~torch.ones(7, 7).tril().bool(), float("-inf"))
            mixed = scores.softmax(-1) @ v.repeat_interleave(2, 1)
            x = x + mixed.transpose(1, 2).reshape(2, 7, 64) @ w["self_attn.o_proj"].T
            y = norm(x, w["post_attention_layernorm"])
            gate = torch.nn.functional.silu(y @ w["mlp.gate_proj"].T)
            x = x + (gate * (y @ w["mlp.up_proj"].T)) @ w["mlp.down_proj"].T
        return norm(x, tensors["model.norm.weight"]) @ tensors["lm_head.weight"].T

    direction = torch.randn(2, 7, 97, generator=torch.Generator().manual_seed(2)).double()
    tensors = {k: v.detach().clone().requires_grad_() for k, v in made.state_dict().items()}
    expected = plain(tensors)
    (expected * direction).sum().backward()
    actual = made(token_ids)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)
    (actual * direction).sum().backward()
    for name, parameter in made.named_parameters():
        torch.testing.assert_close(
            parameter.grad, tensors[name].grad, atol=2e-5, rtol=2e-5, msg=name
        )


def test_packed_examples_do_not_see_each_other():
    made = model()
    first, second = torch.arange(5)[None], torch.arange(20, 29)[None]
    packed = torch.cat((first, second), dim=1)
    example = torch.tensor([0] * 5 + [1] * 9)
    mask = (example[:, None] == example[None]) & torch.ones(14, 14).tril().bool()
    position_ids = torch.cat((torch.arange(5), torch.arange(9)))[None]
    hidden = made.hidden(packed, position_ids, mask[None, None])
    alone = torch.cat((made.hidden(first), made.hidden(second)), dim=1)
    torch.testing.assert_close(hidden, alone, atol=1e-5, rtol=1e-5)


def test_padding_that_sees_nothing_stays_finite():
    made = model()
    mask = torch.ones(6, 6).tril().bool()
    mask[4:] = False
    loss = made.hidden(torch.zeros(1, 6, dtype=torch.long), None, mask[None, None])[:, :4].sum()
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())


def test_level_logits_are_a_slice_of_the_logits():
    made = model()
    hidden = made.hidden(torch.arange(6)[None])
    assert torch.equal(made.level_logits(hidden, slice(40, 56)), made.logits(hidden)[..., 40:56])


def test_embeddings_in_place_of_tokens_carry_gradients():
    made, token_ids = model(), torch.arange(6)[None]
    embeddings = made.embed(token_ids).detach().requires_grad_()
    hidden = made.hidden(None, inputs_embeds=embeddings)
    torch.testing.assert_close(hidden, made.hidden(token_ids))
    hidden.sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad.abs().sum() > 0
    with pytest.raises(ConfigError, match="inputs_embeds"):
        made.hidden(None)


def test_dropout_is_a_function_of_its_seed():
    made, token_ids = model(), torch.arange(6)[None]
    dropped = [made.hidden(token_ids, dropout=Dropout(0.3, (seed,))) for seed in (1, 1, 2)]
    assert torch.equal(dropped[0], dropped[1])
    assert not torch.equal(dropped[0], dropped[2])
    assert torch.equal(made.hidden(token_ids, dropout=Dropout(0.0)), made.hidden(token_ids))


def test_states_of_points_are_those_of_the_whole_rows():
    """Values and gradients, with packed rows, positions of their own, and filled up points."""
    token_ids = torch.randint(0, 97, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(9, 9).tril().bool().expand(3, 1, 9, 9).clone()
    mask[1, 0, 5:, :5] = False
    position_ids = torch.arange(9).expand(3, 9) % torch.tensor([[9], [5], [9]])
    places = torch.tensor([[8, 3, 0, 0], [4, 8, 5, 0], [1, 2, 3, 4]])
    kept = torch.tensor([0, 1, 4, 5, 6, 8, 9, 10, 11])
    position = (places + 9 * torch.arange(3)[:, None]).flatten()[kept]
    direction = torch.randn(9, 32, generator=torch.Generator().manual_seed(2))
    found: list[list[torch.Tensor]] = []
    for points in (Points(places, kept, position), None):
        made = model()
        hidden = made.hidden(token_ids, position_ids, mask, points=points)
        if points is None:
            hidden = hidden.flatten(0, 1)[position]
        (hidden * direction).sum().backward()
        gradients = [p.grad for p in made.model.parameters() if p.grad is not None]
        found.append([hidden.detach(), *gradients])
    assert len(found[0]) == len(found[1])
    for short, whole in zip(*found, strict=True):
        torch.testing.assert_close(short, whole, atol=1e-5, rtol=1e-4)


def test_passes_share_a_frame():
    made, token_ids = model(), torch.arange(6)[None]
    mask = torch.ones(6, 6).tril().bool()[None, None].clone()
    mask[..., 3:, :2] = False
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    frame = made.frame(positions, mask, torch.float32)
    assert torch.equal(made.hidden(token_ids, frame=frame), made.hidden(token_ids, positions, mask))


def test_computing_again_gives_the_same_gradients_under_dropout():
    token_ids = torch.randint(0, 97, (2, 7), generator=torch.Generator().manual_seed(1))
    gradients: list[list[torch.Tensor]] = []
    for recompute in (False, True):
        made = model()
        made.recompute = recompute
        made.hidden(token_ids, dropout=Dropout(0.2, (3,))).square().sum().backward()
        gradients.append([p.grad for p in made.model.parameters() if p.grad is not None])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_bfloat16_autocast_learns_a_sequence():
    made = model()
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2)
    token_ids = torch.arange(12)[None]
    for _ in range(40):
        with torch.autocast("cpu", torch.bfloat16):
            logits = made(token_ids[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits[0].float(), token_ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert logits.dtype == torch.bfloat16
    assert loss.item() < 0.1
