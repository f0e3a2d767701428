"""Writes docs/compatibility.md: which settings and callbacks of Lightning, and which adapters of PEFT, work here.

It is made from the lists that the code refuses by and the tests go through. Run it with ``make reference`` after
changing one; a test compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from fc_lightning.models.adapter_support import REFUSED_FIELDS, trains_token_rows, unsupported_reason
from fc_lightning.training.trainer_support import (
    CALLBACKS,
    REFUSED_CALLBACKS,
    REFUSED_SETTINGS,
    SETTINGS,
    Supported,
)

OUTPUT = Path(__file__).parents[1] / "docs" / "compatibility.md"
HEAD = """# Lightning and PEFT

<!-- Written by scripts/make_compatibility.py. Do not edit: change the lists that it names, then `make reference`. -->

Settings, callbacks and adapters that do not work here are refused before training, with one line that says what to do
instead. Each row of these tables has a test.
"""
ADAPTERS = """## Adapters of PEFT

`model.peft` takes any of these by `class_path: peft.NAME`. An adapter that works can be trained, resumed, merged and
exported; the exported folder gives the same logits in plain transformers, and the adapter folder in plain PEFT. Some
types also train the rows of new tokens (`model.special_tokens`); with the others, set `model.special_tokens: []`.
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def of_lightning(kind: str, supported: Sequence[Supported], refused: Mapping[str, str]) -> list[str]:
    """What works, and then what is refused."""
    rows = [(f"`{one.name}`", "works", one.note) for one in supported]
    rows += [(f"`{name}`", "refused", reason) for name, reason in refused.items()]
    return table((kind, "", "note"), rows)


def adapters() -> list[str]:
    """The types of adapters, in the order of their names."""
    rows = []
    for kind in PeftType:
        config = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
        reason = unsupported_reason(config, kind)
        tokens = "" if reason else "yes" if trains_token_rows(config) else "no"
        rows.append((f"`{config.__name__}`", "refused" if reason else "works", tokens, reason))
    return table(("adapter", "", "new tokens", "note"), sorted(rows, key=lambda row: row[0].lower()))


def page() -> str:
    """The whole page."""
    parts = [
        HEAD,
        "## Settings of the Trainer\n",
        *of_lightning("key under `trainer`", SETTINGS, REFUSED_SETTINGS),
        "## Callbacks of Lightning\n",
        *of_lightning("callback", CALLBACKS, REFUSED_CALLBACKS),
        ADAPTERS,
        *adapters(),
        "Of the types that work, these settings are refused:\n",
        *table(("setting", "note"), [(f"`{name}`", reason) for name, reason in REFUSED_FIELDS.items()]),
    ]
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(page(), encoding="utf-8")
    print(OUTPUT)
