"""How a model behaves on prompts: soft metrics, and answers that are judged."""
