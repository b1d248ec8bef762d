"""One token per step."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces

from kerasrlhf.environment.base import Observation, Reply, TokensEnv


class TokenEnv(TokensEnv):
    """An environment with one token per step, `kerasrlhf/Token-v0`.

    The action is a token id, `Discrete(vocabulary)`. The reward is 0 until the response is
    complete; then it is its score. The episode is `terminated` by an end token or a stop string,
    and `truncated` at the length of a response.

    Args:
        prompts: what `data.prompts` accepts or returns: records or texts, or a dataset, whose
            batches are then those of a trainer.
        reward: as in a trainer: a reward model, a function, or a list or dict of these.
        causal_lm: keras-hub `CausalLM` whose tokens are the actions, or the name or folder of its
            preset. Its weights are not used.
        sampler: `Sampler`, or an int for `Sampler(length)`. Its length and its stops end a
            response; how an agent chooses tokens is its own business.
        template: str or callable. Turns messages into a text, see `data.dialogue`. Defaults to
            `"plain"`.
        render_mode: `"ansi"`, for `render` to return the text so far, or None. Defaults to None.

    Raises:
        ValueError: If an argument cannot be used.

    Example:
        >>> import keras_hub
        >>> lm = keras_hub.models.CausalLM.from_preset(rlhf.presets.TINY_STORIES)
        >>> environment = rlhf.environment.TokenEnv(
        ...     ["Tom was sad."], lambda response_ids: [len(r) for r in response_ids], lm, 2)
        >>> observation, info = environment.reset(seed=0)
        >>> info["prompt"], environment.action_space
        ('Tom was sad.', Discrete(2048))
        >>> [environment.step(token)[1:4] for token in (40, 41)]
        [(0.0, False, False), (2.0, False, True)]
    """

    _reply: Reply

    def actions(self) -> spaces.Space:
        """Returns the space of token ids."""
        return spaces.Discrete(self.vocabulary)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode, as `ResponseEnv.reset` does."""
        self._reply = Reply(self._ending, self.sampler.min_length)
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Adds a token to the response.

        Args:
            action: int, a token id.

        Returns:
            Observation, reward, `terminated`, `truncated`, and a dict that has the `response` at
            the end.

        Raises:
            ValueError: If it is no token id, or the episode is over.
        """
        self._check_running()
        terminated = self._reply.add(self._checked(action))
        self._said = [*self._reply.token_ids]
        truncated = not terminated and len(self._said) == self.sampler.length
        self._is_over = terminated or truncated
        reward, info = self._score_reply(terminated) if self._is_over else (0.0, {})
        return self._observation(), reward, terminated, truncated, info
