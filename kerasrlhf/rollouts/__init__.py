"""From prompts to scored responses."""
