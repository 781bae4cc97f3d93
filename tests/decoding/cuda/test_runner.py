import time

import numpy as np
import pytest
import torch

from decoding.cuda.runner import CudaRunner
from decoding.engine import Hypotheses, Prompt
from decoding.errors import DeadlineExceeded
from decoding.native.runner import Runner, Search
from index.errors import ArtifactError, ConfigError
from index.live.trie import LiveTrie
from index.sid import SidLayout
from index.trie import Trie

TOLERANCE = 1e-4


@pytest.fixture
def runner(decoder, make_trie) -> CudaRunner:
    return CudaRunner(decoder.weights, make_trie(0, 200), graphs=False)


def check_equal(found: object, expected: object) -> None:
    assert isinstance(found, Hypotheses) and isinstance(expected, Hypotheses)
    np.testing.assert_allclose(found.scores, expected.scores, atol=TOLERANCE)
    assert np.array_equal(found.leaves, expected.leaves)
    assert np.array_equal(found.codes, expected.codes)
    assert np.array_equal(found.branching, expected.branching)
    np.testing.assert_allclose(found.level_scores, expected.level_scores, atol=TOLERANCE)
    assert found.complete == expected.complete
    kinds = [found.leaves.dtype, found.codes.dtype, found.scores.dtype, found.branching.dtype]
    assert kinds == [np.int64, np.int32, np.float32, np.int32]


def prompt(seed: int, length: int, *, prior: bool = False) -> Prompt:
    random = np.random.default_rng(seed)
    table = tuple(random.normal(0, 2, 16).astype(np.float32) for _ in range(3)) if prior else None
    return Prompt(random.integers(0, 40, length).astype(np.int32), table)


def test_a_wave_of_mixed_searches_equals_the_cpu_runner(runner, decoder, make_trie):
    trie = runner.trie
    random = np.random.default_rng(0)
    filters = [None, *(trie.filter(random.random(trie.n_leaves) < share) for share in (0.2, 0.0))]
    live = LiveTrie.of(trie, trie.layout.pack(random.integers(0, 16, (30, 3))))
    searches = [
        Search(prompt(0, 5), 3),
        Search(prompt(1, 9, prior=True), 7, filters[1]),
        Search(prompt(2, 1), 4, filters[2]),
        Search(prompt(3, 2), 5, trie=live),
        Search(prompt(3, 2), 5, trie=make_trie(1, 50)),
    ]
    found = runner.run(searches)
    for one, other in zip(found, Runner(decoder.weights, trie).run(searches), strict=True):
        check_equal(one, other)
    # A prior of an earlier wave is gone.
    again = runner.run([Search(prompt(1, 9), 7), Search(prompt(1, 9), 7, filters[1])])
    expected = Runner(decoder.weights, trie).run([Search(prompt(1, 9), 7)])
    check_equal(again[0], expected[0])


def test_a_beam_of_all_sids(decoder, make_trie):
    trie = make_trie(1, 5)
    (found,) = CudaRunner(decoder.weights, trie, graphs=False).search_batch([prompt(0, 3)], 50)
    (expected,) = Runner(decoder.weights, trie).search_batch([prompt(0, 3)], 50)
    check_equal(found, expected)
    assert len(found) == trie.n_leaves and not found.complete


def test_late_and_cancelled_searches_end_alone(runner):
    late, gone = time.monotonic() - 1, lambda: True
    results = runner.run(
        [
            Search(prompt(0, 3), 2),
            Search(prompt(0, 3), 2, deadline=late),
            Search(prompt(0, 3), 2, cancelled=gone),
        ]
    )
    assert isinstance(results[0], Hypotheses)
    assert isinstance(results[1], DeadlineExceeded)
    assert results[2] is None


def test_wrong_searches_are_refused(runner, decoder, make_trie):
    with pytest.raises(ConfigError, match="beam_width"):
        runner.check([prompt(0, 3)], 0, None)
    other = make_trie(9, 20)
    everything = other.filter(np.ones(other.n_leaves, dtype=np.bool_))
    with pytest.raises(ConfigError, match="filter"):
        runner.check([prompt(0, 3)], 1, everything)
    with pytest.raises(ConfigError, match="prompt"):
        runner.check([Prompt(np.zeros(62, dtype=np.int32))], 1, None)
    layout = SidLayout((16, 16))
    trie = Trie.build(layout, np.arange(9, dtype=np.uint64))
    with pytest.raises(ArtifactError, match="codecs"):
        CudaRunner(decoder.weights, trie)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
def test_graphs_equal_single_operations(make_decoder, make_trie):
    trie = make_trie(2, 300)
    weights = make_decoder(device="cuda").weights
    plain, graphs = CudaRunner(weights, trie, graphs=False), CudaRunner(weights, trie)
    graphs.warm_up()
    for width in (5, 20, 5):
        searches = [Search(prompt(seed, 8, prior=True), width) for seed in range(3)]
        for one, other in zip(graphs.run(searches), plain.run(searches), strict=True):
            check_equal(one, other)
