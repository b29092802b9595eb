"""The differentiated model: configuration, forward pass, checkpoints."""
