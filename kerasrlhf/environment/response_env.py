"""One whole response per step: a bandit."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces

from kerasrlhf.environment.base import Observation, TokensEnv


class ResponseEnv(TokensEnv):
    """An environment with one whole response per step, `kerasrlhf/Response-v0`: a bandit.

    The action is an array of token ids, `MultiDiscrete([vocabulary] * length)`; those after the
    first stop do not count, and `encode` makes one of a text. Ids and not a text, because a text
    has several tokenizations, and because vector environments batch arrays. Every episode is one
    step and then `terminated`; `info["ended"]` says whether the response has a stop or was cut by
    its length.

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
        >>> environment = rlhf.environment.ResponseEnv(
        ...     ["Tom was sad."], lambda responses: [r.count("ball") for r in responses], lm, 8)
        >>> observation, info = environment.reset(seed=0)
        >>> environment.step(environment.encode(" He had a ball."))[1:4]
        (1.0, True, False)
    """

    def actions(self) -> spaces.Space:
        """Returns the space of whole responses."""
        return spaces.MultiDiscrete([self.vocabulary] * self.sampler.length)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Scores a response.

        Args:
            action: int array `(length,)`, token ids.

        Returns:
            Observation, reward, True, False, and a dict of `ended` and the `response`.

        Raises:
            ValueError: If it is no such array, or the episode is over.
        """
        self._check_running()
        self._said, ended = self._until_stop(action)
        self._is_over = True
        reward, info = self._score_reply(ended)
        return self._observation(), reward, True, False, {**info, "ended": ended}
