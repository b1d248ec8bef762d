"""Reinforcement learning from human feedback for Keras 3 and TensorFlow, on keras-hub models."""

# Recipes use `rlhf.cli` and `rlhf.files`; neither is about RLHF, so `__all__` leaves them out.
from kerasrlhf import (
    callbacks,
    cluster,
    data,
    evaluation,
    functional,
    losses,
    metrics,
    presets,
    tasks,
)
from kerasrlhf import cli as cli
from kerasrlhf import files as files
from kerasrlhf.models.actor_critic import ActorCritic
from kerasrlhf.models.process_reward_model import ProcessRewardModel
from kerasrlhf.models.reward_ensemble import RewardEnsemble
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.rlhf import RLHF
from kerasrlhf.rollouts.best_of_n import BestOfN, best_of_n, best_of_n_kl
from kerasrlhf.rollouts.memory import RolloutMemory
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
from kerasrlhf.version import __version__

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
    "BestOfN",
    "best_of_n",
    "best_of_n_kl",
    # Modules
    "callbacks",
    "cluster",
    "data",
    "evaluation",
    "functional",
    "losses",
    "metrics",
    "presets",
    "tasks",
    "__version__",
]
