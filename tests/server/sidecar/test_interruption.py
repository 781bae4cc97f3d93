"""Killed by SIGKILL in one step after the other, the sidecar comes to the same end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.registry.registry import Registry
from server.redis.connection import RedisConnection
from server.redis.embedded import EmbeddedServer
from server.redis.keys import Keys
from server.sidecar.rounds import Rounds

PROGRAM = Path(__file__).with_name("interrupted_sidecar.py")
SETTINGS = """
min_clicks = 20
settle_s = 0.0
lease_s = 60.0
beam_width = 4
save_every_s = 0.0
[sft]
examples = 384
batch_examples = 64
learning_rate = 1e-4
[gate]
min_searches = 10
min_gain = -1.0
margin = 1.0
max_loss = 1.0
min_valid_rate = 0.0
max_valid_loss = 1.0
max_weight_distance = 5.0
max_score_shift = 50.0
max_concentration_gain = 0.5
"""
MOMENTS = ("begun", "training", "published")


def test_killed_anywhere_it_goes_on_and_does_nothing_twice(
    shop: Any,
    empty_redis: EmbeddedServer,
    on_redis: Callable[..., Any],
    behave: Any,
    liked: Any,
    tmp_path: Path,
) -> None:
    behave(liked(120))
    (tmp_path / "sidecar.toml").write_text(SETTINGS)
    arguments = ["sidecar", "run", "--once", "--json", "--dataset", str(shop.dataset)]
    arguments += ["--registry", str(shop.registry), "--state", str(tmp_path / "state")]
    arguments += ["--settings", str(tmp_path / "sidecar.toml")]
    environment = os.environ | {
        "ONESEARCH_REDIS_URL": empty_redis.url,
        "PYTHONPATH": str(Path.cwd()),
        "OMP_NUM_THREADS": "1",
    }

    def run(moment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(PROGRAM), moment, *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300, check=False
        )

    def lease_ends(redis: RedisConnection) -> Any:
        # As Redis ends it lease_s after a holder was killed.
        return redis.command("DEL", Keys().sidecar)

    rounds, registry = Rounds(tmp_path / "state"), Registry(shop.registry)
    first = registry.aliases().champion
    for moment in MOMENTS:
        killed = run(moment)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        if moment == "begun":
            refused = run("never")
            assert refused.returncode == 2
            assert "a sidecar is at work on" in refused.stderr
            assert rounds.all() == []
        on_redis(lease_ends)
    ended = run("never")
    assert ended.returncode == 0, ended.stderr
    [one] = rounds.all()
    assert json.loads(ended.stdout)["outcome"] == one.outcome == "published"
    what = [event["what"] for event in registry.events()]
    assert [what.count(kind) for kind in ("publish", "promote")] == [2, 2]
    assert registry.aliases().champion == one.generation
    assert registry.aliases().previous == first
    # Training went on from its state: it took as many steps as one that was left alone.
    assert one.facts["training"]["steps"] == 6
