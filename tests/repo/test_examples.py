"""The plain Python way: a script of ten lines, and a notebook that tells the whole story."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TINY = "tests/models/tiny_gemma2"


def test_plain_python(capsys, monkeypatch, tmp_path):
    """A plain Trainer, no command line: trained, measured, written down."""
    source = Path("examples/plain_python.py").read_text(encoding="utf-8")
    body = source.partition('"""Train on the quickstart\'s data."""')[2].partition("\n\n\n")[0]
    source = source.replace("limit=100", "limit=8").replace("limit=10)", "limit=2)")
    source = source.replace("callbacks=[RunSummary(),", f"default_root_dir={str(tmp_path)!r}, callbacks=[RunSummary(),")
    monkeypatch.setattr(sys, "argv", ["plain_python.py", TINY])
    exec(compile(source, "examples/plain_python.py", "exec"), {"__name__": "__main__"})
    out = capsys.readouterr().out
    assert re.search(
        r"^trainable params: [\d,]+ \|\| all params: [\d,]+ \|\| trainable%: \d+\.\d{4}$", out, re.MULTILINE
    )
    assert out.rstrip().endswith("tensor(0.)")
    assert "config.yaml" not in out  # there is none to name
    lines = [json.loads(line) for line in next(tmp_path.rglob("predictions.jsonl")).open()]
    assert len(lines) >= 2
    statements = re.findall(r"^    (?=[a-z])", body, re.MULTILINE)
    assert len(statements) <= 10


def test_the_notebook_is_stored_without_outputs():
    cells = json.loads(Path("examples/story.ipynb").read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
def test_the_notebook_tells_its_story(monkeypatch, tmp_path):
    """As Jupyter runs it, in a kernel: data, calls before and after, and the curve; STORY_BASE names another model."""
    for name, value in {"STORY_BASE": TINY, "STORY_STEPS": "3", "STORY_TOKENS": "12"}.items():
        monkeypatch.setenv(name, os.environ.get(name, value))
    story = nbformat.read("examples/story.ipynb", as_version=4)
    for cell in story.cells:
        cell.source = cell.source.replace('CSVLogger("runs"', f"CSVLogger({str(tmp_path)!r}")
    NotebookClient(story, timeout=3600, resources={"metadata": {"path": "examples"}}).execute()
    outputs = [output for cell in story.cells for output in cell.get("outputs", [])]
    pages = "".join(output.data["text/html"] for output in outputs if "text/html" in output.get("data", {}))
    told = "".join(output.get("text", "") for output in outputs)
    assert "<mark>" in pages
    assert "polyline" in pages
    assert "trainable params: " in told
    assert re.search(rf"exact match \d\.\d{{3}} before, \d\.\d{{3}} after {os.environ['STORY_STEPS']} steps", told)


@pytest.mark.slow
def test_the_wheel_runs_the_quickstart_from_outside(tmp_path):
    """Wheel and sdist are built; the console script of an environment with the wheel runs what `init` has written."""
    pytest.importorskip("build")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), "."]
    subprocess.run(build, check=True, capture_output=True)
    wheel, sdist = next((tmp_path / "dist").glob("*.whl")), next((tmp_path / "dist").glob("*.tar.gz"))
    names = subprocess.check_output(["tar", "-tzf", str(sdist)], text=True)
    assert "/configs/quickstart.yaml" in names
    assert "/tests/repo/test_examples.py" in names
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python, target = tmp_path / "venv" / "bin" / "python", next((tmp_path / "venv" / "lib").glob("*/site-packages"))
    # The libraries are those of this environment; the package itself is the wheel's alone.
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (target / "libraries.pth").write_text("\n".join(libraries))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    script, outside = tmp_path / "venv" / "bin" / "fc-lightning", tmp_path / "outside"
    outside.mkdir()
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def call(*arguments: str) -> str:
        command = [str(script), *arguments]
        return subprocess.run(command, cwd=outside, env=clean, check=True, capture_output=True, text=True).stdout

    assert call("--help").startswith("usage: fc-lightning SUBCOMMAND")
    assert "fc-lightning fit --config configs/quickstart.yaml" in call("init", "project")
    outside /= "project"
    config = ["--config", "configs/quickstart.yaml", "--config", "configs/trainer/cpu.yaml"]
    limits = ["--model.base", str(Path(TINY).resolve()), "--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"]
    out = call("fit", *config, *limits, "--trainer.num_sanity_val_steps", "0")
    assert "next:    fc-lightning export --config runs/quickstart/version_0/config.yaml" in out
    assert (outside / "runs/quickstart/version_0/adapter/adapter_model.safetensors").is_file()
    where = subprocess.check_output([str(python), "-c", "import fc_lightning; print(fc_lightning.__file__)"], env=clean)
    assert str(tmp_path) in where.decode()
