"""All steps to a working agent: train, export, serve on loopback, query.

Trains the quickstart's model (several minutes on two cores), or uses an existing run::

    python examples/end_to_end.py
    python examples/end_to_end.py --run runs/quickstart/version_0
    python examples/end_to_end.py --run runs/quickstart/version_0 --server llama.cpp

The agent of `langgraph_agent.py` gets ten questions whose values never occur in training. A question is solved if the
model makes exactly the reference calls and then answers. The exit code is 0 if at least nine questions are solved.
llama.cpp is `llama-server` on the path, or the package xllamacpp (``pip install xllamacpp``).
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openai import OpenAI

from langgraph_agent import Agent, Message

ROOT = Path(__file__).parent.parent
# llama.cpp's server inside of Python.
LLAMA_SERVER = """
import sys, threading, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_ctx = sys.argv[1], int(sys.argv[2]), 4096
server = xllamacpp.Server(params)
threading.Event().wait()
"""
Call = tuple[str, dict[str, Any]]

# Question, offered tools, reference calls.
QUESTIONS: list[tuple[str, list[str], list[Call]]] = [
    (
        "What is 417 times 36?",
        ["calculate"],
        [("calculate", {"a": 417, "b": 36, "operation": "times"})],
    ),
    ("What time is it in Berlin?", ["get_order_status", "get_time"], [("get_time", {"city": "Berlin"})]),
    ("What time is it in Helsinki?", ["get_product", "get_time"], [("get_time", {"city": "Helsinki"})]),
    ("Tell me the current time in Seoul.", ["get_time", "calculate"], [("get_time", {"city": "Seoul"})]),
    (
        "What time is it in London, Montreal and Singapore?",
        ["get_time", "get_order_status"],
        [("get_time", {"city": city}) for city in ("London", "Montreal", "Singapore")],
    ),
    (
        "Where is my order ORD-4821?",
        ["get_order_status", "calculate", "get_time"],
        [("get_order_status", {"order_id": "ORD-4821"})],
    ),
    (
        "Check the orders ORD-7254 and ORD-9306.",
        ["get_product", "get_order_status"],
        [("get_order_status", {"order_id": order}) for order in ("ORD-7254", "ORD-9306")],
    ),
    ("Show me product 6402.", ["get_product", "get_time"], [("get_product", {"product_id": 6402})]),
    (
        "Show me the products 5163 and 7713.",
        ["get_product", "get_order_status"],
        [("get_product", {"product_id": 5163}), ("get_product", {"product_id": 7713})],
    ),
    ("Tell me a joke about quantum computers.", ["get_product", "get_time"], []),
]


def main() -> None:
    """Train if necessary, export, serve, query, and count."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, help="folder of an existing run")
    parser.add_argument("--runs", type=Path, help="folder for a new run")
    parser.add_argument("--output", type=Path, help="folder for the exported model")
    parser.add_argument("--server", choices=["transformers", "llama.cpp"], default="transformers")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = arguments.run.resolve() if arguments.run else train((arguments.runs or Path(scratch)).resolve())
        output = (arguments.output or Path(scratch) / "exported").resolve()
        options = ["--format", "gguf", "--dtype", "q8_0"] if arguments.server == "llama.cpp" else []
        fc_lightning("export", "--config", run / "config.yaml", "--ckpt_path", best(run), "--output", output, *options)
        with served(output, arguments.server) as url:
            client = OpenAI(base_url=url, api_key="none")
            solved = sum(solves(client, str(output), *question) for question in QUESTIONS)
            streams(client, str(output))
    print(f"{solved} of {len(QUESTIONS)} questions solved")
    sys.exit(solved < 9)


def fc_lightning(*arguments: Any) -> None:
    """Run a subcommand at the root of the repository."""
    print("$ python main.py", *arguments, flush=True)
    subprocess.run([sys.executable, ROOT / "main.py", *map(str, arguments)], cwd=ROOT, check=True)


def train(folder: Path) -> Path:
    """Fine-tune the quickstart's model. Returns the run folder."""
    fc_lightning("fit", "--config", "configs/quickstart.yaml", f"--trainer.logger.init_args.save_dir={folder}")
    return next(folder.glob("*/version_*"))


def best(run: Path) -> Path:
    """The best checkpoint of a run; the quickstart keeps that one and the last."""
    return next(path for path in sorted((run / "checkpoints").glob("*.ckpt")) if path.name != "last.ckpt")


def command(server: str, model: Path, port: int) -> list[str | Path]:
    """The command that serves an exported folder."""
    if server == "transformers":
        transformers = Path(sys.executable).with_name("transformers")
        return [transformers, "serve", model, "--host", "127.0.0.1", "--port", str(port)]
    if shutil.which("llama-server"):
        return ["llama-server", "-m", model / "model.gguf", "--jinja", "--port", str(port)]
    return [sys.executable, "-c", LLAMA_SERVER, model / "model.gguf", str(port)]


@contextmanager
def served(model: Path, name: str) -> Iterator[str]:
    """Run a server within the block. Yields its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = command(name, model, port)
    print(f"serving {model} with {name}", flush=True)
    server = subprocess.Popen(arguments)
    try:
        for _ in range(300):
            if server.poll() is not None:
                sys.exit("the server exited; is `.[serve,agent]` installed, or llama.cpp?")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                time.sleep(1)
        else:
            sys.exit("the server did not start")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(timeout=30)


def solves(client: OpenAI, model: str, question: str, offered: list[str], expected: list[Call]) -> bool:
    """Ask the agent and print the conversation. Returns whether the question is solved."""
    started = time.monotonic()
    messages = Agent(client, model, offered).ask([{"role": "user", "content": question}])
    right = same(calls(messages), expected) and bool(messages[-1].get("content"))
    print(f"  {'solved' if right else 'WRONG':>6} | {time.monotonic() - started:.1f} s\n", flush=True)
    return right


def calls(messages: list[Message]) -> list[Call]:
    """All calls of a conversation."""
    functions = [call["function"] for message in messages for call in message.get("tool_calls") or []]
    return [(function["name"], json.loads(function["arguments"])) for function in functions]


def same(first: list[Call], second: list[Call]) -> bool:
    """Whether two lists contain the same calls, in any order."""
    return sorted(json.dumps(call, sort_keys=True) for call in first) == sorted(
        json.dumps(call, sort_keys=True) for call in second
    )


def streams(client: OpenAI, model: str) -> None:
    """Check that a streamed response has the same call."""
    question, offered, expected = QUESTIONS[2]
    chunks = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        tools=Agent(client, model, offered).tools,
        temperature=0.0,
        stream=True,
    )
    found: list[list[str]] = []  # name and arguments of each call, which servers may send in pieces
    for call in (call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []):
        assert call.function is not None
        if call.function.name:
            found.append([call.function.name, ""])
        found[-1][1] += call.function.arguments or ""
    assert same([(name, json.loads(arguments)) for name, arguments in found], expected)
    print(f"streamed: {found}")


if __name__ == "__main__":
    main()
