"""From a run to a decision: which pairs to keep, and whether that helped."""
