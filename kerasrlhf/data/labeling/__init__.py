"""Labeling pairs by hand, in a notebook or in a terminal."""
