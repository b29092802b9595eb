"""What is read of a prompt: a model, a behaviour, a site, and what the base weights make of
them."""
