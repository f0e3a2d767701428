"""``chat``: a conversation with a model in the terminal, in which the user plays the tools."""

from __future__ import annotations

from dataclasses import replace

from lightning import Trainer
from rich.console import Console

from fc_lightning.commands.checkpoints import load_for_inference
from fc_lightning.conversation.parsing import dump_json, parse_turn
from fc_lightning.conversation.types import Conversation, Message
from fc_lightning.data import FunctionCallingDataModule
from fc_lightning.data.prompts import read_tools
from fc_lightning.models.lora import unwrap_peft
from fc_lightning.training.module import FunctionCallingModule


def chat(
    trainer: Trainer,
    model: FunctionCallingModule,
    datamodule: FunctionCallingDataModule,
    tools: str | None = None,
    ckpt_path: str | None = None,
) -> None:
    """Try a model in the terminal, and type the results of the tools that it calls; an empty line ends the chat.

    Args:
        trainer: The trainer, which has the folder of the runs.
        model: The module, configured as for training.
        datamodule: Has the chat template.
        tools: A JSON file with a list of tools.
        ckpt_path: A checkpoint file, or ``best`` or ``last``; the untouched base if not given.
    """
    conversation = Conversation("chat", (), read_tools(tools) if tools else ())
    load_for_inference(trainer, model, ckpt_path)
    console = Console(highlight=False)
    while line := _ask("you"):
        new_messages = [Message("user", line)]
        while new_messages:
            conversation = replace(conversation, messages=(*conversation.messages, *new_messages))
            answer = reply(model, datamodule, conversation)
            conversation = replace(conversation, messages=(*conversation.messages, answer))
            _show(console, answer)
            new_messages = [Message("tool", _ask(f"{call.name} returns")) for call in answer.tool_calls]


def reply(module: FunctionCallingModule, data: FunctionCallingDataModule, conversation: Conversation) -> Message:
    """The model's next turn. A call that cannot be parsed is text."""
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
