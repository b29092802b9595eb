"""Fine-tuning a model, and reading what came of it."""
