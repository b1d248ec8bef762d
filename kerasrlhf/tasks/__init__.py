"""Tasks: prompts, a measure of what is wanted, and people who can be simulated."""
