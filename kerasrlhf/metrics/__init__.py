"""Keras metrics of preferences."""

from kerasrlhf.metrics.preference import PreferenceAccuracy, PreferenceMargin

__all__ = ["PreferenceAccuracy", "PreferenceMargin"]
