"""Language-model training, as small as the embedded model needs."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from smda_jax.model import hf
from smda_jax.model.config import ModelConfig
from smda_jax.model.llama import SCALE, Params, logits


def init(config: ModelConfig, key: PRNGKeyArray, scale: float = 0.02) -> Params:
    """Random parameters: unit norms, normal weights of the given scale, zero biases."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(hf.abstract_params(config, jnp.float32))
    keys = jax.random.split(key, len(leaves))

    def draw(key: PRNGKeyArray, path: str, leaf: jax.ShapeDtypeStruct) -> Array:
        if path.split(".")[-1] in {*SCALE, "final_norm"}:
            return jnp.ones(leaf.shape, leaf.dtype)
        if path.endswith(".b"):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return scale * jax.random.normal(key, leaf.shape, leaf.dtype)

    values = [draw(k, hf.parameter_path(p), leaf) for k, (p, leaf) in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, values)


def loss(
    config: ModelConfig, params: Params, tokens: Int[Array, "row token"], weight: Float[Array, "row token"]
) -> Float[Array, ""]:
    """Mean cross-entropy of the tokens whose weight is not zero, each predicted from those before it."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits(config, params, tokens)[:, :-1], tokens[:, 1:])
    return jnp.sum(losses * weight[:, 1:]) / jnp.sum(weight)


def train(
    config: ModelConfig,
    params: Params,
    batches: Iterable[tuple[Int[Array, "row token"], Float[Array, "row token"]]],
    optimizer: optax.GradientTransformation,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> Params:
    """One optimiser step per batch of (tokens, weight of each token's loss)."""

    rule: Any = optimizer  # optax's types know plain containers only, not dataclasses

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Params, state: optax.OptState, tokens: Array, weight: Array) -> tuple:
        value, grad = jax.value_and_grad(partial(loss, config))(params, tokens, weight)
        updates, state = rule.update(grad, state, params)
        return jax.tree.map(jnp.add, params, updates), state, value

    state = rule.init(params)
    for index, (tokens, weight) in enumerate(batches):
        params, state, value = step(params, state, tokens, weight)
        if index % 50 == 0:
            report(index, float(value))
    return params
