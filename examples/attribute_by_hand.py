"""Every step of an attribution, on the model that ships with the package."""

from pathlib import Path

import numpy as np

import smda_jax as smda

folder = Path(smda.__file__).parent / "embedded"
model = smda.load_model(folder / "model")
sae = smda.load_sae(folder / "sae")
prompts = smda.load_prompts(folder / "prompts.parquet").take(range(0, 514, 4))
pairs = smda.load_pairs(folder / "pairs.parquet").take(range(12))

# X and Y: which features are active on the prompts, and how likely a refusal is (nats).
evaluation = smda.activations(model, sae, prompts, features="contrast:0.3")
X, Y = evaluation.x, evaluation.y
W = smda.ridge(X, Y, alpha=5.0)
print(f"{X.shape[1]} features, mean Y {Y.mean():.2f} nats")

# How one training step on each pair moves X and Y, and through them the policy.
steps = smda.pair_steps(model, pairs, learning_rate=1e-4)
delta = smda.reverse(evaluation, steps)
effect = smda.decompose(X, Y, W, delta.x, delta.y, alpha=5.0)
for i in np.argsort(effect.score)[::-1][:3]:
    feature = evaluation.feature_ids[int(np.abs(effect.contribution[i]).argmax())]
    print(f"{effect.score[i]:+.2e}  {pairs.label[i]}, mostly through feature {feature}")
