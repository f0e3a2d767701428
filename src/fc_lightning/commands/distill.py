"""``think``: a teacher model writes the missing reasoning for each reference call, over any OpenAI-compatible endpoint.

The teacher is given the reference call and asked for the reason; its answer is checked before it is used. Answers are
written to disk as they arrive, so a run that was killed resumes without repeating requests.
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

from lightning import Trainer

from fc_lightning.chat_template.template import openai_message
from fc_lightning.conversation.parsing import CallSyntaxError, call_from_value, dump_json
from fc_lightning.conversation.types import Conversation
from fc_lightning.data import DataError, FunctionCallingDataModule
from fc_lightning.data.prepare import read_conversations
from fc_lightning.data.row_report import RowReport
from fc_lightning.training.module import FunctionCallingModule
from fc_lightning.utils.atomic_files import wrap_os_errors, write_text
from fc_lightning.utils.errors import UserError
from fc_lightning.utils.progress import track

_TAGS = re.compile(r"</?(?:think|tool_call|tool_response|tools|start_of_turn|end_of_turn)>")
_INSTRUCTION = """\
You write down the reasoning of an assistant that may call tools. You are given the tools, the conversation so far, and
what the assistant does next, which is right. Write the short reasoning, at most 60 words in the first person, that
leads to it: what is asked, which tool fits and why, and where each argument comes from; or why no tool is called.
Write the reasoning only: no call, no JSON, no tags, no heading."""


class TeacherError(UserError):
    """The teacher cannot be queried. The message says what to do."""


@dataclass(frozen=True)
class Question:
    """The request about one turn.

    Attributes:
        conversation: Index of the conversation.
        turn: Index of the message in it.
        prompt: The messages for the teacher, in OpenAI's shape.
        key: Identifies the prompt and the teacher; an answer has the key of its request.
    """

    conversation: int
    turn: int
    prompt: tuple[dict[str, str], ...]
    key: str


@dataclass
class Answers:
    """Answers on disk, one per line, each synced before it counts.

    Args:
        file: Created with the first answer, and only appended to. An incomplete line of a killed run is removed.
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
        """Write an answer to disk."""
        entry = {"key": key, "text": text, "finish": finish}
        with wrap_os_errors(self.file), self.file.open("ab") as stream:
            stream.write(json.dumps(entry).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.known[key] = entry


def think(
    trainer: Trainer,
    model: FunctionCallingModule,
    datamodule: FunctionCallingDataModule,
    base_url: str,
    teacher: str,
    output: str,
    split: str = "train",
    concurrency: int = 8,
    api_key_env: str = "OPENAI_API_KEY",
    max_tokens: int = 200,
) -> Counter[str]:
    """Have a teacher model write the missing reasoning for each reference call, and save it to a training data file.

    Args:
        trainer: Not used.
        model: Not used.
        datamodule: The data; existing reasoning is kept.
        base_url: An OpenAI-compatible endpoint, such as http://localhost:8000/v1.
        teacher: Name of the model at the endpoint.
        output: The JSONL file to write; answers are saved in OUTPUT.answers.jsonl, and not requested again.
        split: The split whose reasoning is missing: ``train``, ``validation`` or ``test``.
        concurrency: Number of concurrent requests.
        api_key_env: The environment variable with the key, if the endpoint requires one.
        max_tokens: Maximum number of tokens per answer.

    Returns:
        The number of answers that were requested, read from the file, accepted, rejected by reason, and failed.

    Raises:
        TeacherError: If the client is not installed, or no request succeeds.
    """
    if split not in datamodule.sources or not datamodule.sources[split]:
        raise DataError(f"nothing to read: `data.{split}` has no sources")
    how = replace(datamodule.preparation(split), thoughts="keep", thoughts_share=1.0)
    report = RowReport()
    sources = datamodule.sources[split]
    rows = read_conversations(sources, datamodule.template, how, [report] * len(sources))
    conversations = [conversation for _, _, conversation in rows]
    questions = list(ask_for(conversations, teacher))
    file = Path(output)
    if any(Path(source.path).resolve() == file.resolve() for source in datamodule.sources[split]):
        raise DataError(f"{file}: is a source of `data.{split}`, which would be overwritten (`--output`)")
    with wrap_os_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    answers = Answers(file.with_name(f"{file.name}.answers.jsonl"))
    open_questions = [question for question in questions if question.key not in answers.known]
    counts = Counter({"from file": len(questions) - len(open_questions), "asked": len(open_questions)})
    api_key = os.environ.get(api_key_env)
    last_error = asyncio.run(_ask(open_questions, answers, base_url, teacher, concurrency, api_key, max_tokens))
    if last_error and not any(question.key in answers.known for question in open_questions):
        raise TeacherError(f"{base_url}: no request succeeded; last error: {last_error}")
    completed = add_reasoning(conversations, questions, answers, counts)
    write_text(file, "".join(f"{dump_json(to_row(conversation))}\n" for conversation in completed))
    outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items())
    print(f"{file}: {len(completed):,} conversations; answers: {outcomes}", *report.problem_lines(), sep="\n")
    return counts


def add_reasoning(
    conversations: Sequence[Conversation], questions: Sequence[Question], answers: Answers, counts: Counter[str]
) -> list[Conversation]:
    """The conversations with the accepted answers as reasoning; each answer's outcome is added to ``counts``."""
    completed = list(conversations)
    for question in questions:
        conversation = completed[question.conversation]
        outcome, reasoning = judge(answers.known.get(question.key), conversation, question.turn)
        counts[outcome] += 1
        if outcome == "accepted":
            messages = list(conversation.messages)
            messages[question.turn] = replace(messages[question.turn], reasoning=reasoning)
            completed[question.conversation] = replace(conversation, messages=tuple(messages))
    return completed


def ask_for(conversations: Sequence[Conversation], teacher: str) -> Iterator[Question]:
    """A request for each model turn that could call a tool and has no reasoning."""
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
    """``accepted`` and the reasoning, or the reason for rejection and an empty text."""
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
        return "rejected: different call", ""
    named = {
        tool.name for tool in conversation.tools if re.search(rf"(?<![\w.]){re.escape(tool.name)}(?!\w|\.\w)", text)
    }
    called = {call.name for call in known}
    if known and named and not named & called:
        return "rejected: different call", ""
    return "accepted", text


def to_row(conversation: Conversation) -> dict[str, Any]:
    """A conversation as a row that the format ``openai``, or with a rejected turn ``preference``, reads back."""
    row: dict[str, Any] = {"id": conversation.id, "category": conversation.category}
    messages = [openai_message(message) for message in conversation.messages]
    if conversation.rejected is None:
        row["messages"] = messages
    else:
        row |= {"prompt": messages[:-1], "chosen": messages[-1:], "rejected": [openai_message(conversation.rejected)]}
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
    """Send all requests. Returns the last error, if any."""
    try:
        import openai
    except ImportError:
        raise TeacherError("the openai package is not installed: pip install 'fc-lightning[teacher]'") from None
    different = {question.key: question for question in questions}
    waiting = iter(different.values())
    problem = ""
    with track("reasoning", len(different), "answers") as progress:

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
                    progress.advance()
                except (openai.OpenAIError, IndexError) as error:
                    problem = f"{type(error).__name__}: {str(error)[:200]}"
                    progress.advance(note=f"failed: {problem[:60]}")

        # A local server needs no key, but the client requires one.
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
    """The calls that a text contains as JSON."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r'\{\s*"(?:name|arguments)"', text):
        try:
            yield call_from_value(decoder.raw_decode(text, match.start())[0])
        except (ValueError, RecursionError, CallSyntaxError):
            continue
