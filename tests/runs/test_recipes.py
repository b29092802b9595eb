"""Which step stands for which training."""

import json
from pathlib import Path

import numpy as np
import pytest
from support import run, table

from smda_jax.errors import InputError
from smda_jax.runs.config import Attribute
from smda_jax.training.recipe import Recipe, order_of


def settled(**options) -> Attribute:
    return Attribute(model="m", sae="s", eval="e", pairs="p", out=Path("o"), **options).settled()


def test_the_default_is_the_authors_recipe() -> None:
    step = settled().step
    assert (step.update, step.loss, step.loss_scope) == ("adamw", "sft", "all")
    assert (step.batch, step.max_length) == (16, 1024)
    assert step.learning_rate == pytest.approx(2e-5 * 3 / 2 / 16, rel=1e-3)


@pytest.mark.parametrize("update", ["sgd", "adam", "ekfac", "normalised", "optax.lion"])
def test_an_update_alone_means_what_it_did_before_recipes(update: str) -> None:
    step = settled(update=update).step
    assert (step.update, step.learning_rate) == (update, 1e-4)
    assert (step.loss_scope, step.max_length) == ("response", 512)


def test_options_override_a_recipe() -> None:
    step = settled(recipe="sgd-1e-3x2", loss_scope="response", batch=4).step
    assert (step.update, step.loss_scope, step.batch) == ("sgd", "response", 4)
    assert step.learning_rate == pytest.approx(1e-3 * 2 / 2 / 4, rel=1e-3)
    assert settled(update="adamw").step == settled().step


@pytest.mark.parametrize("pairs", [1, 5, 16, 17, 40, 200])
def test_the_share_of_a_pair_is_what_its_steps_add_up_to(pairs: int) -> None:
    """Over all pairs it is the mean of `Σ_k η[k] weight[k]`, whatever batches come to."""
    recipe = Recipe(learning_rate=0.3, warmup=0.2)
    order = order_of(recipe, np.arange(pairs), np.ones(pairs, int))
    total = (order.rate[:, None] * order.weight).sum()
    assert recipe.share(pairs) == pytest.approx(total / pairs)


def test_a_finetunes_record_is_a_recipe(tmp_path: Path) -> None:
    record = tmp_path / "finetune.json"
    recipe = {"optimiser": "adam", "learning_rate": 1e-3, "epochs": 2, "batch": 8}
    record.write_text(json.dumps({"recipe": recipe | {"loss_scope": "response"}}))
    for name in (record, tmp_path):
        step = settled(recipe=str(name)).step
        assert (step.update, step.batch, step.loss_scope) == ("adamw", 8, "response")


@pytest.mark.parametrize(
    "recipe",
    ["adamw", "adamw-2e-5", "adamw-x-3", "lion-1e-4x1", "adamw-1e-5x0", "adamw-nanx1", "adamw-0x1"],
)
def test_recipes_that_stand_for_no_step_are_refused(recipe: str) -> None:
    with pytest.raises(InputError, match=r"recipe|epochs|rate"):
        settled(recipe=recipe)


def test_a_run_under_adamw_is_the_same_by_every_engine(files, tmp_path: Path) -> None:
    options = ("--recipe=adamw-1e-4x1", "--dtype=float64", "--bootstrap=0")
    found = {}
    for engine in ("reverse", "query"):
        out = run(files, tmp_path / engine, *options, f"--engine={engine}")
        found[engine] = table(out, "pairs.parquet")
    for name in ("score", "mean_delta_y"):
        want = found["reverse"][name].astype(float)
        np.testing.assert_allclose(found["query"][name].astype(float), want, rtol=1e-8)


def test_trained_at_the_base_is_the_run_itself(files, tmp_path: Path) -> None:
    options = ("--recipe=sgd-step", "--dtype=float64", "--bootstrap=0", "--engine=query")
    plain = table(run(files, tmp_path / "a", *options), "pairs.parquet")
    trained = f"--trained={files['model']}"
    same = table(run(files, tmp_path / "b", *options, trained), "pairs.parquet")
    np.testing.assert_array_equal(plain["score"], same["score"])
