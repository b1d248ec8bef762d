"""Trainers are `keras.Model`s: one batch of prompts through `fit` is one iteration."""
