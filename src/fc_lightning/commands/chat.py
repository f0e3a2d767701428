"""A chat in the terminal: for trying a model with a tools file, whose tools you play yourself."""

from __future__ import annotations

from dataclasses import replace

from lightning import Trainer
from rich.console import Console

from fc_lightning.commands.export.folder import find_checkpoint, load_checkpoint
from fc_lightning.conversation.parsing import dump_json, parse_turn
from fc_lightning.conversation.types import Conversation, Message
from fc_lightning.data import FunctionCallingDataModule
from fc_lightning.data.prompts import read_tools
from fc_lightning.models.lora import unwrap_peft
from fc_lightning.training.module import FunctionCallingModule


def chat(
    trainer: Trainer,
    module: FunctionCallingModule,
    data: FunctionCallingDataModule,
    tools: str | None = None,
    ckpt_path: str | None = None,
) -> None:
    """Ask, see what the model thinks and calls, answer in the tools' place, and go on; an empty line ends it.

    Args:
        trainer: Knows where runs are written.
        module: Configured as it was for training.
        data: Gives the chat template.
        tools: A JSON file with a list of tools.
        ckpt_path: A checkpoint file, or ``best`` or ``last``; the untouched base if not given.
    """
    conversation = Conversation("chat", (), read_tools(tools) if tools else ())
    trainer.strategy.connect(module)
    module.trainer = trainer
    module.configure_model()
    if ckpt_path is not None:
        load_checkpoint(module, find_checkpoint(trainer, ckpt_path))
    module.to(trainer.strategy.root_device).eval()
    console = Console(highlight=False)
    while line := _ask("you"):
        said = [Message("user", line)]
        while said:
            conversation = replace(conversation, messages=(*conversation.messages, *said))
            answer = reply(module, data, conversation)
            conversation = replace(conversation, messages=(*conversation.messages, answer))
            _show(console, answer)
            said = [Message("tool", _ask(f"{call.name} returns")) for call in answer.tool_calls]


def reply(module: FunctionCallingModule, data: FunctionCallingDataModule, conversation: Conversation) -> Message:
    """The model's next turn; what cannot be read as a call is text."""
    messages = data.template.messages(conversation)
    rendered = data.template.render(messages, conversation, generation_prompt=True)
    (encoded,) = data.template.encode([rendered])
    tools = dump_json([tool.to_openai() for tool in conversation.tools])
    text, _ = module.turn_generator.texts(unwrap_peft(module.model), [encoded.input_ids], [tools], len(messages))[0]
    turn = parse_turn(text)
    return Message("assistant", text if turn.errors else turn.content, turn.reasoning, turn.tool_calls)


def _ask(who: str) -> str:
    try:
        return input(f"{who}> ").strip()
    except EOFError:
        return ""


def _show(console: Console, answer: Message) -> None:
    if answer.reasoning is not None:
        console.print(answer.reasoning, style="dim", markup=False)
    if answer.content:
        console.print(answer.content, markup=False)
    for call in answer.tool_calls:
        console.print(f"{call.name}({dump_json(call.arguments)})", style="bold", markup=False)
