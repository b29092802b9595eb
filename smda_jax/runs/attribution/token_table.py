"""`tokens.parquet`: which tokens of a pair its figures come from."""

from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from smda_jax.data.batch.batches import scored_positions
from smda_jax.data.batch.chunks import padded_chunks
from smda_jax.data.batch.layouts import Padded
from smda_jax.engines.contract import Job
from smda_jax.engines.query.dataset import pull_readouts, token_contributions
from smda_jax.engines.query.program import Weighting
from smda_jax.errors import InputError
from smda_jax.policy.influence import linear_readouts
from smda_jax.runs.config import Attribute
from smda_jax.runs.inputs.load import Inputs
from smda_jax.runs.progress import bar
from smda_jax.runtime.programs import padding_budget

SCORE, MEAN_Y = "score", "mean_delta_y"
PAIRS = 16  # at a time


def columns_of(asked: tuple[str, ...], feature_ids: list[int]) -> dict[str, int | None]:
    """Columns of the table; of a coefficient its place in the policy.

    Raises:
        InputError: neither score nor mean_delta_y, nor a feature of the policy.
    """
    found: dict[str, int | None] = {}
    for name in asked:
        if name in (SCORE, MEAN_Y):
            found[name] = None
        elif name.isdigit() and int(name) in feature_ids:
            found[f"delta_w_{name}"] = feature_ids.index(int(name))
        else:
            what = f"{name!r} is neither {SCORE}, {MEAN_Y} nor a feature of the policy"
            raise InputError("--tokens", what, f"such as {feature_ids[0]}")
    return found


def token_table(
    c: Attribute, inputs: Inputs, job: Job, norm: np.ndarray, console: Console
) -> dict[str, Any]:
    """What every scored token contributes to the figures asked for; sums over a pair are its own.

    Raises:
        InputError: see `columns_of`.
    """
    e, columns = job.evaluation, columns_of(c.tokens, job.evaluation.feature_ids)
    x, y, policy = e.x.astype(np.float64), e.y.astype(np.float64), job.policies[0]
    z, weight_y = [], []
    for name, place in columns.items():
        if name == MEAN_Y:
            z.append(np.zeros((1, *x.shape)))
            weight_y.append(np.full((1, len(y)), 1 / len(y)))
            continue
        u = policy.W[None] if place is None else np.eye(len(policy.W))[place][None]
        readout = linear_readouts(x, y, policy, u)
        z.append(readout.weight_x() * job.gate)
        weight_y.append(readout.weight_y())
    weighting = Weighting(np.concatenate(z), np.concatenate(weight_y))
    query = pull_readouts(e, weighting, job.stepping.update)
    found: list[Any] = [None] * len(job.tokens)
    budget = padding_budget(e.model.config.flop_per_token, 3)
    with bar(console, "tokens") as progress:
        for chunk in padded_chunks([t.length for t in job.tokens], PAIRS, budget):
            assert isinstance(chunk.layout, Padded)
            own = [job.tokens[i] for i in chunk.rows]
            args = (job.stepping, own, query, norm[chunk.rows], chunk.layout)
            for i, values in zip(chunk.rows, token_contributions(*args), strict=True):
                found[i] = values
            progress(len(own) / len(job.tokens))
    table: dict[str, list[Any]] = {
        k: [] for k in ("pair_id", "row", "position", "token_id", "token", *columns)
    }
    piece = inputs.base.chat.decode
    for i, pair in enumerate(job.tokens):
        for j, row in enumerate(pair.rows):
            at = scored_positions(row, pair.loss)[0] + 1
            ids = np.asarray(row.ids)[at].tolist()
            table["pair_id"] += [inputs.pairs.ids[i]] * len(at)
            table["row"] += [j] * len(at)
            table["position"] += at.tolist()
            table["token_id"] += ids
            table["token"] += [None if c.redact else piece([t]) for t in ids]
            for k, name in enumerate(columns):
                table[name] += found[i][j][k].astype(np.float64).tolist()
    return table | {"token": pa.array(table["token"], pa.string())}
