"""The keyword tasks and keyword prompts of the curriculum, on a tiny shop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index.dataset import Dataset
from index.errors import ConfigError
from index.snapshot import Snapshot
from models.prompt import PromptBuilder, PromptSettings
from models.tokenizer import Tokenizer
from models.training.curriculum import Curriculum, Mixture
from models.training.keyword_table import KeywordTable
from models.training.material import Material, read_material
from models.training.run_sft import curriculum_of
from models.training.thoughts import TASKS, Thoughts


@pytest.fixture(scope="module")
def material(shop: Path) -> Material:
    return read_material(Dataset.open(shop / "dataset"))


@pytest.fixture(scope="module")
def snapshot(shop: Path) -> Snapshot:
    return Snapshot.open(shop / "snapshot")


@pytest.fixture(scope="module")
def prompts(material: Material, snapshot: Snapshot) -> PromptBuilder:
    tokenizer = Tokenizer.train(material.item_texts, 400, layout=snapshot.layout)
    return PromptBuilder(tokenizer, PromptSettings(query_code_count=2))


@pytest.fixture(scope="module")
def table(material: Material, snapshot: Snapshot) -> KeywordTable:
    """Two keywords of every second query, six of every user's searches, one derived query."""
    generic = {query: ("steel", query.split()[0]) for query in material.queries[::2]}
    own = ("one", "two", "three", "four", "five", "six")
    personal = {
        (visit.query, visit.user): own
        for visit in material.visits
        if visit.history and visit.user is not None
    }
    first = snapshot.items.item_ids(np.array([0]))[0]
    return KeywordTable(
        {**generic, "zz derived": ("steel", "zz")}, personal, (("zz derived", first),), "v"
    )


def curriculum(
    snapshot: Snapshot,
    material: Material,
    prompts: PromptBuilder,
    table: KeywordTable | None,
    **mixture: object,
) -> Curriculum:
    chosen = replace(Mixture(), **mixture)  # pyright: ignore[reportArgumentType]
    return curriculum_of(
        snapshot, material, prompts, table, mixture=chosen, chunk_examples=200, seed=3
    )


def thoughts(
    snapshot: Snapshot,
    material: Material,
    prompts: PromptBuilder,
    table: KeywordTable,
    tasks: tuple[str, ...],
) -> Thoughts:
    leaves = snapshot.postings.leaf_of_row.astype(np.int64)
    codes = snapshot.trie.codes_of_leaves(leaves)
    return Thoughts(snapshot, prompts, table, material.queries, material.visits, codes, tasks)


@pytest.mark.parametrize("task", TASKS)
def test_each_task_by_its_prompt_and_target(
    snapshot: Snapshot,
    material: Material,
    prompts: PromptBuilder,
    table: KeywordTable,
    task: str,
):
    made = thoughts(snapshot, material, prompts, table, (task,)).examples(
        40, np.random.default_rng(0)
    )
    marker = prompts.tokenizer.special
    personal, to_sid = task.startswith("personal"), task.endswith("sid")
    assert len(made) == 40
    for prompt in made.prompts:
        assert prompt[0] == marker["<|sid|>" if to_sid else "<|query|>"]
        assert prompt[-1] == marker["<|keywords|>"]
        assert (marker["<|history|>"] in prompt) == personal
    if to_sid:
        np.testing.assert_allclose(made.target_weights.sum(axis=1), 1, atol=1e-5)
        assert ((made.target_weights > 0).sum(axis=1) == (5 if personal else 2)).all()
        terms = snapshot.embed_queries(["steel"])
        sid = snapshot.codec.encode(terms)[0]
        if not personal:
            assert (made.target_codes[:, 0] == sid).all()
        assert not made.embeddings.any()
    else:
        written = {prompts.tokenizer.decode_text(text[:-1]) for text in made.texts}
        assert all(text[-1] == prompts.tokenizer.end for text in made.texts)
        if personal:
            assert written == {"one, two, three, four, five"}
        else:
            assert all(text.startswith("steel, ") or text == "steel" for text in written)


def test_thoughts_have_their_share_of_stage_1_and_a_switch(
    snapshot: Snapshot, material: Material, prompts: PromptBuilder, table: KeywordTable
):
    marker = prompts.tokenizer.special["<|keywords|>"]

    def share(found: KeywordTable | None, **mixture: object) -> float:
        chunk = curriculum(snapshot, material, prompts, found, **mixture).chunk(0, 1)
        return sum(prompt[-1] == marker for prompt in chunk.prompts) / len(chunk)

    assert share(None) == 0
    assert share(table, thought_tasks=()) == 0
    assert share(table, thought_share=0.25) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("keyword_share", [0.0, 0.5, 1.0])
def test_search_prompts_show_keywords_in_their_share(
    snapshot: Snapshot,
    material: Material,
    prompts: PromptBuilder,
    table: KeywordTable,
    keyword_share: float,
):
    made = curriculum(snapshot, material, prompts, table, keyword_share=keyword_share)
    marker = prompts.tokenizer.special["<|keywords|>"]
    chunk = made.chunk(0, 3)
    shown = sum(marker in prompt for prompt in chunk.prompts) / len(chunk)
    known = made.pairs(0).has_keywords.mean()
    assert shown == pytest.approx(keyword_share * known, abs=0.12)


def test_pairs_differ_in_the_keywords_only(
    snapshot: Snapshot, material: Material, prompts: PromptBuilder, table: KeywordTable
):
    pairs = curriculum(snapshot, material, prompts, table, pseudo_share=0.3).pairs(0)
    marker = prompts.tokenizer.special
    assert 0 < pairs.has_keywords.mean() < 1
    rows = zip(pairs.examples.prompts, pairs.teacher_prompts, pairs.has_keywords, strict=True)
    for student, teacher, has in rows:
        assert marker["<|keywords|>"] not in student
        if not has:
            assert teacher == student
            continue
        place = teacher.index(marker["<|keywords|>"])
        assert [*teacher[:place], teacher[-1]] == student
        assert len(teacher) > len(student)


def test_derived_queries_replace_sampled_ones(
    snapshot: Snapshot, material: Material, prompts: PromptBuilder, table: KeywordTable
):
    pairs = curriculum(snapshot, material, prompts, table, pseudo_share=0.5).pairs(0)
    text = prompts.tokenizer.encode_text("zz derived")
    marked = [prompt[1 : 1 + len(text)] == text for prompt in pairs.examples.prompts]
    assert np.mean(marked) == pytest.approx(0.5, abs=0.01)


def test_a_file_without_the_datasets_queries_is_refused(
    snapshot: Snapshot, material: Material, prompts: PromptBuilder, table: KeywordTable
):
    strange = KeywordTable({"no such query": ("x",)}, {}, (), "v")
    with pytest.raises(ConfigError, match="training queries"):
        thoughts(snapshot, material, prompts, strange, TASKS)
    with pytest.raises(ConfigError, match="unknown keyword task"):
        thoughts(snapshot, material, prompts, table, ("poem",))
