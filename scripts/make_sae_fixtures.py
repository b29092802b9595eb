#!/usr/bin/env python3
"""Writes `tests/sae/fixtures`: small SAEs saved and encoded by sae-lens and eai-sparsify
themselves.

    python -m venv ENV && ENV/bin/pip install --group fixtures
    ENV/bin/python scripts/make_sae_fixtures.py

The two libraries bring some hundred packages, too many for every test run. A folder holds the SAE's
own files and `expected.npz`: inputs `x` and the library's own activations `acts`, dense. A training
checkpoint is encoded by the inference SAE that sae-lens makes of it.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.gated_sae import GatedSAE, GatedSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import (
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from sparsify import SparseCoder, SparseCoderConfig

OUT = Path(__file__).resolve().parent.parent / "tests" / "sae" / "fixtures"
D, S = 12, 20


def randomise(sae: torch.nn.Module) -> None:
    """Random weights of every kind, so that no term can be dropped unseen."""
    with torch.no_grad():
        for name, p in sae.named_parameters():
            p.copy_(torch.randn(p.shape) * (0.4 if p.ndim == 1 else 0.5))
            if name == "threshold":
                p.copy_(torch.rand(p.shape))


def dense(sae: SAE, x: torch.Tensor) -> np.ndarray:
    """Activations of an inference SAE."""
    with torch.no_grad():
        return sae.encode(x).numpy()


def write(name: str, x: torch.Tensor, acts: np.ndarray) -> None:
    """Inputs and outputs beside the SAE's own files."""
    np.savez(OUT / name / "expected.npz", x=x.numpy(), acts=acts)
    print(f"{name}: {(acts != 0).mean():.0%} active")


def main() -> None:
    """Writes all fixtures anew."""
    shutil.rmtree(OUT, ignore_errors=True)
    torch.manual_seed(0)
    x = torch.randn(16, D) * 2

    def common(layer: int, site: str = "resid_post") -> dict:
        return {
            "d_in": D,
            "d_sae": S,
            "dtype": "float32",
            "metadata": SAEMetadata(model_name="tiny", hook_name=f"blocks.{layer}.hook_{site}"),
        }

    inference = {
        "standard": StandardSAE(StandardSAEConfig(**common(3))),
        "standard_no_b_dec": StandardSAE(
            StandardSAEConfig(**common(3), apply_b_dec_to_input=False)
        ),
        "standard_layer_norm": StandardSAE(
            StandardSAEConfig(**common(0, "resid_pre"), normalize_activations="layer_norm")
        ),
        "standard_constant_norm": StandardSAE(
            StandardSAEConfig(**common(5, "mlp_out"), normalize_activations="constant_norm_rescale")
        ),
        "topk": TopKSAE(TopKSAEConfig(**common(2), k=5)),
        "topk_rescaled": TopKSAE(
            TopKSAEConfig(**common(2), k=7, rescale_acts_by_decoder_norm=True)
        ),
        "jumprelu": JumpReLUSAE(JumpReLUSAEConfig(**common(10))),
        "gated": GatedSAE(GatedSAEConfig(**common(1, "attn_out"))),
    }
    for name, sae in inference.items():
        randomise(sae)
        sae.save_model(OUT / name)
        write(name, x, dense(sae, x))

    training = {
        "batchtopk_training": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, True, {}),
        "batchtopk_training_raw": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, False, {}),
        "matryoshka_training": (
            MatryoshkaBatchTopKTrainingSAE,
            MatryoshkaBatchTopKTrainingSAEConfig,
            True,
            {"matryoshka_widths": [8, S]},
        ),
    }
    for name, (kind, config, rescale, extra) in training.items():
        sae = kind(config(**common(4), k=4, rescale_acts_by_decoder_norm=rescale, **extra))
        randomise(sae)
        sae.topk_threshold = torch.tensor(0.7, dtype=torch.double)
        sae.save_model(OUT / name)
        folded = OUT / f"{name}_inference"
        sae.save_inference_model(folded)
        acts = dense(SAE.load_from_disk(folded), x)
        write(f"{name}_inference", x, acts)
        write(name, x, acts)

    # The flat configs that sae-lens wrote before version 6.
    for name, source, extra in (
        (
            "old_standard",
            "standard",
            {"hook_point": "blocks.3.hook_resid_post", "hook_point_layer": 3},
        ),
        (
            "old_topk",
            "topk",
            {
                "hook_point": "blocks.2.hook_resid_post",
                "hook_point_layer": 2,
                "activation_fn_str": "topk",
                "activation_fn_kwargs": {"k": 5},
            },
        ),
    ):
        (OUT / name).mkdir()
        shutil.copy(OUT / source / "sae_weights.safetensors", OUT / name)
        old = {
            "d_in": D,
            "d_sae": S,
            "dtype": "torch.float32",
            "normalize_activations": "none",
            "model_name": "tiny",
            **extra,
        }
        (OUT / name / "cfg.json").write_text(json.dumps(old))
        write(name, x, dense(SAE.load_from_disk(OUT / name), x))

    for hookpoint, settings in (
        ("layers.6", {"num_latents": S, "k": 5}),
        ("layers.7.mlp", {"expansion_factor": 2, "k": 6}),
    ):
        coder = SparseCoder(D, SparseCoderConfig(**settings))
        randomise(coder)
        coder.save_to_disk(OUT / hookpoint)
        with torch.no_grad():
            out = coder.encode(x)
            acts = torch.zeros(len(x), coder.num_latents).scatter(1, out.top_indices, out.top_acts)
        write(hookpoint, x, acts.numpy())


if __name__ == "__main__":
    main()
