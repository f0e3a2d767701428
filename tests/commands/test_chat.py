"""``chat`` and ``predict --question``: the answer is printed, and tools are offered where none are given."""

import io
import json
from pathlib import Path

from rich.console import Console

from fc_lightning.commands.chat import _ask as ask
from fc_lightning.commands.chat import as_message, print_message
from fc_lightning.conversation.types import ToolCall


def test_chat_offers_the_tools_of_the_training_data(run, monkeypatch, capsys):
    lines = iter(["Hello", ""])
    asked = []

    def answer(prompt):
        asked.append(prompt)
        return next(lines, "")

    monkeypatch.setattr("builtins.input", answer)
    run("chat")
    out = capsys.readouterr().out
    first = json.loads(Path("data/quickstart/train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    names = [tool["function"]["name"] for tool in json.loads(first["tools"])]
    assert f"tools: {', '.join(names)} (from the training data" in out
    assert "--tools FILE" in out
    assert asked[0] == "you> "


def test_a_question_is_answered_on_the_terminal(run, capsys):
    folder = run("predict", "--question=What time is it?", "--trainer.callbacks+=fc_lightning.callbacks.Throughput")
    (line,) = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    out = capsys.readouterr().out
    assert "".join(json.loads(line)["text"].split())[:40] in "".join(out.split())
    assert f"predictions: {folder / 'predictions.jsonl'}" in out


def test_a_message_is_printed_without_control_characters(capsys):
    call = '<tool_call>\n{"name": "clock", "arguments": {"city": "Oslo"}}\n</tool_call>'
    text = f"<think>\nA clock.\n</think>\nI \x1b[31mlook.\n{call}"
    message = as_message(text)
    assert message.tool_calls == (ToolCall("clock", {"city": "Oslo"}),)
    print_message(Console(force_terminal=False), message)
    assert capsys.readouterr().out == 'A clock.\nI \\x1b[31mlook.\nclock({"city": "Oslo"})\n'
    assert as_message("<tool_call>\n{broken").content == "<tool_call>\n{broken"


def test_typed_bytes_that_are_not_utf_8_do_not_end_the_chat(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "utf-8", "surrogateescape"))
    assert ask("you") == "caf?"
