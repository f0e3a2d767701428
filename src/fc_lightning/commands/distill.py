"""The teacher: another model writes the reasoning that leads to each known call, over any OpenAI-compatible endpoint.

The teacher is told the call and asked why it is right; what it writes is checked before it becomes a thought. Each
answer is on disk before the next is waited for, so a run that was killed goes on where it was.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fc_lightning.chat_template.template import openai_message
from fc_lightning.conversation.parsing import CallSyntaxError, call_from_value, dump_json
from fc_lightning.conversation.types import Conversation
from fc_lightning.data import DataError, FunctionCallingDataModule
from fc_lightning.data.prepare import read_conversations
from fc_lightning.utils.atomic_files import wrap_os_errors, write_text

_TAGS = re.compile(r"</?(?:think|tool_call|tool_response|tools|start_of_turn|end_of_turn)>")
_INSTRUCTION = """\
You write down the reasoning of an assistant that may call tools. You are given the tools, the conversation so far, and
what the assistant does next, which is right. Write the short reasoning, at most 60 words in the first person, that
leads to it: what is asked, which tool fits and why, and where each argument comes from; or why no tool is called.
Write the reasoning only: no call, no JSON, no tags, no heading."""


class TeacherError(ValueError):
    """The teacher cannot be asked. The message says what to do."""


@dataclass(frozen=True)
class Question:
    """What the teacher is asked about one turn.

    Attributes:
        conversation: Number of the conversation.
        turn: Index of the message in it.
        prompt: What the teacher gets, in OpenAI's shape.
        key: Names the question and the teacher: an answer with this key is an answer to it.
    """

    conversation: int
    turn: int
    prompt: tuple[dict[str, str], ...]
    key: str


@dataclass
class Answers:
    """Answers on disk, one a line, each written through before it counts.

    Args:
        file: Is made when the first answer is added, and only ever appended to. A line that a killed run has left
            unfinished is cut off.
    """

    file: Path
    known: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.file.exists():
            content = self.file.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content:
                os.truncate(self.file, len(whole))
            self.known = {entry["key"]: entry for entry in map(json.loads, whole.splitlines())}

    def add(self, key: str, text: str, finish: str) -> None:
        """Keep an answer; when this returns, it is on disk."""
        entry = {"key": key, "text": text, "finish": finish}
        with wrap_os_errors(self.file), self.file.open("ab") as stream:
            stream.write(json.dumps(entry).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.known[key] = entry


def think(
    data: FunctionCallingDataModule,
    base_url: str,
    teacher: str,
    output: Path,
    split: str = "train",
    concurrency: int = 8,
    api_key_env: str = "OPENAI_API_KEY",
    max_tokens: int = 200,
) -> Counter[str]:
    """Ask a teacher for the thoughts of a split, and write a data file of ``messages`` and ``tools`` with them.

    Answers are kept in ``OUTPUT.answers.jsonl``: whatever is answered there is not asked again.

    Args:
        data: The data; turns that have a thought keep it.
        base_url: An OpenAI-compatible endpoint, as ``http://localhost:8000/v1``.
        teacher: The model's name there.
        output: The JSONL file to write.
        split: ``train``, ``validation`` or ``test``.
        concurrency: Requests under way at the same time.
        api_key_env: The environment variable with the key, if the endpoint wants one.
        max_tokens: Of an answer.

    Returns:
        How many answers were asked for, taken from the file, accepted, rejected for each reason, and failed.

    Raises:
        TeacherError: If the client is not installed, or no request succeeds.
    """
    if split not in data.sources or not data.sources[split]:
        raise DataError(f"nothing to read: `data.{split}` has no sources")
    how = replace(data.preparation(split), thoughts="keep", thoughts_share=1.0)
    conversations = [one for _, _, one in read_conversations(data.sources[split], data.template, how)]
    questions = list(ask_for(conversations, teacher))
    output.parent.mkdir(parents=True, exist_ok=True)
    answers = Answers(output.with_name(f"{output.name}.answers.jsonl"))
    left = [question for question in questions if question.key not in answers.known]
    counts = Counter({"from file": len(questions) - len(left), "asked": len(left)})
    problem = asyncio.run(_ask(left, answers, base_url, teacher, concurrency, os.environ.get(api_key_env), max_tokens))
    if problem and not any(question.key in answers.known for question in left):
        raise TeacherError(f"{base_url}: no request succeeded, the last error: {problem}")
    thoughtful = list(conversations)
    for question in questions:
        conversation = thoughtful[question.conversation]
        outcome = judge(answers.known.get(question.key), conversation, question.turn)
        counts[outcome[0]] += 1
        if outcome[0] == "accepted":
            messages = list(conversation.messages)
            messages[question.turn] = replace(messages[question.turn], reasoning=outcome[1])
            thoughtful[question.conversation] = replace(conversation, messages=tuple(messages))
    write_text(output, "".join(f"{dump_json(to_row(one))}\n" for one in thoughtful))
    print(
        f"{output}: {len(thoughtful):,} conversations; answers: "
        + ", ".join(f"{n:,} {what}" for what, n in counts.items())
    )
    return counts


def ask_for(conversations: Sequence[Conversation], teacher: str) -> Iterator[Question]:
    """A question for each of the model's turns that could call a tool and has no thought."""
    for number, conversation in enumerate(conversations):
        for turn, message in enumerate(conversation.messages):
            if message.role == "assistant" and message.reasoning is None and conversation.tools:
                prompt = (
                    {"role": "system", "content": _INSTRUCTION},
                    {"role": "user", "content": _describe(conversation, turn)},
                )
                key = hashlib.sha256(dump_json([teacher, list(prompt)]).encode()).hexdigest()
                yield Question(number, turn, prompt, key)


def judge(answer: dict[str, Any] | None, conversation: Conversation, turn: int) -> tuple[str, str]:
    """Whether an answer may be a thought: ``accepted`` and the thought, or why not and nothing."""
    if answer is None:
        return "failed", ""
    text = answer["text"].strip()
    known = conversation.messages[turn].tool_calls
    if not text:
        return "rejected: empty", ""
    if answer["finish"] == "length":
        return "rejected: cut off", ""
    if _TAGS.search(text):
        return "rejected: quotes tags", ""
    if any(call not in known for call in _calls_in(text)):
        return "rejected: another call", ""
    named = {
        tool.name for tool in conversation.tools if re.search(rf"(?<![\w.]){re.escape(tool.name)}(?!\w|\.\w)", text)
    }
    called = {call.name for call in known}
    if known and named and not named & called:
        return "rejected: another call", ""
    return "accepted", text


def to_row(conversation: Conversation) -> dict[str, Any]:
    """A conversation as a row in OpenAI's shape, which the format ``openai`` reads back."""
    row: dict[str, Any] = {"id": conversation.id, "category": conversation.category}
    row["messages"] = [openai_message(message) for message in conversation.messages]
    row["tools"] = [tool.to_openai() for tool in conversation.tools]
    return {**row, "gold": list(conversation.gold)} if conversation.gold else row


async def _ask(
    questions: Sequence[Question],
    answers: Answers,
    base_url: str,
    teacher: str,
    concurrency: int,
    api_key: str | None,
    max_tokens: int,
) -> str:
    """Ask all questions; returns the last error, if any."""
    try:
        import openai
    except ImportError:
        raise TeacherError("the client of the teacher is missing: pip install 'fc-lightning[teacher]'") from None
    different = {question.key: question for question in questions}
    waiting = iter(different.values())
    problem = ""
    columns = (TextColumn("thinking"), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[failed]}"))
    with Progress(*columns) as progress:
        task = progress.add_task("", total=len(different), failed="")

        async def work(client: openai.AsyncOpenAI) -> None:
            nonlocal problem
            for question in waiting:
                try:
                    reply = await client.chat.completions.create(
                        model=teacher,
                        messages=list(question.prompt),  # type: ignore[arg-type]
                        max_tokens=max_tokens,
                    )
                    choice = reply.choices[0]
                    answers.add(question.key, choice.message.content or "", choice.finish_reason or "")
                    progress.advance(task)
                except (openai.OpenAIError, IndexError) as error:
                    problem = f"{type(error).__name__}: {str(error)[:200]}"
                    progress.update(task, failed=f"failed: {problem[:60]}")

        # A local server wants no key, but the client wants some text.
        async with openai.AsyncOpenAI(base_url=base_url, api_key=api_key or "none", timeout=600) as client:
            await asyncio.gather(*(work(client) for _ in range(concurrency)))
    return problem


def _describe(conversation: Conversation, turn: int) -> str:
    parts = ["Tools:", *(dump_json(tool.to_openai()["function"]) for tool in conversation.tools), "", "Conversation:"]
    parts += [dump_json(openai_message(message)) for message in conversation.messages[:turn]]
    message = conversation.messages[turn]
    act = [dump_json(call.to_dict()) for call in message.tool_calls] or [
        f"It calls no tool and says: {message.content}"
    ]
    return "\n".join([*parts, "", "What the assistant does next:", *act])


def _calls_in(text: str) -> Iterator[Any]:
    """The calls that stand as JSON in a text."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r'\{\s*"(?:name|arguments)"', text):
        try:
            yield call_from_value(decoder.raw_decode(text, match.start())[0])
        except (ValueError, RecursionError, CallSyntaxError):
            continue
