"""What is read: a model, its prompts as token ids, and what the base weights make of them."""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from smda_jax.data.batches import shared_length
from smda_jax.data.chat import DEFAULT_DATE, Chat, PairTokens, PromptTokens
from smda_jax.data.features import check, parse
from smda_jax.data.lanes import LaneBlock, packed_blocks, packed_prompts
from smda_jax.data.records import Pairs, Prompts
from smda_jax.data.targets import REFUSALS, Targets
from smda_jax.errors import InputError
from smda_jax.jacobian import programs, readout
from smda_jax.jacobian.readout import Reading, Site
from smda_jax.model import hf
from smda_jax.model.config import ModelConfig, from_hf
from smda_jax.model.llama import SITES, Params
from smda_jax.model.mesh import fetch, parameter_sharding, rows_of
from smda_jax.model.precision import DType, jit, numerics, wide
from smda_jax.policy.selection import contrastive
from smda_jax.sae.encoder import Encoder, activation, cast, gate, pre_activation, relu_proxy, select
from smda_jax.sae.formats import SAE

EncoderName = Literal["relu_proxy", "native"]
Progress = Callable[[float], None]  # called with the share of the work just finished


def silent(share: float) -> None:
    """Reports to nobody."""


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
        folder = hf.fetch(model, hf.PATTERNS)
        where = parameter_sharding(from_hf(hf.read_config(folder), folder / "config.json"))
        config, params = hf.load(folder, dtype, sharding=where, cache=cache)
    return Model(config, params, Chat(folder, chat_date))


def load_shapes(
    model: str | Path, dtype: DType = "float32", *, chat_date: str = DEFAULT_DATE, cache: Path | None = None
) -> Model:
    """As `load_model`, with the parameters' shapes instead of their values: enough to tokenise and to plan."""
    folder = hf.fetch(model, hf.PATTERNS)
    config = from_hf(hf.read_config(folder), folder / "config.json")
    with numerics(dtype):
        return Model(config, hf.abstract_params(config, jnp.dtype(dtype)), Chat(folder, chat_date))


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
        also: the same at the site's further layers.
        z: pre-activations.
        active: where a feature is active.
        y: log-probability of the behaviour, in nats.
    """

    model: Model
    tokens: list[PromptTokens]
    targets: Targets
    site: Site
    encoder: Encoder
    feature_ids: list[int]
    h: Float[np.ndarray, "prompt hidden"]
    also: Float[np.ndarray, "layer prompt hidden"]
    z: Float[np.ndarray, "prompt feature"]
    active: Bool[np.ndarray, "prompt feature"]
    y: Float[np.ndarray, " prompt"]

    @property
    def x(self) -> Float[np.ndarray, "prompt feature"]:
        """Feature activations: gate · z."""
        return np.where(self.active, self.z, 0)

    @property
    def shared(self) -> int:
        """Leading tokens that all prompts have in common."""
        return shared_length(self.tokens)


def resolve_site(sae: SAE, config: ModelConfig, layer: int | None = None, also: Sequence[int] = ()) -> Site:
    """Where an SAE reads a model: the site of its own config, at `layer` if that is given; and `also` at further layers.

    Raises:
        InputError: neither says which layer, a layer does not exist, or the SAE is of another width than the model.
    """
    chosen = sae.layer if layer is None else layer
    if chosen is None:
        raise InputError(sae.source, "does not say which layer it reads", "--layer N, zero-based")
    for where, one in [(sae.source if layer is None else "--layer", chosen), *[("--layers", one) for one in also]]:
        if not 0 <= one < config.layers:
            raise InputError(where, f"layer {one} is out of range", f"the model has layers 0 to {config.layers - 1}")
    if sae.hidden != config.hidden:
        raise InputError(
            sae.source, f"reads width {sae.hidden}, the model's hidden size is {config.hidden}", "another model's SAE?"
        )
    site = sae.site or "resid_post"
    assert site in SITES
    return Site(site, chosen, tuple(dict.fromkeys(i for i in also if i != chosen)))


def read_prompts(
    model: Model,
    tokens: Sequence[PromptTokens],
    targets: Targets,
    site: Site,
    *,
    block: int = 64,
    progress: Progress = silent,
) -> Reading:
    """h and Y of prompts at the base weights, in order (NumPy)."""
    h = np.zeros((len(site.layers), len(tokens), model.config.hidden), wide(model.dtype))
    y = np.zeros(len(tokens), h.dtype)
    shared, tail, limit = shared_length(tokens), max(map(len, targets.rows)), programs.memory_limit()

    def one(part: LaneBlock) -> None:
        rows, shape = part
        batch = packed_prompts([tokens[i] for i in rows], targets, shape, shared)
        axes = {"axes": (-1, 0), "out": Reading(0, 0, 1)}  # type: ignore[arg-type]
        static = {"targets": targets, "site": site}
        out = programs.run(readout.base, model.config, model.params, batch, limit=limit, **axes, **static)
        out = Reading(*(fetch(v).astype(h.dtype) for v in out))
        back = np.argsort(shape.laid())[: len(rows)]
        h[:, rows], y[rows] = np.concatenate([out.h[None], out.also])[:, back], out.y[back]
        progress(len(rows) / len(tokens))

    with numerics(model.dtype):
        split = partial(packed_blocks, lanes=rows_of(1))
        programs.for_each([len(t.ids) - shared + tail for t in tokens], block, split, one)
    return Reading(h[0], y, h[1:])


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
    tokens = []
    for i, (prompt, answer) in enumerate(zip(pairs.prompt, pairs.response, strict=True)):
        t = model.chat.pair(prompt, answer, max_length, pairs.where(i))
        refuse_unknown_tokens(model.config, t.ids, pairs.where(i))
        # Pairs may be many: lists would take ten times the memory.
        tokens.append(t._replace(ids=array("i", t.ids)))
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
    h, y, also = (np.asarray(v) for v in reading)
    return Evaluation(model, tokens, targets, site, chosen, ids, h, also, z, active, y)


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
    return evaluation_of(model, sae, prompts, tokens, aims, site, reading, features, encoder)


@jit
def _encode(encoder: Encoder, h: Array) -> tuple[Array, Array]:
    return pre_activation(encoder, h), gate(encoder, h)
