"""Every function that matches patterns in texts of rows and models takes linear time, whatever the text is."""

import time
from contextlib import suppress

import pytest

from fc_lightning.commands.distill import _TAGS
from fc_lightning.conversation.parsing import parse_turn
from fc_lightning.conversation.value_matching import SearchableText, words
from fc_lightning.data.formats import RowError, read_row
from fc_lightning.utils.html import markdown_table, table
from fc_lightning.utils.secrets import redact, redact_arguments

LENGTH = 100_000  # characters: quadratic time is minutes, linear time is well under a second
UNITS = [
    *(" ", "\n", "a", "1", "<", "{", "[", '"', "'", "\\", ".", ",", "-", "_", "=", ":", "\u00a0", "😀"),
    *(
        "1,111",
        ",111",
        "1.1",
        "a.a.",
        "a-a_",
        "://",
        "://a@",
        "?key=",
        "&token=a",
        "Bearer ",
        "sk-",
        "hf_",
        "api_key",
        "x=",
    ),
    *(
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<tools>",
        "</tools>",
        "<schema>",
        "{'a': ",
        '{"name": "f", ',
    ),
    *(
        "USER:",
        "\n\nUSER:",
        "ASSISTANT: ",
        "<functioncall> ",
        '{"name": "f", "arguments": \'',
        "\n\nASSISTANT: <functioncall>{",
    ),
    *(
        "Here are the available tools:",
        "After calling & executing the functions, ",
        "<tools> </tools> ",
        "no sentence ",
    ),
    *(
        "For each function call return a json object with: {",
        "Example: <tool_call> {",
        "json schema for each tool call {{",
    ),
]


def read(row) -> None:
    with suppress(RowError):  # it was read to its end, and refused
        read_row(row)


FUNCTIONS = {
    "lenient turn": parse_turn,
    "strict turn": lambda text: parse_turn(text, strict=True),
    "searchable text": lambda text: SearchableText(text).contains_part_of(text[:100]),
    "words": words,
    "redact": redact,
    "arguments": lambda text: redact_arguments([text, f"--api_key={text}"]),
    "table": lambda text: (table(["a"], [[text]]), markdown_table(["a"], [[text]])),
    "tags": lambda text: _TAGS.sub("", text),
    "hermes": lambda text: read(
        {"conversations": [{"from": "system", "value": text}, {"from": "gpt", "value": text}], "tools": "[]"}
    ),
    "glaive": lambda text: read({"system": text, "chat": f"USER: a\n\n\nASSISTANT: {text}"}),
    "openai": lambda text: read(
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_time_is_linear(name):
    slow = {}
    for unit in UNITS:
        for text in (unit * (LENGTH // len(unit)), f"x{unit * (LENGTH // len(unit))}x"):
            start = time.process_time()
            FUNCTIONS[name](text)
            slow[unit] = max(slow.get(unit, 0), time.process_time() - start)
    assert {unit: seconds for unit, seconds in slow.items() if seconds > 3} == {}
