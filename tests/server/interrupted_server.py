"""Not a test: a server promotes a generation and is cut off at every step in turn.

    interrupted_server.py kill|full REGISTRY FOLDER VERSION

A step is an opening for writing, a naming, removing or syncing below the registry, a swap of the
engine begun or ended, and the end of the promotion. `kill`: a server on a copy of REGISTRY is
killed at its step, and another one started in its place. `full`: one server promotes again and
again; from its step on nothing more can be written. Prints one JSON line per step: the answer to
the promotion, what is served afterwards, what a search finds; ends with the first promotion that
got through.
"""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import torch
import uvicorn

from decoding.native.engine import NativeEngine
from models.registry.promotion import promote
from models.registry.registry import Registry
from server.app import create_app
from server.choice import choose_registered
from server.cli.serve import bind
from server.logs import make_logger
from server.metrics import Metrics
from server.rollout import Rollout
from server.rollout_start import start_rollout
from server.settings import Settings

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "fsync"}
MAX_STEPS = 200
PATIENCE_S = 60
QUERY = {"query": "red oak desk", "limit": 36, "explain": True}


class Cut:
    """Counts steps below a folder while it is armed, and cuts off at one of them."""

    def __init__(self, how: str, under: Path) -> None:
        self.how, self.under = how, str(under)
        self.at = self.seen = 0
        sys.addaudithook(self._hook)
        self._sync = os.fsync
        os.fsync = self._fsync  # type: ignore[assignment]

    def step(self, path: str = "") -> None:
        if not self.at:
            return
        self.seen += 1
        if self.how == "kill" and self.seen == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "full" and self.seen >= self.at and path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def _hook(self, event: str, values: tuple[Any, ...]) -> None:
        if not self.at or event not in STEPS or not str(values[0]).startswith(self.under):
            return
        if event == "open" and not values[2] & WRITES:
            return
        # A full disk still renames and removes.
        self.step(str(values[0]) if event in ("open", "os.mkdir") else "")

    def _fsync(self, file: int) -> None:
        path = str(Path(f"/proc/self/fd/{file}").readlink())
        if self.at and path.startswith(self.under):
            self.step(path)
        self._sync(file)


def serve(how: str, registry: Path, listener: socket.socket) -> None:
    """A server; a promotion whose `why` is a number is cut off at that step."""
    cut = Cut(how, registry)
    promoted, swap = Rollout.promote, NativeEngine.swap

    async def promote_and_cut(self: Rollout, version: str, by: Any, expected: Any = None) -> None:
        cut.seen, cut.at = 0, int(by.why)
        try:
            await promoted(self, version, by, expected)
            cut.step()
        finally:
            cut.at = 0

    async def swap_in_steps(self: NativeEngine, generation: Any, /) -> None:
        cut.step()
        await swap(self, generation)
        cut.step()

    Rollout.promote = promote_and_cut  # type: ignore[method-assign]
    NativeEngine.swap = swap_in_steps  # type: ignore[method-assign]

    async def run() -> None:
        config = uvicorn.Config(await following(registry), log_config=None, access_log=False)
        await uvicorn.Server(config).serve(sockets=[listener])

    asyncio.run(run())


async def following(registry: Path) -> Any:
    """An application that follows a registry."""
    settings = Settings(registry=registry, engine_threads=1, catalogue_changes=False, patience=0)
    registered = choose_registered(settings)
    assert registered is not None
    metrics, log = Metrics(), make_logger("error", io.StringIO())
    pipeline, rollout = await start_rollout(settings, registered, metrics, log)
    return create_app(pipeline, settings, metrics=metrics, log=log, rollout=rollout)


async def warm_up(registry: Path) -> None:
    """Search and promote once: what that loads and compiles, no child has to. Its threads end."""
    app = await following(registry)
    transport = httpx.ASGITransport(app)
    gateway = app.state.gateway
    async with httpx.AsyncClient(transport=transport, base_url="http://warm.up") as client:
        answer = await client.post("/v1/search", json=QUERY, timeout=PATIENCE_S)
        assert answer.status_code == 200
    await gateway.rollout.close()
    await gateway.searcher.close()


class Child:
    """A forked server and a client of it."""

    def __init__(self, how: str, registry: Path) -> None:
        listener = bind("127.0.0.1", 0)
        port = listener.getsockname()[1]
        self.pid = os.fork()
        if self.pid == 0:
            try:
                serve(how, registry, listener)
            finally:
                os._exit(1)
        listener.close()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S)

    def facts(self) -> dict[str, Any]:
        """What it serves and finds, both of one moment: another generation may come meanwhile."""
        while True:
            before = self.client.get("/readyz").json()["generation"]
            found = self.client.post("/v1/search", json=QUERY)
            assert found.status_code == 200, found.text
            after, answer = self.client.get("/readyz").json()["generation"], found.json()
            if before["version"] == after["version"]:
                return {
                    "generation": after,
                    "model": answer["model_version"],
                    "degraded": answer["degraded"],
                    "hits": {hit["item_id"]: hit["score"] for hit in answer["hits"]},
                }

    def promote(self, version: str, step: int) -> httpx.Response:
        return self.client.post(f"/admin/generations/{version}:promote", json={"why": str(step)})

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> None:
        os.waitpid(self.pid, 0)
        self.client.close()


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def killed(template: Path, folder: Path, version: str) -> None:
    for step in range(1, MAX_STEPS):
        registry = folder / str(step)
        shutil.copytree(template, registry)
        child = Child("kill", registry)
        before = child.facts() if step == 1 else None
        try:
            status = child.promote(version, step).status_code
        except httpx.TransportError:
            status = 0
            child.wait()
            child = Child("kill", registry)
        tell(step=step, status=status, before=before, after=child.facts(), registry=str(registry))
        child.end()
        if status:
            return
        shutil.rmtree(registry)


def full(template: Path, folder: Path, version: str) -> None:
    registry = folder / "full"
    shutil.copytree(template, registry)
    first = Registry(registry).aliases().champion
    assert first is not None
    child = Child("full", registry)
    before = child.facts()
    for step in range(1, MAX_STEPS):
        answer = child.promote(version, step)
        told = "" if answer.status_code == 200 else answer.json()["detail"]
        after = child.facts()
        tell(step=step, status=answer.status_code, told=told, before=before, after=after)
        if answer.status_code == 200:
            break
    until = time.monotonic() + PATIENCE_S
    promote(Registry(registry), first)
    while child.facts()["generation"]["version"] != first:
        assert time.monotonic() < until
    child.end()


if __name__ == "__main__":
    torch.set_num_threads(1)
    kind, *paths, wanted = sys.argv[1:]
    shutil.copytree(paths[0], Path(paths[1]) / "warm")
    asyncio.run(warm_up(Path(paths[1]) / "warm"))
    {"kill": killed, "full": full}[kind](Path(paths[0]), Path(paths[1]), wanted)
