"""The compact id set against a Python set."""

from hypothesis import given
from hypothesis import strategies as st

from index.importers.id_set import IdSet, hash_of


@given(st.lists(st.text(max_size=4)))
def test_it_behaves_like_a_set(texts: list[str]) -> None:
    ids, oracle = IdSet(), set[str]()
    for text in texts:
        assert (text in ids) == (text in oracle)
        assert ids.add(text) == (text not in oracle)
        oracle.add(text)
    assert len(ids) == len(oracle)


def test_it_grows() -> None:
    ids = IdSet()
    assert all(ids.add(str(number)) for number in range(20_000))
    assert not any(ids.add(str(number)) for number in range(20_000))
    assert len(ids) == 20_000
    assert "20000" not in ids


def test_hashes_are_the_same_in_every_process() -> None:
    assert hash_of("sku-1") == hash_of("sku-1") != hash_of("sku-2")
    assert hash_of("") > 0
