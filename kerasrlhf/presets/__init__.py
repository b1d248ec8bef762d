"""Language models bundled with the package: paths to pass wherever a preset is expected."""

import pathlib

TINY_STORIES = str(pathlib.Path(__file__).parent / "tiny_stories")
