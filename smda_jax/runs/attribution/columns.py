"""What every column of the tables of a run means: unit, sign, when it is empty. The page shows
this; nothing repeats it.

Signs: higher Y is more of the behaviour; `delta_*` is the change after one step on the
pair, so that a positive mean_delta_y says that the step raises Y. `score` is
positive where the step moves the policy along itself.
"""

_INTERVAL = "95 % percentile interval over resamples of the evaluation prompts (--bootstrap)"
_STABILITY = "share of those resamples in which the figure keeps its sign"
_OF_CATEGORY = (
    "95 % interval over resamples of the prompts of the category and of the others; "
    "empty for fewer than 10"
)
_PAIR = "sha256 of the stripped prompt, a NUL and the stripped response"
_PROMPT = "sha256 of the stripped prompt"

COLUMNS: dict[str, dict[str, str]] = {
    "pairs.parquet": {
        "pair_id": _PAIR,
        "label": "class of the pair, as given",
        "category": "as given",
        "planted": "known to be corrupted, as given",
        "raises": "whether the pair is expected to raise the behaviour (--raises, the data's "
        "column, or what responses of its label begin with); empty where that is not known",
        "score": "Σ_k W[k] ΔW[k] of subset all; positive: the step moves the policy along itself",
        "score_low": _INTERVAL,
        "score_high": _INTERVAL,
        "score_sign_stability": _STABILITY,
        "mean_delta_y": "mean ΔY over the evaluation prompts, in Y's unit; positive: Y "
        "becomes higher. Empty where only scores were kept, and where Y is given",
        "mean_delta_y_low": _INTERVAL,
        "mean_delta_y_high": _INTERVAL,
        "loss": "of sft the mean cross-entropy of the scored tokens, nats per token; of dpo log 2",
        "gradient_norm": (
            "length of the loss gradient over all parameters; empty where scores are "
            "read along the query"
        ),
        "gradient_dot": "product of the loss gradient with that of −mean Y, which is mean_delta_y "
        "/ η. "
        "Empty for steps that are not along the gradient, for true steps, and where only "
        "scores were kept",
        "gradient_cosine": "its cosine",
        "repsim": "mean cosine of the residual stream of the pair's own prompt (SAE's site, end "
        "of turn) with those of the "
        "evaluation prompts that show the behaviour; with all of them if none does",
        "vector_filter": (
            "product of that residual stream with the policy's direction Σ_k W[k] W_enc[:,k]"
        ),
        "response_tokens": "tokens that the loss averages over",
        "dominant_feature": "feature of the largest |W[k] ΔW[k]|",
        "off_target_share": (
            "share of Σ|W ΔW| on features that are not active on the pair's own "
            "prompt; empty if nothing moves"
        ),
        "off_target_category": "the same share on features that are active on fewer than half of "
        "the evaluation prompts of the "
        "pair's category; empty if there are none",
        "off_target_label": (
            "the same, of the evaluation prompts of the label that the pair's label begins with"
        ),
        "through_x": "share of Σ|W ΔW_X| + |W ΔW_Y| that goes through feature activations",
        "cancellation": "share that the two pathways take from each other: 0 where they agree in "
        "sign, 1 where they undo "
        "each other",
        "unintended": "the dominant feature is not active on the pair's own prompt",
        "flagged": "expected to raise the behaviour and scores below the median of the pairs that "
        "are expected to lower it, or the other way round (arXiv 2606.29171); never where nothing "
        "is expected",
        "flag_stability": (
            "share of resamples that flag it alike; a flag is safe near 1. Empty where "
            "nothing is expected of it"
        ),
        "flagged_delta_y": "the same rule on mean_delta_y, whatever the sign of the score. Empty "
        "where mean_delta_y is, and where nothing is expected of the pair",
        "flag_delta_y_stability": "share of resamples that flag it alike by mean_delta_y",
        "flagged_quartile": "the same, of the other side's outer quarter",
        "flagged_off_target": "off-target share above 90 % of its class",
        "truncated": "cut at --max-length",
        "own_features": "chosen features active on the pair's own prompt",
        "prompt": "text; empty with --redact",
        "response": "text; empty with --redact",
    },
    "prompts.parquet": {
        "prompt_id": _PROMPT,
        "label": "as given",
        "category": "as given",
        "shows": "whether the prompt shows the behaviour: as given, else where Y is above the "
        "behaviour's own threshold (of begins, log ½)",
        "refused": "shows, by its name in version 0.1",
        "y": "the behaviour, in its unit; of begins, log-probability in nats",
        "prediction": "of the policy fitted to all prompts, XW, in Y's unit",
        "active_features": "chosen features active on the prompt",
        "prompt": "text; empty with --redact",
    },
    "influence.parquet": {
        "subset": "evaluation subset that the policy is fitted to",
        "pair_id": _PAIR,
        "feature_id": "of the SAE",
        "delta_w_x": "change of W[k] through feature activations, Y's unit per unit of activation",
        "delta_w_y": "change of W[k] through output probabilities, same unit",
        "delta_w": "their sum",
        "contribution": "W[k] ΔW[k]; adds up to the score",
        "delta_w_low": _INTERVAL,
        "delta_w_high": _INTERVAL,
        "sign_stability": _STABILITY,
    },
    "scores.parquet": {
        "subset": "evaluation subset that the policy is fitted to",
        "pair_id": _PAIR,
        "score": "Σ_k W[k] ΔW[k]",
    },
    "features.parquet": {
        "class": "of pairs; all: every pair",
        "feature_id": "of the SAE",
        "label": "from --feature-labels",
        "link": "the feature's page (--neuronpedia)",
        "weight": "W[k], Y's unit per unit of activation; positive: Y is higher",
        "weight_low": _INTERVAL,
        "weight_high": _INTERVAL,
        "sign_stability": _STABILITY,
        "active_share": "share of the evaluation prompts on which it is active",
        "mean_activation": "over the evaluation prompts",
        "mean_contribution": "mean W[k] ΔW[k] of the class",
        "share": "of the class's Σ|W ΔW|; adds up to 1",
        "through_x": "share of its |W ΔW_X| + |W ΔW_Y| that goes through activations",
        "cancellation": "share that the two pathways take from each other",
        "dominant_pairs": "pairs of the class whose dominant feature it is",
    },
    "gaps.parquet": {
        "category": "of prompts",
        "label": "of most of its prompts",
        "prompts": "in the category",
        "others": "prompts of the same label outside it, which it is compared with",
        "shows": "share that shows the behaviour",
        "refused": "shows, by its name in version 0.1",
        "y": "mean Y, in Y's unit",
        "prediction": "mean XW, in Y's unit",
        "residual": "mean Y − XW, in Y's unit; negative: less than the policy says",
        "gap": (
            "mean Y less that of the others, in Y's unit; negative: the behaviour passes it over. "
            "Empty without others"
        ),
        "y_low": _OF_CATEGORY,
        "y_high": _OF_CATEGORY,
        "residual_low": _OF_CATEGORY,
        "residual_high": _OF_CATEGORY,
        "gap_low": _OF_CATEGORY,
        "gap_high": _OF_CATEGORY,
    },
    "gap_features.parquet": {
        "category": "of prompts",
        "feature_id": "of the SAE",
        "carried": (
            "W[k] (mean X[k] in the category − in the others), in Y's unit; adds up to the "
            "predicted gap"
        ),
    },
    "landing.parquet": {
        "kind": "whether the group is a class or a category of pairs",
        "group": "the class or category",
        "pairs": "of the group",
        "feature_id": "of the SAE",
        "share": (
            "mean share of a pair's Σ|W ΔW| that falls on the feature; adds up to 1 over the "
            "features"
        ),
        "mean_contribution": "mean W[k] ΔW[k] of its pairs",
    },
    "interference.parquet": {
        "feature_id": "of the SAE",
        "other_id": "of the SAE",
        "landing": "of pairs whose own prompt has the first feature: mean share of Σ|W ΔW| that "
        "falls on the other; a row adds "
        "up to 1 (over at most 300 features, those that shift most, less)",
        "co_shift": "correlation over pairs of ΔW of the two; empty if one never shifts",
        "encoder_cosine": "of the two encoder directions",
        "activation_correlation": (
            "of the two activations over the evaluation prompts; empty if one is constant"
        ),
    },
    "agreement.parquet": {
        "class": "of pairs; all: every pair",
        "figure": "a column of pairs.parquet",
        "other": "another",
        "pairs": "that have both",
        "spearman": "rank correlation; empty if one is constant",
        "kendall": "tau-b",
        "top": "how many pairs that one puts first are compared",
        "overlap": "share of those that the other puts there too",
        "expected": "that share if the two knew nothing of each other",
    },
    "label_candidates.parquet": {
        "feature_id": "of the SAE",
        "label": "from --feature-labels; to be filled in, and given back as --feature-labels",
        "kind": "top: most active; bottom: lowest pre-activation; contrastive: most active among "
        "prompts of the label on which "
        "it is least active",
        "rank": "within the kind, from 1",
        "prompt_id": _PROMPT,
        "activation": "pre-activation z, units of the SAE",
        "prompt": "text; empty with --redact",
    },
    "verify.parquet": {
        "learning_rate": "η of the true step, and of the prediction scaled to it",
        "figure": "delta_x, delta_y, delta_w or score",
        "pairs": "that were stepped on",
        "r2": "share of the true changes' variance that first order predicts",
        "slope": (
            "of the true changes on the predicted ones, through the origin; 1 where first "
            "order holds"
        ),
        "spearman": "rank correlation of the two",
        "holds": "R² ≥ 0.99 and slope within 2 % of 1",
    },
    "tokens.parquet": {
        "pair_id": _PAIR,
        "row": "of the pair: 0, or 0 the chosen and 1 the rejected answer",
        "position": "of the token in the rendered conversation, from 0",
        "token_id": "in the model's vocabulary",
        "token": "its text; empty with --redact",
        "score": "what the token contributes; its pair's are their sum",
        "mean_delta_y": "likewise",
        "delta_w_(id)": "of the coefficient of a feature",
    },
    "validation.parquet": {
        "measure": "lds: rank correlation over random subsets of the pairs, of the sum of the "
        "members' figures with what training on them came to; auprc, auc: of planted pairs, the "
        "figure turned against what is expected of each; leave out: shift of mean Y where the "
        "pairs that a figure puts first are left out; tail patch: after one step on them",
        "figure": "of a pair: an update's prediction, a column of pairs.parquet, or a plain "
        "figure; @trained: prompts read at the mean of models trained on other halves",
        "target": "mean_y, score, a category's mean Y or a coefficient, the median or the worst "
        "of them; of auprc and auc the pairs that are looked at",
        "value": "of the measure",
        "low": _INTERVAL
        + "; of the worst of several it lies low, since every resample has a worst "
        "of its own; of leave out and tail patch less one standard deviation",
        "high": _INTERVAL + "; likewise",
        "reference": "of lds the ceiling √(2r / (1 + r)), r between two orders of the same subset; "
        "of auprc the prevalence; of auc 0.5; else the mean over random pairs",
        "count": "subsets, or pairs",
    },
    "experiment/experiment.parquet": {
        "arm": "base: not trained; full: on all pairs; curated: without those the rule chooses; "
        "control: without as many random ones of each label",
        "order": "of the pairs, by its number",
        "pairs": "trained on",
        "mean_y": "mean Y over the evaluation prompts",
        "probability_positive": "mean probability of the behaviour on prompts that should show it",
        "probability_others": "on the others",
        "correctness": "mean of p where the behaviour should be shown, of 1 − p elsewhere",
        "recall": "mean of p where it should be shown",
        "precision": "Σ p there over Σ p everywhere",
        "f1": "harmonic mean of recall and precision",
    },
    "experiment/shifts.parquet": {
        "arm": "as above",
        "target": "as in validation.parquet",
        "predicted": "−Σ over the pairs left out of what the run says of them, at the rates of the "
        "recipe",
        "realised": "after training without them, less after training on all; means over orders",
        "standard_error": "of realised",
        "before": "the target before training",
        "full": "after training on all pairs",
        "after": "after training without those of the arm",
    },
}

# Of a sweep's tables, in a folder of their own.
SWEEP_COLUMNS: dict[str, dict[str, str]] = {
    "sweep.parquet": {
        "cell": "sha256 of the run and the cell's axes",
        "(an axis)": "one column each: the cell's value of it, or what the run itself has",
        "n_features": "features of the cell's policy",
        "n_prompts": "prompts it is fitted to, with repetition in a resample",
        "n_pairs": "pairs its figures speak of",
        "r2": "of the policy on the prompts it is fitted to",
        "r2_held_out": "of a fit without them on the run's held-out prompts among its own",
        "norm_w": "length of W, Y's unit per unit of activation",
        "mean_score": "of its pairs",
        "std_score": "of its pairs",
        "median_score": "of its pairs; with [label]: of those of the class",
        "positive_share": "share of its pairs with a score above 0",
        "mean_delta_y": "over prompts and pairs, in Y's unit",
        "delta_x_share": "share of Σ|W ΔW_X| + |W ΔW_Y| that goes through feature activations",
        "pairs_rank_correlation": "Spearman's ρ of its scores with those of the run's own settings",
        "top_pairs_overlap": (
            "share of the ten strongest pairs of the run's own settings that are "
            "among its ten strongest"
        ),
        "coefficients_rank_correlation": (
            "Spearman's ρ of W with that of the run's own settings; empty for other features"
        ),
        "sign_changes": "coefficients of another sign than there",
    },
    "pairs.parquet": {
        "cell": "of sweep.parquet",
        "pair_id": _PAIR,
        "score": "of the pair in the cell",
    },
    "coefficients.parquet": {
        "cell": "of sweep.parquet",
        "feature_id": "of the SAE",
        "weight": "W[k] of the cell",
    },
}
