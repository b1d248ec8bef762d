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
from kerasrlhf.models.reward_model import RewardModel
from kerasrlhf.trainers.kl_control import AdaptiveKL, FixedKL
from kerasrlhf.trainers.on_policy import OnPolicyTrainer
from kerasrlhf.trainers.ppo import PPO
from kerasrlhf.types import Experience, Rollout, Sampler, TokenStats
from kerasrlhf.version import __version__

__all__ = [
    "PPO",
    "ActorCritic",
    "AdaptiveKL",
    "Experience",
    "FixedKL",
    "OnPolicyTrainer",
    "RewardModel",
    "Rollout",
    "Sampler",
    "TokenStats",
    "__version__",
    "callbacks",
    "cli",
    "cluster",
    "data",
    "evaluation",
    "files",
    "functional",
    "losses",
    "metrics",
    "presets",
    "tasks",
]
