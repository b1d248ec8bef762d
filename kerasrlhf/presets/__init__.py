"""Language models that come with the package; any place that takes a preset takes these paths."""

import pathlib

TINY_STORIES = str(pathlib.Path(__file__).parent / "tiny_stories")
