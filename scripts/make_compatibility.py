"""Writes docs/compatibility.md: the settings and callbacks of Lightning, and the adapters of PEFT, that are supported.

It is generated from the lists that the code checks and the tests go through. Run it with ``make reference`` after
changing one; a test compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from fc_lightning.models.adapter_support import UNSUPPORTED_FIELDS, trains_token_rows, unsupported_reason
from fc_lightning.training.trainer_support import (
    CALLBACKS,
    SETTINGS,
    UNSUPPORTED_CALLBACKS,
    UNSUPPORTED_SETTINGS,
    Supported,
)

OUTPUT = Path(__file__).parents[1] / "docs" / "compatibility.md"
HEAD = """# Lightning and PEFT

<!-- Written by scripts/make_compatibility.py. Do not edit: change the lists that it names, then `make reference`. -->

Unsupported settings, callbacks and adapters are rejected before training starts, with a one-line error that gives the
reason and, where there is one, the alternative. Each row of these tables has a test.
"""
ADAPTERS = """## PEFT adapters

`model.peft` takes any of these by `class_path: peft.NAME`. An adapter that works can be trained, resumed, merged and
exported; the exported folder gives the same logits in plain transformers, and the adapter folder in plain PEFT. Some
types also train new-token embeddings (`model.special_tokens`); with the others, set `model.special_tokens: []`.
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def of_lightning(kind: str, supported: Sequence[Supported], unsupported: Mapping[str, str]) -> list[str]:
    """What is supported, and then what is not."""
    rows = [(f"`{one.name}`", "works", one.note) for one in supported]
    rows += [(f"`{name}`", "not supported", reason) for name, reason in unsupported.items()]
    return table((kind, "", "note"), rows)


def adapters() -> list[str]:
    """The types of adapters, in the order of their names."""
    rows = []
    for kind in PeftType:
        config = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
        reason = unsupported_reason(config, kind)
        tokens = "" if reason else "yes" if trains_token_rows(config) else "no"
        rows.append((f"`{config.__name__}`", "not supported" if reason else "works", tokens, reason))
    return table(("adapter", "", "new tokens", "note"), sorted(rows, key=lambda row: row[0].lower()))


def page() -> str:
    """The whole page."""
    parts = [
        HEAD,
        "## Trainer settings\n",
        *of_lightning("key under `trainer`", SETTINGS, UNSUPPORTED_SETTINGS),
        "## Lightning callbacks\n",
        *of_lightning("callback", CALLBACKS, UNSUPPORTED_CALLBACKS),
        ADAPTERS,
        *adapters(),
        "These settings of supported types are not supported:\n",
        *table(("setting", "note"), [(f"`{name}`", reason) for name, reason in UNSUPPORTED_FIELDS.items()]),
    ]
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(page(), encoding="utf-8")
    print(OUTPUT)
