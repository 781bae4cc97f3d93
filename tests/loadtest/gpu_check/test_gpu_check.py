import json
import os

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="the CUDA kernels are written in Triton")
if not torch.cuda.is_available():
    # Read when a kernel is defined.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from decoding.engine import Hypotheses
from decoding.native.runner import Runner, Search
from index.sid import SidLayout
from loadtest.bench.report import Row, row
from loadtest.gpu_check import correctness, machine, timing
from loadtest.gpu_check.__main__ import Report, main
from loadtest.gpu_check.correctness import Check
from loadtest.gpu_check.machine import Ceilings, short_name
from loadtest.gpu_check.peers import Generate, RowExpanded, hugging_face_model
from loadtest.gpu_check.subjects import catalogue, prompts, subject
from models.transformer import Qwen3Config

LAYOUT = SidLayout((64, 32, 16, 8))


@pytest.mark.parametrize("tied", [False, True])
def test_peers_search_the_same_catalogue(tied):
    pytest.importorskip("transformers")
    config = Qwen3Config(320, 64, 96, 2, 4, 2, 16, tie_word_embeddings=tied)
    found = subject(config, LAYOUT)
    trie, (prompt,) = catalogue(LAYOUT, 3000), prompts(1, 20, 200)
    (ours,) = Runner(found.weights(torch.float32, "cpu"), trie).run([Search(prompt, 16)])
    assert isinstance(ours, Hypotheses)
    model = hugging_face_model(found, torch.float32, "cpu")
    expected = [tuple(sid) for sid in ours.codes.tolist()]
    assert RowExpanded(model, found, trie, "cpu").search(prompt, 16) == expected
    # generate normalises over the whole vocabulary: other scores, but legal SIDs only.
    sids = np.array(Generate(model, found, trie, "cpu").search(prompt, 16))
    assert bool((trie.find(LAYOUT.pack(sids)) >= 0).all())


def test_names_of_cards():
    assert short_name("NVIDIA H100 80GB HBM3") == "h100"
    assert short_name("NVIDIA A10G") == "a10g"
    assert short_name("NVIDIA L4") == "l4"


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a CUDA device")
def test_without_a_device_it_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["gpu_check", "--out", str(tmp_path)])
    assert main() == 2
    assert "CUDA device" in capsys.readouterr().err


def test_a_failing_part_loses_nothing(monkeypatch, tmp_path):
    def good() -> Check:
        return Check("good", True, {"worst": 0.0})

    def broken() -> Check:
        raise RuntimeError("the device is gone")

    def rows() -> list[Row]:
        return [row("wave", {"queries": 1}, [1.0, 2.0, 3.0], {}, "ms", p99=3.0)]

    monkeypatch.setattr(machine, "describe_card", lambda: {"card": "NVIDIA H100"})
    monkeypatch.setattr(machine, "measure_ceilings", lambda: Ceilings(8e14, 3e12))
    monkeypatch.setattr(correctness, "checks", lambda: iter([good, broken]))
    monkeypatch.setattr(timing, "measurements", lambda ceilings: iter([rows]))
    report = Report(tmp_path, [], 60.0)
    report.run("abc")
    written = json.loads((tmp_path / "h100.json").read_text())
    assert written["machine"]["commit"] == "abc" and not written["passed"]
    assert [check["name"] for check in written["checks"]] == ["good"]
    assert list(written["failures"]) == ["broken"]
    assert written["rows"][0]["ours"] == 2.0
