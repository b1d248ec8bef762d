"""Measures the effect of training on a model."""

from kerasrlhf.evaluation import grpo_optimum, optimum
from kerasrlhf.evaluation.preference import (
    CalibrationBin,
    PairAccuracy,
    accuracy_by_group,
    calibration,
    preference_accuracy,
)
from kerasrlhf.evaluation.text import distinct_n, negative_log_likelihood, perplexity
from kerasrlhf.intervals import Interval, mean_interval

__all__ = [
    "CalibrationBin",
    "Interval",
    "PairAccuracy",
    "accuracy_by_group",
    "calibration",
    "distinct_n",
    "grpo_optimum",
    "mean_interval",
    "negative_log_likelihood",
    "optimum",
    "perplexity",
    "preference_accuracy",
]
