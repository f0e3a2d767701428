"""``mine``: samples model turns for the training prompts, and writes the model's mistakes as preference pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from fc_lightning.chat_template.template import openai_message
from fc_lightning.commands.chat import as_message
from fc_lightning.conversation.parsing import dump_json
from fc_lightning.conversation.types import Conversation, Message
from fc_lightning.data import DataError, FunctionCallingDataModule
from fc_lightning.data.encoding import encode_prompts
from fc_lightning.data.prepare import read_conversations
from fc_lightning.data.row_report import RowReport
from fc_lightning.evaluation.error_types import error_type
from fc_lightning.evaluation.metrics import EvaluatedTurn
from fc_lightning.training.module import FunctionCallingModule
from fc_lightning.utils.atomic_files import write_text

# A turn that cannot be read, does not end, or makes calls that the row accepts as well is not a mistake to learn from.
_IGNORED = ("", "unreadable call", "unterminated turn", "accepted alternative")


def mine(
    trainer: Trainer,
    model: FunctionCallingModule,
    datamodule: FunctionCallingDataModule,
    samples: int = 8,
    temperature: float = 0.8,
    ckpt_path: str | None = None,
) -> Counter[str]:
    """Sample turns for the training prompts, and write ``pairs.jsonl`` to the run folder.

    For each prompt with mistakes, the most frequent wrong turn becomes ``rejected`` and the reference turn becomes
    ``chosen``. Train on the pairs with ``model.preference``.

    Args:
        trainer: Generates.
        model: The module.
        datamodule: The data.
        samples: Samples per prompt.
        temperature: Sampling temperature.
        ckpt_path: A checkpoint file, or ``best`` or ``last``; the base model if not given.

    Returns:
        The number of pairs by kind of mistake.

    Raises:
        DataError: If there are no training rows, they are rendered verbatim, or the Trainer leaves some out.
    """
    if not datamodule.sources["train"]:
        raise DataError("nothing to read: `data.train` has no sources")
    if datamodule.render == "verbatim":
        raise DataError("`mine` writes canonical conversations: set `data.render: canonical`")
    # 1) A prompt for each model turn
    settings = datamodule.preparation("train")
    turns: list[Conversation] = []  # each up to the turn, and including it
    prompts: list[dict[str, Any]] = []
    report = RowReport()
    sources = datamodule.sources["train"]
    for row in read_conversations(sources, datamodule.template, settings, [report] * len(sources)):
        for prompt in encode_prompts([row], datamodule.template, settings, report):
            prompts.append(prompt)
            turns.append(_until(row[2], prompt["turn"]))
    # 2) Samples
    model.generation |= {"do_sample": True, "temperature": temperature, "num_return_sequences": samples}
    datamodule.prompts = prompts
    trainer.callbacks.append(collector := _Collector())
    Trainer.predict(trainer, model, datamodule=datamodule, ckpt_path=ckpt_path, return_predictions=False)
    if len(collector.turns) != samples * len(turns):
        raise DataError("`mine` needs every prompt: do not set `trainer.limit_predict_batches` or `fast_dev_run`")
    # 3) Pairs
    kinds: Counter[str] = Counter()
    lines = []
    for number, conversation in enumerate(turns):
        if mistake := most_frequent_mistake(collector.turns[number * samples : (number + 1) * samples]):
            kinds[error_type(mistake)] += 1
            rejected = as_message(mistake.text, datamodule.template.syntax)
            lines.append(dump_json(to_pair(conversation, rejected, mistake.turn)))
    file = Path(trainer.log_dir or ".") / "pairs.jsonl"  # a collective
    if trainer.is_global_zero:
        write_text(file, "".join(f"{line}\n" for line in lines))
        found = "; ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
        print(f"{len(turns):,} turns, {len(lines):,} with a mistake" + (f": {found}" if found else ""))
        print(*report.problem_lines(), f"pairs: {file}", sep="\n")
    return kinds


def most_frequent_mistake(sampled: Sequence[EvaluatedTurn]) -> EvaluatedTurn | None:
    """The mistake that most samples of a prompt make; None if no sample makes one."""
    mistakes = [turn for turn in sampled if error_type(turn) not in _IGNORED]
    counts = Counter(turn.text for turn in mistakes)
    return max(mistakes, key=lambda turn: counts[turn.text], default=None)


def to_pair(conversation: Conversation, rejected: Message, turn: int) -> dict[str, Any]:
    """A row that the format ``preference`` reads; earlier model turns are context."""
    *history, chosen = conversation.messages
    return {
        "id": f"{conversation.id}/{turn}",
        "category": conversation.category,
        "tools": [tool.to_openai() for tool in conversation.tools],
        "prompt": [openai_message(replace(message, supervised=message.role != "assistant")) for message in history],
        "chosen": [openai_message(chosen)],
        "rejected": [openai_message(rejected)],
    }


def _until(conversation: Conversation, turn: int) -> Conversation:
    """The conversation up to one of its model turns."""
    model_turns = [place for place, message in enumerate(conversation.messages) if message.role == "assistant"]
    return replace(conversation, messages=conversation.messages[: model_turns[turn] + 1])


class _Collector(Callback):
    """Keeps the evaluated turns of all ranks, in the order of the prompts."""

    def __init__(self) -> None:
        self.turns: list[EvaluatedTurn] = []

    def on_tool_calls_evaluated(
        self, trainer: Trainer, pl_module: FunctionCallingModule, evaluated: list[EvaluatedTurn]
    ) -> None:
        """Keep them."""
        self.turns = evaluated
