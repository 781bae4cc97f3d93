"""Not a test: one of several processes that promote, publish and remove at the same time.

    contending.py REGISTRY TURNS SNAPSHOT CHECKPOINT VERSION…

Promotes each VERSION in turn on what it saw, publishes the pair again and again, and removes what
it may. Prints one JSON line: how many promotions it made and how many it lost.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from models.registry.promotion import AliasMoved, promote
from models.registry.publication import publish
from models.registry.registry import Registry
from models.registry.retention import Retention, collect


def main(path: str, turns: str, snapshot: str, checkpoint: str, *versions: str) -> None:
    registry = Registry(Path(path))
    made = lost = 0
    for turn in range(int(turns)):
        seen = registry.aliases().champion
        wanted = versions[(versions.index(seen) + 1) % len(versions)] if seen else versions[0]
        try:
            promote(registry, wanted, expected=seen)
        except AliasMoved:
            lost += 1
        else:
            made += 1
        registry.choose()
        if turn % 5 == 0:
            publish(registry, snapshot, checkpoint)
            collect(registry, Retention(generations=len(versions) + 1, min_age_s=0))
    print(json.dumps({"made": made, "lost": lost}))


if __name__ == "__main__":
    main(*sys.argv[1:])
