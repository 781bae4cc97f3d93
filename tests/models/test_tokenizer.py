import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.errors import ArtifactError, ConfigError
from index.sid import SidLayout
from index.text import normalise
from models.tokenizer import SPECIAL_TOKENS, Tokenizer

LAYOUT = SidLayout((16, 8, 4))
TEXTS = [
    "Husky 3/8 in. drive ratchet set, 52 pieces",
    "white ceramic tile 12 in. x 12 in.",
    "cordless drill 20V lithium-ion drill kit",
    "drill bit set, white oak shelf",
    "Wasserhahn für die Küche",
] * 4
TOKENIZER = Tokenizer.train(TEXTS, 320, layout=LAYOUT)
MARKED = st.lists(
    st.one_of(st.sampled_from([*SPECIAL_TOKENS, "<a_1>", "<c_3>", "<b_", " "]), st.text(max_size=8))
).map("".join)


@given(MARKED)
@settings(max_examples=200, deadline=None)
def test_text_never_yields_special_or_sid_tokens(text: str):
    token_ids = TOKENIZER.encode_text(text)
    assert all(token < TOKENIZER.text_size for token in token_ids)
    assert TOKENIZER.decode_text(token_ids) == normalise(text)


def test_blocks_follow_text_and_special_tokens():
    assert list(TOKENIZER.special.values()) == list(
        range(TOKENIZER.text_size, TOKENIZER.text_size + len(SPECIAL_TOKENS))
    )
    first = TOKENIZER.text_size + len(SPECIAL_TOKENS)
    assert TOKENIZER.sid_offset == (first, first + 16, first + 24)
    assert TOKENIZER.level_slice(1) == slice(first + 16, first + 24)
    assert TOKENIZER.size == first + 28
    assert TOKENIZER.decode(TOKENIZER.sid_tokens((3, 7, 0))) == "<a_3><b_7><c_0>"


def test_batch_equals_single():
    assert TOKENIZER.encode_batch(TEXTS) == [TOKENIZER.encode_text(text) for text in TEXTS]


def test_training_is_deterministic(tmp_path: Path):
    TOKENIZER.save(tmp_path)
    first = (tmp_path / "tokenizer.json").read_bytes()
    Tokenizer.train(TEXTS, 320, layout=LAYOUT).save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == first


def test_saved_tokenizer_opens_here_and_in_transformers(tmp_path: Path):
    from transformers import PreTrainedTokenizerFast

    TOKENIZER.save(tmp_path)
    opened = Tokenizer.open(tmp_path, LAYOUT)
    text = "white <a_1> drill"
    assert opened.encode_text(text) == TOKENIZER.encode_text(text)
    assert opened.sid_offset == TOKENIZER.sid_offset
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert theirs.encode("<a_2>", add_special_tokens=False) == [TOKENIZER.sid_offset[0] + 2]
    assert theirs.encode("white drill", add_special_tokens=False) == TOKENIZER.encode_text(
        "white drill"
    )
    prompt = [*TOKENIZER.encode_text("white drill"), *TOKENIZER.sid_tokens((1, 2, 3))]
    assert theirs.decode(prompt, skip_special_tokens=True).strip() == "white drill"


def test_wrong_layouts_and_files_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="256"):
        Tokenizer.train(TEXTS, 100, layout=LAYOUT)
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        Tokenizer.open(tmp_path, LAYOUT)
    TOKENIZER.save(tmp_path)
    with pytest.raises(ArtifactError, match="level 1"):
        Tokenizer.open(tmp_path, SidLayout((16, 6, 4)))
    with pytest.raises(ArtifactError, match="<d_0>"):
        Tokenizer.open(tmp_path, SidLayout((16, 8, 4, 4)))
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    raw["model"]["type"] = "nothing"
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(ArtifactError, match="no tokenizer"):
        Tokenizer.open(tmp_path, LAYOUT)
