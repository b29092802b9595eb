#!/usr/bin/env python3
"""bergson's gradient dot products of pairs against a mean log-probability.

Run by attribution.py --bergson PYTHON, which names the python of an environment of its own:

    python3 -m venv peer
    peer/bin/pip install torch==2.13.0 "transformers>=5" "peft>=0.17" accelerate datasets scipy \\
        jaxtyping ml_dtypes natsort petname simple-parsing torchopt pyyaml
    peer/bin/pip install --no-deps bergson==2.5.1

(What bergson asks for itself would bring a torchvision that does not load.)

It covers the weights of linear layers; of the unembedding, which is tied to the embedding here,
only one of its two uses, so that it is left out.
"""

import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bergson import (  # type: ignore[import-not-found]
    CollectorComputer,
    GradientProcessor,
    IndexConfig,
    InMemoryCollector,
    PreprocessConfig,
    Scorer,
)
from bergson.score.score_writer import InMemorySequenceScoreWriter  # type: ignore[import-not-found]
from datasets import Dataset  # type: ignore[import-not-found]
from transformers import AutoModelForCausalLM


def run(model: Any, rows: list[dict], reduction: str, folder: Path, **options: Any) -> Any:
    """One pass over rows of tokens, of which those from `first` on are predicted."""
    labels = [[-100] * row["first"] + row["ids"][row["first"] :] for row in rows]
    data = Dataset.from_dict({"input_ids": [row["ids"] for row in rows], "labels": labels})
    cfg = IndexConfig(
        run_path=str(folder),
        precision="fp32",
        projection_dim=0,
        loss_fn="ce",
        loss_reduction=reduction,
    )
    Path(cfg.partial_run_path).mkdir(parents=True, exist_ok=True)
    how = {"data": data, "cfg": cfg}
    processor = GradientProcessor(projection_dim=None)
    collector = InMemoryCollector(model=model.base_model, processor=processor, **how, **options)
    one_by_one = [[i] for i in range(len(rows))]  # which is what it is fastest at on a CPU
    CollectorComputer(
        model, collector=collector, batches=one_by_one, **how
    ).run_with_collector_hooks("peer")
    return collector


def score(model: Any, prompts: list[dict], pairs: list[dict], folder: Path) -> dict[str, Any]:
    """Scores of the pairs, and seconds per prompt and per pair."""
    start = time.perf_counter()
    pulled = run(
        model, prompts, "sum", folder / "query", preprocess_cfg=PreprocessConfig(aggregation="mean")
    )
    query = {name: -g.float() for name, g in pulled.gradients.items()}
    middle = time.perf_counter()
    writer = InMemorySequenceScoreWriter(len(pairs), num_scores=1)
    run(
        model,
        pairs,
        "mean",
        folder / "pairs",
        scorer=Scorer(query, list(query), writer, model.device, torch.float32),
    )
    seconds = {"seconds_per_prompt": (middle - start) / len(prompts)}
    return {
        "scores": writer.scores[:, 0].tolist(),
        "seconds_per_pair": (time.perf_counter() - middle) / len(pairs),
    } | seconds


def main(model_folder: str, asked: str, answered: str) -> None:
    """Reads token ids, scores the pairs twice (the first time warms up), writes what it found."""
    logging.disable(logging.INFO)
    torch.backends.cuda.matmul.allow_tf32 = False
    where = {"dtype": torch.float32, "device_map": "cuda" if torch.cuda.is_available() else "cpu"}
    model: Any = AutoModelForCausalLM.from_pretrained(model_folder, **where).eval()
    model.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)  # something has to need a gradient
    rows = json.loads(Path(asked).read_text())
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            found = score(model, rows["prompts"], rows["pairs"], Path(folder))
            Path(answered).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
