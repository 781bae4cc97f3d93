import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import server.runners
from index.codec import Codec
from index.errors import ArtifactError, ConfigError
from index.live.catalogue import LiveCatalogue
from index.live.changes import Delete
from index.sid import SidLayout
from server.generation import (
    Generation,
    Generations,
    Runners,
    chosen_paths,
    read_champion,
    write_champion,
)
from server.settings import Settings


def with_settings(generation: Generation, **changes: Any) -> Generation:
    settings = replace(generation.checkpoint.settings, **changes)
    return Generation.of(generation.view.base, replace(generation.checkpoint, settings=settings))


def test_parts_that_do_not_fit_are_named(generation: Generation):
    with pytest.raises(ArtifactError, match="SID levels"):
        with_settings(generation, level_sizes=(4, 4), sid_offset=(0, 4))
    with pytest.raises(ArtifactError, match="codec abc"):
        with_settings(generation, codec_id="abc")
    with pytest.raises(ArtifactError, match="rescoring"):
        with_settings(generation, rescoring={"sid": 1})


def test_another_codec_of_the_same_layout_does_not_fit(generation: Generation):
    codec = generation.view.base.codec
    other = Codec(
        SidLayout(codec.layout.level_sizes),
        tuple(level + 1 for level in codec.centroids),
        codec.kinds,
    )
    with pytest.raises(ArtifactError, match="was trained for codec"):
        Generation.of(replace(generation.view.base, codec=other), generation.checkpoint)


def test_fitted_weights_come_with_the_checkpoint(generation: Generation):
    weights = {"sid": 1, "dense": 2, "lexical": 3, "popularity": 4, "price": 5, "version": "v"}
    assert with_settings(generation, rescoring=weights).weights.price == 5


def test_a_generation_is_drained_when_its_last_pin_is_released(generation: Generation):
    async def scenario() -> None:
        other = Generation.of(generation.view.base, generation.checkpoint)
        generations = Generations(generation)
        with generations.pin() as first:
            with generations.pin():
                drained = generations.promote(other)
                assert generations.live is other
                with generations.pin() as new:
                    assert [first, new] == [generation, other]
            assert not drained.is_set()
        assert drained.is_set()
        assert generations.promote(generation).is_set()

    asyncio.run(scenario())


def test_the_champion_file_moves_with_its_folder(tmp_path: Path):
    champion = tmp_path / "var" / "champion.json"
    write_champion(champion, tmp_path / "var" / "s", tmp_path / "elsewhere" / "c")
    (tmp_path / "var").rename(tmp_path / "moved")
    snapshot, checkpoint = read_champion(tmp_path / "moved" / "champion.json")
    assert snapshot == tmp_path / "moved" / "s"
    assert checkpoint == tmp_path / "elsewhere" / "c"


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"snapshot": "s"}', '{"snapshot": 1, "checkpoint": 2}']
)
def test_damaged_champion_files(tmp_path: Path, text: str):
    (tmp_path / "champion.json").write_text(text)
    with pytest.raises(ConfigError, match="champion"):
        read_champion(tmp_path / "champion.json")


def test_both_paths_or_neither(tmp_path: Path):
    with pytest.raises(ConfigError, match="--checkpoint is missing"):
        chosen_paths(Settings(snapshot=tmp_path))
    with pytest.raises(ConfigError, match="onesearch demo"):
        chosen_paths(Settings(champion=tmp_path / "none.json"))
    assert chosen_paths(Settings(snapshot=tmp_path, checkpoint=tmp_path)) == (tmp_path, tmp_path)


def test_weights_are_loaded_in_the_type_that_is_asked_for(tiny_pair: tuple[Path, Path]):
    generation = Generation.open(*tiny_pair)
    for precision in ("float32", "bfloat16"):
        runner = generation.with_runner("cpu", precision).runner
        assert runner is not None
        assert runner.weights.layers[0].qkv.dtype is getattr(torch, precision)
        assert runner.weights.level_output[0].dtype is torch.float32


class FakeRunner:
    """A runner on another device, as far as `Runners` looks at it."""

    def __init__(self, weights: Any, trie: Any) -> None:
        self.weights, self.trie, self.warm = weights, trie, 0

    def warm_up(self) -> None:
        self.warm += 1


def test_on_a_gpu_each_base_trie_has_its_runner(
    own_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server.runners, "make_runner", FakeRunner)
    with LiveCatalogue.open(own_pair[0]) as catalogue:
        before = catalogue.view
        weights = SimpleNamespace(device=torch.device("cuda"))
        first: Any = FakeRunner(weights, before.base.trie)
        runners = Runners(first)
        catalogue.on_merge = runners.rebase
        catalogue.apply([Delete("i0")])
        assert runners.of(catalogue.view) is first
        after = catalogue.merge()
        newest: Any = runners.newest
        assert [newest.trie is after.base.trie, newest.warm] == [True, 1]
        assert runners.of(after) is newest
        assert runners.of(before) is first


def test_on_a_cpu_one_runner_takes_them_all(own_pair: tuple[Path, Path]):
    with LiveCatalogue.open(own_pair[0]) as catalogue:
        runner = Generation.open(*own_pair).with_runner().runner
        assert runner is not None
        runners = Runners(runner)
        catalogue.on_merge = runners.rebase
        catalogue.apply([Delete("i0")])
        assert runners.of(catalogue.merge()) is runners.newest is runner
