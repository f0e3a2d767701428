"""The quickstart's data: reproducible, and what its README says of it, read with a parser of its own."""

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data" / "quickstart"
SPLITS = ("train", "validation")
TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool}


def rows_of(split):
    return [json.loads(line) for line in (DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def said(row, role):
    return [turn["value"] for turn in row["conversations"] if turn["from"] == role]


def read(text):
    """Read JSON or a Python literal; say which it was."""
    try:
        return json.loads(text), "json"
    except json.JSONDecodeError:
        return ast.literal_eval(text), "literal"


def calls_of(row):
    blocks = [block for text in said(row, "gpt") for block in text.split("<tool_call>")[1:]]
    return [read(block.split("</tool_call>")[0].strip()) for block in blocks]


def tools_of(row):
    return {tool["function"]["name"]: tool["function"]["parameters"] for tool in json.loads(row["tools"])}


def free_arguments(row):
    """Yield key and value of the arguments that are neither enums nor booleans."""
    for call, _ in calls_of(row):
        properties = tools_of(row)[call["name"]]["properties"]
        for key, value in call["arguments"].items():
            if "enum" not in properties[key] and not isinstance(value, bool):
                yield key, value


def test_committed_files_are_what_the_script_writes(tmp_path):
    script = ROOT / "scripts" / "make_quickstart_data.py"
    subprocess.run([sys.executable, str(script), "--out", str(tmp_path)], check=True, capture_output=True)
    for split in SPLITS:
        written = (tmp_path / f"{split}.jsonl").read_bytes()
        assert written == (DATA / f"{split}.jsonl").read_bytes()
        assert len(written) < 1_500_000


def test_another_seed_writes_other_rows_that_pass_its_checks(tmp_path):
    script = ROOT / "scripts" / "make_quickstart_data.py"
    command = [sys.executable, str(script), "--out", str(tmp_path), "--seed", "7"]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "train.jsonl").read_bytes() != (DATA / "train.jsonl").read_bytes()


def test_no_argument_value_of_validation_occurs_in_train():
    train, validation = ({str(v).lower() for row in rows_of(s) for _, v in free_arguments(row)} for s in SPLITS)
    assert len(validation) > 100
    assert not train & validation


def test_questions_and_ids_are_distinct():
    rows = [row for split in SPLITS for row in rows_of(split)]
    assert len({said(row, "human")[0] for row in rows}) == len(rows)
    assert len({row["id"] for row in rows}) == len(rows)


@pytest.mark.parametrize("split", SPLITS)
def test_at_least_thirty_tools_are_called(split):
    assert len({call["name"] for row in rows_of(split) for call, _ in calls_of(row)}) >= 30


@pytest.mark.parametrize("split", SPLITS)
def test_calls_fit_the_schema_of_an_offered_tool(split):
    for row in rows_of(split):
        for call, _ in calls_of(row):
            parameters = tools_of(row)[call["name"]]
            assert set(parameters["required"]) <= set(call["arguments"]) <= set(parameters["properties"])
            for key, value in call["arguments"].items():
                prop = parameters["properties"][key]
                assert isinstance(value, TYPES[prop["type"]]), row["id"]
                assert isinstance(value, bool) == (prop["type"] == "boolean")
                assert value in prop.get("enum", [value])


@pytest.mark.parametrize("split", SPLITS)
def test_values_stand_in_the_question(split):
    for row in rows_of(split):
        question = "\n".join(said(row, "human"))
        for key, value in free_arguments(row):
            assert re.search(rf"(?<![\w.]){re.escape(str(value))}(?!\w|\.\d)", question), (row["id"], key)


@pytest.mark.parametrize("split", SPLITS)
def test_half_of_the_rows_write_python_literals(split):
    rows = rows_of(split)
    styles = []
    for row in rows:
        system = said(row, "system")[0]
        tools, style = read(system.split("<tools>\n")[1].split("\n</tools>")[0])
        assert tools == json.loads(row["tools"])
        assert all(call_style == style for _, call_style in calls_of(row)), row["id"]
        styles.append(style)
    assert Counter(styles) == {"json": len(rows) // 2, "literal": len(rows) // 2}


@pytest.mark.parametrize("split", SPLITS)
def test_categories_are_what_they_say(split):
    for row in rows_of(split):
        calls, answer = calls_of(row), said(row, "gpt")[0]
        assert answer.startswith("<think>") == (row["category"] == "thinking")
        match row["category"]:
            case "single":
                assert len(calls) == 1
            case "parallel":
                assert len(calls) in (2, 3)
            case "no_tool":
                assert not calls
            case "thinking":
                assert 12 <= len(answer.split("</think>")[0].removeprefix("<think>").split()) <= 30
            case "multi_turn":
                content = read(re.search(r"\n(.*)\n", said(row, "tool")[0])[1])[0]["content"]
                assert str(*content.values()) in said(row, "gpt")[1]
            case other:
                pytest.fail(other)


def test_nearly_all_validation_rows_have_calls():
    rows = rows_of("validation")
    assert {row["category"] for row in rows if not calls_of(row)} == {"no_tool"}
    assert sum(not calls_of(row) for row in rows) <= 0.06 * len(rows)


def form(question):
    """A question without its values."""
    question = re.sub(r"\d+(\.\d+)?", "0", question)
    question = re.sub(r"(in|and|,) [A-Z][a-z]+( [A-Z][a-z]+)?", r"\1 X", question)
    return re.sub(r"about .*", "about X", question)


@pytest.mark.parametrize("example", ["langgraph_agent.py", "end_to_end.py"])
def test_the_example_agent_asks_what_was_taught(example):
    """The questions have the form of training questions; a second question is about the first one's tool, as there."""
    tree = ast.parse((ROOT / "examples" / example).read_text(encoding="utf-8"))
    named = (node for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.AnnAssign))
    (entries,) = (node.value.elts for node in named if "QUESTIONS" in ast.unparse(node).partition(" = ")[0])
    asked = [ast.literal_eval(entry.elts[0] if isinstance(entry, ast.Tuple) else entry) for entry in entries]
    taught = {form(question) for row in rows_of("train") for question in said(row, "human")}
    assert len(asked) >= 4
    for conversation in asked:
        questions = [form(question.strip()) for question in conversation.split("|")]
        assert set(questions) <= taught
        assert len(set(questions)) == 1
