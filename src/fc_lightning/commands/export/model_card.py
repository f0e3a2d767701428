"""The model card of an export: how the model was trained, how it performs, and how to serve it."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from lightning import Trainer

from fc_lightning.conversation.parsing import CALL_OPEN, THINK_OPEN
from fc_lightning.conversation.types import Tool
from fc_lightning.data import FunctionCallingDataModule
from fc_lightning.models.loading import load_config
from fc_lightning.training.module import FunctionCallingModule
from fc_lightning.utils.html import markdown_table
from fc_lightning.utils.pretrained import commit_of, resolve_base

# The notice that Gemma's terms of use require with every copy of a derivative.
NOTICE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms\n"
_GEMMA = {"gemma", "gemma2", "gemma3", "gemma3_text"}

_VLLM_PARSERS = {
    "hermes": "hermes",
    "gemma4": "gemma4",
    "functiongemma": "functiongemma_typed --tool-parser-plugin DIR/vllm_tool_parser.py",
}
# What the widget of the Hub asks the model.
_EXAMPLE = {
    "example_title": "Tool use",
    "messages": [{"role": "user", "content": "What is the weather like in Oslo?"}],
    "tools": [
        Tool(
            "get_weather",
            "Get the weather in a city",
            {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        ).to_openai()
    ],
}

_SERVING = {
    "huggingface": """
```bash
transformers serve DIR --port 8000
vllm serve DIR --enable-auto-tool-choice --tool-call-parser PARSER
```

Use temperature 0: the metrics were measured with greedy decoding.
""",
    "gguf": """
```bash
llama-server -m DIR/model.gguf --jinja
```

Use temperature 0: the metrics were measured with greedy decoding.
""",
    "adapter": """
This folder contains only the adapter and needs the base model. Most servers need a merged model (`--merge true`).

```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("DIR")
```
""",
}


def base_license(base: str, model_type: str) -> str | None:
    """The license of a base from its model card or its family; ``None`` if unknown.

    Args:
        base: See :func:`fc_lightning.utils.pretrained.resolve_base`.
        model_type: The model type in its configuration.
    """
    card = Path(resolve_base(base)) / "README.md"
    if card.is_file() and (stated := ModelCard.load(card).data.to_dict().get("license")):
        return str(stated)
    return "gemma" if model_type in _GEMMA else None


def write_card(
    folder: Path,
    trainer: Trainer,
    module: FunctionCallingModule,
    data: FunctionCallingDataModule,
    checkpoint: Path,
    state: dict[str, Any],
    kind: str,
    dtype: str,
) -> None:
    """Write ``README.md``, and the notice that the license of the base requires.

    Args:
        folder: An export.
        trainer: The trainer of the run.
        module: The module of the run.
        data: The data module of the run.
        checkpoint: The file that was exported.
        state: Its content.
        kind: A key of ``_SERVING``.
        dtype: Precision of the merged weights.
    """
    license_id = base_license(module.base, load_config(module.base, module.revision).model_type)
    if license_id == "gemma":
        (folder / "NOTICE").write_text(NOTICE, encoding="utf-8")
    commit = commit_of(module.base, module.revision)
    revision = f" at revision `{commit}`" if commit else ""
    terms = f"`{license_id}`, which applies to this model too" if license_id else "unknown; see its model card"
    syntax = data.template.syntax
    think, call = (syntax.think_tags[0].strip(), syntax.call_tags[0]) if syntax else (THINK_OPEN, CALL_OPEN)
    metrics = _metrics(checkpoint, state["global_step"])
    written = "adapter, float32" if kind == "adapter" else dtype
    parts = [
        f"---\n{_metadata(module, data, license_id, kind, metrics)}\n---\n",
        f"# {Path(module.base).name.removeprefix('pypi:')} fine-tuned to call functions\n",
        f"Fine-tuned with fc-lightning (transformers {version('transformers')}, PEFT {version('peft')}) from "
        f"`{module.base}`{revision}. License of the base: {terms}.\n",
        f"The model reasons in `{think}`, calls tools in `{call}`, and answers in plain text.\n",
        "## Data\n",
        markdown_table(("split", "source", "name", "revision", "rows"), _sources(data)) + "\n",
        "## Recipe\n",
        markdown_table(("setting", "value"), _recipe(trainer, module, data, state, written)) + "\n",
        "## Metrics\n",
        _metrics_table(metrics),
        "## Serving",
        _SERVING[kind].replace("PARSER", _VLLM_PARSERS[syntax.name if syntax else "hermes"]),
    ]
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")


def _metadata(
    module: FunctionCallingModule,
    data: FunctionCallingDataModule,
    license_id: str | None,
    kind: str,
    metrics: dict[str, float],
) -> str:
    """The metadata for the Hub, in YAML: where the model comes from, its metrics, and an example for the widget."""
    hub = module.base.count("/") == 1 and not Path(module.base).exists()
    sets = [source.path for source in data.sources["train"] if source.path.count("/") == 1 and _on_hub(source.path)]
    held_out = ", ".join(dict.fromkeys(source.path for source in data.sources["validation"])) or "none"
    measured = {"task_type": "text-generation", "dataset_type": held_out, "dataset_name": "held-out turns"}
    card = ModelCardData(
        library_name={"huggingface": "transformers", "gguf": "gguf", "adapter": "peft"}[kind],
        pipeline_tag="text-generation",
        base_model=module.base if hub else None,
        license=license_id,
        datasets=list(dict.fromkeys(sets)) or None,
        tags=["function-calling", "tool-use", "fc-lightning"],
        model_name=Path(module.base).name.removeprefix("pypi:") + "-function-calling",
        eval_results=[
            EvalResult(metric_type=name, metric_name=name, metric_value=value, **measured)
            for name, value in metrics.items()
        ],
        widget=[_EXAMPLE],
    )
    return card.to_yaml()


def _on_hub(path: str) -> bool:
    return not Path(path).exists() and not Path(path).suffix


def _sources(data: FunctionCallingDataModule) -> Iterable[tuple[Any, ...]]:
    for split in ("train", "validation"):
        if split == "validation" and data.held_out:
            yield split, f"{data.held_out:.1%} of train", "", "", ""
            continue
        for source in data.sources[split]:
            yield split, source.path, source.name, source.revision, f"first {source.limit}" if source.limit else "all"


def _recipe(
    trainer: Trainer,
    module: FunctionCallingModule,
    data: FunctionCallingDataModule,
    state: dict[str, Any],
    dtype: str,
) -> Iterable[tuple[str, Any]]:
    yield "adapter", type(module.peft).__name__ if module.peft else "none, all weights are trained"
    for name in ("r", "lora_alpha", "lora_dropout", "target_modules"):
        value = getattr(module.peft, name, None)
        if value is not None:
            yield name, ", ".join(sorted(value)) if isinstance(value, set | list) else value
    yield "tags as tokens", " ".join(module.special_tokens) or "none"
    yield "supervised", module.supervise
    how = module.optimization
    yield "learning rate", f"{how.learning_rate:g}, {how.schedule}, warm-up {how.warmup:g} of the steps"
    yield "weight decay", f"{how.weight_decay:g}"
    yield "rows per step", f"{data.batch_size} per micro-batch × {trainer.accumulate_grad_batches} on each device"
    yield "maximum length", f"{data.max_length} tokens, {'packed' if data.packing else 'not packed'}"
    yield "training precision", trainer.precision
    yield "checkpoint", f"epoch {state['epoch']}, after {state['global_step']} optimizer steps"
    yield "exported weights", dtype


def _metrics(checkpoint: Path, step: int) -> dict[str, float]:
    """The last values that were logged before the checkpoint was written."""
    log = checkpoint.parent.parent / "metrics.csv"
    values: dict[str, float] = {}
    if log.is_file():
        with log.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                if int(row["step"] or 0) <= step:
                    values |= {name: float(row[name]) for name in row if name.startswith("val/") and row[name]}
    return dict(sorted(values.items()))


def _metrics_table(metrics: dict[str, float]) -> str:
    if not metrics:
        return "No metrics were logged for this checkpoint.\n"
    rows = [(name, f"{value:.4f}") for name, value in metrics.items()]
    return markdown_table(("metric on held-out turns", "value"), rows) + "\n"
