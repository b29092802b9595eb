"""Language-model training, as small as the embedded model needs."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from smda_jax.model.config import ModelConfig
from smda_jax.model.forward import logits
from smda_jax.model.params import Params, abstract_params, parameter_path


def init(config: ModelConfig, key: PRNGKeyArray, scale: float = 0.02) -> Params:
    """Random parameters: unit norms, normal weights of the given scale, zero biases."""
    shapes = abstract_params(config, jnp.float32)
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    # A scale that is stored less one begins at zero.
    scales = {f"{op.name}.w": 1.0 - op.offset for op in config.table.scales}
    scales["final_norm"] = 1.0 - config.final_norm.offset
    keys = jax.random.split(key, len(leaves))

    def draw(key: PRNGKeyArray, path: str, leaf: jax.ShapeDtypeStruct) -> Array:
        if path in scales:
            return jnp.full(leaf.shape, scales[path], leaf.dtype)
        if path.endswith(".b"):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return scale * jax.random.normal(key, leaf.shape, leaf.dtype)

    values = [draw(k, parameter_path(p), leaf) for k, (p, leaf) in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, values)


def loss(
    params: Params, tokens: Int[Array, "row token"], weight: Float[Array, "row token"]
) -> Float[Array, ""]:
    """Mean cross-entropy of the tokens whose weight is not zero, each predicted from the others."""
    given = logits(params, tokens)[:, :-1]
    losses = optax.softmax_cross_entropy_with_integer_labels(given, tokens[:, 1:])
    return jnp.sum(losses * weight[:, 1:]) / jnp.sum(weight)


def train(
    params: Params,
    batches: Iterable[tuple[Int[Array, "row token"], Float[Array, "row token"]]],
    optimizer: optax.GradientTransformation,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> Params:
    """One optimiser step per batch of (tokens, weight of each token's loss)."""

    rule: Any = optimizer  # optax's types know plain containers only, not dataclasses

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Params, state: optax.OptState, tokens: Array, weight: Array) -> tuple:
        value, grad = jax.value_and_grad(loss)(params, tokens, weight)
        updates, state = rule.update(grad, state, params)
        return jax.tree.map(jnp.add, params, updates), state, value

    state = rule.init(params)
    for index, (tokens, weight) in enumerate(batches):
        params, state, value = step(params, state, tokens, weight)
        if index % 50 == 0:
            report(index, float(value))
    return params
