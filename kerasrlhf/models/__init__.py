"""Networks: actor-critic, reward model, frozen reference, and how they are evaluated."""
