"""What a finished run kept, read back: enough to answer new questions without another pass."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool, Float

from smda_jax.engines.offers import KEEPS, OFFERS
from smda_jax.errors import InputError
from smda_jax.runs.config import Attribute
from smda_jax.runs.folder.replay import from_run
from smda_jax.runs.folder.store import RunFolder


@dataclass(frozen=True)
class Cache:
    """Activations and their changes under every pair's step, as a run left them; rows keep the
    order of its inputs.

    `inputs` are the hashes of its files, `alpha` that of its policy of all prompts; `delta_z` is
    NaN where it was not kept.
    """

    path: Path
    fingerprint: str
    config: Attribute
    inputs: dict[str, str]
    alpha: float
    feature_ids: list[int]
    z: Float[np.ndarray, "prompt feature"]
    active: Bool[np.ndarray, "prompt feature"]
    y: Float[np.ndarray, " prompt"]
    delta_z: Float[np.ndarray, "pair prompt feature"]
    delta_y: Float[np.ndarray, "pair prompt"]
    prompts: dict[str, list[Any]]
    pairs: dict[str, list[Any]]

    @property
    def shows(self) -> list[bool]:
        """Which prompts show the behaviour; `refused` in runs before 0.2."""
        return [bool(x) for x in self.prompts.get("shows", self.prompts["refused"])]


def read_cache(path: Path) -> Cache:
    """Reads the cache of a run folder.

    Raises:
        InputError: it is no run, is not complete, or kept too little.
    """
    record = path / "run.json"
    if not record.is_file():
        raise InputError(path, "is not a run folder", "give the folder that attribute wrote")
    config = Attribute(**from_run(record))
    raw = json.loads(record.read_text())
    if raw.get("status") != "complete":
        raise InputError(path, "is not complete", "run its attribute command again: it continues")
    plan = raw["plan"]
    if not KEEPS[plan["keep"]].changes:
        remedy = "attribute with --keep active (or features) keeps what this needs"
        raise InputError(path, f"kept {plan['keep']} only", remedy)
    if not OFFERS[plan["engine"]].first_order:
        raise InputError(
            path,
            "holds true steps, and what follows from sums is first order",
            "attribute with --engine auto",
        )
    folder = RunFolder(path, raw["fingerprint"], {"config": raw["config"]})
    base, alpha = (
        folder.load("base"),
        float(json.loads((path / "policy.json").read_text())["alpha"]),
    )
    prompts, pairs = (
        pq.read_table(path / name).to_pydict() for name in ("prompts.parquet", "pairs.parquet")
    )
    n, d, count = *base["z"].shape, len(pairs["pair_id"])
    delta_z, delta_y = (
        np.full((count, n, d), np.nan, base["z"].dtype),
        np.full((count, n), np.nan, base["z"].dtype),
    )
    for part in sorted(p.name for p in (path / "jacobian").glob("pairs-*") if p.is_dir()):
        block = folder.load(part)
        at = np.ix_(block["pair"], block["prompt"])
        delta_z[at], delta_y[at] = block["delta_z"], block["delta_y"]
    if np.isnan(delta_y).any():
        raise InputError(
            path / "jacobian", "lacks a block", "run its attribute command again: it continues"
        )
    return Cache(
        path=path,
        fingerprint=raw["fingerprint"],
        config=config,
        inputs=raw["inputs"],
        alpha=alpha,
        feature_ids=base["feature_ids"].tolist(),
        z=base["z"],
        active=base["active"],
        y=base["y"],
        delta_z=delta_z,
        delta_y=delta_y,
        prompts=prompts,
        pairs=pairs,
    )
