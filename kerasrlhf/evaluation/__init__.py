"""Measures the effect of training on a model."""

from kerasrlhf.evaluation import grpo_optimum, optimum
from kerasrlhf.evaluation.choices import choice_logprobs
from kerasrlhf.evaluation.measures import measure
from kerasrlhf.evaluation.preference import (
    CalibrationBin,
    PairAccuracy,
    accuracy_by_group,
    calibration,
    preference_accuracy,
)
from kerasrlhf.evaluation.text import distinct_n, negative_log_likelihood, perplexity
from kerasrlhf.intervals import Interval, bootstrap_interval, fraction_interval, mean_interval

__all__ = [
    "CalibrationBin",
    "Interval",
    "PairAccuracy",
    "accuracy_by_group",
    "bootstrap_interval",
    "calibration",
    "choice_logprobs",
    "distinct_n",
    "fraction_interval",
    "grpo_optimum",
    "mean_interval",
    "measure",
    "negative_log_likelihood",
    "optimum",
    "perplexity",
    "preference_accuracy",
]
