"""Several reward models as one, with a penalty where they disagree."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasrlhf import files
from kerasrlhf.data.limits import same_tokenizer
from kerasrlhf.models.process_reward_model import ProcessRewardModel
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.models.score_scale import ScoreScale
from kerasrlhf.models.scorer import Scored, Scorer
from kerasrlhf.types import Tensor, require_number

_CONFIG = "reward_ensemble.json"
_KINDS = {kind.__name__: kind for kind in (RewardModel, ProcessRewardModel)}


class RewardEnsemble(Scorer):
    """Combines trained reward models, with lower scores where they disagree.

    A policy finds responses that one reward model prefers by mistake; members that were trained
    separately rarely make the same mistake. From the members' scores of a response, the ensemble's
    score is

        "mean": mean - penalty * standard deviation         in units of score
        "uwo":  mean - penalty * variance                   uncertainty-weighted, as published
        "min":  their minimum                               worst case, without `penalty`

    times `gain`, plus `bias`, which `normalize` sets. The members' scores need a common scale:
    `normalize` sets every member's first. Fit the members, each with a different seed, not the
    ensemble. Every member is a separate network, with or without LoRA adapters.

    Args:
        members: list of two or more `RewardModel`s, or of two or more `ProcessRewardModel`s, with
            one tokenizer. They are used as they are.
        penalty: float, at least 0, in units of score. With 0, "mean" is the plain mean. Defaults
            to 1; None for "min".
        aggregate: `"mean"`, `"uwo"` or `"min"`. Defaults to `"mean"`.
        **kwargs: of `keras.Model`.

    Call arguments:
        inputs: as the members'.

    Returns:
        Scores as the members'.

    Raises:
        ValueError: If there are fewer than two members, they have different kinds or tokenizers,
            the aggregate is unknown, or a penalty is negative or combined with "min".

    Example:
        >>> import kerasrlhf as rlhf
        >>> members = [rlhf.RewardModel.from_preset(rlhf.presets.TINY_STORIES) for _ in range(2)]
        >>> ensemble = rlhf.RewardEnsemble(members, penalty=0.5)
        >>> ensemble.score(["Tom was sad."], [" He cried."]).shape
        (1,)

    Reference:
        Coste et al. 2023, arXiv 2310.02743, section 3; Eisenstein et al. 2023, arXiv 2312.09244.
    """

    def __init__(
        self,
        members: Sequence[RewardModel | ProcessRewardModel],
        penalty: float | None = None,
        aggregate: str = "mean",
        **kwargs: Any,
    ) -> None:
        if not isinstance(members, list | tuple):
            raise ValueError(
                "`members` must be a list of reward models. "
                f"Received: {members!r} of type {type(members).__name__}."
            )
        members = list(members)
        _check_members(members)
        policy = functools.partial(_initial_policy, members)
        super().__init__(members[0].preprocessor, policy, **kwargs)
        self.members = members
        self.aggregate, self.penalty = aggregate, _checked_penalty(penalty, aggregate)
        self.is_per_token = members[0].is_per_token
        self.trains_on = members[0].trains_on
        self.score_scale = ScoreScale(name="score_scale")
        self.built = True

    def call(self, inputs: dict[str, Tensor]) -> Tensor:
        """Computes the ensemble's scores."""
        return self._combined([member(inputs) for member in self.members]).scores

    def compute_output_shape(self, input_shape: dict[str, tuple]) -> tuple:
        """Returns the shape of the scores."""
        return self.members[0].compute_output_shape(input_shape)

    def read(self, token_ids: Tensor, padding_mask: Tensor, prompt_lengths: Tensor) -> Scored:
        """Scores rows, with the standard deviation between the members."""
        return self._combined(
            [m.read(token_ids, padding_mask, prompt_lengths).scores for m in self.members]
        )

    def _combined(self, scores: list[Tensor]) -> Scored:
        """Combines the members' scores, a list of tensors of one shape, and returns the spread."""
        # Members come first: `(members, batch)`, or `(members, batch, length)` for steps.
        scores = ops.stack(scores)
        spread = ops.std(scores, axis=0)
        if self.aggregate == "min":
            combined = ops.min(scores, axis=0)
        else:
            # "uwo" subtracts the variance (Coste et al. 2023, section 3).
            doubt = spread if self.aggregate == "mean" else ops.square(spread)
            combined = ops.mean(scores, axis=0) - self.penalty * doubt
        return Scored(self.score_scale(combined), spread)

    def std(
        self,
        prompts: Any,
        responses: Any,
        batch_size: int = 32,
        *,
        ended: bool | Sequence[bool] = True,
    ) -> np.ndarray:
        """Computes the standard deviation between the members' scores of texts.

        Args:
            prompts: as in `score`.
            responses: as in `score`.
            batch_size: as in `score`.
            ended: as in `score`.

        Returns:
            Float32 `(rows,)`, for process reward models summed over the steps.
        """
        return self.read_texts(prompts, responses, batch_size, ended=ended).spread

    def backbones(self) -> list[keras.Model]:
        """Returns the backbones of all members."""
        return [backbone for member in self.members for backbone in member.backbones()]

    def fit_defaults(self) -> dict[str, Any]:
        """Returns loss and metrics of the members."""
        return self.members[0].fit_defaults()

    def make_train_function(self, force: bool = False) -> None:
        """Raises a `ValueError`: members are fitted, not ensembles."""
        raise ValueError(
            "Members that are fitted together agree, which makes an ensemble useless. Fit each "
            "member by itself, with another seed, and combine them afterward."
        )

    def save_to_preset(self, preset_dir: str | pathlib.Path) -> None:
        """Writes each member to a separate folder.

        A folder that is new appears in one piece; in one that exists, only the files of a preset
        are replaced.

        Args:
            preset_dir: path of the folder.
        """
        config = {
            "kind": type(self.members[0]).__name__,
            "members": len(self.members),
            "aggregate": self.aggregate,
            "penalty": None if self.aggregate == "min" else self.penalty,
            "gain": float(self.gain.numpy()),
            "bias": float(self.bias.numpy()),
        }
        with files.replacing_preset(preset_dir) as folder:
            for index, member in enumerate(self.members):
                member.save_to_preset(folder / f"member_{index}")
            files.write_json(folder / _CONFIG, config)

    @classmethod
    def from_preset(cls, preset: str | pathlib.Path, **kwargs: Any) -> RewardEnsemble:
        """Loads a folder of `save_to_preset`.

        Args:
            preset: local folder.
            **kwargs: of keras-hub's `from_preset`, for example `dtype="mixed_bfloat16"`.

        Raises:
            ValueError: If the folder has no ensemble.
        """
        folder = pathlib.Path(preset)
        if not (folder / _CONFIG).is_file():
            raise ValueError(
                f"There is no {_CONFIG} in {str(preset)!r}. Expected a folder that "
                "`RewardEnsemble.save_to_preset` wrote; a single model is loaded with "
                "`RewardModel.from_preset`."
            )
        config = files.read_json(folder / _CONFIG)
        kind = _KINDS[config["kind"]]
        paths = [folder / f"member_{index}" for index in range(config["members"])]
        members = [kind.from_preset(path, **kwargs) for path in paths]
        ensemble = cls(members, config["penalty"], config["aggregate"])
        ensemble.gain.assign(config["gain"])
        ensemble.bias.assign(config["bias"])
        return ensemble


def _initial_policy(members: list[Scorer]) -> keras.Model | None:
    """Returns the initial policy of the first member that has one."""
    found = (member.initial_policy for member in members)
    return next((policy for policy in found if policy is not None), None)


def _check_members(members: list[Any]) -> None:
    kinds = sorted({type(member).__name__ for member in members})
    if len(members) < 2 or len(kinds) > 1 or kinds[0] not in _KINDS:
        raise ValueError(
            f"`members` must be two or more models of one kind, of {sorted(_KINDS)}. Received: "
            f"{len(members)} of {kinds}."
        )
    first, *others = [getattr(member.preprocessor, "tokenizer", None) for member in members]
    # Both: one tokenizer may serve models whose embeddings are padded to different sizes.
    sizes = {member.vocabulary_size for member in members}
    if not all(same_tokenizer(first, other) for other in others) or len(sizes) > 1:
        raise ValueError(
            "The members of an ensemble read the same token ids, so they need one tokenizer and "
            f"one vocabulary. Received vocabularies of {sorted(sizes)} entries. Train all members "
            "from models of one family."
        )
    separators = {getattr(member, "separator", "") for member in members}
    if len(separators) > 1:
        raise ValueError(
            "The members of an ensemble of process reward models must end steps at the same "
            f"separator. Received: {sorted(separators)}."
        )


def _checked_penalty(penalty: float | None, aggregate: str) -> float:
    if aggregate not in ("mean", "uwo", "min"):
        raise ValueError(
            f'`aggregate` must be "mean", "uwo" or "min". Received: aggregate={aggregate!r}.'
        )
    if aggregate == "min" and penalty is not None:
        raise ValueError(
            f"The worst case has no penalty. Received: aggregate='min', penalty={penalty!r}. Leave "
            'the penalty out, or use "mean" or "uwo".'
        )
    return require_number("penalty", 1.0 if penalty is None else penalty, minimum=0.0)
