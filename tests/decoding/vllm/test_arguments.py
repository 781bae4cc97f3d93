import numpy as np
import pytest

from decoding.vllm.arguments import check_legal, parse
from index.sid import SidLayout

LAYOUT = SidLayout((16, 16, 16))


def test_a_request_without_arguments_is_not_constrained_unless_all_are():
    assert parse(None, LAYOUT) is None
    assert parse({"other": 3}, LAYOUT) is None
    assert parse({"sid_constrained": False}, LAYOUT, always=True) is None
    every = parse(None, LAYOUT, always=True)
    assert every is not None and every.prefix == ()


@pytest.mark.parametrize("asked", [True, 1, "true"])
def test_a_constraint_is_asked_for(asked):
    assert parse({"sid_constrained": asked}, LAYOUT) is not None


def test_numbers_come_as_lists_or_as_bytes():
    prior = np.random.default_rng(0).normal(size=16).astype("<f4")
    codes = bytes([0b10001000, 0b1])
    listed = parse({"sid_prior": prior.tolist(), "sid_allowed": [3, 7, 8]}, LAYOUT)
    packed = parse({"sid_prior": prior.tobytes(), "sid_allowed": codes}, LAYOUT)
    assert listed is not None and packed is not None
    np.testing.assert_array_equal(listed.prior, packed.prior)
    np.testing.assert_array_equal(listed.allowed, packed.allowed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sid_prefx": [1]}, "unknown argument 'sid_prefx'; there are sid_constrained"),
        ({"sid_constrained": "maybe"}, "'maybe', it must be true or false"),
        ({"sid_constrained": False, "sid_prefix": [1]}, "is false, but"),
        ({"sid_prefix": 3}, "sid_prefix is 3, it must be a list of integers"),
        ({"sid_prefix": [1.0]}, "must be a list of integers"),
        ({"sid_prefix": [True]}, "must be a list of integers"),
        ({"sid_prefix": [-1]}, "code -1 at level 0, which has codes 0 to 15"),
        ({"sid_prefix": [1, 16]}, "code 16 at level 1"),
        ({"sid_prefix": [1, 1, 1, 1]}, "4 codes, a SID has 3"),
        ({"sid_allowed": [16]}, "code 16 at level 0"),
        ({"sid_allowed": []}, "is empty"),
        ({"sid_allowed": b"abc"}, "3 bytes, level 0 with 16 codes needs 2"),
        ({"sid_allowed": bytes(2)}, "is empty"),
        ({"sid_allowed": [-3, 4]}, "code -3 at level 0"),
        ({"sid_allowed": [1], "sid_prefix": [1, 1, 1]}, "what follows a whole SID"),
        ({"sid_allowed": [1], "sid_filter": ["<a_1>"]}, "exclude each other"),
        ({"sid_filter": "<a_1>"}, "must be a list of SIDs"),
        ({"sid_filter": []}, "is empty and leaves nothing"),
        ({"sid_filter": ["<b_1>"]}, "'<b_1>', which is no SID"),
        ({"sid_filter": ["<a_1><b_2>x"]}, "which is no SID"),
        ({"sid_filter": ["<a_16>"]}, "code 16 at level 0"),
        ({"sid_filter": ["<a_1>"] * 5000}, "5000 entries, 4096 at most"),
        ({"sid_prior": 1.0}, "must be a list of numbers"),
        ({"sid_prior": [0.0] * 15}, "15 numbers, after 0 codes it must have 16 or 48"),
        ({"sid_prior": [0.0], "sid_prefix": [1, 1, 1]}, "it must have no"),
        ({"sid_prior": [float("inf")] * 16}, "must be finite"),
        ({"sid_prior": [1e300] * 16}, "must be finite"),
        ({"sid_prior": b"abcde"}, "5 bytes"),
    ],
)
def test_what_is_wrong_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        parse(arguments, LAYOUT)


def test_without_levels_only_the_form_is_checked():
    assert parse({"sid_prefix": [900]}, None) is not None
    with pytest.raises(ValueError, match="not negative"):
        parse({"sid_prefix": [-1]}, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sid_prefix": [3, 5]}, r"sid_prefix \[3, 5\]: no SID begins"),
        ({"sid_filter": ["<a_3><b_5>", "<a_3><b_0><c_4>"]}, "leaves nothing"),
        ({"sid_filter": ["<a_7>"], "sid_prefix": [3]}, "leaves nothing"),
    ],
)
def test_what_no_sid_fits_is_said(tiny_trie, arguments, message):
    parsed = parse(arguments, LAYOUT)
    assert parsed is not None
    with pytest.raises(ValueError, match=message):
        check_legal(parsed, tiny_trie)


@pytest.mark.parametrize(
    "arguments",
    [
        {"sid_prefix": [3]},
        {"sid_prefix": [7, 7, 15], "sid_filter": ["<a_7>"]},
        {"sid_prefix": [3], "sid_filter": ["<a_3><b_5>", "<a_3><b_0><c_0>"]},
    ],
)
def test_what_sids_fit_is_taken(tiny_trie, arguments):
    parsed = parse(arguments, LAYOUT)
    assert parsed is not None
    check_legal(parsed, tiny_trie)
