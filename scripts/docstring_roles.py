"""A Griffe extension for the API page: Sphinx roles in docstrings become Markdown code."""

import re
from typing import Any

import griffe


class PlainRoles(griffe.Extension):
    """Rewrites ``:class:`~package.Name``` as ``Name`` and ````code```` as `code`."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of each loaded object."""
        if obj.docstring:
            text = re.sub(r":\w+:`~?(?:[\w.]+\.)?([\w.]+)`", r"`\1`", obj.docstring.value)
            obj.docstring.value = text.replace("``", "`")
