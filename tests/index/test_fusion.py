import numpy as np
import pytest

from index.attributes import AttributeDictionary, AttributeMatcher
from index.encoder import StaticEncoder, unit_rows
from index.fusion import PUBLISHED_WEIGHT, fuse

BUCKETS = 1024
TABLE = np.random.default_rng(0).standard_normal((BUCKETS, 8)).astype(np.float32)
ENCODER = StaticEncoder.from_table(TABLE, np.arange(BUCKETS, dtype=np.int32))
MATCHER = AttributeMatcher(
    AttributeDictionary.of({"Color": {"red": [], "black": []}, "Material": {"oak": []}})
)


@pytest.mark.parametrize("weight", [0.25, PUBLISHED_WEIGHT, 1.0])
def test_fused_is_the_mean_of_text_and_keywords(weight: float):
    own, red, oak = ENCODER.encode(["red oak desk", "red", "oak"])
    expected = unit_rows(((1 - weight) * own + weight * (red + oak) / 2)[None])
    fused = fuse(ENCODER, MATCHER, ["red oak desk"], weight)
    np.testing.assert_allclose(fused, expected, atol=1e-6)


def test_without_keywords_or_weight_the_embedding_is_plain():
    texts = ["steel lamp", "", "red desk"]
    plain = ENCODER.encode(texts)
    fused = fuse(ENCODER, MATCHER, texts, 0.5)
    np.testing.assert_allclose(fused[:2], plain[:2], atol=1e-6)
    assert not fused[1].any()
    assert np.abs(fused[2] - plain[2]).max() > 0.01
    np.testing.assert_array_equal(fuse(ENCODER, MATCHER, texts, 0.0), plain)
    np.testing.assert_array_equal(fuse(ENCODER, MATCHER, texts[:2], 0.5), plain[:2])


def test_a_text_fuses_the_same_alone_and_in_company():
    texts = ["red desk", "black oak lamp", "chair", "red oak red"]
    together = fuse(ENCODER, MATCHER, texts, 0.5)
    alone = np.concatenate([fuse(ENCODER, MATCHER, [text], 0.5) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_no_texts():
    assert fuse(ENCODER, MATCHER, [], 0.5).shape == (0, 8)
