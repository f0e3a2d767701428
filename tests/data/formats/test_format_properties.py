"""Generated conversations: written in each format that can express them and read back, they are the same."""

import json

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fc_lightning.conversation.types import Conversation, Message, Tool, ToolCall
from fc_lightning.data.formats import RowError, read_row

names = st.sampled_from(["ferry", "tide_height", "sea.state", "book-berth"])
words = st.sampled_from(
    ["Skye", "9:40", "a, b", 'say "yes"', "it's", "Köln 🙂", "x\ny", "{1}", "(2)", "[3]", "<b>", "null", "a=1"]
)
texts = st.lists(words, min_size=1, max_size=4).map(" ".join)
leaves = st.integers(-1000, 1000) | st.floats(-5, 5).map(lambda x: round(x, 3)) | st.booleans() | words
arguments = st.dictionaries(
    st.sampled_from(["port", "day", "limit", "tags"]),
    leaves | st.lists(leaves, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), leaves, max_size=2),
    max_size=3,
)
calls = st.lists(st.builds(ToolCall, names, arguments), min_size=1, max_size=3)
TOOLS = tuple(
    Tool(name, f"The {name}", {"type": "object", "properties": {key: {} for key in ("port", "day", "limit", "tags")}})
    for name in ("ferry", "tide_height", "sea.state", "book-berth")
)


@st.composite
def conversations(draw, reasoning=True, system=True, text_with_calls=True):
    """A conversation of one or two exchanges, with or without calls."""
    messages = [Message("system", draw(texts))] if system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 2))):
        messages.append(Message("user", draw(texts)))
        if draw(st.booleans()):
            made = tuple(draw(calls))
            said = draw(texts) if text_with_calls and draw(st.booleans()) else ""
            thought = draw(texts) if reasoning and draw(st.booleans()) else None
            messages.append(Message("assistant", said, thought, made))
            messages += [Message("tool", draw(texts)) for _ in made]
        thought = draw(texts) if reasoning and draw(st.booleans()) else None
        messages.append(Message("assistant", draw(texts), thought))
    return Conversation("row", tuple(messages), TOOLS)


def openai_tools():
    return [tool.to_openai() for tool in TOOLS]


def bare_tools():
    return [tool.to_openai()["function"] for tool in TOOLS]


def think(message):
    return f"<think>\n{message.reasoning}\n</think>\n" if message.reasoning else ""


def write_openai(conversation):
    out, ids = [], iter(range(100))
    for message in conversation.messages:
        turn = {"role": message.role, "content": message.content or None}
        if message.reasoning:
            turn["reasoning_content"] = message.reasoning
        if message.tool_calls:
            waiting = [f"c{next(ids)}" for _ in message.tool_calls]
            turn["tool_calls"] = [
                {"id": id, "type": "function", "function": {"name": call.name, "arguments": json.dumps(call.arguments)}}
                for id, call in zip(waiting, message.tool_calls, strict=True)
            ]
        elif message.role == "tool":
            turn["tool_call_id"] = waiting.pop(0)
        out.append(turn)
    return {"messages": out, "tools": openai_tools()}


def write_openai_as_text(conversation):
    return {key: json.dumps(value) for key, value in write_openai(conversation).items()}


def write_openai_reversed_results(conversation):
    row = write_openai(conversation)
    turns, index = row["messages"], 0
    while index < len(turns):
        end = index
        while end < len(turns) and turns[end]["role"] == "tool":
            end += 1
        turns[index:end] = turns[index:end][::-1]
        index = max(end, index + 1)
    return row


def write_langchain(conversation):
    row = write_openai(conversation)
    types = {"user": "human", "assistant": "ai"}
    for turn in row["messages"]:
        turn["type"] = types.get(turn["role"], turn.pop("role"))
        turn.pop("role", None)
        turn["content"] = turn["content"] or ""
        if "tool_calls" in turn:
            turn["tool_calls"] = [
                {"name": one["function"]["name"], "args": json.loads(one["function"]["arguments"]), "id": one["id"]}
                for one in turn["tool_calls"]
            ]
    return row


def write_responses(conversation):
    items = []
    for turn in write_openai(conversation)["messages"]:
        if turn.get("reasoning_content"):
            items.append(
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": turn["reasoning_content"]}]}
            )
        if turn["role"] == "tool":
            items.append({"type": "function_call_output", "call_id": turn["tool_call_id"], "output": turn["content"]})
        elif turn["content"]:
            items.append({"role": turn["role"], "content": [{"type": "input_text", "text": turn["content"]}]})
        items += [
            {"type": "function_call", "call_id": one["id"], **one["function"]} for one in turn.get("tool_calls", [])
        ]
    return {"input": items, "tools": [{"type": "function", **tool} for tool in bare_tools()]}


def write_anthropic(conversation):
    turns, system = [], None
    for turn in write_openai(conversation)["messages"]:
        if turn["role"] == "system":
            system = turn["content"]
        elif turn["role"] == "tool":
            block = {"type": "tool_result", "tool_use_id": turn["tool_call_id"], "content": turn["content"]}
            if turns[-1]["role"] == "user":
                turns[-1]["content"].append(block)
            else:
                turns.append({"role": "user", "content": [block]})
        else:
            blocks = (
                [{"type": "thinking", "thinking": turn["reasoning_content"]}] if "reasoning_content" in turn else []
            )
            blocks += [{"type": "text", "text": turn["content"]}] if turn["content"] else []
            for one in turn.get("tool_calls", []):
                given = json.loads(one["function"]["arguments"])
                blocks.append({"type": "tool_use", "id": one["id"], "name": one["function"]["name"], "input": given})
            turns.append({"role": turn["role"], "content": blocks})
    tools = [{"name": t.name, "description": t.description, "input_schema": t.parameters} for t in TOOLS]
    return {"messages": turns, "tools": tools, "system": system or "Be brief."}


def write_gemini(conversation):
    turns, system, names = [], None, []
    for message in conversation.messages:
        if message.role == "system":
            system = {"parts": [{"text": message.content}]}
        elif message.role == "tool":
            part = {"functionResponse": {"name": names.pop(0), "response": {"text": message.content}}}
            turns.append({"role": "user", "parts": [part]})
        else:
            parts = [{"text": message.reasoning, "thought": True}] if message.reasoning else []
            parts += [{"text": message.content}] if message.content else []
            parts += [{"functionCall": {"name": c.name, "args": c.arguments}} for c in message.tool_calls]
            names = [call.name for call in message.tool_calls]
            turns.append({"role": "model" if message.role == "assistant" else "user", "parts": parts})
    row = {"contents": turns, "tools": [{"functionDeclarations": bare_tools()}]}
    return row | ({"systemInstruction": system} if system else {})


def write_turns(conversation, calls, role="assistant", result="tool", keys=("from", "value")):
    """Turns of text; ``calls`` writes the calls of one."""
    turns = []
    for message in conversation.messages:
        text = message.content
        if message.tool_calls:
            text = think(message) + (f"{message.content}\n" if message.content else "") + calls(message.tool_calls)
        elif message.role == "assistant":
            text = think(message) + message.content
        roles = {"assistant": role, "tool": result, "user": "user", "system": "system"}
        turns.append(dict(zip(keys, (roles[message.role], text), strict=True)))
    return turns


def tagged(calls):
    return "\n".join(f"<tool_call>\n{json.dumps(call.to_dict())}\n</tool_call>" for call in calls)


def python_text(calls):
    written = [f"{c.name}({', '.join(f'{key}={value!r}' for key, value in c.arguments.items())})" for c in calls]
    return f"[{', '.join(written)}]"


def write_hermes(conversation):
    return {"conversations": write_turns(conversation, tagged, "gpt"), "tools": json.dumps(openai_tools())}


def write_hermes_messages(conversation):
    return {
        "messages": write_turns(conversation, tagged, keys=("role", "content")),
        "tools": json.dumps(openai_tools()),
    }


def write_mistral(conversation):
    def calls(made):
        return f"[TOOL_CALLS] {json.dumps([call.to_dict() for call in made])}"

    return {"messages": write_turns(conversation, calls, keys=("role", "content")), "tools": openai_tools()}


def write_toolace(conversation):
    return {
        "conversations": write_turns(conversation, python_text),
        "system": f"These are the functions:\n{json.dumps(bare_tools())}",
    }


def write_sharegpt(conversation):
    turns = []
    for message in conversation.messages:
        if message.role == "assistant":
            if message.content or message.reasoning:
                turns.append({"from": "gpt", "value": think(message) + message.content})
            turns += [{"from": "function_call", "value": json.dumps(c.to_dict())} for c in message.tool_calls]
        elif message.role != "system":
            role = {"user": "human", "tool": "observation"}[message.role]
            turns.append({"from": role, "value": message.content})
    system = next((message.content for message in conversation.messages if message.role == "system"), "")
    return {"conversations": turns, "tools": json.dumps(bare_tools()), "system": system}


def write_swift(conversation):
    roles = {"human": "user", "gpt": "assistant", "observation": "tool_response", "function_call": "tool_call"}
    row = write_sharegpt(conversation)
    turns = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in row.pop("conversations")]
    return {**row, "messages": turns}


def write_bedrock(conversation):
    row = write_anthropic(conversation)
    for turn in row["messages"]:
        turn["content"] = [bedrock_block(block) for block in turn["content"]]
    specs = [{"toolSpec": {**tool, "inputSchema": {"json": tool["input_schema"]}}} for tool in row.pop("tools")]
    for spec in specs:
        del spec["toolSpec"]["input_schema"]
    return {**row, "system": [{"text": row["system"]}], "toolConfig": {"tools": specs}}


def bedrock_block(block):
    if block["type"] == "tool_use":
        return {"toolUse": {"toolUseId": block["id"], "name": block["name"], "input": block["input"]}}
    if block["type"] == "tool_result":
        return {"toolResult": {"toolUseId": block["tool_use_id"], "content": [{"text": block["content"]}]}}
    if block["type"] == "thinking":
        return {"reasoningContent": {"reasoningText": {"text": block["thinking"]}}}
    return {"text": block["text"]}


def write_glm(conversation):
    row = write_openai(conversation)
    if row["messages"][0]["role"] != "system":
        row["messages"].insert(0, {"role": "system", "content": ""})
    row["messages"][0]["tools"] = row.pop("tools")
    return row


def write_trl(conversation):
    row = write_openai(conversation)
    turns = row.pop("messages")
    return {**row, "prompt": turns[:-1], "completion": turns[-1:]}


def write_preference(conversation):
    row = write_trl(conversation)
    return {**row, "chosen": row.pop("completion"), "rejected": [{"role": "assistant", "content": "Neither."}]}


def write_api_log(conversation):
    row = write_openai(conversation)
    last = row["messages"].pop()
    return {"request": row, "response": {"choices": [{"message": last}]}}


def write_chatml(conversation):
    turns = write_turns(conversation, tagged)
    text = "".join(f"<|im_start|>{turn['from']}\n{turn['value']}<|im_end|>\n" for turn in turns)
    return {"text": text, "tools": openai_tools()}


def write_mistral_text(conversation):
    text, ids = f"<s>[AVAILABLE_TOOLS] {json.dumps(openai_tools())}[/AVAILABLE_TOOLS]", []
    for message in conversation.messages:
        if message.role == "tool":
            result = json.dumps({"content": message.content, "call_id": ids.pop(0)})
            text += f"[TOOL_RESULTS] {result}[/TOOL_RESULTS]"
        elif message.role == "assistant":
            ids = [f"id{number}" for number in range(len(message.tool_calls))]
            made = [{**call.to_dict(), "id": id} for call, id in zip(message.tool_calls, ids, strict=True)]
            text += think(message) + message.content + (f"[TOOL_CALLS] {json.dumps(made)}" if made else "") + "</s>"
        else:
            kind = "INST" if message.role == "user" else "SYSTEM_PROMPT"
            text += f"[{kind}] {message.content} [/{kind}]"
    return {"text": text}


def write_glaive(conversation):
    speakers, parts = {"user": "USER", "tool": "FUNCTION RESPONSE", "assistant": "ASSISTANT"}, []
    for message in conversation.messages:
        text = think(message) + message.content
        for call in message.tool_calls:
            text += f" <functioncall> {json.dumps(call.to_dict())}"
        parts.append(f"{speakers[message.role]}: {text}" + (" <|endoftext|>" if message.role == "assistant" else ""))
    functions = "\n".join(map(json.dumps, bare_tools()))
    return {"system": f"SYSTEM: Use them if required -\n{functions}", "chat": "\n\n\n".join(parts)}


def write_xlam(conversation):
    question, turn = conversation.messages
    answers = json.dumps([call.to_dict() for call in turn.tool_calls])
    return {"query": question.content, "tools": json.dumps(bare_tools()), "answers": answers}


def write_columns(conversation):
    row = write_xlam(conversation)
    thought = conversation.messages[1].reasoning or ""
    return {**row, "tool_call": row.pop("answers"), "thoughts": thought}


def accept_only(value):
    """BFCL's notation of an object, and of the objects in a list."""
    if isinstance(value, list):
        return [accept_only(item) if isinstance(item, dict) else item for item in value]
    return {key: [item] for key, item in value.items()} if isinstance(value, dict) else value


def write_bfcl(conversation):
    question, turn = conversation.messages
    accepted = [
        {call.name: {key: [accept_only(value)] for key, value in call.arguments.items()}} for call in turn.tool_calls
    ]
    return {
        "question": [[{"role": "user", "content": question.content}]],
        "function": bare_tools(),
        "ground_truth": accepted,
    }


def write_react(conversation):
    question, turn, result, answer = conversation.messages
    (call,) = turn.tool_calls
    action = f"Action: {call.name}\nAction Input: {json.dumps(call.arguments)}"
    final = json.dumps({"return_type": "give_answer", "final_answer": answer.content})
    turns = [
        ("user", f"{question.content}\nBegin!"),
        ("assistant", f"Thought: {turn.reasoning or ''}\n{action}"),
        ("function", result.content),
        ("assistant", f"Thought: {answer.reasoning or ''}\nAction: Finish\nAction Input: {final}"),
    ]
    return {"conversations": [{"from": role, "value": text} for role, text in turns], "tools": bare_tools()}


def write_alpaca(conversation):
    pairs = [
        [question.content, think(answer) + answer.content]
        for question, answer in zip(conversation.messages[::2], conversation.messages[1::2], strict=True)
    ]
    return {"instruction": pairs[-1][0], "output": pairs[-1][1], "history": pairs[:-1], "tools": bare_tools()}


def single(reasoning):
    """A question and calls."""
    thoughts = st.none() | texts if reasoning else st.none()
    turns = st.builds(lambda made, thought: Message("assistant", "", thought, tuple(made)), calls, thoughts)
    questions = st.builds(Message, st.just("user"), texts)
    return st.builds(lambda *messages: Conversation("row", messages, TOOLS), questions, turns)


def has_calls(conversation):
    return any(message.tool_calls for message in conversation.messages)


def has_one_call_per_turn(conversation):
    return all(len(message.tool_calls) < 2 for message in conversation.messages)


ALL = conversations()
NO_SYSTEM = conversations(system=False)
NO_TEXT_WITH_CALLS = conversations(system=False, text_with_calls=False)
# Some formats can write only a few of the generated conversations.
UNCHECKED = [HealthCheck.too_slow, HealthCheck.filter_too_much]
WRITERS = {
    "openai": (write_openai, ALL),
    "openai as text": (write_openai_as_text, ALL),
    "openai, results reversed": (write_openai_reversed_results, ALL),
    "api log": (write_api_log, ALL),
    "langchain": (write_langchain, ALL),
    "anthropic": (write_anthropic, ALL),
    "bedrock": (write_bedrock, ALL),
    "gemini": (write_gemini, ALL),
    "glm": (write_glm, ALL),
    "hermes": (write_hermes, ALL),
    "hermes in messages": (write_hermes_messages, ALL),
    "mistral": (write_mistral, ALL),
    "mistral text": (write_mistral_text, ALL),
    "chatml text": (write_chatml, ALL),
    "toolace": (write_toolace, NO_TEXT_WITH_CALLS),
    "sharegpt": (write_sharegpt, ALL),
    "swift": (write_swift, ALL),
    "responses": (write_responses, ALL.filter(has_calls)),
    "trl": (write_trl, ALL),
    "preference": (write_preference, ALL),
    "glaive": (write_glaive, NO_SYSTEM.filter(has_one_call_per_turn)),
    "xlam": (write_xlam, single(reasoning=False)),
    "columns": (write_columns, single(reasoning=True)),
    "bfcl": (write_bfcl, single(reasoning=False)),
    "react": (
        write_react,
        NO_TEXT_WITH_CALLS.filter(lambda one: len(one.messages) == 4 and len(one.messages[1].tool_calls) == 1),
    ),
    "alpaca": (write_alpaca, NO_SYSTEM.filter(lambda one: not has_calls(one))),
}


def expected(name, conversation):
    messages = list(conversation.messages)
    if name == "gemini":
        messages = [
            Message("tool", json.dumps({"text": m.content}, ensure_ascii=False)) if m.role == "tool" else m
            for m in messages
        ]
    if name in ("anthropic", "bedrock") and messages[0].role != "system":
        messages.insert(0, Message("system", "Be brief."))
    return tuple(messages)


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=30, deadline=None, suppress_health_check=UNCHECKED)
@given(data=st.data())
def test_a_conversation_that_is_written_and_read_is_the_same(name, data):
    write, strategy = WRITERS[name]
    conversation = data.draw(strategy)
    row = write(conversation)
    read = read_row(json.loads(json.dumps(row)), default_id="row")
    wanted = expected(name, conversation)
    assert read.defects == ()
    assert read.messages == wanted
    assert read.tools == TOOLS


def mutations(row, draw):
    """A row in which one value, somewhere, is cut, replaced or removed."""
    text = json.dumps(row)
    kind = draw(st.sampled_from(["cut", "null", "number", "drop"]))
    paths = list(walk(row))
    path = draw(st.sampled_from(paths))
    mutated = json.loads(text)
    holder = mutated
    for key in path[:-1]:
        holder = holder[key]
    if kind == "drop":
        del holder[path[-1]]
    elif kind == "cut" and isinstance(holder[path[-1]], str):
        holder[path[-1]] = holder[path[-1]][: len(holder[path[-1]]) // 2]
    else:
        holder[path[-1]] = None if kind == "null" else 7
    return mutated


def walk(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from walk(item, (*path, key))


@pytest.mark.parametrize("name", ["openai", "anthropic", "gemini", "hermes", "sharegpt", "langchain"])
@settings(max_examples=30, deadline=None, suppress_health_check=UNCHECKED)
@given(data=st.data())
def test_a_mutated_row_is_refused_or_read_without_an_exception(name, data):
    write, strategy = WRITERS[name]
    row = mutations(json.loads(json.dumps(write(data.draw(strategy)))), data.draw)
    try:
        conversation = read_row(row)
    except RowError:
        return
    for message in conversation.messages if not conversation.defects else ():
        assert message.role != "assistant" or message.content or message.tool_calls


TEXTS = {"content", "value", "parts"}  # another text or value would be a valid row
IDENTIFIERS = {"name", "id", "tool_call_id", "tool_use_id", "call_id", "toolUseId"}
STRUCTURE = {
    *("role", "from", "messages", "conversations", "contents", "tool_calls", "function", "functionCall"),
    *("functionResponse", "toolUse", "toolResult", "arguments", "args", "input", "answers", "ground_truth"),
}
VALUES = {"arguments", "args", "input", "tools", "toolConfig"}  # what is inside of them is free


@pytest.mark.parametrize("name", [name for name in WRITERS if "text" not in name and name not in ("glaive", "alpaca")])
@settings(max_examples=60, deadline=None, phases=[Phase.generate], suppress_health_check=UNCHECKED)
@given(data=st.data())
def test_a_row_with_broken_structure_is_refused_or_reported_but_not_read_differently(name, data):
    write, strategy = WRITERS[name]
    conversation = data.draw(strategy)
    row = json.loads(json.dumps(write(conversation)))
    *path, key = data.draw(
        st.sampled_from(
            [
                path
                for path in walk(row)
                if path[-1] in STRUCTURE | TEXTS | IDENTIFIERS
                and not VALUES & set(path[1:-1])
                and path[0] not in ("tools", "function", "ground_truth", "toolConfig")
            ]
        )
    )
    holder = row
    for step in path:
        holder = holder[step]
    if key in TEXTS and {"tool_calls", "reasoning_content", "tools"} & holder.keys():
        return  # a turn needs no text beside these
    if key in TEXTS or (key != "args" and data.draw(st.booleans())):  # Gemini's calls need no `args`
        del holder[key]
    else:
        holder[key] = data.draw(st.sampled_from([7, True] if key in IDENTIFIERS else [7, True, "{"]))
    try:
        read = read_row(row)
    except RowError:
        return
    if not read.defects and not read.notices:
        assert read.messages == expected(name, conversation), (path, key)
