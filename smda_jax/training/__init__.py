"""Training of small language models and SAEs."""
