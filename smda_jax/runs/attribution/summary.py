"""What a run found, as figures."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from smda_jax.policy.gaps import Gap
from smda_jax.policy.influence import Influence
from smda_jax.policy.interference import Geometry
from smda_jax.runs.attribution.confidence import Confidence


@dataclass
class Summary:
    """Figures of a finished run; arrays are those of subset `all`."""

    out: str
    engine: str
    site: str
    encoder: str
    gate: str
    feature_ids: list[int]
    feature_labels: list[str]
    weights: Float[np.ndarray, " feature"]
    fits: dict[str, dict[str, Any]]
    prompts: int
    pair_ids: list[str]
    pair_texts: list[str]
    pair_labels: list[str | None]
    gradient_norm: Float[np.ndarray, " pair"]
    score: Float[np.ndarray, " pair"]
    mean_delta_y: Float[np.ndarray, " pair"]
    influence: Influence | None
    dominant: Int[np.ndarray, " pair"] | None
    off_target: Float[np.ndarray, " pair"]
    flagged: Bool[np.ndarray, " pair"]
    confidence: Confidence | None
    seed: int
    auc: dict[str, dict[str, float]]
    gaps: list[Gap]
    geometry: dict[str, Geometry]
    flags: dict[str, int | None]
    first_order: dict[str, float | int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """What run.json keeps of it."""
        return {
            "features": len(self.feature_ids),
            "fits": self.fits,
            "planted_pairs_auc": self.auc,
            "first_order": self.first_order,
            "categories": self.categories(),
            "classes": self.classes(),
            "flags": self.flags,
            "geometry": {name: test._asdict() for name, test in self.geometry.items()},
        }

    def categories(self) -> dict[str, dict[str, float | int | str | None]]:
        """Per category of prompts: `policy.gaps.Gap` without intervals and features."""
        figures = ("label", "prompts", "shows", "y", "prediction", "residual", "gap")
        return {g.category: {name: getattr(g, name) for name in figures} for g in self.gaps}

    def classes(self) -> dict[str, dict[str, float | int]]:
        """Per label of pairs: medians, and the mean share of Σ|W ΔW| that goes through feature
        activations (ΔX)."""
        i = self.influence
        x, y = (
            (np.full(len(self.score), np.nan),) * 2
            if i is None
            else (
                np.abs(self.weights * i.delta_w_x).sum(1),
                np.abs(self.weights * i.delta_w_y).sum(1),
            )
        )
        total = np.where(x + y == 0, 1, x + y)
        out, sure = (
            {},
            {}
            if self.confidence is None
            else self.confidence.classes(self.pair_labels, self.score, self.seed),
        )
        for label in dict.fromkeys(self.pair_labels):
            in_class, name = np.array([x == label for x in self.pair_labels]), label or "unlabelled"
            off = self.off_target[in_class & ~np.isnan(self.off_target)]
            out[name] = {
                "pairs": int(in_class.sum()),
                "flagged": int(self.flagged[in_class].sum()),
                "median_score": float(np.median(self.score[in_class])),
                **(
                    {}
                    if name not in sure
                    else {
                        "median_score_low": float(sure[name].low[0]),
                        "median_score_high": float(sure[name].high[0]),
                    }
                ),
                "mean_delta_y": float(self.mean_delta_y[in_class].mean()),
                "delta_x_share": float((x / total)[in_class].mean()),
                "delta_y_share": float((y / total)[in_class].mean()),
                "off_target_share": float(off.mean()) if len(off) else np.nan,
            }
        return out
