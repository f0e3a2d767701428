"""An independent reading of the rules of vLLM's hermes parser."""

import json
import re


def hermes(text: str) -> list[dict] | None:
    """The calls that vLLM's hermes parser delivers for a text; None if it gives up and delivers the text alone."""
    bodies = [
        closed or rest for closed, rest in re.findall(r"<tool_call>(.*?)</tool_call>|<tool_call>(.*)", text, re.S)
    ]
    try:
        objects = [json.loads(body) for body in bodies]
        calls = [{"name": each["name"], "arguments": each["arguments"]} for each in objects]
        json.dumps(calls, ensure_ascii=False).encode()  # the response
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return calls if all(isinstance(call["name"], str) for call in calls) else None
