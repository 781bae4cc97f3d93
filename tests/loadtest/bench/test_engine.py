import json

import numpy as np
import pytest
import torch

from decoding.reference import Oracle, stepwise_beam
from decoding.weights import DecoderWeights
from index.trie import Trie
from loadtest.bench import engine, hugging_face, prefix_mask, row_expanded, vllm_peer
from loadtest.bench.catalogues import random_keys
from loadtest.bench.engine import Contestant, _affordable, compare, make_bed, random_bed
from loadtest.bench.hugging_face import HuggingFace
from loadtest.bench.random_checkpoint import LAYOUT, Size, write_random_checkpoint
from loadtest.bench.report import EQUAL, OURS
from loadtest.bench.roofline import gemm_peak, useful_flops
from loadtest.bench.row_expanded import RowExpanded
from loadtest.bench.vllm_peer import Vllm, VllmFailed
from models.transformer import Qwen3, Qwen3Config

TINY = Size(hidden=32, intermediate=48, layers=2, heads=4, key_heads=2, head_dim=32)


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("checkpoint")
    write_random_checkpoint(folder, TINY, text_tokens=64)
    trie = Trie.build(LAYOUT, random_keys(LAYOUT, 300), assume_sorted=True)
    made = make_bed("tiny", folder, trie)
    return engine.Bed("tiny", folder, trie, made.prompts[:, :9], made.exact)


def expected(bed: engine.Bed, width: int) -> list[list[list[int]]]:
    """Beams of the oracle that asks the training module for whole sequences."""
    from safetensors.torch import load_file

    model = Qwen3(Qwen3Config.from_json(json.loads((bed.checkpoint / "config.json").read_bytes())))
    model.load_state_dict(load_file(bed.checkpoint / "model.safetensors"))
    weights = DecoderWeights.from_directory(bed.checkpoint)
    oracle = Oracle(model.hidden, weights.level_output, weights.sid_offset)
    prompts = [engine.Prompt(prompt.astype(np.int32)) for prompt in bed.prompts[:2]]
    return [
        [list(sid) for sid, _ in stepwise_beam(oracle, bed.trie, prompt, width)]
        for prompt in prompts
    ]


@pytest.mark.parametrize("width", [1, 6])
def test_every_engine_equals_the_oracle(bed, width):
    wanted = expected(bed, width)
    arguments = (bed.checkpoint, torch.float32, bed.trie, bed.exact.weights.sid_offset)
    prompts = torch.from_numpy(bed.prompts[:2])
    own = engine._own_search(bed.exact, bed.prompts, 2, width)
    assert [found.tolist() for found in own] == wanted
    assert RowExpanded(*arguments).search(prompts, width).tolist() == wanted
    if prefix_mask.why_missing() is None and width > 1:
        assert HuggingFace(*arguments).search(prompts, width).tolist() == wanted


@pytest.mark.slow
@pytest.mark.skipif(vllm_peer.why_missing() is not None, reason="make vllm-env")
def test_vllm_equals_the_oracle(bed):
    with Vllm(bed.checkpoint, bed.trie, "float32", 6) as vllm:
        vllm.wait()
        found = vllm.search(bed.prompts[:2], 6)
    assert [codes.tolist() for codes in found.answer] == expected(bed, 6)
    assert found.seconds > 0


def test_a_vllm_that_fails_says_why(bed, monkeypatch, tmp_path):
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\necho no such model >&2\n")
    failing.chmod(0o755)
    monkeypatch.setattr(vllm_peer, "PYTHON", failing)
    with (
        Vllm(bed.checkpoint, bed.trie, "float32", 6) as vllm,
        pytest.raises(VllmFailed, match="no such model"),
    ):
        vllm.wait()
    found = compare(bed, "float32", True, queries=(1,), widths=(4,), own_widths=())
    assert "no such model" in found[0]["peers"][vllm_peer.NAME]


def test_rows(bed, monkeypatch):
    monkeypatch.setattr(engine, "ROUNDS", 1)
    monkeypatch.setattr(vllm_peer, "why_missing", lambda: "not installed: make vllm-env")
    found = compare(bed, "float32", True, queries=(1, 2), widths=(4,), own_widths=(8,))
    assert [(one["setting"]["queries"], one["setting"]["beam"]) for one in found] == [
        (1, 4),
        (2, 4),
        (1, 8),
        (2, 8),
    ]
    first = found[0]
    assert first["peers"][vllm_peer.NAME] == "not installed: make vllm-env"
    assert {hugging_face.NAME, row_expanded.NAME} == set(first["answers"])
    assert set(first["answers"].values()) == {EQUAL}
    assert set(first["by_threads"][OURS]) == {str(count) for count in engine._thread_counts()}
    assert 0 < first["peak_share"][OURS] < 1
    assert found[2]["peers"] == {}


def test_half_precision_tells_its_own_agreement(bed, monkeypatch):
    monkeypatch.setattr(engine, "ROUNDS", 1)
    monkeypatch.setattr(vllm_peer, "why_missing", lambda: "not installed")
    (found,) = compare(bed, "bfloat16", True, queries=(2,), widths=(16,), own_widths=())
    own = found["answers"].get(OURS, EQUAL)
    assert own == EQUAL or own.startswith(tuple(str(right) for right in range(20, 32)))


def test_what_would_take_too_long_is_left_out_with_an_estimate():
    def search(count: int, width: int) -> None: ...

    one, two = Contestant("slow", 1, search), Contestant("slow", 2, search)
    quick = Contestant("quick", 1, search)
    pace = {one.key: 0.02, two.key: 0.01, quick.key: 0.0001}
    assert _affordable([one, two, quick], pace, 100) == ([one, two, quick], {})
    assert _affordable([one, two, quick], pace, 1000) == ([two, quick], {})
    chosen, left_out = _affordable([one, two, quick], pace, 10_000)
    assert chosen == [quick]
    assert left_out == {"slow": "not run: about 100 s by its pace before"}


def test_useful_flops_of_one_row_are_counted_by_hand(bed):
    shape = bed.exact.weights.shape
    # d 32, H·D 128, C·D 64: keys and values 2·32·64, the rest 2·32·128 + 3·32·48.
    key_values, rest = 4096, 8192 + 4608
    prompt = 9
    weights = (
        (key_values + rest) * prompt + key_values * prompt + rest + 2 * 2 * (key_values + rest)
    )
    outputs = 32 * (512 + 256 + 256)
    attended = 45 + 9 + 2 * (10 + 11)
    found = useful_flops(shape, 48, LAYOUT, queries=3, prompt_tokens=prompt, rows=[1, 1, 1])
    assert found == 3 * (2 * (weights + outputs) + 4 * 128 * attended)


def test_gemm_peak_leaves_threads_as_they_were():
    before = torch.get_num_threads()
    assert gemm_peak(torch.float32, 1, seconds=0.03) > 1e8
    assert torch.get_num_threads() == before


def test_random_beds_clean_up():
    with random_bed("tiny", TINY, sids=50) as made:
        assert made.trie.n_leaves == 50
        assert made.prompts.shape == (8, 64)
    assert not made.checkpoint.exists()
