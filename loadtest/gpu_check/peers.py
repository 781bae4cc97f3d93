"""What others do on the same card, with the same weights and prompts.

`generate`: Hugging Face transformers' constrained beam search, as most repositories use it.
`RowExpanded`: a beam search over its own copy of the context's keys and values for each beam, legal
children gathered on the device, padded to the level's largest branching; our own code, written as
one would by hand.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from decoding.engine import Prompt
from index.trie import Trie
from loadtest.gpu_check.subjects import Subject

Sid = tuple[int, ...]


def hugging_face_model(subject: Subject, dtype: torch.dtype, device: str) -> Any:
    """The subject as transformers runs it. Raises ImportError without transformers."""
    from transformers import Qwen3Config as HuggingFaceConfig
    from transformers import Qwen3ForCausalLM

    raw: dict[str, Any] = subject.config.to_json() | {"dtype": str(dtype).removeprefix("torch.")}
    with torch.device(device):
        model: Any = Qwen3ForCausalLM(HuggingFaceConfig(**raw))
    model = model.to(dtype).eval()
    missing = model.load_state_dict(subject.tensors, strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"}, missing
    model.tie_weights()
    return model


class Generate:
    """transformers' `generate` with `prefix_allowed_tokens_fn`."""

    def __init__(self, model: Any, subject: Subject, trie: Trie, device: str) -> None:
        self._model, self._trie, self._device = model, trie, device
        self._offsets = subject.sid_offset
        self._allowed: dict[Sid, tuple[int, list[int]]] = {}

    @torch.inference_mode()
    def search(self, prompt: Prompt, beam_width: int) -> list[Sid]:
        """SIDs, best first. The allowed tokens of a prefix are looked up once a search."""
        self._allowed.clear()
        length, levels = len(prompt.token_ids), len(self._offsets)
        token_ids = torch.from_numpy(prompt.token_ids.astype(np.int64))[None].to(self._device)

        def allowed(_: int, sequence: Tensor) -> list[int]:
            return self._children(tuple(sequence[length:].tolist()))[1]

        found = self._model.generate(
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            num_beams=beam_width,
            num_return_sequences=beam_width,
            max_new_tokens=levels,
            min_new_tokens=levels,
            do_sample=False,
            prefix_allowed_tokens_fn=allowed,
            pad_token_id=0,
        )
        codes = found[:, length:].cpu().numpy() - np.array(self._offsets)
        return [tuple(sid) for sid in codes.tolist()]

    def _children(self, tokens: Sid) -> tuple[int, list[int]]:
        """The node that a prefix of tokens ends in (-1: the root), and the tokens allowed next."""
        if tokens in self._allowed:
            return self._allowed[tokens]
        level = len(tokens)
        if level == 0:
            node, first, end = -1, 0, self._trie.node_counts[0]
        else:
            parent, siblings = self._children(tokens[:-1])
            if tokens[-1] not in siblings:
                # generate keeps beams that are dead already; any token will do for them.
                return -1, [0]
            start = self._run(level - 1, parent)[0]
            node = start + siblings.index(tokens[-1])
            if level == len(self._offsets):
                return node, [0]
            first, end = self._run(level, node)
        codes = self._trie.codes[level][first:end].astype(np.int64) + self._offsets[level]
        self._allowed[tokens] = node, codes.tolist()
        return self._allowed[tokens]

    def _run(self, level: int, parent: int) -> tuple[int, int]:
        """Nodes of `level` below a node of the level above."""
        if level == 0:
            return 0, self._trie.node_counts[0]
        first, end = self._trie.children(level - 1, np.array([parent]))
        return int(first[0]), int(end[0])


class RowExpanded:
    """Beam search with a key-value cache in which every beam is a row."""

    def __init__(self, model: Any, subject: Subject, trie: Trie, device: str) -> None:
        self._model, self._device, self._subject = model, device, subject
        self._codes = [torch.from_numpy(codes.astype(np.int64)).to(device) for codes in trie.codes]
        starts = [np.array([0, trie.node_counts[0]]), *(part.plain() for part in trie.starts)]
        self._widest = [int(np.diff(start.astype(np.int64)).max()) for start in starts]
        self._starts = [torch.from_numpy(start.astype(np.int64)).to(device) for start in starts]

    @torch.inference_mode()
    def search(self, prompt: Prompt, beam_width: int) -> list[Sid]:
        """SIDs, best first."""
        token_ids = torch.from_numpy(prompt.token_ids.astype(np.int64))[None].to(self._device)
        cache: Any = None
        nodes = torch.zeros(1, dtype=torch.int64, device=self._device)
        scores = torch.zeros(1, dtype=torch.float32, device=self._device)
        sids = torch.zeros((1, 0), dtype=torch.int64, device=self._device)
        layout, offsets = self._subject.layout, self._subject.sid_offset
        for level, size in enumerate(layout.level_sizes):
            output = self._model(token_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = output.past_key_values
            logits = output.logits[:, -1, offsets[level] : offsets[level] + size].float()
            nodes, parents, codes, scores = self._expand(
                level, nodes, scores, torch.log_softmax(logits, -1), beam_width
            )
            sids = torch.cat((sids[parents], codes[:, None]), 1)
            if level < layout.levels - 1:
                if level == 0:
                    cache.batch_repeat_interleave(len(parents))
                else:
                    cache.reorder_cache(parents)
                token_ids = (codes + offsets[level])[:, None]
        return [tuple(sid) for sid in sids.tolist()]

    def _expand(
        self, level: int, nodes: Tensor, scores: Tensor, logits: Tensor, beam_width: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first, end = self._starts[level][nodes], self._starts[level][nodes + 1]
        lane = torch.arange(self._widest[level], device=self._device)
        child = first[:, None] + lane
        legal = child < end[:, None]
        child = torch.where(legal, child, 0)
        codes = self._codes[level][child]
        total = scores[:, None] + logits.gather(1, codes)
        total = total.masked_fill_(~legal, -torch.inf).flatten()
        best, place = total.topk(min(beam_width, len(total)))
        kept = best > -torch.inf
        best, place = best[kept], place[kept]
        parents = place // len(lane)
        return child.flatten()[place], parents, codes.flatten()[place], best
