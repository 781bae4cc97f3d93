import numpy as np

from decoding.cuda.bucket import MAX_CONTEXT_TOKENS, Bucket, parts

LONGEST = 8192


def test_a_bucket_holds_its_part_and_no_more_positions_than_there_are():
    assert Bucket.of(3, 33, 300, LONGEST) == (3, 50, 300)
    assert Bucket.of(5, 2000, 8000, LONGEST) == (6, 2048, 8000)
    assert Bucket.of(1, 1, 1, 20) == (1, 8, 20)


def test_every_search_is_in_one_part_that_holds_it():
    random = np.random.default_rng(0)
    for _ in range(30):
        count = int(random.integers(1, 40))
        widths = random.integers(1, 600, count).tolist()
        lengths = random.integers(1, 6000, count).tolist()
        found = parts(widths, lengths, 4, LONGEST)
        assert sorted(row for rows, _ in found for row in rows) == list(range(count))
        for rows, bucket in found:
            assert len(rows) <= bucket.queries
            assert max(widths[row] for row in rows) <= bucket.width
            assert max(lengths[row] for row in rows) <= bucket.length
            assert len(rows) == 1 or bucket.queries * bucket.length <= MAX_CONTEXT_TOKENS


def test_small_searches_stay_together_and_wide_ones_leave_them():
    assert len(parts([10, 16, 32], [60, 60, 60], 4, LONGEST)) == 1
    # Padding three narrow searches to 1000 beams costs more than reading the weights again.
    assert len(parts([10, 10, 10, 1000], [300] * 4, 4, LONGEST)) == 2
