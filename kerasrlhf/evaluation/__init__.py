"""Measuring what training has done to a model."""

from kerasrlhf.evaluation.intervals import Interval, mean_interval
from kerasrlhf.evaluation.text import distinct_n, negative_log_likelihood, perplexity

__all__ = ["Interval", "distinct_n", "mean_interval", "negative_log_likelihood", "perplexity"]
