"""What the package promises about code, weights and secrets."""

import ast
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from tests.helpers.injection import KeyedLogger

from fc_lightning.utils.pretrained import commit_of
from fc_lightning.utils.secrets import redact, redact_config

SOURCES = [Path("main.py"), *sorted(Path("src").rglob("*.py"))]
# One for each kind of variable that libraries take keys from.
SECRETS = {
    "HF_TOKEN": "hf_PlantedTokenOfTheHub",
    "OPENAI_API_KEY": "sk-planted-key-of-a-teacher",
    "WANDB_API_KEY": "0123456789abcdefplantedwandb",
    "MY_DATABASE_PASSWORD": "planted password",
}


def objections(tree: ast.AST) -> list[str]:
    """Calls and imports that could run what is not code of the package."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [
                name for name in names if name.split(".")[0] in ("pickle", "dill", "cloudpickle", "joblib", "marshal")
            ]
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            if name in ("eval", "exec", "compile", "__import__", "yaml.load", "os.system"):
                found.append(name)
            # Left out, transformers asks at the terminal, and somebody says yes.
            trusted = ast.unparse(keywords.get("trust_remote_code", ast.Constant(name.endswith(".from_pretrained"))))
            if trusted != "False" or any(
                isinstance(part, ast.Constant) and part.value == "trust_remote_code" for part in ast.walk(node)
            ):
                found.append("trust_remote_code")
            if name == "torch.load" and ast.unparse(keywords.get("weights_only", ast.Constant(None))) != "True":
                found.append(name)
            if "shell" in keywords:
                found.append("shell")
    return found


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from dill import loads",
        "eval('1')",
        "exec(code)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "AutoModel.from_pretrained(base, trust_remote_code=True)",
        "AutoModel.from_pretrained(base)",
        "AutoModel.from_pretrained(base, **{'trust_remote_code': True})",
        "subprocess.run(text, shell=True)",
    ],
)
def test_what_must_not_be_there_would_be_found(text):
    assert objections(ast.parse(text))


# Where a name stands for no more than this.
HARMLESS = {
    "checkpoint_io.py": ["pickle"],  # the error that torch.load(weights_only=True) raises
    "workers.py": ["pickle"],  # between a process and those that it has forked
}


def test_nothing_runs_what_it_reads():
    assert len(SOURCES) > 40
    found = {path.name: names for path in SOURCES if (names := objections(ast.parse(path.read_text())))}
    assert found == HARMLESS
    assert not objections(ast.parse("torch.load(path, weights_only=True)\nast.literal_eval(text)\nmodel.eval()"))


def test_code_of_a_base_is_not_run_even_if_somebody_says_yes(tmp_path, run, capsys, monkeypatch):
    """transformers asks at the terminal where nothing is said about it."""
    base, mark = tmp_path / "base", tmp_path / "run"
    shutil.copytree("tests/models/tiny_gemma2", base)
    config = json.loads((base / "config.json").read_text())
    named = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (base / "config.json").write_text(json.dumps({**config, "model_type": "unknown", "auto_map": named}))
    (base / "evil.py").write_text(
        f"open({str(mark)!r}, 'w')\nfrom transformers import Gemma2Config as Config, Gemma2ForCausalLM as Model\n"
    )
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(SystemExit):
        run("validate", f"--model.base={base}")
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {base}: ")
    assert "custom code" in error
    assert not mark.exists()


def test_values_in_rows_are_not_evaluated(tmp_path):
    from fc_lightning.conversation.parsing import CallSyntaxError, parse_literal

    mark = tmp_path / "run"
    for text in (f"open({str(mark)!r}, 'w')", f"__import__('os').system('touch {mark}')", "[x for x in (1,)]"):
        with pytest.raises(CallSyntaxError):
            parse_literal(text)
    assert not mark.exists()


def test_pickled_weights_of_a_base_are_not_read(tmp_path, run, capsys):
    """Not even weights that would be harmless: then nobody has to know which are."""
    base = tmp_path / "base"
    shutil.copytree("tests/models/tiny_gemma2", base)
    (base / "model.safetensors").unlink()
    mark = tmp_path / "run"

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(mark),)

    torch.save({"model.norm.weight": Payload()}, base / "pytorch_model.bin")
    with pytest.raises(SystemExit):
        run("fit", f"--model.base={base}")
    assert not mark.exists()
    assert "model.safetensors" in capsys.readouterr().err.splitlines()[-1]


def test_secrets_are_written_nowhere(run, tmp_path, monkeypatch, capfd):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    logger = f"{KeyedLogger.__module__}.{KeyedLogger.__name__}"
    url = "https://somebody:planted-password@tracking.example/api?token=planted-query&x=1"
    folder = run(
        *("fit", f"--trainer.logger.class_path={logger}", f"--trainer.logger.init_args.save_dir={tmp_path / 'runs'}"),
        *(f"--trainer.logger.init_args.api_key={SECRETS['WANDB_API_KEY']}-of-mine",),
        f"--trainer.logger.init_args.tracking_uri={url}",
        f"--trainer.logger.init_args.note=password is {SECRETS['MY_DATABASE_PASSWORD']}",
    )
    saved = yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["logger"]["init_args"]
    assert saved["note"] == "password is ***"
    assert saved["tracking_uri"] == "https://tracking.example/api?token=***&x=1"
    assert not saved.get("api_key")
    # The configuration can be used as it was saved, by every other subcommand.
    config, last = folder / "config.yaml", folder / "checkpoints" / "last.ckpt"
    run("export", f"--ckpt_path={last}", f"--output={tmp_path / 'out'}", "--merge=false", config=config)
    run("audit", "--examples=1", f"--output={tmp_path / 'audit'}", config=config)
    run("report", f"--runs=[{folder}]", f"--output={tmp_path / 'report'}", config=config)
    with pytest.raises(SystemExit):  # the user's own mistake is quoted, without the key in it
        run("fit", f"--model.base=./{SECRETS['HF_TOKEN']}")
    out, err = capfd.readouterr()
    assert "./***: folder not found" in err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.yaml", "README.md", "last.ckpt", "audit.html", "report.html", "adapter_config.json"} <= {
        path.name for path in files
    }
    for secret in (*SECRETS.values(), "planted-password", "planted-query"):
        assert secret not in out + err
        assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_redaction(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "abcdefgh1234")
    monkeypatch.setenv("KEYBOARD", "everyday-word")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    text = "abc everyday-word abcdefgh1234 http://u:p@host/x http://tok@host ssh://host/a@b mail@host"
    assert redact(text) == "abc everyday-word *** http://host/x http://host ssh://host/a@b mail@host"
    config = {
        "logger": [{"init_args": {"api_key": "x", "experiment_key": "kept", "hub_token": None}}],
        "model": {"special_tokens": ["<think>"], "max_new_tokens": 3, "password": "y"},
    }
    headers = {"headers": {"Authorization": "Basic eDp5", "X-Api-Key": "z", "note": "Bearer abcdefgh.ijkl-m", "n": 1}}
    assert list(redact_config(headers)) == ["headers.Authorization", "headers.X-Api-Key", "headers.note"]
    assert headers == {"headers": {"note": "Bearer ***", "n": 1}}
    assert redact("given as hf_AbcdefghijklmnopqrstuvwxyZ, sk-proj-abcdefghijklmnopqrst") == "given as ***, ***"
    assert redact("hf_home sk-learn skeleton-of-a-long-name task-abcdefghijklmnopqrstuv") == (
        "hf_home sk-learn skeleton-of-a-long-name task-abcdefghijklmnopqrstuv"
    )
    monkeypatch.setenv("PGPASSWORD", "of-postgres")
    monkeypatch.setenv("GITHUB_PAT", "of-the-forge")
    assert redact("of-postgres of-the-forge") == "*** ***"
    assert list(redact_config(config)) == ["logger.0.init_args.api_key", "model.password"]
    assert config["logger"][0]["init_args"] == {"experiment_key": "kept", "hub_token": None}
    assert config["model"] == {"special_tokens": ["<think>"], "max_new_tokens": 3}


def test_the_commit_of_a_base_is_recorded(tmp_path, run, monkeypatch):
    """A base in the Hub's cache, as another run has left it there: no network is needed, and the branch is resolved."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--somebody--tiny"
    shutil.copytree("tests/models/tiny_gemma2", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert (
        commit_of("somebody/tiny") == commit_of("somebody/tiny", "main") == commit_of("somebody/tiny", commit) == commit
    )
    assert commit_of("somebody/other", "v1") == "v1"
    assert commit_of("tests/models/tiny_gemma2") is None
    folder = run("fit", "--model.base=somebody/tiny", "--data.validation=null", "--trainer.max_steps=1")
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["revision"] == commit
    last = folder / "checkpoints" / "last.ckpt"
    run("export", f"--ckpt_path={last}", f"--output={tmp_path / 'out'}", config=folder / "config.yaml")
    assert f"at revision `{commit}`" in (tmp_path / "out" / "README.md").read_text()


def test_the_promises_are_written_down():
    text = Path("SECURITY.md").read_text()
    assert "weights_only=True" in text
    assert "A configuration file is code" in text
