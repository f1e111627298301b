"""Several processes that serve together on one port: who starts them, and what they tell each other besides gossip."""
