"""Greedy answers, token by token, with keys and values of what has been read kept."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from smda_jax.data.batch.chunks import Chunk, padded_chunks
from smda_jax.data.batch.layouts import Padded
from smda_jax.data.tokenised import PromptTokens
from smda_jax.model.attention import Cache
from smda_jax.model.forward import Context, Hidden, at_tokens, embed, run_blocks, unembed
from smda_jax.model.params import Params
from smda_jax.reading.network import Model, Progress, silent
from smda_jax.runtime.devices import Replicated, Rows, devices, fetch
from smda_jax.runtime.memory import for_each
from smda_jax.runtime.precision import numerics
from smda_jax.runtime.programs import padding_budget, program


def answers(
    model: Model,
    prompts: Sequence[PromptTokens],
    *,
    most: int = 30,
    batch_size: int = 64,
    progress: Progress = silent,
) -> list[list[int]]:
    """The likeliest token after each prompt, and so on: up to an end of turn, at most `most`.

    Args:
        model: that answers.
        prompts: in any order; batches are of like lengths.
        most: tokens of an answer.
        batch_size: prompts at a time.
        progress: told the share of the work just done.
    """
    found: list[list[int]] = [[] for _ in prompts]
    ends = np.array(sorted(model.chat.ends), np.int32)

    def visit(chunk: Chunk) -> None:
        assert isinstance(chunk.layout, Padded)
        size = devices().round_up(chunk.layout.size)
        rows = np.pad(chunk.rows, (0, size - len(chunk.rows)), "edge")
        tokens = np.zeros((size, chunk.layout.width), np.int32)
        for lane, row in enumerate(rows):
            tokens[lane, : len(prompts[row].ids)] = prompts[row].ids
        length = np.array([len(prompts[row].ids) for row in rows], np.int32)
        given = fetch(_greedy.run(model.params, tokens, length, most=most))
        for row, own in zip(chunk.rows, given, strict=False):
            stop = np.flatnonzero(np.isin(own, ends))
            found[row] = own[: stop[0] if len(stop) else most].tolist()
        progress(len(chunk.rows) / len(prompts))

    lengths = [len(p.ids) for p in prompts]
    budget = padding_budget(model.config.flop_per_token, 1)
    with numerics(model.dtype):
        for_each(lengths, batch_size, partial(padded_chunks, padding_budget=budget), visit)
    return found


@program(Replicated(), Rows(), Rows(), result=Rows(), static=("most",))
def _greedy(
    params: Params, tokens: Int[Array, "row token"], length: Int[Array, " row"], most: int
) -> Int[Array, "row answer"]:
    """The prompts at once, then one token of every row at a time."""
    config, (rows, width) = params.config, tokens.shape
    shape = (config.layers, rows, width + most, config.attention.kv_heads)
    nothing = jnp.zeros((*shape, config.attention.head_dim), params.embed.dtype)

    def read(tokens: Array, cache: Cache) -> Hidden:
        return run_blocks(params, embed(params, tokens), context=Context(past=cache))

    def lengths(length: Array) -> Array:
        return jnp.broadcast_to(length, (config.layers, rows))

    def likeliest(x: Array) -> Array:
        return jnp.argmax(unembed(params, x)[0][:, 0], axis=-1).astype(tokens.dtype)

    def further(carry: tuple[Array, Cache], _: None) -> tuple[Any, Array]:
        token, cache = carry
        hidden = read(token[:, None], cache)
        assert isinstance(hidden.past, Cache)
        after = hidden.past._replace(length=cache.length + 1)
        return (likeliest(hidden.x), after), token

    hidden = read(tokens, Cache(nothing, nothing, lengths(jnp.zeros_like(length))))
    assert isinstance(hidden.past, Cache)
    first = likeliest(at_tokens(hidden.x, length[:, None] - 1))
    cache = hidden.past._replace(length=lengths(length))
    return jax.lax.scan(further, (first, cache), None, length=most)[1].T
