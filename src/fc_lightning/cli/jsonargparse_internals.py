"""Every private name of jsonargparse that is used, with its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import _completions_jsonschema
from jsonargparse._typehints import ActionTypeHint


def prepare_values(prepare: Callable[[str, Any], Any]) -> None:
    """Convert values before their types are checked, and have a list replace an earlier one.

    jsonargparse merges a list into an earlier one of the same length, item by item: `limit: 32` of the first source
    would remain where a later file names other sources. It has no setting for that, and no hook before its types.

    Args:
        prepare: Takes a key and a value from a file, the command line or the environment; returns the value to use.
    """
    check = ActionTypeHint._check_type

    def _check_type(self: Any, value: Any, append: bool = False, cfg: Any = None, mode: Any = None) -> Any:
        value = prepare(self.dest, value)
        is_list = isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("["))
        earlier = None if is_list and not append else cfg
        return check(self, value, append=append, cfg=earlier, mode=mode)

    ActionTypeHint._check_type = _check_type


@contextmanager
def listed_subclasses(base_names: set[str]) -> Iterator[None]:
    """Within the block, a JSON schema lists the subclasses of these base classes only, not every imported metric."""
    every = _completions_jsonschema.get_all_subclass_paths
    _completions_jsonschema.get_all_subclass_paths = lambda base: (
        sorted(every(base)) if base.__name__ in base_names else []
    )
    try:
        yield
    finally:
        _completions_jsonschema.get_all_subclass_paths = every
