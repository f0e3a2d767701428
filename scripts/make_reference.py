"""Writes docs/reference.md: every key of the configuration, from the signatures and docstrings of the code.

Run it with ``make reference`` after changing one; a test compares.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser.google import parse
from lightning import Callback

import fc_lightning.callbacks
from fc_lightning.chat_template.token_parts import TokenWeights
from fc_lightning.cli.defaults import CALLBACKS
from fc_lightning.cli.lightning_cli import FunctionCallingCLI, FunctionCallingTrainer
from fc_lightning.data import FunctionCallingDataModule, Source
from fc_lightning.data.augmentation import Augmentation
from fc_lightning.models.preference_loss import Preference
from fc_lightning.training.module import FunctionCallingModule

OUTPUT = Path(__file__).parents[1] / "docs" / "reference.md"
HEAD = """# Configuration reference

<!-- Written by scripts/make_reference.py. Do not edit: change the docstring, then `make reference`. -->

Every key can be set in a YAML file (`--config FILE`; a later file overrides an earlier one), on the command line
(`--model.learning_rate 1e-4`), or as an environment variable (`FC_FIT__MODEL__LEARNING_RATE=1e-4`, lowest precedence).
`python main.py fit --print_config` prints the complete configuration.
"""
SHARED = ("base", "revision", "tool_format", "special_tokens", "supervise", "token_weights", "pairs")
LIGHTNINGS = {
    "fit": "Trains, validates with generation, and writes a run folder.",
    "validate": "Evaluates a checkpoint, or the base model, on `data.validation`.",
    "test": "Evaluates a checkpoint, or the base model, on `data.test`.",
}
TRAINER = """## trainer

Everything under `trainer` is Lightning's own `Trainer`: `max_epochs`, `accumulate_grad_batches`, `precision`,
`devices`, `strategy`, `logger`, `callbacks` and so on. These defaults differ from Lightning's:

| key | default | why |
|---|---|---|
| `num_sanity_val_steps` | 0 | -1 evaluates the base model on the complete validation split first |
| `use_distributed_sampler` | false | the data module shards batches itself; Lightning's sampler repeats some |
| `precision` | `bf16-mixed` or `32-true` | `bf16-true` and `16-true` would round the adapter, and are rejected |
| `enable_model_summary` | false | `RunSummary` describes the model |
| `logger` | `CSVLogger` in `runs/NAME` | NAME is the name of the first configuration file |
| `callbacks` | CALLBACKS | `callbacks` in a file replaces the list, `callbacks+` appends to it |

`seed_everything` is 0 by default. `ModelCheckpoint` keeps the best checkpoint by `val/exact_match`; `LastCheckpoint`
saves the newest state as `last.ckpt`, every 50 steps.
"""
ENVIRONMENT = """## Environment

| variable | meaning |
|---|---|
| `FC_LIGHTNING_CACHE` | folder of prepared data and converted models, `~/.cache/fc-lightning` by default |
| `FC_…` | any key of the configuration; see the top of this page |
| `HF_HUB_OFFLINE` | 1 keeps transformers and datasets from contacting the Hub |
"""


def kind(annotation: Any) -> str:
    """The name of a type in YAML's terms."""
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(kind(one) for one in get_args(annotation))
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) in (list, dict):
        *_, item = get_args(annotation)
        name = "list" if get_origin(annotation) is list else "mapping"
        return name if item is Any else f"{name} of {kind(item)}"
    names = {type(None): "null", bool: "true or false", str: "text", int: "integer", float: "number", Any: "anything"}
    return names.get(annotation) or getattr(annotation, "__name__", str(annotation))


def plain(text: str | None) -> str:
    """A docstring's sentence in Markdown, fit for a cell of a table."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text or "").replace("``", "`")
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


def default(parameter: inspect.Parameter) -> str:
    """The default value of a key."""
    value = parameter.default
    if value is inspect.Parameter.empty:
        return "required"
    if value is None or isinstance(value, bool):
        value = {None: "null", True: "true", False: "false"}[value]
    return f"default `{value:g}`" if isinstance(value, float) else f"default `{value}`"


def table(function: Callable[..., Any], docstring: str | None, hidden: Iterable[str] = ()) -> list[str]:
    """The parameters of a function as a table; an undocumented parameter is an error."""
    said = {one.arg_name: one.description for one in parse(docstring or "").params}
    hints = get_type_hints(function)
    rows = []
    for name, parameter in inspect.signature(function).parameters.items():
        if name == "self" or name in hidden or parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        if name not in said:
            raise SystemExit(f"{function.__qualname__}: the docstring does not document {name}")
        rows.append(f"| `{name}` | {plain(said[name])}<br>*{kind(hints[name])}*, {default(parameter)} |")
    return ["| key | meaning |", "|---|---|", *rows, ""] if rows else []


def first_sentences(docstring: str | None) -> str:
    """The text of a docstring before its sections."""
    parsed = parse(docstring or "")
    return plain(f"{parsed.short_description or ''} {parsed.long_description or ''}")


def subcommands() -> list[str]:
    """The subcommands with their options; Lightning's own take a checkpoint."""
    out = ["## Subcommands", "", "Each takes the complete configuration, and options of its own.", ""]
    for name, hidden in FunctionCallingCLI.subcommands().items():
        method = vars(FunctionCallingTrainer).get(name)
        out += [f"### {name}", ""]
        if method is None:
            out += [f"{LIGHTNINGS[name]} Takes Lightning's own options; `--ckpt_path` names a checkpoint.", ""]
            continue
        out += [first_sentences(method.__doc__), "", *table(method, method.__doc__, {"trainer", *hidden})]
    return out


def default_callbacks() -> str:
    """Names of the callbacks of a run whose configuration names none."""
    return ", ".join(f"`{callback['class_path'].rsplit('.', 1)[-1]}`" for callback in CALLBACKS)


def callbacks() -> list[str]:
    """Our callbacks, as `class_path: fc_lightning.callbacks.NAME` with `init_args`."""
    out = ["## Callbacks", "", "`class_path: fc_lightning.callbacks.NAME`, settings under `init_args`.", ""]
    for name in sorted(vars(fc_lightning.callbacks)):
        cls = getattr(fc_lightning.callbacks, name)
        if isinstance(cls, type) and issubclass(cls, Callback):
            rows = table(cls.__init__, cls.__doc__) if "__init__" in vars(cls) else []
            out += [f"### {name}", "", first_sentences(cls.__doc__), "", *rows]
    return out


def reference() -> str:
    """The whole page."""
    parts = [
        HEAD,
        "## model\n",
        *table(FunctionCallingModule.__init__, FunctionCallingModule.__doc__),
        "### model.preference\n",
        *table(Preference, Preference.__doc__),
        "### model.token_weights\n",
        *table(TokenWeights, TokenWeights.__doc__),
        "## data\n",
        "`base`, `revision`, `tool_format`, `special_tokens`, `supervise` and `token_weights` follow those of `model`, "
        "and `pairs` follows `model.preference`; do not set them here.\n",
        *table(FunctionCallingDataModule.__init__, FunctionCallingDataModule.__doc__, SHARED),
        "### A source\n",
        "`data.train`, `data.validation` and `data.test` are lists of these:\n",
        *table(Source, Source.__doc__),
        "### data.augmentation\n",
        *table(Augmentation, Augmentation.__doc__),
        TRAINER.replace("CALLBACKS", default_callbacks()),
        *callbacks(),
        *subcommands(),
        ENVIRONMENT,
    ]
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(reference(), encoding="utf-8")
    print(OUTPUT)
