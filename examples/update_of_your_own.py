"""A step that moves only the MLPs: an update of one's own, which every engine takes."""

from pathlib import Path

import numpy as np

import smda_jax as smda
from smda_jax.pytree import pytree
from smda_jax.steps.updates.contract import Update


@pytree
class OnlyMlp(Update):
    """`-η g` of the MLPs' weights, nothing of the others."""

    def linear(self, part, op, step):
        """See `Update`."""
        own = op.name in ("gate", "up", "down")
        return (step if own else step.replace(d=step.d * 0)).smaller()

    def scale(self, part, op, g):
        """See `Update`."""
        return g * 0

    def final_norm(self, g):
        """See `Update`."""
        return g * 0

    def embed(self, step):
        """See `Update`."""
        head = None if step.head is None else step.head.replace(d=step.head.d * 0)
        return step.replace(d=step.d * 0, head=head)

    def unembed(self, step):
        """See `Update`."""
        return step.replace(
            head=step.head.replace(d=step.head.d * 0), looked_up=self.embed(step.looked_up)
        )


folder = Path(smda.__file__).parent / "embedded"
model, sae = smda.load_model(folder / "model"), smda.load_sae(folder / "sae")
prompts = smda.load_prompts(folder / "prompts.parquet").take(range(0, 514, 8))
pairs = smda.load_pairs(folder / "pairs.parquet").take(range(6))
evaluation = smda.activations(model, sae, prompts, features="contrast:0.3")
for name, update in {"all parameters": "sgd", "MLPs only": OnlyMlp(1e-4)}.items():
    steps = smda.pair_steps(model, pairs, update=update)
    delta = smda.forward(evaluation, steps)
    print(f"{name}: mean ΔY {np.mean(delta.y):+.2e} nats")
