"""The recipe's tree: what is trained once, what is compared, and that budgets are equal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from index.errors import ConfigError
from models.training.ablation_recipe import Node, Recipe, Row, recipe_of
from models.training.align import AlignSettings
from models.training.distill import DistillSettings
from models.training.sft import SftSettings

RECIPE = recipe_of("v2")


def examples(name: str, seed: int = 1) -> int:
    """Examples that a node's weights have seen, all stages together."""
    return sum(RECIPE.settings_of(node, seed).examples for node in RECIPE.ancestry(name))


def row(name: str) -> Row:
    return RECIPE.rows_named([name])[0]


@pytest.mark.parametrize("name", [row.name for row in RECIPE.rows])
def test_compared_rows_have_seen_as_many_examples(name: str):
    """Except controls, which measure just that, and V2-Full and distilled weights given keywords,
    which are compared with such a control."""
    for other in row(name).against:
        seen, before = examples(row(name).node), examples(row(other).node)
        if name in ("continued", "chosen", "v1-more"):
            assert seen > before
        else:
            assert seen == before


def test_components_are_added_one_by_one():
    settings = {
        name: RECIPE.settings_of(RECIPE.node(name), 1)
        for name in ("continued", "self-distillation", "r-drop", "fgm", "focal")
    }
    plain, distilled, dropped, moved, focal = settings.values()
    assert isinstance(plain, DistillSettings)
    assert distilled == replace(plain, kl_weight=DistillSettings().kl_weight)
    assert isinstance(distilled, DistillSettings)
    defaults = DistillSettings()
    assert dropped == replace(
        distilled, r_drop_weight=defaults.r_drop_weight, dropout=defaults.dropout
    )
    assert isinstance(dropped, DistillSettings)
    assert moved == replace(dropped, adversarial_epsilon=defaults.adversarial_epsilon)
    assert isinstance(moved, DistillSettings)
    assert focal == replace(moved, focal=True)


def test_alignment_differs_by_its_method_alone():
    chosen, grpo, tpma = (
        RECIPE.settings_of(RECIPE.node(name), 1) for name in ("chosen", "grpo", "tpma")
    )
    assert isinstance(chosen, AlignSettings) and isinstance(grpo, AlignSettings)
    assert tpma == replace(grpo, method="tpma")
    assert replace(chosen, anchor_weight=grpo.anchor_weight) == grpo


def test_v1_knows_nothing_of_keywords_and_full_has_user_sids():
    assert not RECIPE.node("v1").keywords
    assert not RECIPE.node("v1-more").keywords
    cot = RECIPE.settings_of(RECIPE.node("cot"), 1)
    assert isinstance(cot, SftSettings)
    assert cot.mixture.thought_tasks and cot.mixture.keyword_share == 0
    assert RECIPE.ancestry("full")[0].prompt.user_sid
    assert not RECIPE.ancestry("tpma")[0].prompt.user_sid
    more = RECIPE.settings_of(RECIPE.node("v1-more"), 1)
    assert isinstance(more, SftSettings)
    assert more.mixture.stage_of(0.0) == 3


def test_seeds_reach_every_stage():
    for node in RECIPE.nodes:
        assert RECIPE.settings_of(node, 5).seed == 5


def test_published_rows_are_in_the_published_order():
    published = [row.name for row in RECIPE.rows if row.published is not None]
    assert published == [
        *("v1", "cot", "self-distillation", "r-drop", "fgm", "focal", "grpo", "tpma", "full")
    ]


def test_wrong_recipes_are_refused():
    with pytest.raises(ConfigError, match="no recipe 'v3'"):
        recipe_of("v3")
    with pytest.raises(ConfigError, match="no row 'nothing'; recipe v2 has v1, cot"):
        RECIPE.rows_named(["nothing"])
    sizes = RECIPE.sizes
    with pytest.raises(ConfigError, match="'b' is out of order"):
        Recipe("x", (Node("b", "distill", "a"), Node("a", "sft")), (), sizes)
    with pytest.raises(ConfigError, match="'r' does not fit"):
        Recipe("x", (Node("a", "sft"),), (Row("r", "R", "a", ("other",)),), sizes)
