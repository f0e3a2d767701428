"""Whether the Hub can be reached: asked once, so that an offline run does not wait for each of its files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

_TIMEOUT = 5.0  # seconds


def is_hub_id(name: str) -> bool:
    """Whether a name is the ID of a model or dataset on the Hub, and not a path or ``pypi:NAME``."""
    looks_local = name.startswith((".", "/", "~")) or ":" in name or name.count("/") != 1
    return not (looks_local or Path(name).exists() or Path(name).suffix in (".json", ".jsonl", ".parquet", ".gguf"))


def use_cache_if_offline(names: Iterable[str]) -> None:
    """Have all libraries use cached files alone if the Hub is needed and cannot be reached.

    Args:
        names: Models and datasets: only ids on the Hub need it.
    """
    import datasets
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or not (wanted := [name for name in names if is_hub_id(name)]):
        return
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=_TIMEOUT)
    except Exception as error:  # of whichever HTTP library is in use
        warnings.warn(
            f"{constants.ENDPOINT} cannot be reached ({type(error).__name__}): {', '.join(wanted)} must be in the cache"
        )
        os.environ["HF_HUB_OFFLINE"] = "1"  # for processes that this one starts
        constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True
