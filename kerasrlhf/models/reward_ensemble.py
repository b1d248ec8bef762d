"""Several reward models as one, with a penalty where they disagree."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kerasrlhf import files
from kerasrlhf.data.limits import same_tokenizer
from kerasrlhf.models.process_reward_model import ProcessRewardModel
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.models.scorer import Scored, Scorer
from kerasrlhf.models.trunk_scorer import TrunkScorer
from kerasrlhf.types import require_number

_CONFIG = "reward_ensemble.json"
_KINDS = {kind.__name__: kind for kind in (RewardModel, ProcessRewardModel)}


@keras.saving.register_keras_serializable("kerasrlhf")
class RewardEnsemble(Scorer):
    """Several trained reward models as one, lower where they disagree.

    A policy finds responses that one reward model likes by mistake; members that were trained
    apart rarely make the same mistake. Over the members' scores of a response, the ensemble's is

        "mean": mean - penalty * standard deviation         in units of score
        "uwo":  mean - penalty * variance                   uncertainty-weighted, as published
        "min":  the least of them                           worst case, without `penalty`

    times `gain`, plus `bias`, which `normalize` sets. Scores are comparable when the members speak
    of one scale: `normalize` sets every member's first. Fit the members, each with a seed of its
    own, not the ensemble. Every member is a network of its own, with LoRA adapters or without.

    Args:
        members: two or more `RewardModel`s, or two or more `ProcessRewardModel`s, with one
            tokenizer; used as they are.
        penalty: float, at least 0; default 1. With 0, "mean" is the plain mean.
        aggregate: "mean", "uwo" or "min".

    Call arguments:
        inputs: as the members'.

    Returns:
        Scores as the members'.

    Raises:
        ValueError: fewer than two members, members of different kinds or tokenizers, an unknown
            aggregate, or a penalty that is negative or given with "min".

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
        members: Sequence[TrunkScorer],
        penalty: float | None = None,
        aggregate: str = "mean",
        **kwargs: Any,
    ):
        if not isinstance(members, list | tuple):
            raise ValueError(
                "`members` must be a list of reward models. "
                f"Received: {members!r} of type {type(members).__name__}."
            )
        members = list(members)
        _check_members(members)
        super().__init__(members[0].preprocessor, **kwargs)
        self.members = members
        self.aggregate, self.penalty = aggregate, _checked_penalty(penalty, aggregate)
        self.is_per_token = members[0].is_per_token
        self._policy = next((member._policy for member in members if member._policy), None)
        self._add_scale()
        self.built = True

    def call(self, inputs):
        return self._combined([member(inputs) for member in self.members]).scores

    def compute_output_shape(self, input_shape):
        return self.members[0].compute_output_shape(input_shape)

    def read(self, token_ids: Any, padding_mask: Any, prompt_lengths: Any) -> Scored:
        return self._combined(
            [m.read(token_ids, padding_mask, prompt_lengths).scores for m in self.members]
        )

    def _combined(self, scores):
        """Scores and spread of the members' scores, a list of tensors of one shape."""
        scores = ops.stack(scores)
        spread = ops.std(scores, axis=0)
        if self.aggregate == "min":
            combined = ops.min(scores, axis=0)
        else:
            doubt = spread if self.aggregate == "mean" else ops.square(spread)
            combined = ops.mean(scores, axis=0) - self.penalty * doubt
        return Scored(self.gain * combined + self.bias, spread)

    def std(self, prompts: Any, responses: Any, batch_size: int = 32, *, ended: Any = True) -> Any:
        """Standard deviation between the members' scores of texts, float32 `(rows,)`.

        Args:
            prompts, responses, batch_size, ended: as in `score`. Of process reward models it is
                summed over the steps.
        """
        return self.read_texts(prompts, responses, batch_size, ended=ended).spread

    def backbones(self) -> list[keras.Model]:
        return [backbone for member in self.members for backbone in member.backbones()]

    def scaled_parts(self) -> list[Scorer]:
        return [part for member in self.members for part in member.scaled_parts()] + [self]

    @property
    def trains_on(self) -> tuple[str, ...]:
        return self.members[0].trains_on

    def fit_defaults(self) -> dict[str, Any]:
        return self.members[0].fit_defaults()

    def make_train_function(self, force=False):
        raise ValueError(
            "An ensemble that is fitted as one has members that agree, which is no use. Fit each "
            "member by itself, with another seed, and put them together afterward."
        )

    def save_to_preset(self, preset_dir: str | pathlib.Path) -> None:
        """Writes each member to a folder of its own.

        A folder that is new appears in one piece; in one that exists, only the files of a preset
        are replaced.
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
            preset: a local folder.
            **kwargs: to keras-hub's `from_preset`, for example `dtype="mixed_bfloat16"`.

        Raises:
            ValueError: the folder holds no ensemble.
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


def _check_members(members):
    kinds = sorted({type(member).__name__ for member in members})
    if len(members) < 2 or len(kinds) > 1 or kinds[0] not in _KINDS:
        raise ValueError(
            f"`members` must be two or more models of one kind, of {sorted(_KINDS)}. Received: "
            f"{len(members)} of {kinds}."
        )
    first, *others = [getattr(member.preprocessor, "tokenizer", None) for member in members]
    sizes = {member.vocabulary_size for member in members}
    if not all(same_tokenizer(first, other) for other in others) or len(sizes) > 1:
        raise ValueError(
            "The members of an ensemble read the same token ids, so they need one tokenizer and "
            f"one vocabulary. Received vocabularies of {sorted(sizes)} entries. Train all members "
            "from models of one family."
        )
    separators = {getattr(member, "separator", None) for member in members}
    if len(separators) > 1:
        raise ValueError(
            "The members of an ensemble of process reward models must end steps at the same "
            f"separator. Received: {sorted(separators)}."
        )


def _checked_penalty(penalty, aggregate):
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
