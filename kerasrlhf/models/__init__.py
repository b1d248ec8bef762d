"""Networks: actor-critic, reward model, frozen reference, and what they are read with."""
