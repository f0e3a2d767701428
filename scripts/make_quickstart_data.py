"""Makes the small function-calling dataset of the quickstart, as Hermes rows.

Every value of a call is in its question exactly as it must be written, and no value of a validation call occurs
in train: validation measures reading tools and copying values, not memorization. Lists of values are split by hand in
`quickstart_values.py`. Numbers, dates, times and IDs are split by a rule: those divisible by three (of a date the day,
of a time the hour, of an amount its hundredths) belong to validation.
"""

import argparse
import ast
import calendar
import json
import random
import re
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from quickstart_tools import GROUPS, NO_TOOL_ANSWERS, NO_TOOL_QUESTIONS, RESULTS, TOOLS, kinds, schema
from quickstart_values import POOLS

Call = dict[str, Any]
Row = dict[str, Any]
Turn = tuple[str, str]

ROWS = {
    "train": {"single": 300, "parallel": 140, "no_tool": 160, "thinking": 120, "multi_turn": 70},
    "validation": {"single": 46, "parallel": 18, "no_tool": 6, "thinking": 20, "multi_turn": 10},
}
SYSTEM = (
    "You are a function calling AI model. You are provided with function signatures within <tools> </tools> "
    "XML tags. You may call one or more functions to assist with the user query. Don't make assumptions "
    "about what values to plug into functions.\n<tools>\n%s\n</tools>\nFor each function call return a json "
    "object with function name and arguments within <tool_call> </tool_call> tags with the following schema:"
    "\n<tool_call>\n{'arguments': <args-dict>, 'name': <function-name>}\n</tool_call>\n"
)
MONTHS = calendar.month_name[1:]
OPENINGS = ("Hi! ", "Hello! ", "Hey! ", "One question: ", "Please help me: ")
CLOSINGS = (" Thanks!", " Thank you.", " Please.", " Thanks in advance.")
JOINS = ("{} {}", "{} Also: {}", "First: {} Then: {}", "{} And another thing: {}")
THOUGHTS = (
    "The tool {name} fits this request. Its arguments are {arguments}, all taken from the question.",
    "I need {name} here, because its purpose is this: {purpose}. The question gives me {arguments}.",
    "The user wants something that {name} can do. I call it with {arguments}, as the question says.",
)
SLOT = re.compile(r"\{(\w+?)(?:_(\d))?(?:=(\w+):([^}]*))?\}")
CHARS_PER_TOKEN = 3.6


class Values:
    """Draws the values of one split, none of them twice in one row."""

    def __init__(self, rng: random.Random, split: str) -> None:
        self.rng = rng
        self.side = 0 if split == "train" else 1
        self.used: set[str] = set()

    def draw(self, kind: str) -> Any:
        """Draw a value of a kind that this row has not used yet; enums and booleans may repeat."""
        if "|" in kind:
            return self.rng.choice(kind.split("|"))
        while True:
            value = self._any(kind)
            if str(value).lower() not in self.used:
                self.used.add(str(value).lower())
                return value

    def _number(self, low: int, high: int) -> int:
        while True:
            number = self.rng.randint(low, high)
            if (number % 3 == 0) == (self.side == 1):
                return number

    def _any(self, kind: str) -> Any:
        if kind in POOLS:
            return self.rng.choice(POOLS[kind][self.side])
        match kind.split(":"):
            case ["int", low, high]:
                return self._number(int(low), int(high))
            case ["num", low, high]:
                if self.rng.random() < 0.5:
                    return self._number(int(low), int(high))
                hundredths = self._number(100 * int(low), 100 * int(high))
                return hundredths / 100 if hundredths % 100 else hundredths // 100
            case ["date"]:
                day, month = self._number(1, 28), self.rng.randrange(12)
                return self.rng.choice((f"{MONTHS[month]} {day}", f"2026-{month + 1:02}-{day:02}"))
            case ["time"]:
                return f"{self._number(7, 22):02}:{self.rng.choice((0, 15, 30, 45)):02}"
            case ["email"]:
                return self._any("person").lower().replace(" ", ".") + "@example.com"
            case ["order"]:
                return f"ORD-{self._number(1000, 9999)}"
            case ["tracking"]:
                return f"ZX{self._number(10000, 99999)}"
            case ["phone"]:
                return f"555-0{self._number(100, 999)}"
        raise ValueError(f"unknown kind of value: {kind}")


class Writer:
    """Writes the rows of one split; tools and questions take turns so that all of them occur."""

    def __init__(self, seed: int, split: str) -> None:
        self.split = split
        self.rng = random.Random(f"{seed} {split}")
        self.values = Values(self.rng, split)
        self.decks: dict[str, list[str]] = {}

    def turn(self, deck: str, items: list[str]) -> str:
        """Take the next of the items in an order shuffled anew each time all have been taken."""
        left = self.decks.setdefault(deck, [])
        if not left:
            left.extend(self.rng.sample(items, len(items)))
        return left.pop()

    def tool(self) -> str:
        """Return the tool whose turn it is."""
        return self.turn("tools", list(TOOLS))

    def ask(self, name: str, several: bool = False) -> tuple[str, list[Call]]:
        """Write a question for a tool, and the calls that answer it."""
        questions = [text for text in TOOLS[name][2] if bool(re.search(r"_\d\}", text)) == several]
        template = self.turn(f"{name} {several}", questions)
        wanted = kinds(TOOLS[name][1])
        bound: dict[tuple[str, int], Any] = {}
        units = self.values.draw("units").split(">") if "{from_unit}" in template else []

        def fill(slot: re.Match[str]) -> str:
            key, call, value, text = slot[1], int(slot[2] or 1), slot[3], slot[4]
            if value:
                bound[key, call] = value == "true"
                return text
            if (key, call) not in bound:
                half = wanted[key].removeprefix("units.")
                bound[key, call] = units[int(half)] if half in ("0", "1") else self.values.draw(wanted[key])
            return str(bound[key, call])

        text = SLOT.sub(fill, template)
        calls = []
        for call in range(1, max(call for _, call in bound) + 1):
            arguments = {key: bound.get((key, call), bound.get((key, 1))) for key in wanted if (key, 1) in bound}
            calls.append({"arguments": arguments, "name": name})
        return text, calls

    def ask_two(self) -> tuple[str, list[Call]]:
        """Write a question that takes several calls."""
        several = [name for name, tool in TOOLS.items() if any("_2}" in text for text in tool[2])]
        if self.rng.random() < 0.75:
            return self.ask(self.turn("several", several), several=True)
        parts = [self.ask(self.tool()), self.ask(self.tool())]
        texts = [text if text[-1] in '.?!"' else f"{text}." for text, _ in parts]
        return self.rng.choice(JOINS).format(*texts), parts[0][1] + parts[1][1]

    def ask_without_tool(self) -> tuple[str, set[str]]:
        """Write a question, and say which tools must not be offered for it."""
        if self.rng.random() < 0.7:
            template = self.turn("no tool", list(NO_TOOL_QUESTIONS))
            return SLOT.sub(lambda slot: self.values.draw(slot[1]), template), set()
        name = self.tool()
        return self.ask(name)[0], {other for group in GROUPS if name in group for other in group}

    def offer(self, needed: list[str], banned: set[str]) -> list[str]:
        """Choose the tools a row offers: the needed ones among distractors."""
        size = max(len(needed), self.rng.choices((1, 2, 3), (45, 40, 15))[0])
        others = [name for name in TOOLS if name not in needed and name not in banned]
        offered = needed + self.rng.sample(others, size - len(needed))
        self.rng.shuffle(offered)
        return offered

    def polite(self, text: str) -> str:
        """Frame some of the questions with a greeting or thanks."""
        chance = self.rng.random()
        if chance < 0.12:
            return self.rng.choice(OPENINGS) + text
        if chance < 0.24:
            return text + ("" if text[-1] in '.?!"' else ".") + self.rng.choice(CLOSINGS)
        return text

    def think(self, calls: list[Call], offered: list[str]) -> str:
        """Write the thought before an answer: which tool fits, with which values."""
        said = [" and ".join(f"{key} {plain(value)}" for key, value in c["arguments"].items()) for c in calls]
        if not calls:
            names = " and ".join(offered)
            body = f"The offered tools are {names}. None of them fits here, so I answer without a call."
        elif len(calls) > 1:
            parts = (f"{call['name']} with {text}" for call, text in zip(calls, said, strict=True))
            body = "The question needs more than one call: " + ", then ".join(parts) + "."
        else:
            name = calls[0]["name"]
            purpose = TOOLS[name][0][0].lower() + TOOLS[name][0][1:]
            body = self.rng.choice(THOUGHTS).format(name=name, purpose=purpose, arguments=said[0])
        return f"<think>\n{body}\n</think>\n"

    def converse(self, category: str, literal: bool, flavour: int) -> tuple[list[Turn], list[str]]:
        """Write the turns of a row after the system's, and choose its tools."""
        if category == "multi_turn":
            return self.converse_long(literal, follow_up=flavour % 2 == 1)
        banned: set[str] = set()
        calls: list[Call] = []
        if category == "no_tool" or (category == "thinking" and self.split == "train" and flavour % 10 == 0):
            question, banned = self.ask_without_tool()
        elif category == "parallel" or (category == "thinking" and flavour % 4 == 1):
            question, calls = self.ask_two()
        else:
            question, calls = self.ask(self.tool())
        offered = self.offer(list(dict.fromkeys(call["name"] for call in calls)), banned)
        answer = render_calls(calls, literal) if calls else self.turn("answers", list(NO_TOOL_ANSWERS))
        if category == "thinking":
            answer = self.think(calls, offered) + answer
        return [("human", self.polite(question)), ("gpt", answer)], offered

    def converse_long(self, literal: bool, follow_up: bool) -> tuple[list[Turn], list[str]]:
        """Write a question, its call, the tool's response and an answer, perhaps a second question."""
        name = self.turn("results", list(RESULTS))
        question, calls = self.ask(name)
        key, kind, template = RESULTS[name]
        result = self.values.draw(kind)
        response = dump({"name": name, "content": {key: result}}, literal)
        turns = [
            ("human", self.polite(question)),
            ("gpt", render_calls(calls, literal)),
            ("tool", f"<tool_response>\n{response}\n</tool_response>"),
            ("gpt", template.format(result=result, **calls[0]["arguments"])),
        ]
        offered = self.offer([name], set())
        if follow_up:
            question, calls = self.ask(self.rng.choice(offered))
            turns += [("human", self.polite(question)), ("gpt", render_calls(calls, literal))]
        return turns, offered

    def rows(self) -> list[Row]:
        """Write all rows of the split."""
        plan = [(kind, i) for kind, count in ROWS[self.split].items() for i in range(count)]
        self.rng.shuffle(plan)
        rows: list[Row] = []
        seen: set[str] = set()
        for number, (category, flavour) in enumerate(plan, 1):
            literal = number % 2 == 1
            while True:
                self.values.used.clear()
                turns, offered = self.converse(category, literal, flavour)
                thought = re.search(r"<think>(.*)</think>", turns[1][1], re.S)
                if turns[0][1] not in seen and (not thought or 12 <= len(thought[1].split()) <= 30):
                    break
            seen.add(turns[0][1])
            tools = [{"type": "function", "function": schema(name)} for name in offered]
            turns.insert(0, ("system", SYSTEM % dump(tools, literal)))
            rows.append({
                "id": f"quickstart_{self.split}_{number:04}",
                "category": category,
                "conversations": [{"from": role, "value": value} for role, value in turns],
                "tools": json.dumps(tools, separators=(",", ":")),
            })  # fmt: skip
        return rows


def dump(value: Any, literal: bool) -> str:
    """Write a value as a Python literal or as JSON."""
    return repr(value) if literal else json.dumps(value)


def plain(value: Any) -> str:
    """Write a value in prose."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def render_calls(calls: list[Call], literal: bool) -> str:
    """Write calls as Hermes does."""
    return "\n".join(f"<tool_call>\n{dump(call, literal)}\n</tool_call>" for call in calls)


def answers_of(row: Row) -> list[Call]:
    """Read the calls of a row back from its text."""
    text = "\n".join(turn["value"] for turn in row["conversations"] if turn["from"] == "gpt")
    found = re.findall(r"<tool_call>\n(.*)\n</tool_call>", text)
    return [ast.literal_eval(call) if call.startswith("{'") else json.loads(call) for call in found]


def copied_values(row: Row) -> set[str]:
    """Return the values of a row's calls, less enums and booleans, which must stand in its questions."""
    asked = " ".join(turn["value"] for turn in row["conversations"] if turn["from"] == "human")
    schemas = {tool["function"]["name"]: tool["function"] for tool in json.loads(row["tools"])}
    values = set()
    for call in answers_of(row):
        properties = schemas[call["name"]]["parameters"]["properties"]
        for key, value in call["arguments"].items():
            if "enum" in properties[key] or isinstance(value, bool):
                continue
            assert re.search(rf"(?<![\w.]){re.escape(str(value))}(?!\w|\.\d)", asked), (row["id"], key, value)
            values.add(str(value).lower())
    return values


def check(splits: dict[str, list[Row]]) -> None:
    """Assert what the data promises: distinct rows, shared tools, values that train does not give away."""
    questions = [row["conversations"][1]["value"] for rows in splits.values() for row in rows]
    assert len(set(questions)) == len(questions)
    values = {split: set().union(*map(copied_values, rows)) for split, rows in splits.items()}
    assert not values["train"] & values["validation"], values["train"] & values["validation"]
    for split, rows in splits.items():
        assert Counter(row["category"] for row in rows) == ROWS[split]
        assert len({call["name"] for row in rows for call in answers_of(row)}) >= 30
    validation = splits["validation"]
    silent = [row for row in validation if not answers_of(row)]
    assert all(row["category"] == "no_tool" for row in silent)
    assert len(silent) <= 0.06 * len(validation)


def tokens(row: Row) -> float:
    """Estimate how many Gemma tokens a row takes: its tools as compact JSON, and its turns."""
    tools = [json.dumps(tool["function"], separators=(",", ":")) for tool in json.loads(row["tools"])]
    turns = [turn["value"] for turn in row["conversations"][1:]]
    return len("".join(tools + turns)) / CHARS_PER_TOKEN


def main() -> None:
    """Write both splits, check them and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "data" / "quickstart")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    splits = {split: Writer(args.seed, split).rows() for split in ROWS}
    check(splits)
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{'split':<12}{'category':<12}{'rows':>5}{'calls':>7}{'tools':>7}{'chars':>7}{'tokens':>8}")
    for split, rows in splits.items():
        lines = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
        (args.out / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        for category in (*ROWS[split], "all"):
            some = [row for row in rows if category in (row["category"], "all")]
            names = [call["name"] for row in some for call in answers_of(row)]
            size = [tokens(row) for row in some]
            mean = statistics.mean(size)
            print(f"{split:<12}{category:<12}{len(some):>5}{len(names):>7}{len(set(names)):>7}", end="")
            print(f"{mean * CHARS_PER_TOKEN:>7.0f}{mean:>8.0f}")
        print(f"{split}: {sum(map(tokens, rows)):.0f} tokens, {len(lines)} bytes")


if __name__ == "__main__":
    main()
