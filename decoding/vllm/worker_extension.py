"""Mixed into vLLM's workers (`worker_extension_cls`): weights that are replaced as a whole, and an
end when the gateway has ended.

vLLM's `reload_weights` copies tensors into their places. On a CPU matrices are also kept packed for
the product; the copy of an output matrix that is the embedding's ("tied") is not packed anew, so
that a model goes on answering with the old one. Here every output matrix is packed again, and the
product is compared with what the matrix says.
"""

# vLLM lives in another environment than the one that is checked.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import Any

import torch
from torch.nn import functional

END_WITH_PARENT = "end_with_parent"
PROBE_ROWS = 2
LARGEST_DEVIATION = 0.05
"""Of a product in bfloat16 from the exact one, as a share of the largest value; old weights are off
by the order of the values themselves."""


class ReplaceableWeights:
    """Methods for `collective_rpc`; `self` is a worker."""

    reload_weights: Any
    model_runner: Any

    def end_with_parent(self) -> None:
        """From now on this process ends when the one that started it has ended, however it did:
        vLLM's would go on waiting for requests, its memory with it."""
        threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()

    def replace_weights(self, path: str) -> None:
        """Load a checkpoint directory over the present weights. Raises RuntimeError when the
        output matrix does not answer as loaded."""
        self.reload_weights(weights_path=path)
        model = self.model_runner.get_model()
        head = getattr(model, "lm_head", None)
        if head is None:
            return
        head.quant_method.process_weights_after_loading(head)
        _check_product(head)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


@torch.inference_mode()
def _check_product(head: Any) -> None:
    weight = head.weight
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn((PROBE_ROWS, weight.shape[1]), generator=generator)
    probe = probe.to(weight.device, weight.dtype)
    found = head.quant_method.apply(head, probe).float()
    wanted = functional.linear(probe.float(), weight.float())
    if (found - wanted).abs().max() > LARGEST_DEVIATION * wanted.abs().max():
        raise RuntimeError("the output matrix in use is not the one that was loaded")
