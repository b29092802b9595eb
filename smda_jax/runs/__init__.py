"""Runs: orchestration, and the files of a run folder."""
