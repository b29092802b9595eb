"""A step that moves only the MLPs: an update of one's own, which every engine takes."""

from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

import smda_jax as smda
from smda_jax.engines.query.dataset import inner_products, pull_readouts
from smda_jax.engines.query.program import Weighting
from smda_jax.pytree import pytree
from smda_jax.reading.tokens import tokenise_pairs
from smda_jax.steps.dataset import Stepping
from smda_jax.steps.updates.contract import Update


@pytree
class OnlyMlp(Update):
    """`-η g` of the MLPs' weights, nothing of the others: a map P that is its own transpose."""

    names: ClassVar[tuple[str, ...]] = ("gate", "up", "down")

    def linear(self, part, op, step):
        """Of one linear operation's step, as factors."""
        return (step if op.name in self.names else step.replace(d=step.d * 0)).smaller()

    def scale(self, part, op, g):
        """Of one norm scale's step."""
        return g * 0

    def final_norm(self, g):
        """Of the last norm's."""
        return g * 0

    def embed(self, step):
        """Of the embedding's; where it is tied, `head` is its other use."""
        head = None if step.head is None else step.head.replace(d=step.head.d * 0)
        return step.replace(d=step.d * 0, head=head)

    def unembed(self, step):
        """Of the unembedding's; where it is tied, `looked_up` is its other use."""
        looked_up = None if step.looked_up is None else self.embed(step.looked_up)
        return step.replace(head=step.head.replace(d=step.head.d * 0), looked_up=looked_up)

    def pull(self, query):
        """Of a gradient in full, which is how engine `query` asks."""
        nothing = jax.tree.map(jnp.zeros_like, query)
        mlp = {name: query.blocks[name] for name in self.names}
        return nothing.replace(blocks=nothing.blocks | mlp)


folder = Path(smda.__file__).parent / "embedded"
model, sae = smda.load_model(folder / "model"), smda.load_sae(folder / "sae")
prompts = smda.load_prompts(folder / "prompts.parquet").take(range(0, 514, 8))
pairs = smda.load_pairs(folder / "pairs.parquet").take(range(6))
evaluation = smda.activations(model, sae, prompts, features="contrast:0.3")
for name, update in {"all parameters": "sgd", "MLPs only": OnlyMlp(1e-4)}.items():
    steps = smda.pair_steps(model, pairs, update=update)
    delta = smda.forward(evaluation, steps)
    print(f"{name}: mean ΔY {np.mean(delta.y):+.2e} nats")

# The same by engine `query`, which never forms a step: the gradient of mean Y, then one product.
weighting = Weighting(None, np.full((1, len(prompts)), 1 / len(prompts), np.float32))
mean_y = pull_readouts(evaluation, weighting, OnlyMlp(1e-4))
stepping = Stepping(model, OnlyMlp(1e-4))
(value,), _ = inner_products(stepping, tokenise_pairs(model, pairs), (mean_y,))
assert np.allclose(value[0], delta.y.mean(axis=1), rtol=1e-3)
print("engine query gives the same")
