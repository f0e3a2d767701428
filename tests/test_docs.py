"""The documentation: every command in it is run or parsed, and what it says of the code is so."""

import ast
import csv
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

import fc_lightning
from fc_lightning.cli import FunctionCallingCLI, main
from fc_lightning.formats import read_row
from fc_lightning.start import main as start
from fc_lightning.toolcalls import ToolCall

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SNAPSHOTS = ROOT / "tests" / "snapshots"  # of what the command line says to mistakes
TINY = "configs/debug/tiny.yaml"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

QUICK = {"--help", "--version", "init"}  # answered at once, without a run

# Commands of other programs, and why they are not run here. A new one must be put here, with a reason.
ELSEWHERE = {
    "git clone REPOSITORY fc-lightning": "the reader's own address",
    "cd fc-lightning": "the reader's own folder",
    "transformers serve ./exported --port 8000": "tests/test_serving.py serves an export",
    "vllm serve ./exported --enable-auto-tool-choice --tool-call-parser hermes": "needs vLLM and a GPU",
    "python -m sglang.launch_server --model-path ./exported --tool-call-parser hermes": "needs SGLang and a GPU",
    "python convert_hf_to_gguf.py ./exported --outfile model.gguf --outtype bf16": "a script of llama.cpp",
    "llama-server -m model.gguf --jinja": "a program of llama.cpp",
}


def blocks(language: str, pages: list[Path] = PAGES) -> list[tuple[str, str]]:
    """Fenced blocks of a language, each with the page that it stands on."""
    found = []
    for page in pages:
        for name, text in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
            found += [(page.name, text)] if name == language else []
    return found


def commands(pages: list[Path] = PAGES) -> list[str]:
    """Every command of the bash blocks, without comments, each once."""
    lines = []
    for _, text in blocks("bash", pages):
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
    for _, text in blocks("python"):
        if name := re.match(r"# (\w+\.py)\n", text):
            (tmp_path / name[1]).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "callbacks"))
    return tmp_path


@pytest.fixture(scope="module")
def parser():
    """The command line's parser, made once: making it is what takes time."""
    kept = []

    class ParserAlone(FunctionCallingCLI):
        def parse_arguments(self, parser, args):
            kept.append(parser)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ParserAlone([])
    return kept[0]


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


def check(command: str, parser) -> None:
    """Raise if a command of the documentation cannot work, or if nobody knows whether it can."""
    words = [word for word in shlex.split(command) if not re.match(r"[A-Z]+=", word)]
    if command in ELSEWHERE:
        return
    if (arguments := ours(command)) is not None and not QUICK.isdisjoint(arguments):
        start(arguments)
    elif arguments is not None:
        parser.parse_args(arguments)
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
def test_every_command_is_known_and_parses(command, workspace, parser):
    check(command, parser)


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
def test_what_cannot_work_is_found(command, workspace, parser, capsys):
    with pytest.raises((AssertionError, OSError, SystemExit, ValueError)):
        check(command, parser)


def test_commands_that_are_explained_away_are_still_there():
    assert ELSEWHERE.keys() <= set(commands())


# What makes any command small: the tiny model, a few rows, one step.
SMALL = {
    "fit": ["--trainer.max_steps=1", "--trainer.max_epochs=1", "--trainer.val_check_interval=1"],
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
        if known and small(arguments) not in ran:
            print(f"$ {command}")
            ran.append(small(arguments))
            main(ran[-1])
    assert {arguments[0] for arguments in ran} == SMALL.keys()
    assert (workspace / "exported" / "model.safetensors").is_file()
    assert (workspace / "comparison.html").is_file()


@pytest.mark.parametrize(("page", "text"), blocks("yaml"))
def test_yaml_is_accepted(page, text, workspace, parser):
    (workspace / "overlay.yaml").write_text(text)
    parser.parse_args(["fit", "--config", TINY, "--config", "overlay.yaml"])


@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_python_compiles(page, text):
    compile(text.replace("evaluated): ...", "evaluated):\n    ..."), page, "exec")


def test_a_reader_of_your_own(workspace):
    conversation = read_row({"id": "1", "question": "Who?", "answer": "me"}, "my_rows:read")
    assert conversation.messages[1].tool_calls == (ToolCall("look_up", {"what": "me"}),)


@pytest.mark.parametrize(("page", "text"), blocks("json"))
def test_rows_can_be_read(page, text):
    conversation = read_row(json.loads(text))
    assert not conversation.defects
    assert conversation.messages[-1].tool_calls == (ToolCall("get_time", {"city": "Rome"}),)


def test_the_reference_is_up_to_date():
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "scripts" / "make_reference.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.OUTPUT.read_text(encoding="utf-8") == script.reference(), "run `make reference`"


def messages_of_the_source() -> list[str]:
    """The messages of all errors that the package raises, with … where something is put in, and real ones."""

    def template(node):
        if isinstance(node, ast.Constant):
            return str(node.value)
        if isinstance(node, ast.JoinedStr):
            return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        return template(node.left) + "…" if isinstance(node, ast.BinOp) else "…"

    raised = []
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            raised += [node.exc] if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) else []
    told = [line.strip() for file in SNAPSHOTS.glob("*messages.txt") for line in file.read_text("utf-8").splitlines()]
    return [template(call.args[0]) for call in raised if call.args] + [line.removeprefix("error: ") for line in told]


def test_messages_of_troubleshooting_are_those_of_the_source():
    known = messages_of_the_source()
    page = [ROOT / "docs" / "troubleshooting.md"]
    listed = [line.removeprefix("error: ") for _, text in blocks("text", page) for line in text.splitlines()]
    assert len(listed) > 40
    missing = []
    for line in listed:
        pattern = ".*".join(map(re.escape, line.split("…")))
        missing += [] if any(re.match(pattern, message, re.S) for message in known) else [line]
    assert not missing


def test_the_site_is_built_and_fetches_nothing(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        html = page.read_text(encoding="utf-8")
        for tag in re.findall(r"<(?:img|script|iframe|source|link)\b[^>]*>", html):
            assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag) or "rel=canonical" in tag, (page, tag)
    styles = "".join(style.read_text(encoding="utf-8") for style in (tmp_path / "site").rglob("*.css"))
    assert not re.search(r"url\(\s*['\"]?(?:https?:)?//|@import", styles)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert all((page.parent / link).exists() for link in links if link), links


def test_the_rooms_of_the_design_are_there():
    table = (ROOT / "docs/design.md").read_text(encoding="utf-8").partition("| in `src/fc_lightning/` |")[2]
    rooms = re.findall(r"`([\w/]+(?:\.py|/))`", table)
    assert len(rooms) > 25
    assert all((ROOT / "src" / "fc_lightning" / room).exists() for room in rooms)


def test_figures_are_small_and_plain():
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    figures = sorted((ROOT / "docs" / "figures").glob("*.svg"))
    assert len(figures) == 5
    for figure in figures:
        text = figure.read_text(encoding="utf-8")
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
        assert len(text) < 40_000
        assert "prefers-color-scheme:dark" in text
        assert not re.search(r"href|url\(|@import|<script", text)
        assert re.search(rf"!\[[^\]]{{20,}}\]\((?:docs/)?figures/{figure.name}\)", pages)


def test_numbers_of_the_figures():
    figure = (ROOT / "docs/figures/normalisation.svg").read_text(encoding="utf-8")
    # (1.8 + 0.5) / 2, and (3.6 + 4.0) / 10, by hand from the losses that stand in it
    assert "mean of means 1.15" in figure
    assert "mean over tokens 0.76" in figure
    with (ROOT / "docs/data/gemma3_270m.csv").open() as lines:
        last = list(csv.DictReader(lines))[-1]
    assert f"{float(last['val/exact_match']):.3f}" in (ROOT / "docs/figures/curves.svg").read_text(encoding="utf-8")


def test_the_measured_speed_is_that_of_the_benchmark():
    result = (ROOT / "benchmarks/results/vs_trl_cpu.md").read_text(encoding="utf-8")
    for page in (ROOT / "README.md", ROOT / "docs/comparison.md"):
        text = page.read_text(encoding="utf-8")
        for kind in ("unpacked", "packed"):
            ours, theirs = (
                re.search(rf"^\| {who}, {kind} \| (\d+) \| \S+ \| (\S+) \|$", result, re.M).groups()
                for who in ("fc-lightning", "TRL")
            )
            assert f"| tokens/s, {kind} | {ours[0]} | {theirs[0]} |" in text
            assert f"| peak memory, {kind} | {ours[1]} GB | {theirs[1]} GB |" in text


def test_the_changelog_knows_the_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[?([^\]\s]+)", text, re.M)
    assert versions[0] == "Unreleased"
    assert versions[1] == fc_lightning.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", versions[1])
    assert set(re.findall(r"^### (.+)$", text, re.M)) <= {
        "Added",
        "Changed",
        "Deprecated",
        "Removed",
        "Fixed",
        "Security",
    }


def test_hooks_do_what_make_lint_does():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repository["repo"] for repository in hooks] == ["local"]
    entries = {" ".join(hook["entry"].split()[:2]) for hook in hooks[0]["hooks"]}
    lint = re.search(r"^lint:.*?(?=^\w)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M | re.S)[0]
    assert entries == {*(" ".join(words.split()[:2]) for words in re.findall(r"\$\(BIN\)/(.+)", lint)), "mypy"}


def test_issue_forms_are_whole():
    forms = [ROOT / ".github/ISSUE_TEMPLATE" / name for name in ("bug.yml", "feature.yml")]
    for form in map(yaml.safe_load, (path.read_text(encoding="utf-8") for path in forms)):
        assert form["name"]
        assert form["description"]
        assert {field["type"] for field in form["body"]} <= {"textarea", "input", "dropdown", "markdown", "checkboxes"}
        assert all(field["attributes"]["label"] for field in form["body"])
