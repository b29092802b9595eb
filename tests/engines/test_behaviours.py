"""A behaviour that looks at the stream as well as at the logits, on every engine."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import pytest
from support import (
    BEHAVIOUR,
    ETA,
    HISTORIES,
    POSITIONS,
    close,
    evaluate,
    padded,
    steps_of,
    tokens,
    truth,
)

import smda_jax as smda
from smda_jax.data.batch.batches import pair_batch, prompt_batch, shared_length
from smda_jax.engines.finite.program import finite
from smda_jax.engines.forward.program import forward
from smda_jax.engines.query.program import Weighted, Weighting, inner_products, query
from smda_jax.model import checkpoint
from smda_jax.reading.behaviours.begins import Begins
from smda_jax.reading.behaviours.contract import Behaviour
from smda_jax.reading.readout import base
from smda_jax.reading.site import Site
from smda_jax.runtime.precision import numerics
from smda_jax.sae.encoder import Encoder
from smda_jax.steps.updates.contract import Update


@dataclass(frozen=True)
class Leaning(Begins):
    """What `begins` is, plus how far the stream points along a direction."""

    direction: tuple[float, ...] = ()

    reads_stream = True

    def value(self, seen):
        return super().value(seen) + seen.h @ jnp.asarray(self.direction, seen.h.dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "site"),
    [("llama_untied_mha", ("resid_post", 0)), ("gemma3", ("attn_out", 1))],
)
def test_a_behaviour_may_look_at_the_stream(checkpoints, kind, site):
    wanted, read = truth(checkpoints[kind], site, "response")
    _, _, dh, dy = (np.stack(v) for v in zip(*wanted, strict=True))
    h, y = (np.stack(v) for v in zip(*read, strict=True))
    r, place = np.random.default_rng(5), Site(*site)
    with numerics("float64"):
        params = checkpoint.load(checkpoints[kind], "float64")
        prompts, pairs = tokens(params.config.vocab)
        d = r.normal(size=params.config.hidden)
        plain = evaluate(params, prompts, place, r.normal(size=(params.config.hidden, 2)))
        behaviour = Leaning(BEHAVIOUR.targets, (), tuple(d.tolist()))
        assert isinstance(behaviour, Behaviour)
        want = dy + dh @ d
        shared = shared_length(prompts)
        batch = prompt_batch(prompts, HISTORIES, POSITIONS, padded(prompts, 24 - shared), shared)
        close(base(params, batch, behaviour, place).y, y + h @ d, 1e-9)
        block = pair_batch(pairs, "response", padded(pairs, 32))
        steps, _ = steps_of(params, block)
        close(forward(params, steps, batch, behaviour, place).y, want, 1e-6)
        other = replace(plain, question=replace(plain.question, behaviour=behaviour))
        back = smda.reverse(other, steps, inactive=True)
        close(back.y, want, 1e-6)
        close(back.z, dh @ np.asarray(plain.encoder.W), 1e-6)
        encoder = Encoder(plain.encoder.W, plain.encoder.b)
        weighted = Weighted(encoder, Weighting(None, np.ones((1, 3))))
        asked = query(params, batch, weighted, behaviour, place)
        (value,), _ = inner_products(params, block, (asked,), Update(ETA).ready())
        close(value[0], want.sum(1), 1e-6)
        small, _ = steps_of(params, block, Update(1e-6))
        true = finite(params, small, batch, behaviour, place).y
        close(true / 1e-6 * ETA, want, 1e-3)
