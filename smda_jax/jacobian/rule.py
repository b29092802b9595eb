"""Update rules beyond plain SGD: Adam's preconditioner, and engine `finite` under any optax rule, weights really moved."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from smda_jax.data.batches import LengthBlock, PairBatch, blocks_by_length, padded_length, pair_batch, scored_positions
from smda_jax.data.chat import LossScope, PairTokens
from smda_jax.errors import InputError
from smda_jax.jacobian import programs
from smda_jax.jacobian.evaluation import Evaluation, Model, Progress, read_prompts, silent
from smda_jax.jacobian.factors import gradient, scored_losses, squares
from smda_jax.jacobian.passes import Delta, true_change
from smda_jax.jacobian.programs import for_each
from smda_jax.model.config import ModelConfig
from smda_jax.model.llama import Params
from smda_jax.model.mesh import rows_of
from smda_jax.model.precision import jit, numerics


def finite_by_rule(
    evaluation: Evaluation,
    tokens: Sequence[PairTokens],
    rule: optax.GradientTransformation,
    state: Any = None,
    scope: LossScope = "response",
    *,
    prompts: Int[np.ndarray, " prompt"] | None = None,
    progress: Progress = silent,
) -> Delta:
    """True change of X and Y after one step of `rule` on each pair, always from the same weights and the same state.

    A rule's step may be of any rank, so the weights are moved as a whole: three copies of the parameters are held, and every
    pair costs a pass over the prompts. For plain, normalised and preconditioned steps `finite` is the way.

    Args:
        evaluation: from `activations`; its dtype is that of the step too.
        tokens: of the pairs.
        rule: any optax transformation.
        state: of the rule, as a training run left it, shaped after `evaluation.model.params`; default: as the rule begins.
        scope: response, or all tokens.
        prompts: default all.
        progress: told the share of the work just done.
    """
    e = evaluation
    chosen = np.arange(len(e.tokens)) if prompts is None else prompts
    own = [e.tokens[i] for i in chosen.tolist()]
    width = padded_length(max(len(t.ids) for t in tokens))
    x, z = (np.zeros((len(tokens), len(chosen), len(e.feature_ids)), e.h.dtype) for _ in range(2))
    y, h = np.zeros(x.shape[:2], e.h.dtype), e.h[chosen]
    with numerics(e.model.dtype):
        state = rule.init(e.model.params) if state is None else state  # type: ignore[arg-type]
    positions = max(len(scored_positions(t, scope)) for t in tokens)
    for i, pair in enumerate(tokens):
        with numerics(e.model.dtype):
            batch = jax.tree.map(jnp.asarray, pair_batch([pair], scope, width, 1, positions))
            args, where = (e.model.params, state, batch), {"axes": (-1, -1, -1), "out": -1}
            params = programs.run(_moved, e.model.config, *args, limit=programs.memory_limit(), rule=rule, **where)
        after = read_prompts(replace(e.model, params=params), own, e.targets, e.site)
        with numerics(e.h.dtype):
            dz, dx = true_change(e.encoder, jnp.asarray(h), jnp.asarray(after.h - h)[None])
        z[i], x[i], y[i] = np.asarray(dz[0]), np.asarray(dx[0]), after.y - e.y[chosen]
        progress(1 / len(tokens))
    return Delta(z, x, y)


@partial(jit, static_argnames=("config", "rule"))
def _moved(config: ModelConfig, params: Params, state: Any, batch: PairBatch, rule: optax.GradientTransformation) -> Params:
    g = jax.grad(lambda params: scored_losses(config, params, batch)[0].sum())(params)
    step, _ = rule.update(g, state, params)  # type: ignore[arg-type]
    return optax.apply_updates(params, step)  # type: ignore[arg-type,return-value]


def rule_named(name: str, learning_rate: float | int) -> optax.GradientTransformation:
    """An optimiser of optax by its name, such as `optax.lion`, with its own defaults but for the learning rate.

    Raises:
        InputError: optax has none of that name that needs no more than a learning rate.
    """
    make: Callable[..., Any] | None = getattr(optax, name.removeprefix("optax."), None)
    try:
        rule = make(learning_rate) if callable(make) else None
    except Exception:  # whatever the function thinks of its argument
        rule = None
    if not isinstance(rule, optax.GradientTransformation):
        raise InputError("--update", f"{name} is no optimiser of optax", "one that takes a learning rate, such as optax.lion")
    return rule


def adam_scaling(
    model: Model, tokens: Sequence[PairTokens], scope: LossScope = "response", *, eps: float = 1e-8, block: int = 8
) -> Params:
    """Diagonal preconditioner `1 / (sqrt(v) + eps)` of Adam, v the mean over the pairs of their squared gradients.

    For the second moments of a training run, `scaling_of(optax.tree_utils.tree_get(state, "nu"))`.
    """
    total: list[Params] = []

    def one(part: LengthBlock) -> None:
        size = rows_of(part.size)
        batch = pair_batch([tokens[i] for i in part.rows], scope, part.width, size)
        weight = (np.arange(size) < len(part.rows)) / len(tokens)
        args, axes = (model.params, batch, jnp.asarray(weight)), {"axes": (-1, 0, 0), "out": programs.SUM}
        own = programs.run(_squares, model.config, *args, limit=programs.memory_limit(), **axes)
        total[:] = [jax.tree.map(jnp.add, total[0], own) if total else own]

    with numerics(model.dtype):
        for_each([len(t.ids) for t in tokens], block, partial(blocks_by_length, worth=programs.worth(model.config, 3)), one)
        return scaling_of(total[0], eps, model.dtype)


def scaling_of(second_moments: Params, eps: float = 1e-8, dtype: Any = None) -> Params:
    """`1 / (sqrt(v) + eps)` of second moments shaped like the parameters."""
    return jax.tree.map(lambda v: (1 / (jnp.sqrt(v) + eps)).astype(dtype or v.dtype), second_moments)


@partial(jit, static_argnames="config")
def _squares(config: Any, params: Params, batch: Any, weight: Array) -> Params:
    return squares(gradient(config, params, batch)[1], weight, params)
