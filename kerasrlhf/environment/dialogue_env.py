"""One turn of a dialogue per step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from gymnasium import spaces

from kerasrlhf.data.dialogue import Message, Template
from kerasrlhf.environment.base import Observation, TokensEnv
from kerasrlhf.rollouts.dialogues import Dialogue, Dialogues
from kerasrlhf.types import Sampler


class DialogueEnv(TokensEnv):
    """An environment with one reply per step, to a user who answers: `kerasrlhf/Dialogue-v0`.

    The action is a reply, an array of token ids as in `ResponseEnv`. Then the user answers, and
    the observation has the answer in the words of the template. The reward is 0 until the dialogue
    ends; then it is the score of all of it. The episode is `terminated` if the user returns None,
    and `truncated` after the last turn, or if the user's turn is longer than `user_length`. A reply
    without a stop ends at its length, and the dialogue goes on.

    A reward function may ask for `messages`, the whole dialogues, or `replies`, lists of the
    policy's own texts; `completions` are the messages after the prompt, and `responses` their text
    as the template writes it. A reward model reads the whole dialogue.

    Args:
        prompts: records whose `prompt` is a list of messages, or a dataset of them, as in
            `ResponseEnv`.
        reward: as in `ResponseEnv`.
        causal_lm: as in `ResponseEnv`. It needs a tokenizer.
        sampler: as in `ResponseEnv`; of one reply.
        user: callable, `user(messages) -> str | None`. It gets the messages so far, and returns
            what the user says next, or None to end the dialogue. Further parameters that are
            columns of the records are passed by keyword. It may be an `async def`.
        turns: int, at least 1. Replies at most. Defaults to 4.
        user_length: int, at least 1. Tokens of a user's turn at most, with what the template writes
            around it. Defaults to 64.
        template: str or callable. As in `ResponseEnv`. Defaults to `"plain"`.
        render_mode: As in `ResponseEnv`. Defaults to None.

    Raises:
        ValueError: If an argument cannot be used.

    Example:
        >>> import keras_hub
        >>> lm = keras_hub.models.CausalLM.from_preset(rlhf.presets.TINY_STORIES)
        >>> prompts = [{"prompt": [{"role": "user", "content": "Hi."}]}]
        >>> environment = rlhf.environment.DialogueEnv(
        ...     prompts, lambda replies: [len(r) for r in replies], lm, 8,
        ...     user=lambda messages: "And then?" if len(messages) < 4 else None)
        >>> observation, info = environment.reset(seed=0)
        >>> [environment.step(environment.encode(" A ball."))[1:4] for _ in range(2)]
        [(0.0, False, False), (2.0, True, False)]
        >>> [message["content"] for message in environment.messages]
        ['Hi.', 'A ball.', 'And then?', 'A ball.']
    """

    def __init__(
        self,
        prompts: Any,
        reward: Any,
        causal_lm: keras.Model | str,
        sampler: Sampler | int,
        user: Callable[..., Any],
        turns: int = 4,
        user_length: int = 64,
        template: Template = "plain",
        render_mode: str | None = None,
    ) -> None:
        # The dialogue comes first: the spaces follow from it.
        self.dialogue = Dialogue(user, turns, user_length, template)
        super().__init__(prompts, reward, causal_lm, sampler, template, render_mode)
        length = self.sampler.length
        self._dialogues = Dialogues(self.dialogue, self.causal_lm, length, self._ending.strings)
        self._begin()

    def actions(self) -> spaces.Space:
        """Returns the space of replies."""
        return spaces.MultiDiscrete([self.vocabulary] * self.sampler.length)

    def _begin(self) -> None:
        self._strings = self._prompt.batch()
        (self._transcript,) = self._dialogues.begin([self._prompt.token_ids], self._strings)

    @property
    def messages(self) -> list[Message]:
        """The messages so far."""
        return [{**message} for message in self._transcript.messages]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts a dialogue, as `ResponseEnv.reset` does."""
        found = super().reset(seed=seed, options=options)
        self._begin()
        return found

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Says a reply, and lets the user answer.

        Args:
            action: int array `(length,)`, token ids.

        Returns:
            Observation, reward, `terminated`, `truncated`, and a dict with the user's `answer`, or
            at the end with the `response`.

        Raises:
            ValueError: If it is no such array, the episode is over, or the user returns anything
                but a str or None.
        """
        self._check_running()
        reply, ended = self._until_stop(action)
        transcript = self._transcript
        self._dialogues.reply([transcript], [reply], [ended])
        self._dialogues.answer([transcript])
        self._said = transcript.token_ids[transcript.prompt_length :]
        observation = self._observation()
        if transcript.stopped is None:
            answer = transcript.messages[-1]["content"]
            return observation, 0.0, False, False, {"answer": answer}
        self._is_over = True
        columns = transcript.prompt_length + self.columns
        responses = self._dialogues.responses([transcript], columns)
        episodes = self._dialogues.episodes([transcript], self._strings)
        reward = self._scored(responses, episodes)
        terminated = transcript.stopped == "user"
        return observation, reward, terminated, not terminated, {"response": transcript.text}
