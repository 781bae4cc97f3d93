"""Chunks for a catalogue whose users are unknown: taught by a ranking, which is told no pairs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index.dataset import Dataset
from index.snapshot import Snapshot
from models.prompt import PromptBuilder, PromptSettings
from models.tokenizer import Tokenizer
from models.training.build import fit_pseudo_queries
from models.training.curriculum import Curriculum, Mixture
from models.training.likelihood import QueryLikelihood
from models.training.material import read_material
from models.training.ranking_teacher import RankingTeacher

CHUNK = 100


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_every_stage_has_examples_under_a_teacher_of_rankings(shop: Path, stage: int):
    dataset, snapshot = Dataset.open(shop / "dataset"), Snapshot.open(shop / "snapshot")
    material = replace(read_material(dataset), visits=[], sequences=[])
    tokenizer = Tokenizer.train(material.item_texts, 400, layout=snapshot.layout)
    vectors = snapshot.dense.vectors(np.arange(len(snapshot.items)))
    likelihood = QueryLikelihood.fit(material.titles, [])
    curriculum = Curriculum(
        snapshot,
        material,
        PromptBuilder(tokenizer, PromptSettings(query_code_count=2)),
        fit_pseudo_queries(material),
        RankingTeacher(vectors, snapshot.lexical, likelihood),
        mixture=Mixture(),
        chunk_examples=CHUNK,
        seed=3,
    )
    examples = curriculum.chunk(0, stage)
    assert CHUNK - 5 <= len(examples) <= CHUNK
    is_sid = examples.target_weights.sum(axis=1) > 0
    assert all(bool(text) != sid for text, sid in zip(examples.texts, is_sid, strict=True))
