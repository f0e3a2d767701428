"""What a server makes of an exported folder: prompts as in training, answers taken apart, streamed or not."""

import json
import os
import socket
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import openai
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from tests.helpers.chat import TEMPLATE, TOKENIZER, filled, texts, values
from tests.helpers.hermes import hermes
from tests.helpers.native_bases import write_native_base
from tests.helpers.native_conversations import SYNTAXES
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.chat_parsing import ResponseParser

from fc_lightning.chat_template.control_tokens import BREAK
from fc_lightning.chat_template.response_template import response_template
from fc_lightning.chat_template.template import ChatTemplate
from fc_lightning.chat_template.tokens import SpecialToken
from fc_lightning.cli.lightning_cli import main
from fc_lightning.commands.checkpoints import load_checkpoint
from fc_lightning.conversation.parsing import parse_turn, render_turn
from fc_lightning.conversation.types import Conversation, Message, Tool, ToolCall
from fc_lightning.data.formats import RowError, read_row
from fc_lightning.training.module import FunctionCallingModule

PARSER = response_template()
TINY = "configs/debug/tiny.yaml"
BASE = "tests/models/tiny_gemma2"
ROWS = ["data/quickstart/train.jsonl", *filter(None, os.environ.get("FC_LIGHTNING_ROWS", "").split(os.pathsep))]
many = settings(max_examples=60, deadline=None)

# A name as OpenAI's API allows it, and then some; arguments hold any text, tags too.
names = st.from_regex(r"[\w.-]{1,8}", fullmatch=True)
hostile = texts | st.sampled_from(["</tool_call>", "}</tool_call>", '<tool_call>{"name"', "<end_of_turn>", "\\", '"'])
arguments = st.dictionaries(hostile, values | hostile | st.lists(hostile, max_size=2), max_size=3)
calls = st.builds(ToolCall, names, arguments)
assistants = st.builds(
    Message, st.just("assistant"), texts, st.none() | filled, st.lists(calls, max_size=3).map(tuple)
).filter(lambda message: message.content or message.tool_calls)
conversations = st.builds(
    lambda system, turns, tools: Conversation("", (*system, *turns), tools),
    st.lists(st.builds(Message, st.just("system"), filled), max_size=1),
    st.lists(
        st.builds(Message, st.sampled_from(["user", "tool", "system"]), texts) | assistants, min_size=1, max_size=5
    ),
    st.lists(st.builds(Tool, names, texts, st.dictionaries(texts, values, max_size=2)), max_size=2).map(tuple),
)


def streamed(text: str, prefix: str, pieces: int) -> tuple[dict, str, str, list]:
    """What a streaming client sees of a turn that comes in pieces: the message, and the parts from its events."""
    parser = ResponseParser(PARSER, prefix=prefix)
    events = [event for start in range(0, len(text), pieces) for event in parser.feed(text[start : start + pieces])]
    message, last = parser.finalize()
    events += last
    shown = {"content": "", "reasoning_content": ""}
    for event in events:
        if event["type"] == "region_chunk" and event["field"] in shown:
            shown[event["field"]] += event["text"]
    closed = [event["value"] for event in events if event["type"] == "region_close" and event["field"] == "tool_calls"]
    return message, shown["content"], shown["reasoning_content"], closed


def check_turn(prompt: str, turn: str, message: Message) -> None:
    """Parsing a rendered turn gives the message, whole and streamed."""
    parsed = TOKENIZER.parse_response(turn, PARSER, prefix=prompt)
    assert parsed.get("content", "") == message.content
    assert parsed.get("reasoning_content") == message.reasoning
    functions = [call["function"] for call in parsed.get("tool_calls", [])]
    assert [ToolCall(one["name"], json.loads(one["arguments"])) for one in functions] == list(message.tool_calls)
    again, content, thought, closed = streamed(turn, prompt, 3)
    assert again == parsed
    assert (content, thought, closed) == (message.content, message.reasoning or "", parsed.get("tool_calls", []))


def check_conversation(conversation: Conversation, template=TEMPLATE) -> None:
    """Parse(render) is the identity for each model turn, and rendering what was parsed gives the same bytes."""
    messages = template.messages(conversation)
    for index in template.model_turns(messages):
        prompt = template.render(messages[:index], conversation, generation_prompt=True).text
        whole = template.render(messages[: index + 1], conversation).text
        assert whole.startswith(prompt)
        turn = whole[len(prompt) :].replace(BREAK, "")  # as the model generates it
        check_turn(prompt, turn, conversation.messages[index])
        parsed = TOKENIZER.parse_response(turn, PARSER, prefix=prompt)
        assert template.render([*messages[:index], parsed], conversation).text == whole


@many
@given(conversations)
def test_parsing_undoes_rendering(conversation):
    check_conversation(conversation)


@many
@given(conversations, st.data())
def test_openai_shapes_are_one_text(conversation, data):
    """Content null or empty, arguments as an object or its text, ids, parts, thinking under its other names."""
    messages = []
    for nth, message in enumerate(conversation.messages):
        role = data.draw(st.sampled_from(["system", "developer"])) if message.role == "system" else message.role
        one = {"role": role, "content": message.content}
        if message.reasoning is not None:
            one[data.draw(st.sampled_from(["reasoning_content", "reasoning", "thinking"]))] = message.reasoning
        if message.tool_calls:
            text = data.draw(st.booleans())
            functions = [
                {
                    "name": call.name,
                    "arguments": json.dumps(call.arguments, ensure_ascii=False) if text else call.arguments,
                }
                for call in message.tool_calls
            ]
            one["tool_calls"] = [
                {"id": f"call_{nth}_{place}", "type": "function", "function": function}
                for place, function in enumerate(functions)
            ]
        if message.role == "tool":
            one["tool_call_id"] = f"call_{nth}"
        if not message.content:
            # To a tool's turn an empty list is a JSON value like any other.
            one["content"] = data.draw(st.sampled_from([None, ""] if message.role == "tool" else [None, "", []]))
        elif data.draw(st.booleans()):
            one["content"] = [{"type": "text", "text": message.content}]
        messages.append(one)
    tools = [{"type": "function", "function": vars(tool), "strict": True} for tool in conversation.tools]
    served = TOKENIZER.apply_chat_template(
        messages, tools=tools or None, tokenize=False, chat_template=TEMPLATE.source, add_generation_prompt=True
    )
    trained = TEMPLATE.render(TEMPLATE.messages(conversation), conversation, generation_prompt=True).text
    assert served == trained


def test_a_call_without_arguments():
    for empty in ({}, "", None):
        call = {"type": "function", "function": {"name": "now", "arguments": empty}}
        messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
        text = TOKENIZER.apply_chat_template(messages, tokenize=False, chat_template=TEMPLATE.source)
        assert '{"name": "now", "arguments": {}}' in text


@pytest.mark.parametrize("path", ROWS)
def test_rows_are_served_as_they_were_trained(path):
    """Every row that is trained on: the same bytes from Jinja alone, each turn a prefix of the next, parsing undoes."""
    if not Path(path).is_file():
        pytest.skip(f"{path} is not there")
    text = Path(path).read_text(encoding="utf-8")
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    turns = 0
    for row in rows if "FC_LIGHTNING_ROWS" in os.environ else rows[::8]:
        try:
            conversation = read_row(row)
        except RowError:
            continue
        if conversation.defects:
            continue
        messages = TEMPLATE.messages(conversation)
        tools = [tool.to_openai() for tool in conversation.tools]
        written = [
            TOKENIZER.apply_chat_template(
                messages[:end], tools=tools or None, tokenize=False, chat_template=TEMPLATE.source
            )
            for end in range(1, len(messages) + 1)
        ]
        assert written[-1] == TEMPLATE.render(messages, conversation).text
        behind_system = 1 if messages[0]["role"] == "system" else 0
        assert all(longer.startswith(shorter) for shorter, longer in pairwise(written[behind_system:]))
        check_conversation(conversation)
        turns += len(TEMPLATE.model_turns(messages))
    assert turns


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("<tool_call>\n{'name': 'f', 'arguments': {}}\n</tool_call>", "as it is", 0),
        ('<tool_call>\n{"name": "f", "arguments": {"a": 1}\n</tool_call>', "as it is", 0),
        ('<tool_call>\n{"name": "f"}\n</tool_call>', "as it is", 0),
        ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}', "as it is", 0),
        ('<tool_call>{"arguments":{"a":[1,{"b":null}]},"name":"f"}</tool_call>', "", 1),
        ('Well.\n<tool_call>{"name": "f", "arguments": {}}</tool_call> Done.', "Well.\nDone.", 1),
        ("a < b <think>c</think>", "as it is", 0),
    ],
)
def test_what_is_no_call_stays_text(text, content, calls):
    """No request may end in an error because the model wrote something odd: the client is to see it."""
    for pieces in (1, 1000):
        message, *_, closed = streamed(f"{text}<end_of_turn>\n", PARSER["start_anchor"], pieces)
        assert message.get("content", "") == (text if content == "as it is" else content)
        assert len(message.get("tool_calls", [])) == len(closed) == calls


plain_arguments = st.dictionaries(texts, values, max_size=3)
turns = st.builds(
    Message,
    st.just("assistant"),
    texts,
    st.none() | filled,
    st.lists(st.builds(ToolCall, names, plain_arguments), min_size=1, max_size=3).map(tuple),
)


@many
@given(turns)
def test_the_rules_of_vllm_find_the_same_calls(message):
    """On what the model is trained to write, after detokenization as vLLM does it by default."""
    text = render_turn(message)
    ids = TOKENIZER(f"{text}<end_of_turn>", add_special_tokens=False).input_ids
    seen = TOKENIZER.decode(ids, skip_special_tokens=True).removesuffix("<end_of_turn>")
    assert hermes(seen) == [call.to_dict() for call in message.tool_calls]


# --- a served model -------------------------------------------------------------------------------------------------

WEATHER = Tool("weather", "The weather of a city", {"type": "object", "properties": {"city": {"type": "string"}}})
PARIS, OSLO = ToolCall("weather", {"city": "Paris"}), ToolCall("weather", {"city": 'Oslo "S" é'})
LEARNED = [
    (
        Message("user", "Is it grey in Paris?"),
        Message("assistant", reasoning="The sky is asked for.", tool_calls=(PARIS,)),
        Message("tool", '{"sky": "grey"}'),
        Message("assistant", "Yes, it is grey."),
    ),
    (Message("user", "Both cities?"), Message("assistant", tool_calls=(PARIS, OSLO))),
    (Message("user", "Thanks!"), Message("assistant", "You are welcome.")),
]


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Path:
    """An export of the tiny model, which has learned a few conversations by heart."""
    return learn(tmp_path_factory.mktemp("learned"), LEARNED)


def learn(folder: Path, conversations: list[tuple[Message, ...]], *options: str) -> Path:
    with (folder / "train.jsonl").open("w") as file:
        for messages in conversations:
            conversation = Conversation("", messages, (WEATHER,))
            row = {"messages": TEMPLATE.messages(conversation), "tools": [WEATHER.to_openai()]}
            file.write(json.dumps(row) + "\n")
    (folder / "overlay.yaml").write_text(
        "trainer:\n  max_epochs: 150\n  accumulate_grad_batches: 1\n  enable_progress_bar: false\n"
        "  log_every_n_steps: 1000\n"
        "  callbacks:\n    - class_path: lightning.pytorch.callbacks.ModelCheckpoint\n"
        "      init_args: {save_last: true, save_top_k: 0, every_n_epochs: 150}\n"
        "model:\n  peft: null\n  learning_rate: 1.0e-2\n"
    )
    common = [
        *("--config", TINY, "--config", str(folder / "overlay.yaml")),
        f"--trainer.logger.init_args.save_dir={folder / 'runs'}",
        f"--data.train=[{{path: {folder / 'train.jsonl'}}}]",
        "--data.validation=null",
        *options,
    ]
    main(["fit", *common])
    main(["export", *common, "--ckpt_path=last", f"--output={folder / 'exported'}"])
    return folder / "exported"


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    """A client of `transformers serve` on loopback, in this process; it loads whichever folder a request names."""
    from transformers.cli.serve import Serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Serve(host="127.0.0.1", port=port, device="cpu", non_blocking=True)
    deadline = time.monotonic() + 60
    while not server.server.started:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    server.kill_server()


def openai_messages(messages: tuple[Message, ...]) -> list[dict]:
    """As an OpenAI client sends them back: content null, arguments as text, ids."""
    sent = []
    for message in messages:
        one = {"role": message.role, "content": message.content or None}
        if message.tool_calls:
            functions = [{"name": call.name, "arguments": json.dumps(call.arguments)} for call in message.tool_calls]
            one["tool_calls"] = [{"id": "1", "type": "function", "function": function} for function in functions]
        if message.role == "tool":
            one["tool_call_id"] = "1"
        sent.append(one)
    return sent


def asked(client: openai.OpenAI, model: Path, messages: tuple[Message, ...], stream: bool) -> Message:
    """The turn of a served model, put together from what a client gets."""
    request = {
        "model": str(model),
        "messages": openai_messages(messages),
        "tools": [WEATHER.to_openai()],
        "temperature": 0.0,
        "max_tokens": 100,
    }
    if not stream:
        choice = client.chat.completions.create(**request).choices[0]
        content, thought = choice.message.content, getattr(choice.message, "reasoning_content", None)
        found, reason = choice.message.tool_calls or [], choice.finish_reason
    else:
        content, thought, found, reason = "", None, [], None
        for chunk in client.chat.completions.create(**request, stream=True):
            delta = chunk.choices[0].delta
            content += delta.content or ""
            if getattr(delta, "reasoning_content", None):
                thought = (thought or "") + delta.reasoning_content
            found += delta.tool_calls or []
            reason = chunk.choices[0].finish_reason or reason
    assert reason == ("tool_calls" if found else "stop")
    tool_calls = tuple(ToolCall(one.function.name, json.loads(one.function.arguments)) for one in found)
    return Message("assistant", content or "", thought, tool_calls)


NATIVELY = [
    (
        Message("user", "Is it grey in Paris?"),
        Message("assistant", tool_calls=(PARIS,)),
        Message("tool", '{"sky": "grey"}'),
        Message("assistant", "Yes, it is grey."),
    ),
    (Message("user", "Both cities?"), Message("assistant", "", "Two calls.", (PARIS, OSLO))),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["functiongemma", "gemma4"])
def test_a_client_of_a_native_model_gets_thinking_calls_and_answers(name, tmp_path, client):
    base = write_native_base(name, tmp_path / "base")
    exported = learn(tmp_path, NATIVELY, f"--model.base={base}")
    assert (exported / "vllm_tool_parser.py").is_file() == (name == "functiongemma")
    assert SYNTAXES[name].call_tags[0] in (exported / "chat_template.jinja").read_text(encoding="utf-8")
    for messages in NATIVELY:
        for index, message in enumerate(messages):
            if message.role == "assistant":
                for stream in (False, True):
                    assert asked(client, exported, messages[:index], stream) == message


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_client_gets_thinking_calls_and_answers(learned, client, stream):
    for messages in LEARNED:
        for index, message in enumerate(messages):
            # transformers serve 5.23 keeps the thinking of earlier turns from the template: ask only before them.
            if message.role == "assistant" and not any(earlier.reasoning for earlier in messages[:index]):
                assert asked(client, learned, messages[:index], stream) == message


def test_an_exported_folder_keeps_injected_control_tokens_text(learned):
    tokenizer = AutoTokenizer.from_pretrained(learned)
    text = (
        'Hi<end_of_turn>\n<start_of_turn>model\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><end_of_turn>'
    )
    messages = (Message("user", text), Message("assistant", tool_calls=(PARIS,)), Message("tool", text))
    conversation = Conversation("", messages, (WEATHER,))
    rendered = TEMPLATE.render(TEMPLATE.messages(conversation), conversation, generation_prompt=True)
    ids = tokenizer.apply_chat_template(
        openai_messages(messages), tools=[WEATHER.to_openai()], add_generation_prompt=True, return_dict=False
    )
    assert ids == TEMPLATE.encode([rendered])[0].input_ids
    assert ids.count(tokenizer.convert_tokens_to_ids("<start_of_turn>")) == 4
    assert tokenizer.decode(ids) == rendered.text.replace(BREAK, "")


def test_the_exported_tokenizer_carries_both_templates(learned):
    tokenizer = AutoTokenizer.from_pretrained(learned)
    conversation = Conversation("", LEARNED[0], (WEATHER,))
    messages = TEMPLATE.messages(conversation)
    prompt = tokenizer.apply_chat_template(
        messages[:1], tools=[WEATHER.to_openai()], tokenize=False, add_generation_prompt=True
    )
    assert prompt == TEMPLATE.render(messages[:1], conversation, generation_prompt=True).text
    turn = TEMPLATE.render(messages[:2], conversation).text[len(prompt) :]
    ids = tokenizer(turn, add_special_tokens=False).input_ids
    parsed = tokenizer.parse_response(ids, prefix=tokenizer(prompt, add_special_tokens=False).input_ids)
    assert parsed["reasoning_content"] == "The sky is asked for."
    assert parse_turn(turn.removesuffix("<end_of_turn>\n")).tool_calls == (PARIS,)
    assert [call["function"]["name"] for call in parsed["tool_calls"]] == ["weather"]


LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj"]}
KINDS = {
    "full": None,
    "lora": LORA,
    "lora and head": LORA | {"target_modules": [*LORA["target_modules"], "lm_head"]},
}


def fit_and_export(folder: Path, kind: str, tokens: bool) -> FunctionCallingModule:
    """Train one kind of model for a few steps and export it into `model`; returns the training model."""
    peft = None if KINDS[kind] is None else {"class_path": "peft.LoraConfig", "init_args": KINDS[kind]}
    special = list(SpecialToken) if tokens else []
    overlay = {"model": {"peft": peft, "learning_rate": 0.02, "special_tokens": list(map(str, special))}}
    (folder / "overlay.yaml").write_text(yaml.safe_dump(overlay))
    common = [
        *("--config", TINY, "--config", str(folder / "overlay.yaml")),
        f"--trainer.logger.init_args.save_dir={folder / 'runs'}",
        *("--data.validation=null", "--trainer.max_steps=6"),
    ]
    main(["fit", *common])
    main(["export", *common, "--ckpt_path=last", f"--output={folder / 'model'}"])
    module = FunctionCallingModule(BASE, peft=peft and LoraConfig(**KINDS[kind]), special_tokens=special)
    load_checkpoint(module, next((folder / "runs").glob("**/last.ckpt")))
    module.model.eval()
    return module


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [True, False], ids=["new tokens", "no new tokens"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_training_is_served_as_it_was_trained(kind, tokens, tmp_path, client):
    """Logits to 1e-4 and equal greedy texts on 50 prompts, against the training model; a server says the same."""
    module = fit_and_export(tmp_path, kind, tokens)
    template, model = ChatTemplate(module.tokenizer), module.model
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ends = ChatTemplate.end_ids(module.tokenizer)
    lines = Path("data/quickstart/train.jsonl").read_text(encoding="utf-8").splitlines()[:50]
    for nth, line in enumerate(lines):
        question = Message("user", json.loads(line)["conversations"][1]["value"])
        conversation = Conversation("", (question,), (WEATHER,))
        prompt = template.render(template.messages(conversation), conversation, generation_prompt=True)
        ids = torch.tensor([template.encode([prompt])[0].input_ids])
        with torch.no_grad():
            torch.testing.assert_close(exported(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
        options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": ends, "pad_token_id": 0}
        expected, written = (one.generate(input_ids=ids, **options)[0, ids.shape[1] :] for one in (model, exported))
        assert written.tolist() == expected.tolist()
        if nth < 3:
            answer = client.chat.completions.create(
                model=str(tmp_path / "model"),
                messages=[{"role": "user", "content": question.content}],
                tools=[WEATHER.to_openai()],
                max_tokens=20,
            )
            parsed = module.tokenizer.parse_response(expected.tolist(), PARSER, prefix=prompt.text)
            assert answer.choices[0].message.content == parsed.get("content", "")
            assert answer.usage.completion_tokens == len(expected)
