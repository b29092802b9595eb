"""A grid of questions, answered from what a run kept."""
