"""Checks values of the correct type: out of range, unknown to transformers, or invalid in combination."""

from __future__ import annotations

import inspect
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import BitsAndBytesConfig, GenerationConfig

from fc_lightning.cli.errors import ConfigurationError
from fc_lightning.cli.help import did_you_mean
from fc_lightning.commands.audit.findings import KINDS
from fc_lightning.utils.atomic_files import wrap_os_errors
from fc_lightning.utils.errors import first_line

_INFINITE = math.inf
# Smallest and largest value of a key.
_RANGES: dict[str, tuple[float, float]] = {
    "model.learning_rate": (0, _INFINITE),
    "model.weight_decay": (0, _INFINITE),
    "model.warmup": (0, 1),
    "model.head_chunk": (1, _INFINITE),
    "data.thoughts_share": (0, 1),
    "data.max_length": (1, _INFINITE),
    "data.batch_size": (1, _INFINITE),
    "data.validation_prompts": (1, _INFINITE),
    "data.generation_batch_tokens": (1, _INFINITE),
    "data.generation_batch_size": (1, _INFINITE),
    "data.num_workers": (0, _INFINITE),
    "data.shuffle_buffer": (1, _INFINITE),
    "data.preparation_processes": (1, _INFINITE),
    "data.max_unreadable": (0, 1),
    "trainer.max_epochs": (-1, _INFINITE),
    "trainer.max_steps": (-1, _INFINITE),
    "trainer.accumulate_grad_batches": (1, _INFINITE),
    "trainer.gradient_clip_val": (0, _INFINITE),
    "trainer.log_every_n_steps": (1, _INFINITE),
    "trainer.num_nodes": (1, _INFINITE),
    "trainer.val_check_interval": (1e-9, _INFINITE),
    "trainer.check_val_every_n_epoch": (1, _INFINITE),
    "model.preference.weight": (0, _INFINITE),
    "model.preference.beta": (0, _INFINITE),
    "concurrency": (1, _INFINITE),
    "max_tokens": (1, _INFINITE),
    "examples": (0, _INFINITE),
    "seed_everything": (0, 2**32 - 1),
}


def check_config_file(file: Path) -> None:
    """Check that a configuration file is a mapping of mappings without duplicate keys, of which YAML keeps the last.

    A missing file and invalid YAML are left to the parser, which reports them.

    Raises:
        ConfigurationError: With the line.
    """
    if file.is_dir():
        raise ConfigurationError(f"{file}: must be a file, not a folder (`--config`)")
    if not file.is_file():  # missing, or a pipe, which can be read only once
        return
    try:
        root = yaml.compose(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file}: must be a text file in UTF-8 (`--config`)") from error
    except yaml.YAMLError:
        return
    if not isinstance(root, yaml.MappingNode):
        raise ConfigurationError(f"{file}: must be a mapping with the groups `model`, `data` and `trainer`")
    for key, value in root.value:
        if key.value in ("model", "data", "trainer") and not isinstance(value, yaml.MappingNode):
            raise ConfigurationError(f"{file}, line {key.start_mark.line + 1}: {key.value} must be a mapping of keys")
    for mapping in _mappings(root):
        names = [key.value for key, _ in mapping.value]
        for number, (key, _) in enumerate(mapping.value):
            if key.value in names[:number]:
                raise ConfigurationError(f"{file}, line {key.start_mark.line + 1}: duplicate key {key.value}")


def _mappings(root: yaml.Node) -> Iterator[yaml.MappingNode]:
    """All mappings inside a node, each once: an anchor is shared by its aliases."""
    pending, seen = [root], set()
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield node
            pending += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            pending += node.value


def check_values(config: Any) -> None:
    """Check the configuration of a subcommand.

    Args:
        config: Has values by dotted key, as a ``jsonargparse.Namespace`` has.

    Raises:
        ConfigurationError: At the first invalid value.
    """
    for key, (smallest, largest) in _RANGES.items():
        value = config.get(key)
        if value in (_INFINITE, -_INFINITE):
            raise ConfigurationError(f"{key}: {value} must be a finite number")
        if isinstance(value, int | float) and not smallest <= value <= largest:
            raise ConfigurationError(f"{key}: {value} must be {_describe_range(smallest, largest)}")
    held_out = config.get("data.validation")
    if isinstance(held_out, int | float) and not 0 <= held_out < 1:
        raise ConfigurationError(
            f"data.validation: {held_out} must be a fraction of the training data, between 0 and 1"
        )
    for kind, share in (config.get("data.audit_limits") or {}).items():
        _check_names("data.audit_limits", [kind], KINDS)
        if not 0 <= share <= 1:
            raise ConfigurationError(f"data.audit_limits: {kind}: {share} must be between 0 and 1")
    if not all(config.get("model.special_tokens") or [True]):
        raise ConfigurationError("model.special_tokens: a tag must not be empty")
    quantization = config.get("model.quantization") or {}
    _check_names("model.quantization", quantization, inspect.signature(BitsAndBytesConfig).parameters)
    check_generation(config.get("model.generation") or {}, bool(config.get("model.constrained")))


def _describe_range(smallest: float, largest: float) -> str:
    if 0 < smallest < 1:
        return "greater than 0"
    return f"at least {smallest}" if largest == _INFINITE else f"between {smallest} and {largest}"


def _check_names(key: str, given: Iterable[str], known: Iterable[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigurationError(f"{key}: unknown key {name}{did_you_mean(name, list(known))}")


def check_generation(given: Mapping[str, Any], constrained: bool) -> None:
    """Check the settings of generation.

    Args:
        given: ``model.generation``.
        constrained: ``model.constrained``.

    Raises:
        ConfigurationError: If transformers does not know a key or rejects a value, or constrained decoding is combined
            with beam search.
    """
    _check_names("model.generation", given, [name for name in vars(GenerationConfig()) if not name.startswith("_")])
    for name in ("max_new_tokens", "num_beams", "num_return_sequences"):
        value = given.get(name)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ConfigurationError(f"model.generation: {name}: {value} must be an integer of at least 1")
    if given.get("stop_strings"):
        raise ConfigurationError("model.generation: stop_strings is not supported; a turn ends with its special token")
    if given.get("repetition_penalty", 1.0) is not None and given.get("repetition_penalty", 1.0) <= 0:
        raise ConfigurationError("model.generation: repetition_penalty must be greater than 0")
    if given.get("do_sample") and given.get("temperature", 1.0) <= 0:
        raise ConfigurationError("model.generation: temperature must be greater than 0; `do_sample: false` is greedy")
    if constrained and (given.get("num_beams") or 1) > 1:
        raise ConfigurationError(
            "model.constrained: does not support beam search; set `num_beams: 1` in `model.generation`"
        )
    try:
        GenerationConfig(**{"do_sample": False, **given}).validate()
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"model.generation: {first_line(error)}") from error


def check_environment(known: Iterable[str], subcommands: Sequence[str]) -> None:
    """Check the names of environment variables that are meant to set keys.

    Args:
        known: Keys of any subcommand, as ``model.base``.
        subcommands: All subcommands.

    Raises:
        ConfigurationError: If a variable such as ``FC_FIT__MODEL__BSAE`` names no key.
    """
    names = {f"FC_{subcommand}__{key.replace('.', '__')}".upper() for subcommand in subcommands for key in known}
    for variable in sorted(os.environ):
        if not variable.startswith("FC_") or "__" not in variable or variable in names:
            continue
        above = next((name for name in names if name.count("__") > 1 and variable.startswith(f"{name}__")), None)
        hint = f"; set {above} to a YAML mapping" if above else did_you_mean(variable, sorted(names))
        raise ConfigurationError(f"{variable}: this environment variable does not correspond to a key{hint}")


def check_folder(folder: Path) -> None:
    """Check that a folder can be written, or created if it does not exist.

    Raises:
        DiskError: If it cannot.
    """
    existing = next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())
    with wrap_os_errors(existing), tempfile.TemporaryFile(dir=existing):
        pass
