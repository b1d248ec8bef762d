"""Reinforcement learning from human feedback for Keras 3 and TensorFlow, on keras-hub models."""

import importlib
import pathlib
import sys
import typing

# Recipes use `rlhf.cli` and `rlhf.files`; neither is about RLHF, so `__all__` leaves them out.
from kerasrlhf import cli as cli
from kerasrlhf import files as files
from kerasrlhf import presets
from kerasrlhf.version import __version__

# Programs that show `--help` in less time than Keras takes to load: recipes, and the commands of
# the package as scripts or as `python -m kerasrlhf`.
_program = pathlib.PurePath(sys.argv[0] if sys.argv else "")
_is_command = _program.parent.name == "recipes" or _program.stem in ("kerasrlhf", "-m")

if typing.TYPE_CHECKING or "keras" in sys.modules or not _is_command:
    from kerasrlhf import (
        applications,
        callbacks,
        cluster,
        data,
        environment,
        evaluation,
        functional,
        losses,
        metrics,
        tasks,
    )
    from kerasrlhf.models.actor_critic import ActorCritic
    from kerasrlhf.models.process_reward_model import ProcessRewardModel
    from kerasrlhf.models.reward_ensemble import RewardEnsemble
    from kerasrlhf.models.reward_model import RewardModel
    from kerasrlhf.rlhf import RLHF
    from kerasrlhf.rollouts.best_of_n import BestOfN, best_of_n, best_of_n_kl
    from kerasrlhf.rollouts.memory import RolloutMemory
    from kerasrlhf.rollouts.pools import RewardPool
    from kerasrlhf.rollouts.rewards import load_reward
    from kerasrlhf.rollouts.shaping import RewardShaping
    from kerasrlhf.trainers.direct import DirectTrainer
    from kerasrlhf.trainers.dpo import DPO, IPO
    from kerasrlhf.trainers.grpo import GRPO
    from kerasrlhf.trainers.kl_control import AdaptiveKL, FixedKL, KLController
    from kerasrlhf.trainers.kto import KTO
    from kerasrlhf.trainers.language_modeling import LanguageModeling
    from kerasrlhf.trainers.on_policy import OnPolicyTrainer
    from kerasrlhf.trainers.online_dpo import OnlineDPO
    from kerasrlhf.trainers.options import CriticWarmup, PromptPrediction
    from kerasrlhf.trainers.orpo import ORPO
    from kerasrlhf.trainers.ppo import PPO
    from kerasrlhf.trainers.reinforce_plus_plus import REINFORCEPlusPlus
    from kerasrlhf.trainers.rloo import RLOO
    from kerasrlhf.types import Experience, Rollout, Sampler, TokenStats
else:

    def __getattr__(name: str) -> typing.Any:
        """Loads all public names, and with them what Keras deserializes, at the first use."""
        if name.startswith("_"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        importlib.import_module("keras").version()  # loads it, even if a recipe delays it

        del globals()["__getattr__"]
        return getattr(importlib.reload(sys.modules[__name__]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__all__ = [
    # Everything in one call
    "RLHF",
    # Models
    "ActorCritic",
    "RewardModel",
    "RewardEnsemble",
    "ProcessRewardModel",
    # On-policy trainers
    "PPO",
    "RLOO",
    "GRPO",
    "REINFORCEPlusPlus",
    "OnlineDPO",
    "OnPolicyTrainer",
    # Their options
    "Sampler",
    "KLController",
    "FixedKL",
    "AdaptiveKL",
    "RewardShaping",
    "LanguageModeling",
    "PromptPrediction",
    "CriticWarmup",
    "RolloutMemory",
    # Trainers on preference data
    "DPO",
    "IPO",
    "KTO",
    "ORPO",
    "DirectTrainer",
    # What a trainer of your own takes and returns
    "Rollout",
    "Experience",
    "TokenStats",
    # Rewards and sampling
    "load_reward",
    "RewardPool",
    "BestOfN",
    "best_of_n",
    "best_of_n_kl",
    # Modules
    "applications",
    "callbacks",
    "cluster",
    "data",
    "environment",
    "evaluation",
    "functional",
    "losses",
    "metrics",
    "presets",
    "tasks",
    "__version__",
]
