"""Commands and code in the documentation: each is run, or parsed, or said to belong to another program."""

import dataclasses
import json
import re
import shlex
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.helpers.command_line import parsed, parser
from tests.helpers.documentation import PAGES, ROOT, code_blocks
from transformers import TrainingArguments

from fc_lightning.cli.lightning_cli import main, make_parser
from fc_lightning.cli.main import main as start
from fc_lightning.conversation.types import ToolCall
from fc_lightning.data.formats import read_row

TINY = "configs/debug/tiny.yaml"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

QUICK = {"--help", "--version", "init"}  # answered immediately, without a run

# Commands of other programs, and why they are not run here. A new one must be put here, with a reason.
ELSEWHERE = {
    "transformers serve ./exported --port 8000": "tests/commands/test_serving.py serves an export",
    "vllm serve ./exported --enable-auto-tool-choice --tool-call-parser hermes": "needs vLLM and a GPU",
    "python -m sglang.launch_server --model-path ./exported --tool-call-parser hermes": "needs SGLang and a GPU",
    "llama-server -m exported_gguf/model.gguf --jinja": "a program of llama.cpp",
    "ollama create tuned -f exported_gguf/Modelfile": "needs Ollama",
}


def commands(pages: list[Path] = PAGES) -> list[str]:
    """Every command of the bash blocks, without comments, each once."""
    lines = []
    for _, text in code_blocks("bash", pages):
        for line in text.replace("\\\n", " ").splitlines():
            lines += [shlex.join(shlex.split(part, comments=True)) for part in line.split(" && ")]
    return [line for line in dict.fromkeys(lines) if line]


def ours(command: str) -> list[str] | None:
    """The arguments of `main.py`, of a command that runs it; whoever starts it."""
    words = shlex.split(command)
    return words[words.index("main.py") + 1 :] if "main.py" in words else None


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A folder like a fresh clone, with the reader's own files that the documentation speaks of."""
    for name in ("configs", "tests", "data", "examples", "src", "main.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    run = tmp_path / "runs" / "quickstart" / "version_0"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text((ROOT / TINY).read_text(encoding="utf-8"))
    for _, text in code_blocks("python"):
        if name := re.match(r"# (\w+\.py)\n", text):
            (tmp_path / name[1]).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "callbacks"))
    return tmp_path


def check_pip(words: list[str]) -> None:
    assert words[2:5] == ["-c", "constraints.txt", "-e"]
    extras = re.fullmatch(r"\.\[([\w,]+)\]", words[5])[1].split(",")
    assert set(extras) <= PROJECT["optional-dependencies"].keys()


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert set(words[1:]) <= set(targets)


def check_script(words: list[str]) -> None:
    text = (ROOT / words[1]).read_text(encoding="utf-8")
    assert all(f'"{word}"' in text for word in words[2:] if word.startswith("--"))


def check(command: str) -> None:
    """Raise if a command of the documentation cannot work, or if nobody knows whether it can."""
    words = [word for word in shlex.split(command) if not re.match(r"[A-Z]+=", word)]
    if command in ELSEWHERE:
        return
    if (arguments := ours(command)) is not None and not QUICK.isdisjoint(arguments):
        start(arguments)
    elif arguments is not None:
        parser().parse_args(arguments)
    elif words[:2] == ["pip", "install"]:
        check_pip(words)
    elif words[0] == "make":
        check_make(words)
    elif words[0] == ".venv/bin/pre-commit":
        assert "pre-commit" in PROJECT["optional-dependencies"]["dev"]
    else:
        assert words[0] == "python", f"nobody knows how to check this command: {command}"
        check_script(words)


@pytest.mark.parametrize("command", commands())
def test_every_command_is_known_and_parses(command, workspace):
    check(command)


@pytest.mark.parametrize(
    "command",
    [
        "python main.py fit --config configs/nowhere.yaml",
        "python main.py fit --config configs/quickstart.yaml --model.lerning_rate 1",
        "python nowhere.py",
        "python examples/langgraph_agent.py --aks",
        "make dinner",
        'pip install -c constraints.txt -e ".[dinner]"',
        "curl http://localhost:8000",
    ],
)
def test_what_cannot_work_is_found(command, workspace, capsys):
    with pytest.raises((AssertionError, OSError, SystemExit, ValueError)):
        check(command)


def test_commands_that_are_explained_away_are_still_there():
    assert ELSEWHERE.keys() <= set(commands())


# What makes any command small: the tiny model, a few rows, one step.
SMALL = {
    "fit": [
        "--trainer.max_steps=1",
        "--trainer.max_epochs=1",
        "--trainer.val_check_interval=1",
        "--trainer.check_val_every_n_epoch=1",
    ],
    "validate": [],
    "test": [],
    "predict": [],
    "chat": [],
    "report": [],
    "export": [],
    "audit": [],
}
EVERYWHERE = [
    "--model.base=tests/models/tiny_gemma2",
    "--model.generation={max_new_tokens: 4}",
    "--data.max_length=2048",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.num_nodes=1",
    "--trainer.strategy=auto",
    "--trainer.precision=32-true",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.limit_val_batches=1",
    "--trainer.limit_test_batches=1",
    "--trainer.limit_predict_batches=1",
]
ROWS = "[{path: data/quickstart/train.jsonl, name: null, limit: 24}]"


def small(arguments: list[str]) -> list[str]:
    """A command, made small: later arguments win over its own."""
    out = [*arguments, *EVERYWHERE, *SMALL[arguments[0]]]
    if any("gemma2_2b_it" in word for word in arguments):
        out += [f"--data.train={ROWS}", "--data.validation=[{path: data/quickstart/validation.jsonl, limit: 5}]"]
    if "--model.quantization" in arguments:  # rows of the tiny model are shorter than a block of 4-bit weights
        out += ["--model.quantization=null"]
    if "--data.streaming" in arguments:
        out.remove("--trainer.max_epochs=1")
    return out


@pytest.mark.slow
def test_the_commands_run(workspace, monkeypatch, capsys):
    """In the order of the pages: what a command writes, a later one reads."""
    rows = (ROOT / "data/quickstart/train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (workspace / "train.jsonl").write_text("".join(rows[:40]))
    pair = {"prompt": "Capital of Norway?", "chosen": "Oslo.", "rejected": "Bergen."}
    (workspace / "pairs.jsonl").write_text("".join(json.dumps(pair | {"id": n}) + "\n" for n in range(8)))
    (workspace / "hermes_bfcl").mkdir()
    for split in ("train", "validation"):
        (workspace / "hermes_bfcl" / f"{split}.jsonl").write_text("".join(rows[:16]))
    (workspace / "tools.json").write_text(json.loads(rows[0])["tools"])
    (workspace / "docs").mkdir()
    (workspace / "runs/quickstart/version_0/config.yaml").unlink()
    (workspace / "runs/quickstart/version_0").rmdir()

    def ended(prompt):
        raise EOFError

    monkeypatch.setattr("builtins.input", ended)
    pages = [ROOT / "README.md", ROOT / "docs/recipes.md", ROOT / "docs/callbacks.md", ROOT / "docs/results_270m.md"]
    ran = []
    for command in commands(pages):
        arguments = ours(command)
        known = arguments and arguments[0] in SMALL and QUICK.isdisjoint(arguments)
        logger = re.search(r"configs/logger/(\w+)", command)
        known = known and (
            logger is None or find_spec(logger[1]) is not None
        )  # tests/callbacks/test_summary.py has them all
        if known and small(arguments) not in ran:
            print(f"$ {command}")
            ran.append(small(arguments))
            main(ran[-1])
    assert {arguments[0] for arguments in ran} == SMALL.keys()
    assert (workspace / "exported" / "model.safetensors").is_file()
    assert (workspace / "comparison.html").is_file()


@pytest.mark.parametrize(("page", "text"), code_blocks("yaml"))
def test_yaml_is_accepted(page, text, workspace):
    (workspace / "overlay.yaml").write_text(text)
    arguments = ["fit", "--config", TINY, "--config", "overlay.yaml"]
    if "class_path: my_modules" in text:  # the parser has the keys of this class
        make_parser(arguments=arguments).parse_args(arguments)
    else:
        parsed(*arguments)


def test_the_page_for_trl_users_names_keys_and_all_training_arguments(workspace):
    text = (ROOT / "docs/from_trl.md").read_text(encoding="utf-8")
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert [name for name in sorted(fields) if f"`{name}`" not in text] == []
    keys = set(re.findall(r"`((?:model|data|trainer)\.\w+)\+?`", text))
    assert len(keys) > 30
    known = set(parsed("fit", "--config", TINY).keys())  # every leaf: a key may be a prefix of some
    assert [key for key in sorted(keys) if not any(f"{name}.".startswith(f"{key}.") for name in known)] == []


@pytest.mark.parametrize(("page", "text"), code_blocks("python"))
def test_python_compiles(page, text):
    compile(text.replace("evaluated): ...", "evaluated):\n    ..."), page, "exec")


def test_a_reader_of_your_own(workspace):
    conversation = read_row({"id": "1", "question": "Who?", "answer": "me"}, "my_rows:read")
    assert conversation.messages[1].tool_calls == (ToolCall("look_up", {"what": "me"}),)


@pytest.mark.parametrize(("page", "text"), code_blocks("json"))
def test_rows_can_be_read(page, text):
    conversation = read_row(json.loads(text))
    assert not conversation.defects
    assert conversation.messages[-1].tool_calls == (ToolCall("get_time", {"city": "Rome"}),)
