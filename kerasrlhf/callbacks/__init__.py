"""Keras callbacks: curves, samples, and continuing after an interruption."""

from kerasrlhf.callbacks.resume import Resume
from kerasrlhf.callbacks.samples import Samples
from kerasrlhf.callbacks.tensorboard import TensorBoard

__all__ = ["Resume", "Samples", "TensorBoard"]
