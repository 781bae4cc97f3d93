"""The logits processor: in vLLM's workers, makes constrained requests generate legal SIDs only.

    vllm serve CHECKPOINT --logits-processors decoding.vllm.processor:SidProcessor

One class for both of vLLM's interfaces, the V1 runner's (`update_state`, `apply(logits)`) and Model
Runner V2's (`add_request`, `apply(logits, context)`). vLLM loads the class by name; which of them
it drives shows in what it makes it from. What a request may say is in decoding/vllm/arguments.py,
what is written over its logits in decoding/vllm/rows.py: scores by the scoring rule, so an engine
that returns `processed_logits` as log-probabilities returns scores.

Settings are `additional_config["onesearch"]`, or the environment where that names none:

    snapshot     directory of a snapshot, or of a trie: the legal SIDs     ONESEARCH_SNAPSHOT
    checkpoint   directory with onesearch.json; the served model's if missing
                                                                           ONESEARCH_CHECKPOINT
    constrain    "asked" (the default): a request is constrained when it has one of the arguments;
                 "always": every request is                         ONESEARCH_VLLM_CONSTRAIN

vLLM checks arguments (`validate_params`) in the process of its HTTP server, which is told nothing
of `additional_config`: only what the environment names is checked there against levels and trie.
What slips through does no harm; a row that nothing is allowed to follow ends.

In the V1 interface tokens come as one Python list per request. Requests that generate more than one
token cost a look into theirs at each step; a driver's, which generate one, do not.
"""

# vLLM lives in another environment than the one that is checked.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false
# pyright: reportUnknownParameterType=false, reportIncompatibleMethodOverride=false
from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as V1Interface
from vllm.v1.sample.logits_processor.interface import MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as V2Interface

from decoding.vllm.arguments import SidArguments, check_legal, parse
from decoding.vllm.legal import DeviceTrie
from decoding.vllm.rows import RowTables, Vocabulary
from decoding.weights import CONFIG_FILE, SETTINGS_FILE
from index.errors import ArtifactError, ConfigError
from index.sid import SidLayout
from index.trie import Trie

PROCESSOR = "decoding.vllm.processor:SidProcessor"
"""What vLLM is given as `logits_processors`."""
SETTINGS_KEY = "onesearch"
_VARIABLES = {
    "snapshot": "ONESEARCH_SNAPSHOT",
    "checkpoint": "ONESEARCH_CHECKPOINT",
    "constrain": "ONESEARCH_VLLM_CONSTRAIN",
}
_CONSTRAIN = ("asked", "always")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class ProcessorSettings:
    """Where the legal SIDs and their place in the vocabulary are read from."""

    snapshot: Path | None = None
    checkpoint: Path | None = None
    always: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ProcessorSettings:
        """As given, else as the environment says. Raises ConfigError for unknown settings."""
        if unknown := given.keys() - _VARIABLES.keys():
            raise ConfigError(
                f"unknown setting {min(unknown)!r} of the SID processor; there are "
                f"{', '.join(_VARIABLES)}"
            )
        values = {
            name: str(given.get(name) or os.environ.get(variable, ""))
            for name, variable in _VARIABLES.items()
        }
        constrain = values["constrain"] or _CONSTRAIN[0]
        if constrain not in _CONSTRAIN:
            raise ConfigError(f"constrain is {constrain!r}, it must be one of {_CONSTRAIN}")
        snapshot, checkpoint = values["snapshot"], values["checkpoint"]
        return cls(
            Path(snapshot) if snapshot else None,
            Path(checkpoint) if checkpoint else None,
            constrain == "always",
        )

    def trie(self) -> Trie | None:
        """Memory-mapped, of a snapshot or of a directory that is a trie itself. Raises
        ArtifactError."""
        if self.snapshot is None:
            return None
        inside = self.snapshot / "trie"
        return Trie.open(inside if inside.is_dir() else self.snapshot)


class SidProcessor(V1Interface, V2Interface):
    """See the module's head. `device` is the V1 runner's device or V2's state of requests."""

    def __init__(
        self,
        vllm_config: Any,
        device: Any,
        is_pin_memory: bool = False,
    ) -> None:
        additional = cast(Mapping[str, Any], vllm_config.additional_config or {})
        settings = ProcessorSettings.of(additional.get(SETTINGS_KEY) or {})
        checkpoint = settings.checkpoint or Path(vllm_config.model_config.model)
        self._vocabulary = read_vocabulary(checkpoint)
        self._always = settings.always
        trie = settings.trie()
        if trie is not None and trie.layout != self._vocabulary.layout:
            raise ArtifactError(
                f"snapshot {settings.snapshot} has SID levels {trie.layout.level_sizes}, checkpoint"
                f" {checkpoint} has {self._vocabulary.layout.level_sizes}; use a pair built "
                "together"
            )
        self._requests: Any = None if isinstance(device, torch.device | str) else device
        if self._requests is None:
            capacity, self._device = vllm_config.scheduler_config.max_num_seqs, torch.device(device)
        else:
            capacity, self._device = self._requests.max_num_reqs, self._requests.device
        on_device = None if trie is None else DeviceTrie(trie, self._device)
        self._rows = RowTables(self._vocabulary, capacity, self._device, on_device)
        self._offsets = torch.tensor(self._vocabulary.sid_offset, device=self._device)
        self._place = torch.arange(self._vocabulary.layout.levels, device=self._device)
        # V1 moves requests between rows of the batch; they keep their slots.
        self._slots = np.arange(capacity, dtype=np.int64)
        self._outputs: list[list[int]] = [[] for _ in range(capacity)]
        self._grows = np.zeros(capacity, dtype=np.bool_)
        self._waiting: list[tuple[int, SidArguments | None]] = []

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises ValueError, which vLLM answers with HTTP 400."""
        layout, trie, always = _known_to_frontend()
        arguments = parse(sampling_params.extra_args, layout, always=always)
        if arguments is not None and trie is not None:
            check_legal(arguments, trie)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        """V1: requests came, went and moved between rows."""
        if batch_update is None:
            return
        slots: list[int] = []
        requests: list[SidArguments | None] = []
        for row in batch_update.removed:
            self._rows.constrained[self._slots[row]] = False
        for row, params, _, output in batch_update.added:
            slot = int(self._slots[row])
            slots.append(slot)
            requests.append(self._parsed(params))
            self._outputs[slot] = output
            self._grows[slot] = params.max_tokens != 1
        if slots:
            self._rows.set(slots, requests)
        for one, two, direction in batch_update.moved:
            self._slots[one], self._slots[two] = self._slots[two], self._slots[one]
            if direction == MoveDirectionality.UNIDIRECTIONAL:
                self._rows.constrained[self._slots[one]] = False

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """V2: a request takes over a slot; written in `apply_staged_writes`."""
        request = self._parsed(sampling_params)
        self._waiting.append((req_idx, request))
        # The slot's last request may have been constrained.
        return request is not None or bool(self._rows.constrained[req_idx])

    def apply_staged_writes(self) -> None:
        """V2: once per step."""
        if self._waiting:
            # A slot that was taken over twice has its last request.
            latest = dict(self._waiting)
            self._rows.set(list(latest), list(latest.values()))
            self._waiting.clear()

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """In place, for the whole batch; see decoding/vllm/rows.py."""
        return self._apply_v1(logits) if ctx is None else self._apply_v2(logits, ctx)

    def _apply_v1(self, logits: Tensor) -> Tensor:
        slots = self._slots[: len(logits)]
        produced = np.zeros(len(slots), dtype=np.int64)
        growing = np.flatnonzero(self._grows[slots] & self._rows.constrained[slots])
        for row in growing.tolist():
            produced[row] = len(self._outputs[slots[row]])

        def codes() -> Tensor:
            known = self._rows.prefix[slots].copy()
            for row in growing.tolist():
                slot = slots[row]
                first = int(self._rows.depth[slot])
                for level in range(first, min(first + int(produced[row]), known.shape[1])):
                    token = self._outputs[slot][level - first]
                    known[row, level] = token - self._vocabulary.sid_offset[level]
            return torch.from_numpy(known).to(self._device, non_blocking=True)

        return self._rows.write(logits, slots, produced, codes)

    def _apply_v2(self, logits: Tensor, ctx: Any) -> Tensor:
        self.apply_staged_writes()
        requests = self._requests
        slots = np.asarray(ctx.idx_mapping_np, dtype=np.int64)
        if len(slots) != len(logits):
            raise ValueError("SIDs are not generated with speculative decoding; switch it off")
        produced = np.asarray(ctx.seq_lens_upper_bound_np) - requests.prompt_len.np[slots]

        def codes() -> Tensor:
            on_device = ctx.expanded_idx_mapping.to(torch.int64)
            host = torch.from_numpy(self._rows.prefix[slots]).to(self._device, non_blocking=True)
            depth = torch.from_numpy(self._rows.depth[slots]).to(self._device, non_blocking=True)
            begin = requests.prompt_len.gpu[on_device].to(torch.int64)
            tokens = requests.all_token_ids.gpu
            place = (begin[:, None] + self._place - depth[:, None]).clamp_(0, tokens.shape[1] - 1)
            generated = tokens[on_device[:, None], place].to(torch.int64) - self._offsets
            return torch.where(self._place < depth[:, None], host, generated)

        return self._rows.write(logits, slots, produced.astype(np.int64), codes)

    def _parsed(self, params: Any) -> SidArguments | None:
        try:
            return parse(params.extra_args, self._vocabulary.layout, always=self._always)
        except ValueError as error:
            # Checked where requests come in, as far as levels are known there. A worker must not
            # end for one request; it gets the end token.
            _LOG.warning("a request cannot be constrained as asked and ends at once: %s", error)
            return SidArguments(prefix=(0,) * self._vocabulary.layout.levels)


def read_vocabulary(checkpoint: Path) -> Vocabulary:
    """From a checkpoint directory. Raises ArtifactError."""
    try:
        settings = json.loads((checkpoint / SETTINGS_FILE).read_bytes())
        config = json.loads((checkpoint / CONFIG_FILE).read_bytes())
        offsets = tuple(int(offset) for offset in settings["sid_offset"])
        end = config.get("eos_token_id")
        end = end[0] if isinstance(end, list) else end
        layout = SidLayout.from_json(settings)
        # Models for measurements have no end token; nothing past a SID is asked of them.
        return Vocabulary(layout, offsets, 0 if end is None else int(end))
    except (OSError, KeyError, TypeError, ValueError, ConfigError) as error:
        raise ArtifactError(
            f"{checkpoint} is no checkpoint with SIDs ({error}); serve one of ours, or name its "
            f"directory as checkpoint in additional_config[{SETTINGS_KEY!r}]"
        ) from None


@lru_cache(maxsize=1)
def _known_to_frontend() -> tuple[SidLayout | None, Trie | None, bool]:
    """What the environment says of levels, legal SIDs, and whether all requests are constrained."""
    settings = ProcessorSettings.of({})
    trie = settings.trie()
    if trie is not None:
        return trie.layout, trie, settings.always
    if settings.checkpoint is not None:
        return read_vocabulary(settings.checkpoint).layout, None, settings.always
    return None, None, settings.always
