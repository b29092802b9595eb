"""BatchTopK sparse-autoencoder training (Bussmann et al., arXiv 2412.06410)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from smda_jax.pytree import pytree


@pytree
class SAEParams:
    """Encoder reads the raw activation; the decoder bias is only added on the way out."""

    W_enc: Float[Array, "hidden latent"]
    b_enc: Float[Array, " latent"]
    W_dec: Float[Array, "latent hidden"]
    b_dec: Float[Array, " hidden"]


def init(key: PRNGKeyArray, mean: Float[Array, " hidden"], latents: int) -> SAEParams:
    """Unit decoder rows, the encoder their transpose, the decoder bias the data's mean."""
    w = jax.random.normal(key, (latents, mean.shape[0]), mean.dtype)
    w = w / jnp.linalg.norm(w, axis=1, keepdims=True)
    return SAEParams(w.T, -(w @ mean), w, mean)


def pre_activation(params: SAEParams, x: Float[Array, "row hidden"]) -> Float[Array, "row latent"]:
    """Encoder output before the sparsity step, in units of the decoder's norm."""
    return (x @ params.W_enc + params.b_enc[None]) * jnp.linalg.norm(params.W_dec, axis=1)[None]


def reconstruct(params: SAEParams, acts: Float[Array, "row latent"]) -> Float[Array, "row hidden"]:
    """Decoder, for activations in units of its norm."""
    unit = params.W_dec / jnp.linalg.norm(params.W_dec, axis=1, keepdims=True)
    return acts @ unit + params.b_dec[None]


def batch_top_k(
    z: Float[Array, "row latent"], k: int
) -> tuple[Float[Array, "row latent"], Float[Array, ""]]:
    """Keeps the `k` x rows largest positive entries of the whole batch → activations, and the
    smallest one kept."""
    positive = jax.nn.relu(z)
    cut = jax.lax.top_k(positive.reshape(-1), k * z.shape[0])[0][-1]
    cut = jnp.maximum(cut, jnp.finfo(z.dtype).tiny)
    return jnp.where(positive >= cut, positive, jnp.zeros_like(positive)), cut


@dataclass(frozen=True)
class Training:
    """How an SAE is trained.

    Attributes:
        latents: how many.
        k: latents a row, on average.
        steps: of Adam.
        batch: rows a step.
        learning_rate: at first; it falls along a cosine.
        revive: weight of the residual error that silent latents are trained on.
    """

    latents: int
    k: int
    steps: int
    batch: int = 512
    learning_rate: float = 1e-3
    revive: float = 1 / 32


def train(
    key: PRNGKeyArray,
    activations: Float[np.ndarray, "row hidden"],
    how: Training,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[SAEParams, float]:
    """Trains on rows drawn at random.

    Latents that were silent for 200 steps are trained on the residual error with weight
    `how.revive`, so that they come back.

    Returns:
        the parameters, and the threshold that keeps `how.k` latents a row on average (in units of
        the decoder's norm).
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    params = init(key, jnp.asarray(activations.mean(0)), how.latents)
    optimizer: Any = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_decay_schedule(how.learning_rate, how.steps)),
    )
    state = optimizer.init(params)
    variance = float(np.mean(np.sum((activations - activations.mean(0)) ** 2, axis=1)))

    def objective(params: SAEParams, x: Array, dead: Array) -> tuple[Array, tuple[Array, Array]]:
        z = pre_activation(params, x)
        acts, cut = batch_top_k(z, how.k)
        error = x - reconstruct(params, acts)
        main = jnp.mean(jnp.sum(error**2, axis=1)) / variance
        silent, _ = batch_top_k(jnp.where(dead[None], z, jnp.zeros_like(z)), how.k)
        centred = params.replace(b_dec=jnp.zeros_like(params.b_dec))  # type: ignore[attr-defined]
        guess = reconstruct(centred, silent)
        again = jnp.mean(jnp.sum((jax.lax.stop_gradient(error) - guess) ** 2, axis=1)) / variance
        return main + how.revive * again, (cut, (acts > 0).any(axis=0))

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: SAEParams, state: optax.OptState, x: Array, dead: Array) -> tuple:
        (value, (cut, used)), grad = jax.value_and_grad(objective, has_aux=True)(params, x, dead)
        updates, state = optimizer.update(grad, state, params)
        return jax.tree.map(jnp.add, params, updates), state, value, cut, used

    threshold, silent_for = 0.0, np.zeros(how.latents, int)
    for index in range(how.steps):
        x = jnp.asarray(activations[rng.integers(len(activations), size=how.batch)])
        params, state, value, cut, used = step(params, state, x, jnp.asarray(silent_for > 200))
        silent_for = np.where(np.asarray(used), 0, silent_for + 1)
        threshold = float(cut) if index == 0 else 0.99 * threshold + 0.01 * float(cut)
        if index % 200 == 0:
            report(index, float(value))
    return params, threshold
