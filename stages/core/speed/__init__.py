"""How fast models are: engines, each in a process of its own, and the protocol of timing them."""
