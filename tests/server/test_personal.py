"""A history moves the hits of a gateway whose checkpoint has personal weights."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from index.rescoring import RescoringWeights
from index.taste import PersonalWeights, TasteWeights
from models.checkpoint import Checkpoint, save_checkpoint
from models.personal import PERSONAL
from server.app import create_app
from server.logs import make_logger
from server.metrics import Metrics
from server.settings import Settings
from server.start import start_pipeline
from tests.conftest import TinyPair


@pytest.fixture
def personal(
    tiny_pair: TinyPair, tmp_path: Path, start_server: Callable[[Any], httpx.Client]
) -> httpx.Client:
    made = Checkpoint.open(tiny_pair.checkpoint)
    weights = PersonalWeights(RescoringWeights(), TasteWeights(color=100.0))
    rescoring = RescoringWeights().to_json() | {PERSONAL: weights.to_json()}
    checkpoint = tmp_path / "checkpoint"
    settings = replace(made.settings, rescoring=rescoring)
    save_checkpoint(checkpoint, made.load_model(), made.tokenizer, settings, {})
    serving = Settings(engine_threads=1, beam_width=64)
    metrics, log = Metrics(), make_logger("error", io.StringIO())
    pipeline = asyncio.run(start_pipeline(serving, tiny_pair.snapshot, checkpoint, metrics, log))
    return start_server(create_app(pipeline, serving, metrics=metrics, log=log))


def colors(client: httpx.Client, **request: Any) -> list[str]:
    body = {"query": "oak desk", "limit": 5} | request
    answer = client.post("/v1/search", json=body)
    assert answer.status_code == 200, answer.text
    return [hit["color"][0] for hit in answer.json()["hits"]]


def test_hits_have_the_colours_of_the_history(personal: httpx.Client) -> None:
    # Items 12 … 23 are black, 24 … 35 white.
    assert set(colors(personal, history=["i13", "i20"])) == {"black"}
    assert set(colors(personal, history=["i25", "nobody"], user_id="u")) == {"white"}
    assert set(colors(personal, user_id="u")) == {"white"}


def test_without_a_history_nothing_moves(personal: httpx.Client, tiny: httpx.Client) -> None:
    assert colors(personal, beam_width=16) == colors(tiny, beam_width=16)
    assert colors(personal, history=["nobody"], beam_width=16) == colors(tiny, beam_width=16)
