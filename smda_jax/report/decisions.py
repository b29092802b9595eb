"""Sentences: which step the numbers are of, what acting on them came to, how good they are."""

from smda_jax.report.data import Run

# Updates in words.
STEPS = {
    "sgd": "one plain gradient step on each pair",
    "adamw": "a pair's share in a whole run of AdamW, in expectation",
    "adam": "one step preconditioned by second moments",
    "ekfac": "one step preconditioned by curvature",
    "normalised": "one step of the same length on each pair",
}


def decided(run: Run) -> list[str]:
    """What acting on the run came to, and how good its figures are."""
    acted = [run.experiment["finding"]] if run.experiment else []
    return [*acted, *(run.validation["findings"] if run.validation else ())]


def step(run: Run) -> list[str]:
    """Which step the numbers are of."""
    own = run.record.get("step")
    if own is None:  # before there were recipes
        return []
    said = f"The numbers are those of {STEPS.get(own['update'], 'an update ' + own['update'])}"
    if own["recipe"] != "sgd-step":
        said += f", for the recipe {own['recipe']}"
    else:
        said += f" of {own['learning_rate']:g}"
    scored = {"all": "whole sequences", "response": "answers"}.get(own.get("loss_scope", ""))
    said += f"; {scored} are scored" if scored else ""
    if own["trained"]:
        said += f"; prompts are read, and the policy is fitted, at {own['trained']}"
    return [said + "."]
