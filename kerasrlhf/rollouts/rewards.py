"""Loads a reward by its name, as on a command line."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

from kerasrlhf import cli
from kerasrlhf.models.process_reward_model import ProcessRewardModel
from kerasrlhf.models.reward_ensemble import RewardEnsemble
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.models.scorer import Scorer

_KINDS: dict[str, type[Scorer]] = {
    "reward_model.json": RewardModel,
    "reward_ensemble.json": RewardEnsemble,
    "process_reward_model.json": ProcessRewardModel,
}


def load_reward(name: str | pathlib.Path, **kwargs: Any) -> Scorer | Callable:
    """Loads a saved reward model of any kind, or a Python function.

    Args:
        name: str or path. A folder that `save_to_preset` of a reward model wrote, or a function as
            `package.module:function` or `path/to/file.py:function`.
        **kwargs: of `from_preset` of a reward model, for example `dtype="mixed_bfloat16"`.

    Returns:
        A `Scorer` or a function, for `reward` of a trainer.

    Raises:
        ValueError: If it is neither a reward model nor the name of a function that exists.

    Example:
        >>> load_reward("kerasrlhf.tasks.sentiment:happy_words")([" She was happy."])
        [0.5]
    """
    if not isinstance(name, str | pathlib.Path):
        raise ValueError(
            "`name` must be a folder, or a function as 'path/to/file.py:function'. Received: "
            f"{name!r} of type {type(name).__name__}, which trainers take as it is."
        )
    folder = pathlib.Path(name)
    # The configuration file says which kind of model the folder holds.
    for file, kind in _KINDS.items():
        if (folder / file).is_file():
            return kind.from_preset(folder, **kwargs)
    if ":" in str(name):
        return cli.load_function(str(name))
    raise ValueError(
        f"There is no reward model in {str(name)!r}: expected a folder that recipes/"
        f"reward_model.py wrote (with {' or '.join(_KINDS)}), or a function as "
        "path/to/file.py:function."
    )
