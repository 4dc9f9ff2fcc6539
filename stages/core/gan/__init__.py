"""Generative adversarial networks: two players, their losses, the loop that trains them."""
