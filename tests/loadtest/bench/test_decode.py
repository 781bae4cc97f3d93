import numpy as np
import pytest
import torch

from index.sid import SidLayout
from index.trie import Trie
from loadtest.bench import decode, flashrec_trie, padded, prefix_mask
from loadtest.bench.catalogues import random_keys
from loadtest.bench.decode import Catalogue, StandIn, compare, found_keys, random_pools, search
from loadtest.bench.flashrec_trie import FlashRecTrie
from loadtest.bench.padded import PaddedScheme
from loadtest.bench.prefix_mask import PrefixMask
from loadtest.bench.report import EQUAL

LAYOUT = SidLayout((32, 16, 8, 8))


def catalogue(law="uniform", sids: int = 500) -> Catalogue:
    return Catalogue.make(sids, law, LAYOUT)


def exhaustive(trie: Trie, model: StandIn) -> dict[int, float]:
    """Every SID's score, from the definition."""
    codes = torch.from_numpy(trie.layout.unpack(trie.keys)).long()
    total = torch.zeros(len(codes), dtype=torch.float64)
    for level in range(trie.layout.levels):
        rows = model(level, codes[:, level - 1] if level else None)
        scores = torch.log_softmax(rows.double().expand(len(codes), -1), dim=-1)
        total += scores.gather(1, codes[:, level : level + 1])[:, 0]
    return dict(zip(trie.keys.tolist(), total.tolist(), strict=True))


def peers(trie: Trie, model: StandIn):
    """Each peer with the model as it wants it."""
    masked = PrefixMask(trie)
    spread = StandIn([masked.spread(pool, level) for level, pool in enumerate(model.pools)])
    published = PaddedScheme.build(padded.one_space(LAYOUT), LAYOUT.unpack(trie.keys))
    found = {
        padded.PUBLISHED_NAME: (
            published.search,
            StandIn([published.spread(pool) for pool in model.pools]),
        ),
        padded.NAME: (PaddedScheme.build(LAYOUT, LAYOUT.unpack(trie.keys)).search, model),
        prefix_mask.NAME: (masked.search, spread),
    }
    if flashrec_trie.why_missing() is None:
        found[flashrec_trie.NAME] = (FlashRecTrie(trie).search, model)
    return found


@pytest.mark.parametrize("law", ["uniform", "zipf"])
def test_ours_and_every_peer_equal_brute_force_when_the_beam_holds_everything(law):
    trie = catalogue(law, sids=30).trie
    model = StandIn(random_pools(LAYOUT, 1))
    expected = exhaustive(trie, model)
    ranked = sorted(expected, key=lambda key: -expected[key])
    assert search(trie, None, model, 30).tolist() == ranked
    for name, (run, its_model) in peers(trie, model).items():
        codes, scores = run(its_model, 30)
        found = found_keys(LAYOUT, codes, scores)
        if name == flashrec_trie.NAME and len(found) < 30:
            # Its last step makes NaN of everything once a beam has died.
            assert law == "zipf" and set(found) <= set(ranked)
            continue
        assert found == ranked, name
        wanted = [expected[key] for key in ranked]
        np.testing.assert_allclose(scores[: len(wanted)], wanted, atol=1e-4)


@pytest.mark.parametrize("law", ["uniform", "zipf"])
def test_exact_peers_agree_with_ours_in_a_narrow_beam(law):
    trie = catalogue(law).trie
    model = StandIn(random_pools(LAYOUT, 2))
    for width in (1, 7, 32):
        wanted = search(trie, None, model, width).tolist()
        for name, (run, its_model) in peers(trie, model).items():
            if name != flashrec_trie.NAME:
                assert found_keys(LAYOUT, *run(its_model, width)) == wanted, name


def test_the_padded_scheme_keeps_illegal_rows_only_at_minus_infinity():
    trie = catalogue(sids=5).trie
    model = StandIn(random_pools(LAYOUT, 3))
    codes, scores = PaddedScheme.build(LAYOUT, LAYOUT.unpack(trie.keys)).search(model, 20)
    assert len(scores) == 20
    assert torch.isfinite(scores).sum() == 5
    assert set(found_keys(LAYOUT, codes, scores)) == set(trie.keys.tolist())


@pytest.mark.skipif(flashrec_trie.why_missing() is not None, reason="flashrec is not installed")
def test_flashrec_tables_from_arrays_equal_its_own_build(monkeypatch):
    trie = catalogue().trie
    own = FlashRecTrie(trie)
    monkeypatch.setattr(flashrec_trie, "MOST_OWN_BUILD_SIDS", 0)
    filled = FlashRecTrie(trie)
    assert filled.path._invalid_node == own.path._invalid_node
    own.path._build_csr_cache(
        torch.device("cpu"), 0, sum(LAYOUT.level_sizes), own.path._invalid_node
    )
    assert torch.equal(filled.path._csr_keys, own.path._csr_keys)
    assert torch.equal(filled.path._csr_child, own.path._csr_child)
    model = StandIn(random_pools(LAYOUT, 4))
    own.path._cache_device = None
    one, two = own.search(model, 16), filled.search(model, 16)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_rows_say_who_was_right_under_a_filter(monkeypatch):
    monkeypatch.setattr(decode, "ROUNDS", 1)
    found = compare(catalogue(), (8, 16), what="filtered", share=0.05)
    assert [row["setting"]["beam"] for row in found] == [8, 16]
    for row in found:
        assert row["setting"]["kept"] == "5%"
        assert row["answers"][padded.NAME] == row["answers"][prefix_mask.NAME] == EQUAL
        assert len(row["ours_by_level"]) == LAYOUT.levels
        names = {padded.NAME, padded.PUBLISHED_NAME, prefix_mask.NAME, flashrec_trie.NAME}
        assert set(row["peers"]) == names


def test_absent_peers_are_named(monkeypatch):
    monkeypatch.setattr(decode, "ROUNDS", 1)
    monkeypatch.setattr(flashrec_trie, "why_missing", lambda: "not installed: no flashrec")
    monkeypatch.setattr(prefix_mask, "why_missing", lambda: "not installed: no transformers")
    (row,) = compare(catalogue(), (4,), what="alone")
    assert row["peers"][flashrec_trie.NAME] == "not installed: no flashrec"
    assert set(row["ratio"]) == {padded.NAME, padded.PUBLISHED_NAME}


def test_the_filter_changes_the_answer():
    whole = catalogue()
    mask = np.arange(whole.trie.n_leaves) % 9 == 0
    model = StandIn(random_pools(LAYOUT, 5))
    found = search(whole.trie, whole.trie.filter(mask), model, 12)
    narrow = Trie.build(LAYOUT, random_keys(LAYOUT, 500)[mask])
    assert found.tolist() == search(narrow, None, model, 12).tolist()
