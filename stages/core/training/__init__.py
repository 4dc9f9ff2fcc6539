"""How networks learn: one training loop, its losses, its inputs, other domains."""
