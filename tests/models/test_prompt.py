import numpy as np
import pytest

from index.errors import ConfigError
from index.sid import SidLayout
from models.prompt import PromptBuilder, PromptSettings
from models.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["white drill"] * 3, 260, layout=SidLayout((16, 8)))
SETTINGS = PromptSettings(
    max_query_tokens=4, max_history=2, max_keyword_tokens=3, query_code_count=2
)
BUILDER = PromptBuilder(TOKENIZER, SETTINGS)


def shown(prompt: np.ndarray) -> str:
    return TOKENIZER.decode(prompt.tolist()).replace(" ", "")


def test_student_prompt_has_every_span_in_order():
    prompt = BUILDER.student(
        TOKENIZER.encode_text("ab"),
        query_sid=(3, 1),
        history_sids=[(0, 0), (1, 1), (2, 2)],
        user_sid=np.array([[5, 6], [7, 0]]),
        query_codes=[9, 8, 7],
    )
    assert prompt.dtype == np.int32
    assert shown(prompt) == (
        "<|user|><a_5><b_6><a_7><b_0><|query|>ab<|sid|><a_3><b_1><a_9><a_8>"
        "<|history|><a_1><b_1><a_2><b_2><|item|>"
    )


def test_spans_without_content_are_left_out():
    assert shown(BUILDER.student(TOKENIZER.encode_text("ab"))) == "<|query|>ab<|item|>"
    assert shown(BUILDER.student([], query_codes=[4])) == "<|query|><|sid|><a_4><|item|>"


def test_teacher_is_the_student_with_keywords():
    query = TOKENIZER.encode_text("ab")
    keywords = BUILDER.keyword_tokens(["x", "y"])
    teacher = BUILDER.teacher(query, keywords, query_sid=(3, 1), history_sids=[(1, 1)])
    student = BUILDER.student(query, query_sid=(3, 1), history_sids=[(1, 1)])
    assert shown(teacher) == shown(student).replace("<|item|>", "<|keywords|>x,<|item|>")
    assert np.array_equal(BUILDER.teacher(query, []), BUILDER.student(query))


def test_no_prompt_is_longer_than_the_settings_say():
    prompt = BUILDER.teacher(
        [1] * 50, [2] * 50, (1, 1), [(1, 1)] * 50, [(1, 1)] * 2, list(range(16))
    )
    assert len(prompt) == BUILDER.max_tokens


def test_settings_survive_json_and_refuse_nonsense():
    assert PromptSettings.from_json(SETTINGS.to_json()) == SETTINGS
    with pytest.raises(ConfigError, match="max_history"):
        PromptSettings(max_history=-1)
    with pytest.raises(ConfigError, match="depth"):
        PromptSettings.from_json({"depth": 1})
