"""Exhaustive scores against the oracle, and where the comparison runs."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from decoding.engine import Prompt
from decoding.reference import Oracle, brute_force, stepwise_beam
from decoding.weights import DecoderWeights
from index.errors import ConfigError
from index.sid import SidLayout
from index.trie import Trie
from loadtest.bench import parity
from loadtest.bench.catalogues import random_keys
from loadtest.bench.exhaustive import Model, NodeScores, prefixes_of
from loadtest.bench.random_checkpoint import Size, write_random_checkpoint
from loadtest.bench.vllm_peer import VllmFailed

LAYOUT = SidLayout((6, 5, 4))


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_exhaustive_scores_are_the_oracles(tmp_path: Path, share: float):
    write_random_checkpoint(tmp_path, Size(32, 48, 2, 2, 1, 16), LAYOUT, text_tokens=20)
    random = np.random.default_rng(1)
    trie = Trie.build(LAYOUT, random_keys(LAYOUT, 40))
    prior = tuple(random.normal(0, 2, size).astype(np.float32) for size in LAYOUT.level_sizes)
    prompt = Prompt(random.integers(0, 20, 7).astype(np.int32), prior)
    model, weights = Model.open(tmp_path), DecoderWeights.from_directory(tmp_path)
    oracle = Oracle(model.module.hidden, weights.level_output, weights.sid_offset)
    allowed = None if share == 1.0 else trie.filter(random.random(trie.n_leaves) < share)
    scores = NodeScores.of(model, trie, prompt, allowed)
    wanted = brute_force(oracle, trie, prompt, allowed)
    best = scores.best(len(wanted) + 3, allowed)
    assert list(map(tuple, trie.codes_of_leaves(best).tolist())) == [sid for sid, _ in wanted]
    np.testing.assert_allclose(scores.scores[-1][best], [one for _, one in wanted], atol=1e-5)
    beam = scores.beam(5, allowed)
    found = list(map(tuple, trie.codes_of_leaves(beam).tolist()))
    assert found == [sid for sid, _ in stepwise_beam(oracle, trie, prompt, 5, allowed)]
    assert prefixes_of(trie, allowed) <= 1 + trie.node_counts[0] + trie.node_counts[1]


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_it_runs_in_its_environment_or_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(parity, "PYTHON", tmp_path / "python")
    with pytest.raises(ConfigError, match="make vllm-env"):
        parity.rows(quick=True)
    program = tmp_path / "python"
    answer = json.dumps({"rows": [{"what": "it"}]})
    program.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/asked\necho noise\necho '{answer}'\n")
    program.chmod(0o755)
    found = parity.rows(quick=True, snapshot=Path("S"), checkpoint=Path("C"))
    assert found == [{"what": "it"}]
    asked = (tmp_path / "asked").read_text()
    assert asked.endswith("bench parity --json --quick --snapshot S --checkpoint C\n")
    program.write_text("#!/bin/sh\necho error: no room >&2\necho bye >&2\nexit 2\n")
    with pytest.raises(VllmFailed, match=r"error: no room$"):
        parity.TABLES["speed"](True)
