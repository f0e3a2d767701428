"""FunctionGemma's and Gemma 4's renderings of conversations, written down from their documentation in plain Python."""

from collections.abc import Iterator
from typing import Any

MARKS = {
    "functiongemma": {
        "start": "<start_of_turn>", "end": "<end_of_turn>\n", "system": "developer", "quote": "<escape>",
        "tool": ("<start_function_declaration>", "<end_function_declaration>"),
        "call": ("<start_function_call>", "<end_function_call>"),
        "response": ("<start_function_response>", "<end_function_response>"),
    },
    "gemma4": {
        "start": "<|turn>", "end": "<turn|>\n", "system": "system", "quote": '<|"|>',
        "tool": ("<|tool>", "<tool|>"),
        "call": ("<|tool_call>", "<tool_call|>"),
        "response": ("<|tool_response>", "<tool_response|>"),
    },
}  # fmt: skip


def reference(name: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]], asks: bool) -> str:
    """The text of a conversation; `asks` opens a turn of the model at its end."""
    return "".join(Writer(name).conversation(messages, tools, asks))


class Writer:
    def __init__(self, name: str):
        self.name = name
        self.marks: dict[str, Any] = MARKS[name]

    def value(self, item: Any, quote_keys: bool = False) -> str:
        if isinstance(item, str):
            return self.marks["quote"] + item + self.marks["quote"]
        if isinstance(item, dict):
            return "{" + self.members(item, quote_keys) + "}"
        if isinstance(item, list):
            return "[" + ",".join(self.value(one, quote_keys) for one in item) + "]"
        return {"True": "true", "False": "false", "None": "null"}.get(repr(item), repr(item))

    def members(self, item: dict[str, Any], quote_keys: bool = False) -> str:
        keys = sorted(item, key=str.lower)
        return ",".join(f"{self.value(key) if quote_keys else key}:{self.value(item[key], quote_keys)}" for key in keys)

    def properties(self, schemas: dict[str, Any]) -> str:
        names = sorted(schemas, key=str.lower)
        return "{" + ",".join(f"{name}:{{{','.join(self.schema(schemas[name]))}}}" for name in names) + "}"

    def schema(self, schema: dict[str, Any]) -> Iterator[str]:
        kind = schema["type"].upper()
        if self.name == "functiongemma" or schema.get("description"):
            yield "description:" + self.value(schema.get("description", ""))
        if kind == "STRING" and schema.get("enum"):
            yield "enum:" + self.value(schema["enum"])
        if kind == "ARRAY" and schema.get("items"):
            item = schema["items"]
            texts = {key: self.value(item[key], True) for key in item} | {"type": self.value(item["type"].upper())}
            texts |= {"properties": self.properties(item["properties"])} if "properties" in item else {}
            yield "items:{" + ",".join(f"{key}:{texts[key]}" for key in sorted(texts)) + "}"
        if schema.get("nullable"):
            yield "nullable:true"
        if kind == "OBJECT":
            yield "properties:" + self.properties(schema.get("properties", {}))
            yield from ["required:" + self.value(schema["required"])] if schema.get("required") else []
        yield "type:" + self.value(kind)

    def declaration(self, function: dict[str, Any]) -> str:
        text = f"declaration:{function['name']}{{description:{self.value(function['description'])}"
        if parameters := function["parameters"]:
            required = f"required:{self.value(parameters['required'])}," if parameters.get("required") else ""
            properties = self.properties(parameters["properties"])
            text += f",parameters:{{properties:{properties},{required}type:{self.value('OBJECT')}}}"
        return self.marks["tool"][0] + text + "}" + self.marks["tool"][1]

    def conversation(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], asks: bool) -> Iterator[str]:
        start, end = self.marks["start"], self.marks["end"]
        yield "<bos>"
        if messages[0]["role"] == "system" or tools:
            system = messages[0]["content"].strip() if messages[0]["role"] == "system" else ""
            yield start + self.marks["system"] + "\n" + system
            yield from (self.declaration(tool["function"]) for tool in tools)
            yield end
        continues = False
        for message in messages:
            if message["role"] == "user":
                yield start + "user\n" + message["content"].strip() + end
            elif message["role"] == "assistant":
                yield "" if continues else start + "model\n"
                yield from self.turn(message)
                continues = bool(message.get("tool_calls"))
                yield "" if continues else end
            elif message["role"] == "tool":
                yield self.response(message["name"], message["content"])
        if messages[-1].get("tool_calls"):
            yield self.marks["response"][0]
        elif asks and not continues:
            yield start + "model\n"

    def turn(self, message: dict[str, Any]) -> Iterator[str]:
        if "reasoning_content" in message:
            yield "<|channel>thought\n" + message["reasoning_content"] + "\n<channel|>"
        yield message["content"].strip()
        for call in message.get("tool_calls", ()):
            function = call["function"]
            body = f"call:{function['name']}{{{self.members(function['arguments'])}}}"
            yield self.marks["call"][0] + body + self.marks["call"][1]

    def response(self, name: str, content: Any) -> str:
        result = self.members(content) if isinstance(content, dict) else "value:" + self.value(content)
        return self.marks["response"][0] + f"response:{name}{{{result}}}" + self.marks["response"][1]
