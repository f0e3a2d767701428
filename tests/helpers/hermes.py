"""An independent reading of the rules of vLLM's hermes parser."""

import json
import re


def hermes(text: str) -> list[dict] | None:
    """The calls of a text by the rules of vLLM's hermes parser; None where it gives up on all of them."""
    found = re.findall(r"<tool_call>(.*?)</tool_call>|<tool_call>(.*)", text, re.DOTALL)
    try:
        loaded = [json.loads(closed or rest) for closed, rest in found]
        return [{"name": call["name"], "arguments": call["arguments"]} for call in loaded]
    except (ValueError, KeyError, TypeError):
        return None
