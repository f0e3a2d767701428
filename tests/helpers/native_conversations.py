"""Random conversations with tools, and small tokenizers with the tokens of the native tool formats."""

import random
from typing import Any

from tests.helpers.tokenizers import tokenizer_of
from transformers import PreTrainedTokenizerFast

from fc_lightning.conversation.native_calls import FUNCTIONGEMMA, GEMMA4, NativeSyntax

SYNTAXES = {"functiongemma": FUNCTIONGEMMA, "gemma4": GEMMA4}
_WORDS = [
    "Oslo",
    "a b",
    "São",
    "x: {y}",
    "1,2",
    "[z]",
    'say "hi"',
    "line\nbreak",
    "ß",
    "it's",
    "<b>",
    "",
    "true",
    " pad ",
]
_KEYS = ["city", "Days", "unit", "a1", "note", "_x", "type", "naïve"]


def native_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A small tokenizer with the turn markers and tags of a native format."""
    syntax = SYNTAXES[name]
    tokenizer = tokenizer_of("gemma" if name == "functiongemma" else "gemma4", "<bos>", "<eos>")
    channel = ["<|channel>", "<channel|>", "<|think|>"] if name == "gemma4" else []
    tokenizer.add_special_tokens({"additional_special_tokens": [*syntax.tokens, *channel]}, False)
    return tokenizer


class Generator:
    """Draws messages and tools in OpenAI's shape that the official templates render without losing anything."""

    def __init__(self, seed: int, syntax: NativeSyntax):
        self.random = random.Random(seed)
        self.syntax = syntax

    def text(self, num_words: int = 3) -> str:
        return " ".join(self.random.choice(_WORDS) for _ in range(self.random.randint(1, num_words)))

    def some(self, make: Any, most: int, least: int = 0) -> list[Any]:
        return [make() for _ in range(self.random.randint(least, most))]

    def value(self, depth: int = 2) -> Any:
        kinds = [self.text, lambda: self.random.randint(-9, 9**9), self.random.random, lambda: True, lambda: False]
        if self.syntax is GEMMA4:  # FunctionGemma's template writes Python's None, which no reader knows
            kinds.append(lambda: None)
        if depth:
            kinds += [lambda: self.some(lambda: self.value(depth - 1), 3), lambda: self.object(depth - 1)]
        return self.random.choice(kinds)()

    def object(self, depth: int = 2) -> dict[str, Any]:
        keys = self.random.sample(_KEYS, self.random.randint(0, 3))
        return {key: self.value(depth) for key in keys}

    def schema(self, depth: int = 2) -> dict[str, Any]:
        kind = self.random.choice(["string", "integer", "number", "boolean", *(["array", "object"] if depth else [])])
        schema: dict[str, Any] = {"type": kind}
        if self.syntax.describes_all or self.random.random() < 0.7:
            schema["description"] = self.text()
        if kind == "string" and self.random.random() < 0.4:
            schema["enum"] = self.some(self.text, 3, 1)
        if self.syntax is GEMMA4 and self.random.random() < 0.2:
            schema["nullable"] = True
        if kind == "array" and self.random.random() < 0.8:
            schema["items"] = self.schema(depth - 1)
        if kind == "object":
            schema |= self.properties(depth - 1)
        return schema

    def properties(self, depth: int) -> dict[str, Any]:
        # FunctionGemma's official template leaves parameters called `type` out.
        keys = [key for key in _KEYS if key != "type"] if self.syntax is FUNCTIONGEMMA else _KEYS
        names = self.random.sample(keys, self.random.randint(1, 3))
        required = [name for name in names if self.random.random() < 0.5]
        return {
            "properties": {name: self.schema(depth) for name in names},
            **({"required": required} if required else {}),
        }

    def tool(self) -> dict[str, Any]:
        parameters = {"type": "object", **self.properties(2)} if self.random.random() < 0.9 else {}
        name = self.random.choice(["get_weather", "math.add", "f", "A-b"])
        return {"type": "function", "function": {"name": name, "description": self.text(), "parameters": parameters}}

    def calls(self) -> list[dict[str, Any]]:
        functions = self.some(lambda: {"name": self.random.choice(["f", "get_x"]), "arguments": self.object()}, 3, 1)
        return [
            {"id": f"call_{number}", "type": "function", "function": function}
            for number, function in enumerate(functions)
        ]

    def round(self, is_last: bool) -> list[dict[str, Any]]:
        """A question, calls with their responses, and an answer."""
        messages: list[dict[str, Any]] = [{"role": "user", "content": self.text()}]
        for _ in range(self.random.randint(0, 2)):
            calls = self.calls()
            messages.append({"role": "assistant", "content": "", "tool_calls": calls, **self.reasoning(is_last)})
            for call in calls:
                is_object = self.syntax is FUNCTIONGEMMA and self.random.random() < 0.3  # Gemma 4 knows text alone
                content = self.object() if is_object else self.text() + "."
                name = call["function"]["name"]
                messages.append({"role": "tool", "tool_call_id": call["id"], "name": name, "content": content or "."})
        messages.append({"role": "assistant", "content": self.text() + ".", **self.reasoning(is_last)})
        return messages

    def reasoning(self, is_last: bool) -> dict[str, str]:
        """The official template drops reasoning before the last question, and knows none for FunctionGemma."""
        wanted = is_last and self.syntax is GEMMA4 and self.random.random() < 0.5
        return {"reasoning_content": (self.text() + " so").strip()} if wanted else {}

    def conversation(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]], bool]:
        """Messages, tools, and whether the model is to answer next."""
        num_rounds = self.random.randint(1, 3)
        messages = [{"role": "system", "content": self.text()}] if self.random.random() < 0.5 else []
        for number in range(num_rounds):
            messages += self.round(number == num_rounds - 1)
        asks = self.random.random() < 0.5
        # Before the answer, or, for a few, after calls that have no response yet.
        end = len(messages) - 1 if asks else len(messages)
        tools = self.some(self.tool, 3)
        return messages[:end], tools, asks
