"""The control of `bench changes`: the same stream to a catalogue that nobody here searches.

A process of its own hands them in, and another writes them, as in `bench changes`. What searches
beside it take longer is what two more busy processes cost on this machine.

    python -m loadtest.bench.other_catalogue SNAPSHOT ITEMS SECONDS

It makes changes for so many seconds, says that it is ready, and then reads lines: at every odd one
the stream begins, at every even one it ends. It answers each with a line, an even one with the
changes that were acknowledged per second so far.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from index.live.catalogue import LiveCatalogue, LiveSettings


@dataclass(slots=True, eq=False)
class OtherStream:
    """Streams while a block of `running` is open."""

    say: Callable[[str], str]
    acknowledged_per_s: int = 0

    @contextmanager
    def running(self) -> Generator[None]:
        self.say("begin")
        try:
            yield
        finally:
            self.acknowledged_per_s = int(self.say("end"))


@contextmanager
def another_stream(snapshot: Path, n_items: int, seconds: float) -> Generator[OtherStream]:
    """A stream to a catalogue of its own, for `seconds` in all."""
    command = [sys.executable, "-m", "loadtest.bench.other_catalogue"]
    with subprocess.Popen(
        [*command, str(snapshot), str(n_items), str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None and child.stdout is not None

        def say(text: str) -> str:
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write(f"{text}\n")
            child.stdin.flush()
            if not (answer := child.stdout.readline()):
                raise RuntimeError("the other catalogue's process ended")
            return answer

        if not child.stdout.readline():
            raise RuntimeError("the other catalogue's process ended before it was ready")
        yield OtherStream(say)
        # It ends with its input, which leaving the block closes.


def main(arguments: Sequence[str]) -> None:
    # `loadtest.bench.changes` takes this module's other half.
    from loadtest.bench.changes import STREAM_CALL, STREAM_PER_S, Bed, Stream

    snapshot, n_items, seconds = Path(arguments[0]), int(arguments[1]), float(arguments[2])
    settings = LiveSettings(merge_automatically=False)
    with (
        tempfile.TemporaryDirectory() as folder,
        LiveCatalogue.open(
            snapshot, Path(folder) / "live", settings, verify=False, apart=True
        ) as catalogue,
    ):
        stream = Stream(Bed.of(catalogue, snapshot, n_items))
        # Lines take their time to arrive: some more than the searches take.
        calls = stream.calls(int((1.5 * seconds + 1) * STREAM_PER_S / STREAM_CALL))
        gc.collect()
        gc.freeze()
        print("ready", flush=True)
        while sys.stdin.readline():
            with stream.running(calls):
                print("begun", flush=True)
                sys.stdin.readline()
            print(round(stream.acknowledged / stream.seconds), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
