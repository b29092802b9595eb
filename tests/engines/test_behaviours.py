"""Every behaviour on every engine, against autograd in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import torch
from support import ASKED, BEHAVIOUR, ETA, SEQUENCES, close, evaluate, padded, steps_of, tokens

import smda_jax as smda
from smda_jax.data.batch.batches import pair_batch, prompt_batch, shared_length
from smda_jax.data.targets import Targets
from smda_jax.data.tokenised import Asked
from smda_jax.engines.finite.program import finite
from smda_jax.engines.forward.program import forward
from smda_jax.engines.query.program import (
    Query,
    Weighted,
    Weighting,
    directional_derivative,
    inner_products,
    query,
)
from smda_jax.model import checkpoint
from smda_jax.reading.behaviours.begins import Begins
from smda_jax.reading.behaviours.column import Column
from smda_jax.reading.behaviours.completion import Completion
from smda_jax.reading.behaviours.contract import Behaviour, Spot
from smda_jax.reading.behaviours.contrast import Contrast
from smda_jax.reading.behaviours.function import Function
from smda_jax.reading.behaviours.probe import Probe
from smda_jax.reading.readout import base
from smda_jax.reading.site import Site
from smda_jax.runtime.precision import numerics
from smda_jax.steps.updates.contract import Update

ANSWERS = [([5, 9, 2], [7]), ([11], [3, 3, 8, 1]), ([4, 4], [6, 2])]  # of three prompts
GIVEN = [0.25, -3.0, 1.5]
Truth = Callable[[Any, int, list[int], int], torch.Tensor]  # (model, row, ids, turn) -> Y


@dataclass(frozen=True)
class Leaning(Begins):
    """What `begins` is, plus how far the stream points along a direction."""

    direction: tuple[float, ...] = ()

    spot = Spot("resid_post", 1)

    def value(self, seen):
        return super().value(seen) + seen.h @ jnp.asarray(self.direction, seen.h.dtype)


def stream(model: Any, ids: list[int], spot: Spot, turn: int) -> torch.Tensor:
    return oracle.streams(model, ids)[0][spot.stream, spot.layer][
        len(ids) - 1 if spot.token == "last" else turn
    ]


def together(model: Any, ids: list[int], sequences: list[list[int]]) -> torch.Tensor:
    return torch.stack([oracle.log_probability(model, ids, q) for q in sequences]).logsumexp(0)


def entropy(seen: Any) -> Any:
    """A function of one's own: entropy of the first token, less the stream's mean square."""
    logp = jax.nn.log_softmax(seen.logits[:, 0], axis=-1)
    return -(jnp.exp(logp) * logp).sum(-1) - (seen.h**2).mean(-1)


def make(name: str, hidden: int) -> tuple[Behaviour, list[Asked], Truth]:
    """(behaviour, what it asks of each prompt, what it is by torch)."""
    d = np.random.default_rng(5).normal(size=hidden)
    early, late = Spot("attn_out", 0, "last"), Spot("resid_post", 2)
    if name == "contrast":
        targets = Targets.of(SEQUENCES)
        return (
            Contrast(targets, 3, ("",) * 4),
            [Asked(targets.rows, targets.positions)] * 3,
            lambda m, n, ids, turn: (
                together(m, ids, SEQUENCES[:3]) - together(m, ids, SEQUENCES[3:])
            ),
        )
    if name.startswith("completion"):
        own = Completion("c", "less" if "less" in name else "", "token" in name, 0.0)
        given = [pair if own.less else pair[:1] for pair in ANSWERS]

        def of(m: Any, n: int, ids: list[int], turn: int) -> torch.Tensor:
            parts = [
                oracle.log_probability(m, ids, a) / (len(a) if own.per_token else 1)
                for a in given[n]
            ]
            return parts[0] - parts[1] if own.less else parts[0]

        most = max(len(a) for answers in given for a in answers)
        return own, [own._asked(list(answers), most) for answers in given], of
    if name.startswith("probe"):
        spot = early if "early" in name else late
        vector = torch.tensor(d)
        own = Probe(tuple(d.tolist()), 0.5, spot, "d.npy")
        return own, [Asked()] * 3, lambda m, n, ids, turn: stream(m, ids, spot, turn) @ vector + 0.5
    if name == "column":
        asked = [Asked(given={"y": np.array([y])}) for y in GIVEN]

        def nothing(m: Any, n: int, ids: list[int], turn: int) -> torch.Tensor:
            return 0 * stream(m, ids, early, turn).sum() + GIVEN[n]

        return Column("y", 0.0), asked, nothing
    if name == "function":

        def by_torch(m: Any, n: int, ids: list[int], turn: int) -> torch.Tensor:
            logp = oracle.streams(m, ids)[1][-1].log_softmax(-1)
            return -(logp.exp() * logp).sum() - (stream(m, ids, early, turn) ** 2).mean()

        own = Function(entropy, "nats", "the first token is less certain", spot=early)
        return own, [Asked(((),), 1)] * 3, by_torch
    leaning = Leaning(BEHAVIOUR.targets, (), 0.0, tuple(d.tolist()))
    vector = torch.tensor(d)

    def leans(m: Any, n: int, ids: list[int], turn: int) -> torch.Tensor:
        return together(m, ids, SEQUENCES) + stream(m, ids, leaning.spot, turn) @ vector

    return leaning, [ASKED] * 3, leans


NAMES = [
    "contrast",
    "completion less",
    "completion per token, less",
    "probe early",
    "probe late",
    "column",
    "function",
    "leaning",
]


FURTHER = ("completion less", "probe late", "contrast", "leaning")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.exhaustive] * (name in FURTHER)) for name in NAMES],
)
def test_every_behaviour_equals_autograd_on_every_engine(checkpoints, name):
    kind = "gemma3" if name in ("leaning", "completion less") else "llama3_tied_gqa"
    if name in ("probe late", "contrast"):
        kind = "llama_all_biases_linear_rope" if "late" in name else "llama_untied_mha"
    model, site = oracle.load_double(checkpoints[kind]), Site("resid_post", 1)
    with numerics("float64"):
        params = checkpoint.load(checkpoints[kind], "float64")
        prompts, pairs = tokens(params.config.vocab)
        behaviour, asked, truth = make(name, params.config.hidden)
        assert isinstance(behaviour, Behaviour)
        prompts = [p._replace(asked=a) for p, a in zip(prompts, asked, strict=True)]
        places = [(p.ids, p.read_at) for p in prompts]
        gradients = [oracle.gradient(model, p.ids, p.response)[1] for p in pairs]

        def values() -> list[torch.Tensor]:
            return [truth(model, n, ids, turn) for n, (ids, turn) in enumerate(places)]

        y = np.array([v.item() for v in values()])
        want = np.array([[-ETA * oracle.along(model, v, g) for v in values()] for g in gradients])
        if not behaviour.moves:
            assert not want.any()
            want = np.zeros_like(want)
        scale = 1e-6 if behaviour.moves else 1.0
        W = np.random.default_rng(3).normal(size=(params.config.hidden, 4))
        e = evaluate(params, prompts, site, W, behaviour)
        close(e.y, y, 1e-9)
        run, head = e.params, shared_length(prompts)
        batch = prompt_batch(prompts, padded(prompts, 24 - head), head)
        close(base(run, batch, behaviour, site).y, y, 1e-9)
        block = pair_batch(pairs, padded(pairs, 32))
        steps, _ = steps_of(params, block)
        got = forward(run, steps, batch, behaviour, site)

        def same(found: Any, wanted: np.ndarray) -> None:
            assert np.abs(np.asarray(found) - wanted).max() <= scale * max(
                np.abs(want).max(), 1e-30
            )

        same(got.y, want)
        back = smda.reverse(e, steps, inactive=True)
        same(back.y, want)
        close(back.z, np.asarray(got.h) @ W, 1e-9)
        weighted = Weighted(e.encoder, Weighting(np.ones((1, 3, 4)), np.ones((1, 3))))
        total = (np.asarray(got.h) @ W).sum((1, 2)) + want.sum(1)
        asked_of: Query = query(run, batch, weighted, behaviour, site)
        (value,), _ = inner_products(params, block, (asked_of,), Update(ETA).ready())
        close(value[0], total, 1e-6)
        value, _ = directional_derivative(params, block, asked_of, Update(ETA).ready())
        close(value[0], total, 1e-6)
        small, _ = steps_of(params, block, Update(1e-6))
        true = finite(run, small, batch, behaviour, site).y
        if behaviour.moves:
            close(true / 1e-6 * ETA, want, 2e-3)
        else:
            assert not np.asarray(true).any()
