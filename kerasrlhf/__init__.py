"""Reinforcement learning from human feedback for Keras 3 and TensorFlow, on keras-hub models."""

from kerasrlhf import (
    callbacks,
    cli,
    cluster,
    data,
    evaluation,
    files,
    functional,
    losses,
    metrics,
    presets,
    tasks,
)
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.process_reward_model import ProcessRewardModel
from kerasrlhf.models.reward_ensemble import RewardEnsemble
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.rlhf import RLHF
from kerasrlhf.rollouts.best_of_n import BestOfN, best_of_n, best_of_n_kl
from kerasrlhf.rollouts.memory import RolloutMemory
from kerasrlhf.rollouts.rewards import load_reward
from kerasrlhf.trainers.direct import DirectTrainer
from kerasrlhf.trainers.dpo import DPO, IPO
from kerasrlhf.trainers.grpo import GRPO
from kerasrlhf.trainers.kl_control import AdaptiveKL, FixedKL
from kerasrlhf.trainers.kto import KTO
from kerasrlhf.trainers.on_policy import OnPolicyTrainer
from kerasrlhf.trainers.online_dpo import OnlineDPO
from kerasrlhf.trainers.orpo import ORPO
from kerasrlhf.trainers.ppo import PPO
from kerasrlhf.trainers.reinforce_plus_plus import REINFORCEPlusPlus
from kerasrlhf.trainers.rloo import RLOO
from kerasrlhf.types import Experience, Rollout, Sampler, TokenStats
from kerasrlhf.version import __version__

__all__ = [
    "DPO",
    "GRPO",
    "IPO",
    "KTO",
    "ORPO",
    "PPO",
    "RLHF",
    "RLOO",
    "ActorCritic",
    "AdaptiveKL",
    "BestOfN",
    "DirectTrainer",
    "Experience",
    "FixedKL",
    "OnPolicyTrainer",
    "OnlineDPO",
    "ProcessRewardModel",
    "REINFORCEPlusPlus",
    "RewardEnsemble",
    "RewardModel",
    "Rollout",
    "RolloutMemory",
    "Sampler",
    "TokenStats",
    "__version__",
    "best_of_n",
    "best_of_n_kl",
    "callbacks",
    "cli",
    "cluster",
    "data",
    "evaluation",
    "files",
    "functional",
    "load_reward",
    "losses",
    "metrics",
    "presets",
    "tasks",
]
