"""The demo in float64, against a run of it by the code before the redesign around contracts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import json_of

import smda_jax as smda
from smda_jax.runs.config import Demo

BEFORE = Path(__file__).parent / "fixtures" / "demo_before_the_redesign.npz"


@pytest.mark.slow
@pytest.mark.exhaustive
def test_numbers_of_the_demo_are_those_of_before_the_redesign(tmp_path):
    """Written by commit 2270430 in float64; every figure to 1e-10 of the largest of its kind."""
    smda.attribute(
        replace(
            Demo(out=tmp_path).attribute(),
            dtype="float64",
            check_pairs=0,
            subset=(),
            recipe="sgd-step",
        )
    )
    before = np.load(BEFORE)
    policy = json_of(tmp_path / "policy.json")
    scores = pq.read_table(tmp_path / "scores.parquet")
    influence = pq.read_table(tmp_path / "influence.parquet", filters=[("subset", "=", "all")])
    assert policy["feature_ids"] == before["policy.feature_ids"].tolist()
    for name in before.files:
        table, _, column = name.partition(".")
        if table == "policy":
            found = np.array(policy[column])
        elif table == "score":
            own = scores.filter(np.equal(scores["subset"].to_numpy(), column))
            found = own["score"].to_numpy()
        else:
            whole = (
                influence if table == "influence" else pq.read_table(tmp_path / f"{table}.parquet")
            )
            found = whole[column].to_numpy(zero_copy_only=False).astype(float)
        want = before[name].ravel()
        assert (np.isnan(found) == np.isnan(want)).all(), name
        worst = np.nanmax(np.abs(found - want)) / np.nanmax(np.abs(want))
        assert worst <= 1e-10, f"{name}: {worst:.1e}"
