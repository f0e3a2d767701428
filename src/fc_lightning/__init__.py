"""fc-lightning: teach an open language model to call functions, and evaluate the calls it makes."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Loaded when first used: importing torch, Lightning and transformers takes seconds.
_EXPORTS = {
    "FunctionCallingModule": "fc_lightning.training.module",
    "FunctionCallingDataModule": "fc_lightning.data.datamodule",
    "Source": "fc_lightning.data.sources",
    "Conversation": "fc_lightning.conversation.types",
    "Message": "fc_lightning.conversation.types",
    "Tool": "fc_lightning.conversation.types",
    "ToolCall": "fc_lightning.conversation.types",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
