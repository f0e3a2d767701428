"""The teacher: answers are judged, kept, and asked for once; what comes out trains like any other data."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tests.helpers.teacher import Teacher

from fc_lightning.commands.distill import Answers, TeacherError, judge, think, to_row
from fc_lightning.conversation.types import Conversation, Message, Tool, ToolCall
from fc_lightning.data import FunctionCallingDataModule, Source
from fc_lightning.data.files import DataError
from fc_lightning.data.formats import read_row

pytest.importorskip("openai")
BASE = "tests/models/tiny_gemma2"
TRAIN = "data/quickstart/train.jsonl"
TINY = "configs/debug/tiny.yaml"


def distilled(datamodule: FunctionCallingDataModule, url: str, teacher: str, output: Path, **options) -> Counter:
    """The counts of the subcommand, which needs neither trainer nor model."""
    return think(None, None, datamodule, url, teacher, str(output), **options)


def data(tmp_path: Path, limit: int = 12, **settings) -> FunctionCallingDataModule:
    return FunctionCallingDataModule(BASE, [Source(TRAIN, limit=limit)], cache_dir=str(tmp_path / "cache"), **settings)


def test_thoughts_come_out_as_a_data_file_that_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TEACHER_KEY", "sk-secret")
    output = tmp_path / "thoughts.jsonl"
    with Teacher(delay=0.1) as teacher:
        counts = think(
            None, None, data(tmp_path), teacher.url, "m", str(output), concurrency=4, api_key_env="TEACHER_KEY"
        )
        assert teacher.keys == {"Bearer sk-secret"}
        assert teacher.most_at_once > 1
    assert counts["asked"] == counts["accepted"] > 8
    assert all("sk-secret" not in path.read_text() for path in tmp_path.glob("*.jsonl"))
    trained = FunctionCallingDataModule(BASE, [Source(str(output))], cache_dir=str(tmp_path / "cache"))
    original = data(tmp_path)
    for module in (trained, original):
        module.setup("fit")
    tokenizer = trained.template.tokenizer
    pairs = list(zip(trained.prepared["train"].documents, original.prepared["train"].documents, strict=True))
    assert len(pairs) == 12
    said = "<think>\nThe tool fits what is asked.\n</think>\n"
    texts = [(tokenizer.decode(new["input_ids"]), tokenizer.decode(old["input_ids"])) for new, old in pairs]
    assert sum(said in new for new, _ in texts) > 8
    assert [new.replace(said, "") for new, _ in texts] == [old for _, old in texts]


def test_nothing_is_asked_twice(tmp_path, capsys):
    output = tmp_path / "thoughts.jsonl"
    with Teacher() as teacher:
        first = distilled(data(tmp_path, 5), teacher.url, "m", output)
        answers = tmp_path / "thoughts.jsonl.answers.jsonl"
        answers.write_bytes(answers.read_bytes() + b'{"key": "half a li')  # as a killed run leaves it
        second = distilled(data(tmp_path, 12), teacher.url, "m", output)
        third = distilled(data(tmp_path, 12), teacher.url, "m", output)
        assert set(teacher.asked.values()) == {1}
        assert second["from file"] >= first["asked"] > 0
        assert second["asked"] > 0
        assert (third["asked"], third["from file"]) == (0, second["from file"] + second["asked"])
        distilled(data(tmp_path, 5), teacher.url, "another", output)
        assert max(teacher.asked.values()) == 2  # another teacher's answers are other answers


CALL = ToolCall("weather", {"city": "Rome"})
TURNS = (Message("user", "?"), Message("assistant", "", None, (CALL,)))
ROME = Conversation("1", TURNS, (Tool("weather"), Tool("weather.list"), Tool("time")))


@pytest.mark.parametrize(
    ("text", "finish", "outcome"),
    [
        ("The user asks for Rome, so weather fits.", "stop", "accepted"),
        ('So {"name": "weather", "arguments": {"city": "Rome"}}', "stop", "accepted"),
        ("It is weather, not time.", "stop", "accepted"),
        ('So {"name": "weather", "arguments": {"city": "Paris"}}', "stop", "rejected: different call"),
        ('So {"arguments": {}, "name": "time"}', "stop", "rejected: different call"),
        ("The right tool is time.", "stop", "rejected: different call"),
        ("The right tool is weather.list.", "stop", "rejected: different call"),
        ("<think>Rome</think>", "stop", "rejected: quotes tags"),
        ("I write <tool_call> now", "stop", "rejected: quotes tags"),
        ("  ", "stop", "rejected: empty"),
        ("The user asks for", "length", "rejected: cut off"),
    ],
)
def test_answers_are_judged(text, finish, outcome):
    answer = {"key": "k", "text": text, "finish": finish}
    assert judge(answer, ROME, 1) == (outcome, text if outcome == "accepted" else "")


def test_rejected_answers_are_counted_and_leave_the_row_as_it_was(tmp_path, capsys):
    output = tmp_path / "thoughts.jsonl"
    with Teacher("<tool_call>{}</tool_call>") as teacher:
        counts = distilled(data(tmp_path, 5), teacher.url, "m", output)
    assert counts["rejected: quotes tags"] == counts["asked"] > 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 5
    assert f"{counts['asked']} rejected: quotes tags" in capsys.readouterr().out


def test_rows_that_cannot_be_read_are_named(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text(Path(TRAIN).read_text(encoding="utf-8").split("\n")[0] + '\n{"nothing": 1}\n')
    with Teacher() as teacher:
        source = [Source(str(file), format="hermes")]
        datamodule = FunctionCallingDataModule(BASE, source, cache_dir=str(tmp_path / "cache"))
        distilled(datamodule, teacher.url, "m", tmp_path / "thoughts.jsonl")
    printed = capsys.readouterr().out
    assert "  1 skipped\n" in printed
    assert f"{file}:2" in printed


def test_a_rejected_turn_is_kept():
    pair = replace(ROME, rejected=Message("assistant", "I cannot."))
    row = to_row(pair)
    assert read_row(row).rejected == pair.rejected
    assert read_row(row).messages == pair.messages


def test_an_endpoint_that_is_not_there(tmp_path, capsys):
    with pytest.raises(TeacherError, match="no request succeeded"):
        distilled(data(tmp_path, 1), "http://127.0.0.1:9/v1", "m", tmp_path / "thoughts.jsonl")


def test_answers_are_on_disk_one_by_one(tmp_path):
    answers = Answers(tmp_path / "answers.jsonl")
    answers.add("a", "line\nbreak", "stop")
    assert Answers(tmp_path / "answers.jsonl").known["a"]["text"] == "line\nbreak"


def arguments(url: str, model: str, output: Path, limit: int) -> list[str]:
    train = f"--data.train=[{{path: {TRAIN}, limit: {limit}}}]"
    options = ["--base_url", url, "--teacher", model, "--output", str(output), "--concurrency=2", "--max_tokens=16"]
    return [sys.executable, "main.py", "think", "--config", TINY, train, *options]


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path):
    output = tmp_path / "thoughts.jsonl"
    answers = tmp_path / "thoughts.jsonl.answers.jsonl"
    with Teacher(delay=0.3) as teacher:
        process = subprocess.Popen(arguments(teacher.url, "m", output, 40), env={**os.environ, "PYTHONPATH": "src"})
        while not answers.exists() or answers.read_bytes().count(b"\n") < 8:
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not output.exists()
        kept = answers.read_bytes().count(b"\n")
        before = Counter(teacher.asked)
        assert (
            subprocess.run(arguments(teacher.url, "m", output, 40), env={**os.environ, "PYTHONPATH": "src"}).returncode
            == 0
        )
        # Only what was under way when it was killed, two at a time, may be asked again.
        again = [prompt for prompt, times in teacher.asked.items() if times > 1]
        assert len(again) <= sum(before.values()) - kept <= 2
        assert max(teacher.asked.values()) <= 2
    assert len(output.read_text().splitlines()) == 40


@pytest.mark.slow
def test_a_real_server(tmp_path):
    pytest.importorskip("fastapi")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "tiny"
    folder.mkdir()
    for file in Path(BASE).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    template = "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(template + "<start_of_turn>model\n")
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--port", str(port), "--device", "cpu"]
    log = (tmp_path / "log").open("wb")
    server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.5)
        output = tmp_path / "thoughts.jsonl"
        url = f"http://127.0.0.1:{port}/v1"
        run = arguments(url, str(folder), output, 4)
        first = subprocess.run(run, env={**os.environ, "PYTHONPATH": "src"}, capture_output=True, text=True)
        assert first.returncode == 0, first.stderr + (tmp_path / "log").read_text()
        answers = tmp_path / "thoughts.jsonl.answers.jsonl"
        asked = answers.read_bytes().count(b"\n")
        assert asked > 0
        assert len(output.read_text().splitlines()) == 4
        assert subprocess.run(run, env={**os.environ, "PYTHONPATH": "src"}).returncode == 0
        assert answers.read_bytes().count(b"\n") == asked
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def test_a_source_is_not_overwritten(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_bytes(Path(TRAIN).read_bytes())
    module = FunctionCallingDataModule(BASE, [Source(str(file), limit=2)], cache_dir=str(tmp_path / "cache"))
    with pytest.raises(DataError, match="would be overwritten"):
        distilled(module, "http://127.0.0.1:9/v1", "x", tmp_path / "." / "train.jsonl")
    assert file.read_bytes() == Path(TRAIN).read_bytes()
