"""How vLLM is started for SID searches."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from decoding.vllm.swap import WORKER_EXTENSION
from index.errors import ConfigError

BLOCK_TOKENS = 32
"""Of the prefix cache: a beam's rows share whole blocks. CPU kernels want multiples of 32."""
MAX_ROWS = 1024
"""Rows that run at the same time."""
MAX_BATCHED_TOKENS = 8192
MAX_PROMPT_TOKENS = 1024
KV_CACHE_GB = 1.0
GPU_MEMORY_SHARE = 0.5
"""The rest is for the gateway's own work on the same GPU, if any."""
DEFAULT_QUEUE_ROWS = 65_536
START_TIMEOUT_S = 600.0
IN_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""By its full name: vLLM replaces "uni" on a CPU by a process more, which starts later."""
ROUND_SCHEDULER = "decoding.vllm.scheduler.RoundScheduler"


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """`device`: "cpu" or "cuda", as this vLLM was built. `threads`: OpenMP's, on a CPU.
    `kv_cache_gb`: on a CPU; on a GPU it is what `gpu_memory_share` leaves. `counts`: whether vLLM
    keeps its own metrics. `further`: arguments of vLLM's AsyncEngineArgs that win over those made
    here."""

    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    block_tokens: int = BLOCK_TOKENS
    max_rows: int = MAX_ROWS
    max_batched_tokens: int = MAX_BATCHED_TOKENS
    max_prompt_tokens: int = MAX_PROMPT_TOKENS
    kv_cache_gb: float = KV_CACHE_GB
    gpu_memory_share: float = GPU_MEMORY_SHARE
    enforce_eager: bool = True
    threads: int = 1
    queue_rows: int = DEFAULT_QUEUE_ROWS
    start_timeout_s: float = START_TIMEOUT_S
    counts: bool = False
    further: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        for name in ("block_tokens", "max_rows", "max_batched_tokens", "max_prompt_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.device == "cpu" and self.block_tokens % 32:
            raise ConfigError(
                f"block_tokens is {self.block_tokens}, on a CPU it must be a multiple of 32"
            )

    def engine_arguments(
        self, checkpoint: Path, snapshot: Path | None, longest: int
    ) -> dict[str, Any]:
        """Arguments of AsyncEngineArgs. `longest`: tokens of a prompt and its SID."""
        # By name, not by import: it needs vLLM.
        arguments: dict[str, Any] = {
            "model": str(checkpoint),
            "skip_tokenizer_init": True,
            # Its progress bar has a lock that a killed process leaves behind.
            "use_tqdm_on_load": False,
            "dtype": self.dtype,
            "enforce_eager": self.enforce_eager,
            "block_size": self.block_tokens,
            "enable_prefix_caching": True,
            "max_logprobs": -1,
            "logprobs_mode": "processed_logits",
            "max_model_len": longest,
            "max_num_seqs": self.max_rows,
            "max_num_batched_tokens": self.max_batched_tokens,
            "logits_processors": ["decoding.vllm.processor:SidProcessor"],
            "worker_extension_cls": WORKER_EXTENSION,
            "additional_config": {
                "onesearch": {} if snapshot is None else {"snapshot": str(snapshot)}
            },
            "disable_log_stats": not self.counts,
            # A label of its metrics; else it would be the checkpoint's path.
            "served_model_name": "onesearch",
        }
        if self.device == "cpu":
            arguments["distributed_executor_backend"] = IN_PROCESS
            # On a GPU vLLM schedules ahead, by another class; and its steps are short.
            arguments["scheduler_cls"] = ROUND_SCHEDULER
            arguments["kv_cache_memory_bytes"] = int(self.kv_cache_gb * (1 << 30))
        else:
            arguments["gpu_memory_utilization"] = self.gpu_memory_share
        return {**arguments, **self.further}

    def environment(self) -> dict[str, str]:
        """Variables that vLLM's processes read."""
        variables = {
            # Rows of answers are small; each would be a message part of its own.
            "VLLM_MSGPACK_ZERO_COPY_THRESHOLD": str(1 << 20),
            "VLLM_NO_USAGE_STATS": "1",
            # A fork of a process with threads may hang.
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        }
        if self.device == "cpu":
            variables["OMP_NUM_THREADS"] = str(self.threads)
        return variables
