"""What the environments have in common: prompts, spaces, the ends of replies, and scores."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import gymnasium
import keras
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from kerasrlhf import tokens
from kerasrlhf.data.dialogue import Template
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.sampling import Ending
from kerasrlhf.rollouts import scoring, weighted
from kerasrlhf.rollouts.environments import TextEnvironment
from kerasrlhf.types import Responses, Sampler, masked_rows, require_int

Observation: TypeAlias = dict[str, np.ndarray]
_STRINGS = ("prompt", "guarded_prompt", "record")


class Prompt(NamedTuple):
    """One prompt.

    token_ids: list of int.
    strings: dict of its entries of `prompt`, `guarded_prompt` and `record`, where it has them.
    """

    token_ids: list[int]
    strings: dict[str, Any]

    def batch(self) -> scoring.PromptStrings:
        """Returns its strings as those of a batch of one row."""
        return scoring.PromptStrings.of({name: [x] for name, x in self.strings.items()})


class _Shared(dict):
    """Arguments that a copy shares: Gymnasium copies those of an environment with its networks."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return _Shared(self)


class TokensEnv(TextEnvironment, gymnasium.Env):
    """An environment whose observation is a row of token ids; abstract.

    The observation is a dict of `token_ids`, int32 `(columns,)`, the prompt and what followed it,
    padded on the right, and `padding_mask`, int8 `(columns,)`, 1 at real tokens. Where the model
    has a tokenizer, `info` has the `prompt` and, at the end, the `response`.

    `reset` chooses a prompt at random, or takes the one whose number is
    `options={"prompt": number}`.

    Args:
        prompts: as in `TextEnvironment`.
        reward: as in `TextEnvironment`.
        causal_lm: as in `TextEnvironment`.
        sampler: as in `TextEnvironment`.
        template: as in `TextEnvironment`. Defaults to `"plain"`.
        render_mode: `"ansi"`, for `render` to return the text so far, or None. Defaults to None.

    Raises:
        ValueError: If an argument cannot be used.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 (theirs)

    def __init__(
        self,
        prompts: Any,
        reward: Any,
        causal_lm: keras.Model | str,
        sampler: Sampler | int,
        template: Template = "plain",
        render_mode: str | None = None,
    ) -> None:
        super().__init__(prompts, reward, causal_lm, sampler, template)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f'`render_mode` must be "ansi" or None. Received: {render_mode!r}.')
        self.render_mode = render_mode
        actor = ActorCritic(self.causal_lm)
        self._ending = actor.ending(self.sampler)
        self._scorer = weighted.reward_of(reward, actor)
        # All prompts, as lists of ids: `reset` needs any of them.
        self._prompts = [prompt for batch in self.one_pass() for prompt in _rows(batch)]
        longest = max(len(prompt.token_ids) for prompt in self._prompts)
        actor.limits()._replace(sampled=self.columns).check_length(longest)
        width = longest + self.columns
        self.observation_space = spaces.Dict(
            {
                "token_ids": spaces.Box(0, self.vocabulary - 1, (width,), np.int32),
                "padding_mask": spaces.MultiBinary(width),
            }
        )
        self.action_space = self.actions()
        self._width = width
        self._prompt: Prompt = self._prompts[0]
        self._said: list[int] = []
        self._is_over = True

    def actions(self) -> spaces.Space:
        """Returns the space of actions."""
        raise NotImplementedError

    @property
    def spec(self) -> EnvSpec | None:
        """How `gymnasium.make` made it."""
        return getattr(self, "_spec", None)

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        if spec is not None:
            spec.kwargs = _Shared(spec.kwargs)
        self._spec = spec

    def check_agent(self, actor: ActorCritic, sampler: Sampler) -> None:
        """Raises a `ValueError` for an agent with other episodes, and for steps of one's own.

        Args:
            actor: `ActorCritic`.
            sampler: `Sampler` of a trainer.
        """
        for name in ("reset", "step"):
            if not getattr(type(self), name).__module__.startswith("kerasrlhf."):
                raise ValueError(
                    f"{type(self).__name__} defines `{name}`, which a trainer does not call: it "
                    "samples whole episodes itself. Express the change as a reward function, or "
                    "as the `user` of a `DialogueEnv`."
                )
        super().check_agent(actor, sampler)

    @property
    def num_prompts(self) -> int:
        """How many prompts there are, for `reset(options={"prompt": number})`."""
        return len(self._prompts)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: int or None. Seed of the choice of prompts. Defaults to None: that continues.
            options: dict or None. `{"prompt": number}` is the prompt of that number. Defaults to
                None.

        Returns:
            The observation, and a dict with the `prompt`.

        Raises:
            ValueError: If there is no prompt of that number.
        """
        gymnasium.Env.reset(self, seed=seed, options=options)
        number = (options or {}).get("prompt")
        if number is None:
            number = int(self.np_random.integers(len(self._prompts)))
        number = require_int("prompt", number, minimum=0)
        if number >= len(self._prompts):
            raise ValueError(
                f"There are {len(self._prompts)} prompts, numbered from 0. Received: {number}."
            )
        self._prompt, self._said, self._is_over = self._prompts[number], [], False
        text = self._prompt.strings.get("prompt")
        info = {} if text is None else {"prompt": _text(text)}
        return self._observation(), info

    def render(self) -> str | None:
        """Returns the text so far in the mode `"ansi"`, else None; without a tokenizer its ids."""
        if self.render_mode is None:
            return None
        row = self._prompt.token_ids + self._said
        if self.causal_lm.preprocessor is None:
            return " ".join(map(str, row))
        return tokens.detokenize([row], self.causal_lm.preprocessor)[0]

    def _observation(self) -> Observation:
        row = self._prompt.token_ids + self._said
        ids, mask = tokens.padded([row], self._width, self._ending.pad_id)
        return {"token_ids": ids[0], "padding_mask": mask[0].astype("int8")}

    def _check_running(self) -> None:
        if self._is_over:
            raise ValueError("The episode is over, or none has begun. Call `reset()` first.")

    def _checked(self, token: Any) -> int:
        """Returns a token as an int, or raises a `ValueError` for what is none."""
        array = np.asarray(token)
        is_token = array.size == 1 and array.dtype.kind in "iu"
        if not is_token or not 0 <= int(array.reshape(())) < self.vocabulary:
            raise ValueError(
                f"An action is a token id from 0 to {self.vocabulary - 1}. Received: {token!r}."
            )
        return int(array.reshape(()))

    def _until_stop(self, action: Any) -> tuple[list[int], bool]:
        """Returns the tokens of a whole reply up to its stop, and whether it has one."""
        array = np.asarray(action)
        if array.shape != (self.sampler.length,):
            raise ValueError(
                f"An action is a whole reply, an array of {self.sampler.length} token ids, of "
                "which those after the first stop do not count. Received an array of shape "
                f"{array.shape}."
            )
        reply = Reply(self._ending, self.sampler.min_length)
        for token in array:
            if reply.add(self._checked(token)):
                break
        return reply.token_ids, reply.ended

    def encode(self, text: str) -> np.ndarray:
        """Returns the action that says a text, for agents that write texts.

        Args:
            text: str. A reply, without what ends it.

        Returns:
            Int64 `(sampler.length,)`: its tokens, and a stop token in all places behind them.

        Raises:
            ValueError: If there is no tokenizer, or the text does not fit the length of a reply.
        """
        if self.causal_lm.preprocessor is None:
            raise ValueError("A text needs a tokenizer, and the model has no preprocessor.")
        (ids,) = tokens.following([text], self.causal_lm.preprocessor)
        missing = self.sampler.length - len(ids)
        if missing < 0 or (missing and not self._ending.token_ids):
            raise ValueError(
                f"The text has {len(ids)} tokens, and a reply has {self.sampler.length}"
                f"{' at most' if self._ending.token_ids else ': there is no stop token'}."
            )
        return np.array(ids + [*self._ending.token_ids[:1]] * missing, "int64")

    def _scored(self, responses: Responses, episodes: scoring.Episodes) -> float:
        """Returns the score of a row, the one that a trainer computes of it."""
        rows = responses.token_ids, responses.padding_mask, responses.prompt_lengths
        read = self._scorer.read(*rows)
        state = scoring.TrainerState()
        scores = self._scorer.score(responses, episodes, read, state).total
        if scores.ndim == 2:
            # Scores of tokens that the agent did not choose are no rewards.
            scores = np.where(responses.response_mask, scores, np.float32(0.0))
        return float(scoring.per_response(scores)[0])

    def _score_reply(self, ended: bool) -> tuple[float, dict[str, Any]]:
        """Returns the score of the reply to the prompt, and what `info` says at the end."""
        prompt = self._prompt.token_ids
        ids, mask = tokens.padded(
            [prompt + self._said], len(prompt) + self.columns, self._ending.pad_id
        )
        zeros = np.zeros(ids.shape, "float32")
        responses = Responses(
            ids,
            mask,
            mask & (np.arange(ids.shape[1]) >= len(prompt)),
            np.array([len(prompt)], "int32"),
            np.array([ended]),
            *[zeros] * 3,
        )
        strings = {name: [x] for name, x in self._prompt.strings.items()}
        preprocessor = self.causal_lm.preprocessor
        episodes = scoring.read_episodes(responses, strings, preprocessor, self._ending.strings)
        info = {} if episodes.responses is None else {"response": str(episodes.responses[0])}
        return self._scored(responses, episodes), info


class Reply:
    """A reply that grows token by token, as the compiled loop of a trainer ends it.

    Args:
        ending: `Ending`, the tokens and strings that end it.
        min_length: int. Tokens that a stop may end at the earliest.

    Example:
        >>> reply = Reply(Ending(token_ids=(7,)), min_length=2)
        >>> [reply.add(token) for token in (7, 5, 7)], reply.token_ids
        ([False, False, True], [7, 5, 7])
    """

    def __init__(self, ending: Ending, min_length: int) -> None:
        self._ending, self._min_length = ending, min_length
        self._state = 0
        self.token_ids: list[int] = []
        self.ended = False

    def add(self, token: int) -> bool:
        """Adds a token; returns whether it ends the reply."""
        self.token_ids.append(token)
        is_stop, stops = token in self._ending.token_ids, self._ending.strings
        if stops is not None:
            found = int(stops.table[self._state * len(stops.pieces) + token])
            self._state, completes = found // 2, found % 2 == 1
            is_stop = is_stop or completes
        self.ended = is_stop and len(self.token_ids) >= self._min_length
        return self.ended


def _rows(batch: dict[str, Any]) -> list[Prompt]:
    """Returns the prompts of a batch."""
    ids = masked_rows(batch["token_ids"], batch["padding_mask"])
    strings = {name: np.asarray(batch[name]) for name in _STRINGS if name in batch}
    return [Prompt(row, {name: x[i] for name, x in strings.items()}) for i, row in enumerate(ids)]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
