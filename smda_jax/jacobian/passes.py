"""Engines over whole data sets: tokenised, batched, put together again. What runs and notebooks call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from smda_jax.data.batches import SLACK, blocks_by_length, padded_length, pair_batch, prompt_batch, shared_length
from smda_jax.data.chat import DEFAULT_DATE, Chat, LossScope, PairTokens, PromptTokens
from smda_jax.data.features import check, parse
from smda_jax.data.records import Pairs, Prompts
from smda_jax.data.targets import REFUSALS, Targets
from smda_jax.errors import InputError
from smda_jax.jacobian import readout
from smda_jax.jacobian.factors import Factors, PairStatistics
from smda_jax.jacobian.factors import factors as factor_block
from smda_jax.jacobian.finite import finite as finite_block
from smda_jax.jacobian.forward import forward as forward_block
from smda_jax.jacobian.readout import Reading, Site
from smda_jax.model import hf
from smda_jax.model.config import ModelConfig
from smda_jax.model.llama import SITES, Params, wide
from smda_jax.model.precision import DType, numerics
from smda_jax.policy.selection import contrastive
from smda_jax.sae.encoder import Encoder, activation, cast, gate, pre_activation, relu_proxy, select
from smda_jax.sae.formats import SAE

EncoderName = Literal["relu_proxy", "native"]
EngineName = Literal["forward", "finite"]
Progress = Callable[[int], None]  # called with the number of prompts just finished


def _silent(done: int) -> None:
    pass


@dataclass(frozen=True)
class Model:
    """A model ready to be read: shape, parameters and the chat template that wraps every text."""

    config: ModelConfig
    params: Params
    chat: Chat

    @property
    def dtype(self) -> Any:
        """Of the parameters and the forward pass."""
        return self.params.embed.dtype

    def astype(self, dtype: DType) -> "Model":
        """The same weights in another precision."""
        with numerics(dtype):
            return replace(self, params=jax.tree.map(lambda leaf: leaf.astype(dtype), self.params))


def load_model(
    model: str | Path, dtype: DType = "float32", *, chat_date: str = DEFAULT_DATE, cache: Path | None = None
) -> Model:
    """Loads a Hugging Face folder or Hub id, with the tokenizer beside it.

    Raises:
        InputError: see `model.hf.load` and `data.chat.Chat`.
    """
    with numerics(dtype):
        config, params = hf.load(model, dtype, cache=cache)
    return Model(config, params, Chat(hf.fetch(model, hf.PATTERNS), chat_date))


@dataclass(frozen=True)
class Evaluation:
    """Evaluation prompts as the base model reads them.

    Attributes:
        model: the base model.
        tokens: the prompts.
        targets: the behaviour.
        site: where the SAE reads.
        encoder: of the selected features.
        feature_ids: their ids, in column order.
        h: residual stream at the end of turn.
        z: pre-activations.
        active: where a feature is active.
        y: log-probability of the behaviour, in nats.
        block: prompts per batch.
        slack: padded tokens allowed per real one; more padding, fewer shapes to compile.
    """

    model: Model
    tokens: list[PromptTokens]
    targets: Targets
    site: Site
    encoder: Encoder
    feature_ids: list[int]
    h: Float[np.ndarray, "prompt hidden"]
    z: Float[np.ndarray, "prompt feature"]
    active: Bool[np.ndarray, "prompt feature"]
    y: Float[np.ndarray, " prompt"]
    block: int = 64
    slack: float = SLACK

    @property
    def x(self) -> Float[np.ndarray, "prompt feature"]:
        """Feature activations: gate · z."""
        return np.where(self.active, self.z, 0)

    @property
    def shared(self) -> int:
        """Leading tokens that all prompts have in common."""
        return shared_length(self.tokens)


class Delta(NamedTuple):
    """Change under each pair's step: of z before the gate, of the activations X, and of Y."""

    z: Float[np.ndarray, "pair prompt feature"]
    x: Float[np.ndarray, "pair prompt feature"]
    y: Float[np.ndarray, "pair prompt"]


def resolve_site(sae: SAE, config: ModelConfig, layer: int | None = None) -> Site:
    """Where an SAE reads a model: the site of its own config, at `layer` if that is given.

    Raises:
        InputError: neither says which layer, the layer does not exist, or the SAE is of another width than the model.
    """
    chosen = sae.layer if layer is None else layer
    if chosen is None:
        raise InputError(sae.source, "does not say which layer it reads", "--layer N, zero-based")
    if not 0 <= chosen < config.layers:
        raise InputError(sae.source, f"layer {chosen} is out of range", f"the model has layers 0 to {config.layers - 1}")
    if sae.hidden != config.hidden:
        raise InputError(
            sae.source, f"reads width {sae.hidden}, the model's hidden size is {config.hidden}", "another model's SAE?"
        )
    site = sae.site or "resid_post"
    assert site in SITES
    return Site(site, chosen)


def read_prompts(
    model: Model,
    tokens: Sequence[PromptTokens],
    targets: Targets,
    site: Site,
    *,
    block: int = 64,
    slack: float = SLACK,
    progress: Progress = _silent,
) -> Reading:
    """h and Y of prompts at the base weights, in order (NumPy)."""
    h = np.zeros((len(tokens), model.config.hidden), wide(model.dtype))
    y = np.zeros(len(tokens), h.dtype)
    tail = max(map(len, targets.rows))
    with numerics(model.dtype):
        for rows, width in blocks_by_length([len(t.ids) + tail for t in tokens], block, slack):
            batch = prompt_batch([tokens[i] for i in rows], targets, width, 0, block)
            out = readout.base(model.config, model.params, batch, targets, site)
            h[rows], y[rows] = np.asarray(out.h, h.dtype)[: len(rows)], np.asarray(out.y, h.dtype)[: len(rows)]
            progress(len(rows))
    return Reading(h, y)


def mean_difference(
    encoder: Encoder, h: Float[np.ndarray, "prompt hidden"], label: Sequence[str | None], block: int = 256
) -> Float[np.ndarray, " feature"]:
    """Mean activation on harmful minus mean activation on harmless prompts, of every feature.

    Raises:
        InputError: one of the two kinds of prompt is missing.
    """
    with numerics(h.dtype):
        means = []
        for kind in ("harmful", "harmless"):
            own = np.flatnonzero([x == kind for x in label])
            if not len(own):
                raise InputError("features", f"the contrastive rule needs {kind} prompts", "give ids, or a prompt_label column")
            parts = [own[i : i + block] for i in range(0, len(own), block)]
            total = sum(np.asarray(activation(encoder, jnp.asarray(h[part])), np.float64).sum(0) for part in parts)
            means.append(total / len(own))
    return means[0] - means[1]


def refuse_unknown_tokens(config: ModelConfig, ids: Sequence[int], where: object) -> None:
    """Raises InputError for a token the model has no embedding of: a look-up would silently take another one."""
    if max(ids) >= config.vocab or min(ids) < 0:
        raise InputError(
            where, f"token {max(ids)} is beyond the model's vocabulary of {config.vocab}", "another model's tokenizer?"
        )


def targets_of(model: Model, texts: Sequence[str] = REFUSALS, ids: Sequence[Sequence[int]] = ()) -> Targets:
    """The target sequences: token ids where given, else texts.

    Raises:
        InputError: the set is not prefix-free or an id is not in the vocabulary.
    """
    where = "target_ids" if ids else "targets"
    targets = Targets.of([list(s) for s in ids] or [model.chat.encode(text) for text in texts], where)
    for sequence in targets.sequences:
        refuse_unknown_tokens(model.config, sequence, where)
    return targets


def tokenise_prompts(model: Model, prompts: Prompts, targets: Targets, max_length: int = 512) -> list[PromptTokens]:
    """Raises InputError naming the row whose prompt, with a target sequence behind it, is longer than `max_length`."""
    limit = max_length - max(map(len, targets.rows))
    tokens = [model.chat.prompt(text, limit, prompts.where(i)) for i, text in enumerate(prompts.text)]
    for i, t in enumerate(tokens):
        refuse_unknown_tokens(model.config, t.ids, prompts.where(i))
    return tokens


def tokenise_pairs(model: Model, pairs: Pairs, max_length: int = 512) -> list[PairTokens]:
    """Raises InputError naming the row of which `max_length` leaves no response."""
    both = zip(pairs.prompt, pairs.response, strict=True)
    tokens = [model.chat.pair(prompt, answer, max_length, pairs.where(i)) for i, (prompt, answer) in enumerate(both)]
    for i, t in enumerate(tokens):
        refuse_unknown_tokens(model.config, t.ids, pairs.where(i))
    return tokens


def evaluation_of(
    model: Model,
    sae: SAE,
    prompts: Prompts,
    tokens: list[PromptTokens],
    targets: Targets,
    site: Site,
    reading: Reading,
    features: str | list[int],
    encoder: EncoderName = "relu_proxy",
    block: int = 64,
) -> Evaluation:
    """Selects features and encodes the residual streams that have been read.

    Raises:
        InputError: an activation is not finite, or the features are not the SAE's.
    """
    for row in np.flatnonzero(~(np.isfinite(reading.h).all(axis=1) & np.isfinite(reading.y))):
        raise InputError(
            prompts.where(int(row)),
            "the model's activations are not finite",
            "try --dtype float32, or check the weights",
        )
    dtype = reading.h.dtype
    with numerics(dtype):
        full = cast(relu_proxy(sae.encoder) if encoder == "relu_proxy" else sae.encoder, dtype)
        asked = parse(features) if isinstance(features, str) else features
        if asked is None:
            ids = list(range(sae.features))
        elif not isinstance(asked, list):
            ids = contrastive(mean_difference(full, np.asarray(reading.h), prompts.label), asked).tolist()
        else:
            ids = check(asked, sae.features)
        chosen = select(full, jnp.asarray(ids))
    z, active = encode(chosen, np.asarray(reading.h))
    return Evaluation(model, tokens, targets, site, chosen, ids, np.asarray(reading.h), z, active, np.asarray(reading.y), block)


def encode(
    encoder: Encoder, h: Float[np.ndarray, "prompt hidden"]
) -> tuple[Float[np.ndarray, "prompt feature"], Bool[np.ndarray, "prompt feature"]]:
    """(z, active) of residual streams."""
    with numerics(h.dtype):
        z, active = _encode(encoder, jnp.asarray(h))
        return np.asarray(z), np.asarray(active)


def activations(
    model: Model,
    sae: SAE,
    prompts: Prompts,
    *,
    features: str = "contrast:0.1",
    targets: Sequence[str] = REFUSALS,
    target_ids: Sequence[Sequence[int]] = (),
    encoder: EncoderName = "relu_proxy",
    layer: int | None = None,
    max_length: int = 512,
    block: int = 64,
) -> Evaluation:
    """Runs the prompts once: feature activations X and log-probabilities Y of the behaviour.

    Args:
        model: from `load_model`.
        sae: from `load_sae`.
        prompts: from `read_prompts`.
        features: ids (`3,17`), a file of ids, `contrast:THRESHOLD`, or `all`.
        targets: texts whose total probability is the behaviour.
        target_ids: the same as token ids; replaces the texts.
        encoder: relu_proxy (the paper's) or native (the SAE's own).
        layer: overrides the SAE's own.
        max_length: tokens a prompt may have.
        block: prompts per batch.

    Raises:
        InputError: something of these does not fit together.
    """
    aims = targets_of(model, targets, target_ids)
    site = resolve_site(sae, model.config, layer)
    tokens = tokenise_prompts(model, prompts, aims, max_length)
    reading = read_prompts(model, tokens, aims, site, block=block)
    return evaluation_of(model, sae, prompts, tokens, aims, site, reading, features, encoder, block)


def factors_of(
    model: Model,
    tokens: Sequence[PairTokens],
    learning_rate: float,
    scope: LossScope = "response",
    *,
    width: int = 0,
    rows: int = 0,
    positions: int = 0,
) -> tuple[Factors, PairStatistics]:
    """Factors of one block of tokenised pairs.

    `width`, `rows` and `positions` ask for at least so many padded tokens, pairs (the last is repeated) and scored positions,
    so that blocks share a compiled program.
    """
    width = max(width, padded_length(max(len(t.ids) for t in tokens)))
    with numerics(model.dtype):
        batch = pair_batch(tokens, scope, width, max(rows, len(tokens)), positions)
        return _factors(model.config, model.params, batch, learning_rate)


def factors(
    model: Model,
    pairs: Pairs,
    *,
    learning_rate: float = 1e-4,
    loss_scope: LossScope = "response",
    max_length: int = 512,
) -> Factors:
    """One SGD step on each pair, in factored form. Meant for one block: a few dozen pairs at a time.

    Args:
        model: from `load_model`.
        pairs: from `read_pairs`.
        learning_rate: η of the step.
        loss_scope: response, or all tokens.
        max_length: tokens; a longer pair is cut.

    Raises:
        InputError: a pair of which nothing of the response is left.
    """
    return factors_of(model, tokenise_pairs(model, pairs, max_length), learning_rate, loss_scope)[0]


def forward(evaluation: Evaluation, steps: Factors, *, progress: Progress = _silent) -> Delta:
    """First-order change of X and Y under each pair's step (engine `forward`)."""
    return _push(forward_block, _first_order, evaluation, steps, progress)


def finite(evaluation: Evaluation, steps: Factors, *, progress: Progress = _silent) -> Delta:
    """True change of X and Y after each pair's step (engine `finite`): decompose it with `exact=True`."""
    return _push(finite_block, _true_change, evaluation, steps, progress)


ENGINES: dict[EngineName, Callable[..., Delta]] = {"forward": forward, "finite": finite}


def _push(
    engine: Callable[..., Reading],
    encode: Callable[..., tuple[Array, Array]],
    e: Evaluation,
    steps: Factors,
    progress: Progress,
) -> Delta:
    pairs, prompts, dtype = steps.pairs, len(e.tokens), e.h.dtype
    dz, dx = (np.zeros((pairs, prompts, len(e.feature_ids)), dtype) for _ in range(2))
    dy = np.zeros((pairs, prompts), dtype)
    shared, tail = e.shared, max(map(len, e.targets.rows))
    with numerics(e.model.dtype):
        # Buckets of what is not shared: the shared tokens are run once per batch.
        for rows, width in blocks_by_length([len(t.ids) - shared + tail for t in e.tokens], e.block, e.slack):
            batch = prompt_batch([e.tokens[i] for i in rows], e.targets, shared + width, shared, e.block)
            out = engine(e.model.config, e.model.params, steps, batch, e.targets, e.site)
            # Padded like the batch: another shape would be another compilation.
            with numerics(dtype):
                z, x = encode(e.encoder, jnp.asarray(e.h[np.pad(rows, (0, e.block - len(rows)), "edge")]), out.h)
            dz[:, rows], dx[:, rows] = np.asarray(z)[:, : len(rows)], np.asarray(x)[:, : len(rows)]
            dy[:, rows] = np.asarray(out.y, dtype)[:, : len(rows)]
            progress(len(rows))
    return Delta(dz, dx, dy)


_factors = jax.jit(factor_block, static_argnums=0)


@jax.jit
def _encode(encoder: Encoder, h: Array) -> tuple[Array, Array]:
    return pre_activation(encoder, h), gate(encoder, h)


@jax.jit
def _first_order(encoder: Encoder, h: Array, dh: Array) -> tuple[Array, Array]:
    _, linear = jax.linearize(partial(pre_activation, encoder), h)
    dz = jax.vmap(linear)(dh.astype(h.dtype))
    return dz, jnp.where(gate(encoder, h)[None], dz, jnp.zeros_like(dz))


@jax.jit
def _true_change(encoder: Encoder, h: Array, dh: Array) -> tuple[Array, Array]:
    after = h[None] + dh.astype(h.dtype)
    z, x = ((jax.vmap(partial(read, encoder))(after) - read(encoder, h)[None]) for read in (pre_activation, activation))
    return z, x
