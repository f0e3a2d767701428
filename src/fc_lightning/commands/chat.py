"""``chat``: a conversation with a model in the terminal, in which the user plays the tools."""

from __future__ import annotations

from dataclasses import replace

from lightning import Trainer
from rich.console import Console

from fc_lightning.commands.checkpoints import load_for_inference
from fc_lightning.conversation.native_calls import NativeSyntax
from fc_lightning.conversation.parsing import dump_json, parse_turn
from fc_lightning.conversation.types import Conversation, Message, Tool
from fc_lightning.data import FunctionCallingDataModule
from fc_lightning.data.prepare import read_conversations
from fc_lightning.data.prompts import read_tools
from fc_lightning.models.merging import merged_for_inference
from fc_lightning.training.module import FunctionCallingModule
from fc_lightning.utils.escaping import printable_text


def chat(
    trainer: Trainer,
    model: FunctionCallingModule,
    datamodule: FunctionCallingDataModule,
    tools: str | None = None,
    ckpt_path: str | None = None,
) -> None:
    """Try a model in the terminal, and type the responses of the tools that it calls; an empty line ends the chat.

    Args:
        trainer: The trainer, which has the folder of the runs.
        model: The module, configured as for training.
        datamodule: Has the chat template.
        tools: A JSON file with a list of tools; without it, those of the first training conversation are offered.
        ckpt_path: A checkpoint file, or ``best`` or ``last``; the base model if not given.
    """
    console = Console(highlight=False)
    offered = read_tools(tools) if tools else _tools_of_training(datamodule, console)
    conversation = Conversation("chat", (), offered)
    load_for_inference(trainer, model, ckpt_path)
    console.print("An empty line ends the chat.", style="dim")
    while line := _ask("you"):
        new_messages = [Message("user", line)]
        while new_messages:
            conversation = replace(conversation, messages=(*conversation.messages, *new_messages))
            answer = reply(model, datamodule, conversation)
            conversation = replace(conversation, messages=(*conversation.messages, answer))
            print_message(console, answer)
            new_messages = [Message("tool", _ask(f"{call.name} returns")) for call in answer.tool_calls]


def reply(module: FunctionCallingModule, data: FunctionCallingDataModule, conversation: Conversation) -> Message:
    """The model's next turn. A call that cannot be parsed is text."""
    messages = data.template.messages(conversation)
    rendered = data.template.render(messages, conversation, generation_prompt=True)
    (encoded,) = data.template.encode([rendered])
    tools = dump_json([tool.to_openai() for tool in conversation.tools])
    with module.trainer.precision_plugin.val_step_context(), merged_for_inference(module.model) as causal:
        ((text, _),) = module.turn_generator.texts(causal, [encoded.input_ids], [tools], len(messages))
    return as_message(text, data.template.syntax)


def as_message(text: str, syntax: NativeSyntax | None = None) -> Message:
    """A generated turn as a message. A call that cannot be parsed is text."""
    turn = syntax.parse_turn(text) if syntax else parse_turn(text, strict=True)
    return Message("assistant", text if turn.errors else turn.content, turn.reasoning, turn.tool_calls)


def print_message(console: Console, answer: Message) -> None:
    """Print a message of the model: reasoning, text and calls."""
    if answer.reasoning is not None:
        console.print(printable_text(answer.reasoning), style="dim", markup=False)
    if answer.content:
        console.print(printable_text(answer.content), markup=False)
    for call in answer.tool_calls:
        console.print(printable_text(f"{call.name}({dump_json(call.arguments)})"), style="bold", markup=False)


def _tools_of_training(data: FunctionCallingDataModule, console: Console) -> tuple[Tool, ...]:
    """The tools of the first training conversation that has some, with its question as an example."""
    rows = read_conversations(data.sources["train"], data.template, data.preparation("train"))
    first = next((conversation for _, _, conversation in rows if conversation.tools), None)
    if first is None:
        console.print("No tools: pass `--tools FILE`, a JSON list in OpenAI format.")
        return ()
    names = ", ".join(tool.name for tool in first.tools)
    console.print(f"tools: {names} (from the training data; `--tools FILE` offers others)", markup=False)
    question = next((message.content for message in first.messages if message.role == "user"), "")
    console.print(f"try:   {printable_text(question)}", markup=False)
    return first.tools


def _ask(who: str) -> str:
    try:
        return input(f"{who}> ").encode(errors="replace").decode().strip()  # bytes that are not UTF-8 become `?`
    except EOFError:
        return ""
