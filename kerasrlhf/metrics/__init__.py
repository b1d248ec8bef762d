"""Keras metrics."""

from kerasrlhf.metrics.preference import PreferenceAccuracy, PreferenceMargin

__all__ = ["PreferenceAccuracy", "PreferenceMargin"]
