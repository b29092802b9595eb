"""The attribution loop as it is done in PyTorch today, written to be fair.

For every pair: one SGD step on all parameters, then three batched passes over all prompts (residual stream; one per refusal
sequence), then the weights copied back exactly. float32, loss over the response only, prompts sorted by length so that padding
is small, no gradients kept in the passes, and the residual pass stops at the layer it reads.
"""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from smda_jax.data.chat import PairTokens, PromptTokens


class LayerReached(Exception):  # noqa: N818 (not an error)
    """Ends a forward pass at the layer that is read."""


class Loop:
    """The loop over one checkpoint. `site` is the zero-based block whose output is read."""

    def __init__(
        self, folder: Path, prompts: Sequence[PromptTokens], sequences: Sequence[Sequence[int]], layer: int, batch: int = 64
    ):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.sequences, self.layer = [list(s) for s in sequences], layer
        self.base = [p.detach().clone() for p in self.model.parameters()]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].ids))
        self.batches = [order[i : i + batch] for i in range(0, len(order), batch)]
        self.prompts = prompts

    def step(self, pair: PairTokens, learning_rate: float) -> None:
        """One SGD step on one pair."""
        ids = torch.tensor([pair.ids])
        logits = self.model(ids, use_cache=False).logits[0, pair.response - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, pair.response :])
        self.model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in self.model.parameters():
                assert p.grad is not None
                p.add_(p.grad, alpha=-learning_rate)

    @torch.no_grad()
    def restore(self) -> None:
        """The exact base weights."""
        for p, saved in zip(self.model.parameters(), self.base, strict=True):
            p.copy_(saved)

    def _pad(self, rows: list[list[int]]) -> torch.Tensor:
        width = max(map(len, rows))
        return torch.tensor([row + [0] * (width - len(row)) for row in rows])  # on the right: causal attention needs no mask

    @torch.no_grad()
    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """(h, Y) of all prompts under the weights as they are."""
        h = np.zeros((len(self.prompts), self.model.config.hidden_size), np.float32)
        scores = np.zeros((len(self.sequences), len(self.prompts)), np.float32)
        seen = []

        def keep(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
            seen.append(output)
            raise LayerReached

        for rows in self.batches:
            hook = self.model.model.layers[self.layer].register_forward_hook(keep)
            with contextlib.suppress(LayerReached):
                self.model(self._pad([self.prompts[i].ids for i in rows]), use_cache=False)
            hook.remove()
            h[rows] = seen.pop()[torch.arange(len(rows)), [self.prompts[i].eot for i in rows]].numpy()
            for number, q in enumerate(self.sequences):
                full = self._pad([self.prompts[i].ids + q for i in rows])
                logp = self.model(full, use_cache=False).logits.log_softmax(-1)
                for row, i in enumerate(rows):
                    at = len(self.prompts[i].ids) - 1
                    scores[number, i] = sum(float(logp[row, at + t, token]) for t, token in enumerate(q))
        return h, np.logaddexp.reduce(scores, axis=0)

    def run(self, pairs: Sequence[PairTokens], learning_rate: float) -> tuple[np.ndarray, np.ndarray, list[float]]:
        """(Δh, ΔY, seconds) of every pair."""
        h, y = self.read()
        dh, dy, seconds = [], [], []
        for pair in pairs:
            start = time.perf_counter()
            self.step(pair, learning_rate)
            after = self.read()
            self.restore()
            seconds.append(time.perf_counter() - start)
            dh.append(after[0] - h)
            dy.append(after[1] - y)
        return np.stack(dh), np.stack(dy), seconds
