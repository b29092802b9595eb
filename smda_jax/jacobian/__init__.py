"""Engines: how a training step on each pair moves what is read from each prompt."""
