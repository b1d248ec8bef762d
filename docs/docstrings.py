"""Lets Griffe read the `Example:` of docstrings as the section that it calls `Examples:`."""

import re

import griffe


class Examples(griffe.Extension):
    """Renames the heading before docstrings are parsed, so that examples are shown as code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """Renames the heading in the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            text = obj.docstring.value
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
