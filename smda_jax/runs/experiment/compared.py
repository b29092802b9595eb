"""Figures of pairs that are held against what training does."""

import logging
from dataclasses import replace
from typing import Any

import bm25s
import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float
from rich.console import Console

from smda_jax.runs.experiment.config import Validate
from smda_jax.runs.experiment.predict import (
    Targets,
    predict,
    stepping_by,
)
from smda_jax.runs.experiment.retrain import Job, Retraining
from smda_jax.runs.progress import bar
from smda_jax.training.fine_tuning import mean_model
from smda_jax.training.recipe import random_subsets

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it tells of every index that it builds
COLUMNS = ("score", "mean_delta_y", "repsim", "vector_filter", "response_tokens", "loss")
HALVES = 101  # of the draws of halves that a mean model is made of


Figure = Float[np.ndarray, "pair target"]  # what is said of every pair and target


def all_figures(
    config: Validate, on: Retraining, targets: Targets, console: Console
) -> dict[str, Figure]:
    """What is compared, by name; higher says that a pair raises the target."""
    table = pq.read_table(on.path / "pairs.parquet").to_pydict()
    place = {own: i for i, own in enumerate(table["pair_id"])}
    rows = [place[own] for own in on.inputs.pairs.ids]
    figures: dict[str, Figure] = {}
    wide = len(targets.names)

    def plain(values: Any) -> Figure:
        own = np.array([np.nan if v is None else v for v in values], float)
        return np.repeat(own[:, None], wide, axis=1)

    at = {"": on.base}
    if config.trained_at:
        others = random_subsets(
            len(on.tokens), config.trained_at, config.fraction, HALVES + config.seed
        )
        orders = [
            on.order(Job(tuple(own.tolist()), replace(on.recipe, seed=i)))
            for i, own in enumerate(others)
        ]
        with bar(console, f"{config.trained_at} models of other halves") as progress:
            mean = mean_model(list(on.training.trained(orders, progress)))
        at["@trained"] = on.evaluation(mean)
    for update in dict.fromkeys(config.updates):
        stepping = stepping_by(on, update)
        for where, e in at.items():
            if where and update != config.updates[-1]:
                continue
            with bar(console, f"predict by {update}{where}") as progress:
                own = predict(on, targets, e, stepping, progress)
            figures[f"{update}{where}"] = own.value
            if update == "sgd":
                cosine = own.value[:, 0] / np.where(own.gradient_norm > 0, own.gradient_norm, 1)
                figures["gradient_cosine"] = plain(cosine)
                figures["gradient_norm"] = plain(own.gradient_norm)
    for name in COLUMNS:
        values = [table[name][i] for i in rows] if name in table else [None]
        if not any(v is None for v in values):
            figures[f"run:{name}" if name in ("score", "mean_delta_y") else name] = plain(values)
    figures["bm25"] = plain(bm25(on))
    figures["random"] = plain(np.random.default_rng(config.seed).uniform(size=len(rows)))
    return figures


def bm25(on: Retraining) -> Float[np.ndarray, " pair"]:
    """Of every pair's text, the mean BM25 score (Robertson's, with Lucene's weights) of the
    evaluation prompts that show the behaviour; of all if none does."""
    pairs, y = on.inputs.pairs, on.base.y
    shows = y > on.inputs.question.behaviour.shows_above
    texts = [" ".join(pairs.texts(i)) for i in range(len(pairs))]
    asked = [
        t for t, own in zip(on.inputs.prompts.text, shows, strict=True) if own or not any(shows)
    ]
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, show_progress=False, stopwords=[]), show_progress=False)
    total = np.zeros(len(texts))
    for text in asked:
        words = [
            str(w)
            for w in bm25s.tokenize([text], show_progress=False, stopwords=[], return_ids=False)[0]
        ]
        known = [word for word in words if word in index.vocab_dict]
        total += index.get_scores(known) if known else 0
    return total / len(asked)
