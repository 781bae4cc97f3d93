"""Runs inside vLLM's own environment: beam search over SIDs by vLLM, asked for line by line.

    python -m loadtest.bench.vllm_driver CHECKPOINT TRIE DTYPE WIDEST

Standard input: {"prompts": [[…], …], "beam": n}, one JSON object a line. Standard output: one
{"ready": true}, then {"seconds": s, "codes": [[[…], …], …]} for each, best first; seconds are those
of the search alone. The prefix cache is emptied before each: prompts are new to the engine, as they
are to its peers.

One `generate` call per level over all queries × beams, one token each; a logits processor writes
level-normalised log-probabilities of legal codes and -inf elsewhere; the best of each query's
candidates go on. That is quicker than vLLM's own beam search, which moreover drops constraints.
"""

# vLLM lives in another environment than the one that is checked.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false
# pyright: reportUnknownParameterType=false
from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np
import torch
from numpy.typing import NDArray
from vllm import LLM, SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality

PREFIX = "sid_prefix"
SETTINGS = "sids"
BLOCK_TOKENS = 32
MOST_ROWS = 1024
MOST_BATCHED_TOKENS = 8192


class LegalSids(LogitsProcessor):
    """Level-normalised log-probabilities of the codes that continue each row's prefix."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        # Not before vLLM's worker has started: it looks into every module that is loaded, and fails
        # at an object of llvmlite.
        from index.trie import Trie

        settings = vllm_config.additional_config[SETTINGS]
        self._trie = Trie.open(Path(settings["trie"]))
        self._offsets: list[int] = settings["sid_offset"]
        self._prefixes: dict[int, list[int]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._prefixes.pop(row, None)
        for row, params, _, _ in batch_update.added:
            self._prefixes[row] = params.extra_args[PREFIX]
        for one, two, direction in batch_update.moved:
            moved, other = self._prefixes.pop(one, None), self._prefixes.pop(two, None)
            if moved is not None:
                self._prefixes[two] = moved
            if direction == MoveDirectionality.SWAP and other is not None:
                self._prefixes[one] = other

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Rows of one call are of one level."""
        prefixes = [self._prefixes[row] for row in range(len(logits))]
        level = len(prefixes[0])
        row, code = self._legal(np.array(prefixes, dtype=np.int64).reshape(len(prefixes), level))
        first, size = self._offsets[level], self._trie.layout.level_sizes[level]
        scores = torch.log_softmax(logits[:, first : first + size], dim=-1)
        kept = scores[row, code]
        logits.fill_(float("-inf"))
        logits[row, code + first] = kept
        return logits

    def _legal(self, prefixes: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and code of every legal continuation of the prefixes (rows, level)."""
        trie, level = self._trie, prefixes.shape[1]
        first = np.zeros(len(prefixes), dtype=np.int64)
        end = np.full(len(prefixes), trie.node_counts[0])
        row, child = _ragged(first, end)
        for known in range(level):
            size = trie.layout.level_sizes[known]
            keys = row * size + trie.codes[known][child]
            place = np.searchsorted(keys, np.arange(len(prefixes)) * size + prefixes[:, known])
            row, child = _ragged(*trie.children(known, child[place]))
        code = trie.codes[level][child].astype(np.int64)
        return torch.from_numpy(row), torch.from_numpy(code)


def _ragged(
    first: NDArray[np.int64], end: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    counts = end - first
    row = np.repeat(np.arange(len(first)), counts)
    return row, np.arange(len(row)) + np.repeat(end - np.cumsum(counts), counts)


def search(llm: LLM, prompts: list[list[int]], width: int, offsets: list[int]) -> list[Any]:
    """Codes of each prompt's best SIDs."""
    beams: list[list[tuple[float, list[int]]]] = [[(0.0, [])] for _ in prompts]
    for level in range(len(offsets)):
        inputs: list[Any] = []
        parameters: list[SamplingParams] = []
        for prompt, beam in zip(prompts, beams, strict=True):
            for _, codes in beam:
                tokens = [offset + code for offset, code in zip(offsets, codes, strict=False)]
                inputs.append({"prompt_token_ids": [*prompt, *tokens]})
                parameters.append(
                    SamplingParams(
                        max_tokens=1,
                        temperature=0.0,
                        logprobs=width,
                        flat_logprobs=True,
                        detokenize=False,
                        ignore_eos=True,
                        skip_clone=True,
                        extra_args={PREFIX: codes},
                    )
                )
        answers = iter(llm.generate(inputs, parameters, use_tqdm=False))
        beams = [
            _grown(beam, [next(answers) for _ in beam], width, offsets[level]) for beam in beams
        ]
    return [[codes for _, codes in beam] for beam in beams]


def _grown(
    beam: list[tuple[float, list[int]]], answers: list[Any], width: int, offset: int
) -> list[tuple[float, list[int]]]:
    scores: list[NDArray[np.float64]] = []
    tokens: list[NDArray[np.int64]] = []
    for (score, _), answer in zip(beam, answers, strict=True):
        found = answer.outputs[0].logprobs
        # The sampled token comes first, then the best ones, it among them.
        scores.append(score + np.array(found.logprobs[1:]))
        tokens.append(np.array(found.token_ids[1:]))
    rows = np.repeat(np.arange(len(beam)), [len(part) for part in scores])
    total, token = np.concatenate(scores), np.concatenate(tokens)
    wanted = min(width, int(np.isfinite(total).sum()))
    best = (
        np.argpartition(-total, wanted - 1)[:wanted] if wanted < len(total) else np.arange(wanted)
    )
    best = best[np.argsort(-total[best], kind="stable")]
    return [(float(total[at]), [*beam[rows[at]][1], int(token[at]) - offset]) for at in best]


def main(arguments: list[str]) -> None:
    """Answer lines until there are no more."""
    checkpoint, trie, dtype, widest = arguments
    answers = _private_output()
    settings = cast(dict[str, Any], json.loads((Path(checkpoint) / "onesearch.json").read_bytes()))
    offsets: list[int] = settings["sid_offset"]
    llm = LLM(
        model=checkpoint,
        skip_tokenizer_init=True,
        dtype=dtype,
        enforce_eager=True,
        distributed_executor_backend="uni",
        block_size=BLOCK_TOKENS,
        enable_prefix_caching=True,
        max_logprobs=int(widest),
        logprobs_mode="processed_logits",
        max_model_len=256,
        max_num_seqs=MOST_ROWS,
        max_num_batched_tokens=MOST_BATCHED_TOKENS,
        logits_processors=[LegalSids],
        additional_config={SETTINGS: {"trie": trie, "sid_offset": offsets}},
    )
    _say(answers, {"ready": True})
    for line in sys.stdin:
        asked = json.loads(line)
        llm.reset_prefix_cache()
        begun = time.perf_counter()
        codes = search(llm, asked["prompts"], asked["beam"], offsets)
        _say(answers, {"seconds": time.perf_counter() - begun, "codes": codes})


def _private_output() -> TextIO:
    """Standard output for answers alone: whatever else is printed goes to standard error."""
    private = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return private


def _say(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
