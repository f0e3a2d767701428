"""The documentation: what it says of the code is so, and it is whole."""

import ast
import csv
import importlib.util
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
import yaml
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from tests.helpers.adapters import REFUSED, WORKING
from tests.helpers.documentation import PAGES, ROOT, code_blocks

import fc_lightning

COMPATIBILITY = ROOT / "docs" / "compatibility.md"
SNAPSHOTS = ROOT / "tests" / "cli" / "snapshots"  # error messages of the command line


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.parametrize(("name", "page"), [("make_reference", "reference"), ("make_compatibility", "page")])
def test_generated_pages_are_up_to_date(name, page):
    script = load_script(name)
    assert script.OUTPUT.read_text(encoding="utf-8") == getattr(script, page)(), "run `make reference`"


def test_the_table_of_adapters_names_every_type():
    """A type that PEFT adds appears, and what the table of tests rejects is not supported in the docs either."""
    rows = re.findall(r"^\| `(\w+Config)` \| (works|not supported) ", COMPATIBILITY.read_text(encoding="utf-8"), re.M)
    assert {name for name, _ in rows} == {config.__name__ for config in PEFT_TYPE_TO_CONFIG_MAPPING.values()}
    said = dict(rows)
    whole_types = {kind for kind, _ in WORKING.values()}
    assert {said[kind] for kind in whole_types} == {"works"}
    assert {said[kind] for kind, *_ in REFUSED.values() if kind not in whole_types} == {"not supported"}


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
    listed = [line.removeprefix("error: ") for _, text in code_blocks("text", page) for line in text.splitlines()]
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


def test_the_design_lists_the_packages():
    table = (ROOT / "docs/design.md").read_text(encoding="utf-8").partition("| in `src/fc_lightning/` |")[2]
    paths = re.findall(r"`([\w/]+(?:\.py|/))`", table)
    assert len(paths) > 25
    assert all((ROOT / "src" / "fc_lightning" / path).exists() for path in paths)


def test_figures_are_small_and_plain():
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    figures = sorted((ROOT / "docs" / "figures").glob("*.svg"))
    assert len(figures) == 6
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
