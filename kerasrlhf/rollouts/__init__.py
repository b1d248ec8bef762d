"""From prompts to scored responses, and from those to minibatches."""
