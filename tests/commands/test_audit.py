# ruff: noqa: E501 (one row of data a line)
"""The audit: seeded faults are found and nothing else, limits are kept, the page shows what was found."""

import json
from collections import Counter
from copy import deepcopy
from pathlib import Path

import pytest

from fc_lightning.cli.lightning_cli import main
from fc_lightning.commands.audit import AuditError, Finding, audit, find
from fc_lightning.conversation.types import Conversation, Message, Tool, ToolCall
from fc_lightning.data import FunctionCallingDataModule, Source

BASE = "tests/models/tiny_gemma2"
TINY = "configs/debug/tiny.yaml"
# Clean rows: a tool, its parameters (type, and whether required), a question, and the arguments of the right call.
CLEAN = [
    ("get_weather", {"city": "string"}, "Will I need an umbrella when I walk through Lisbon tomorrow afternoon?", {"city": "Lisbon"}),
    ("convert_money", {"amount": "number"}, "How many dollars do I get for 250 euros at the airport today?", {"amount": 250}),
    ("book_table", {"people": "integer"}, "Reserve a table in the garden of the Italian place for 6 people.", {"people": 6}),
    ("send_mail", {"to": "string"}, "Write a short note to anna@example.com that the parcel has come.", {"to": "anna@example.com"}),
    ("play_song", {"title": "string"}, "I would love to hear Yellow Submarine while I am cooking dinner.", {"title": "Yellow Submarine"}),
    ("set_alarm", {"time": "string"}, "Wake me up at 6:45 because the train leaves early in the morning.", {"time": "06:45"}),
    ("find_recipe", {"dish": "string"}, "What goes into a proper mushroom risotto for a cold winter evening?", {"dish": "mushroom risotto"}),
    ("track_parcel", {"code": "string"}, "Where has the delivery with the number ZX81 got stuck this time?", {"code": "ZX81"}),
    ("translate", {"text": "string"}, "How would a baker in Paris say fresh bread in his own language?", {"text": "fresh bread"}),
    ("area_circle", {"radius": "number"}, "A pond has a radius of 3.5 metres, which surface does it cover?", {"radius": 3.5}),
    ("find_flight", {"to": "string"}, "Look for a cheap seat on any plane that goes to Reykjavik in May.", {"to": "Reykjavik"}),
    ("stock_price", {"symbol": "string"}, "Tell me what a share of ACME costs right now on the exchange.", {"symbol": "ACME"}),
    ("add_task", {"task": "string"}, "Put paint the fence on the list of things I have to do outside.", {"task": "paint the fence"}),
    ("lookup_word", {"word": "string"}, "I keep reading petrichor in novels, give me the meaning of it.", {"word": "petrichor"}),
    ("bus_times", {"stop": "string"}, "When does the next bus leave from Market Square toward the hospital?", {"stop": "Market Square"}),
    ("dim_lights", {"percent": "integer"}, "It is too bright in here, bring the lamps down to 40 percent.", {"percent": 40}),
    ("find_book", {"author": "string"}, "Does the library have anything by Ursula Le Guin on its shelves?", {"author": "Ursula Le Guin"}),
    ("run_query", {"table": "string"}, "Count how many lines there are in invoices before the nightly backup.", {"table": "invoices"}),
    ("measure_bmi", {"weight": "number"}, "My weight is 71 kilograms and I am rather tall, am I healthy?", {"weight": 71}),
    ("water_plants", {"minutes": "integer"}, "The tomatoes look dry again, run the sprinkler for 12 minutes.", {"minutes": 12}),
]  # fmt: skip


def clean_row(number: int) -> dict:
    name, properties, question, arguments = CLEAN[number]
    schema = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(properties),
        "additionalProperties": False,
    }
    function = {"name": name, "description": f"The tool {name}", "parameters": schema}
    call = {"type": "function", "function": {"name": name, "arguments": deepcopy(arguments)}}
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    return {"id": f"clean{number}", "messages": messages, "tools": [{"type": "function", "function": function}]}


def faulty(number: int, id: str, question=None, arguments=None, name=None, schema=None) -> dict:
    """A clean row with something of it replaced."""
    row = clean_row(number)
    call = row["messages"][1]["tool_calls"][0]["function"]
    row["id"] = id
    row["messages"][0]["content"] = question or row["messages"][0]["content"]
    call["name"] = name or call["name"]
    call["arguments"] = call["arguments"] if arguments is None else arguments
    row["tools"][0]["function"]["parameters"] |= schema or {}
    return row


def seeded() -> tuple[list, list, Counter]:
    """Training and validation rows with 20 faults among them, and the findings that must come out."""
    train = [clean_row(number) for number in range(17)]
    validation = [clean_row(number) for number in range(17, 20)]
    seeds = [
        ("skipped", "rows_18", '{"messages": [{"role": "user", "content": "cut'),
        ("skipped", "keys", {"id": "keys", "prose": "No conversation."}),
        ("skipped", "broken", faulty(0, "broken", "Is it sunny in Oslo?", "{'city': ")),
        ("too_long", "long", faulty(1, "long", "I have 250 coins. " * 900)),
        ("unknown_tool", "unknown1", faulty(0, "unknown1", "Rain in Oslo on Monday?", {"city": "Oslo"}, "weather_at")),
        ("unknown_tool", "unknown2", faulty(2, "unknown2", "We are 3, a table please.", {"people": 3}, "Book_Table")),
        ("missing_argument", "missing1", faulty(5, "missing1", "Set some alarm for me, any.", {})),
        ("missing_argument", "missing2", faulty(3, "missing2", "Mail this to somebody.", {"to": "somebody"},
                                                schema={"required": ["to", "subject"]})),
        ("invalid_argument", "type", faulty(2, "type", "A window seat for 4 of us.", {"people": "4"})),
        ("invalid_argument", "enum", faulty(0, "enum", "How warm is Rome?", {"city": "Rome"},
                                            schema={"properties": {"city": {"enum": ["Oslo"]}}})),
        ("invalid_argument", "extra", faulty(4, "extra", "Play Help quietly", {"title": "Help", "how": "quietly"})),
        ("bad_schema", "schema", faulty(6, "schema", "How to make pancakes", {"dish": "pancakes"}, schema={"type": 5})),
        ("ungrounded_value", "invented1", faulty(10, "invented1", "Fly me away from here!", {"to": "Zanzibar"})),
        ("ungrounded_value", "invented2", faulty(15, "invented2", "Less light in the kitchen", {"percent": 37})),
        ("ungrounded_value", "invented3", faulty(
            13, "invented3", "Explain serendipity and nothing else", {"word": ["serendipity", "kismet"]},
            schema={"properties": {"word": {"type": "array"}}})),
        ("duplicate", "twice", faulty(7, "twice")),
        ("near_duplicate", "nearly1", faulty(8, "nearly1", CLEAN[8][2].replace("How would", "how should"))),
        ("near_duplicate", "nearly2", faulty(14, "nearly2", CLEAN[14][2].replace("?", ", please?"))),
    ]  # fmt: skip
    leaks = [("overlap", "leak1", faulty(11, "leak1")),
             ("overlap", "leak2", faulty(12, "leak2", CLEAN[12][2].replace("outside.", "outside now!")))]  # fmt: skip
    expected = Counter((kind, "train", id) for kind, id, _ in seeds)
    expected += Counter((kind, "validation", id) for kind, id, _ in leaks)
    return train + [row for *_, row in seeds], validation + [row for *_, row in leaks], expected


def write(path: Path, rows: list) -> Source:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return Source(str(path))


def module(tmp_path: Path, train: list, validation: list, **settings) -> FunctionCallingDataModule:
    sources = [write(tmp_path / "rows.jsonl", train)], [write(tmp_path / "validation.jsonl", validation)]
    return FunctionCallingDataModule(BASE, *sources, cache_dir=str(tmp_path / "cache"), **settings)


def audited(data: FunctionCallingDataModule, output: Path, **options) -> list[Finding]:
    """The findings of an audit that does not need a trainer: its output is given."""
    return audit(None, None, data, str(output), **options)


def test_twenty_seeded_faults_are_found_and_none_is_invented(tmp_path, capsys):
    train, validation, expected = seeded()
    assert sum(expected.values()) == 20
    findings = audited(module(tmp_path, train, validation), tmp_path / "audit")
    assert Counter((one.kind, one.split, one.id) for one in findings) == expected
    files = {"train": "rows.jsonl", "validation": "validation.jsonl"}
    rows = {"train": train, "validation": validation}
    for one in findings:
        place, _, number = one.place.rpartition(":")
        assert Path(place).name == files[one.split]
        row = rows[one.split][int(number) - 1]
        assert isinstance(row, str) or row["id"] == one.id
        assert one.detail
    written = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert [finding["id"] for finding in written["findings"]] == [one.id for one in findings]
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert all(f"<td>{one.id}</td>" in page for one in findings)
    printed = capsys.readouterr().out
    assert "train: 2 unknown_tool" in printed
    assert "20 findings" in printed


def test_clean_rows_have_no_findings_and_are_counted(tmp_path, capsys):
    train = [clean_row(number) for number in range(18)]
    answer = {"id": "a", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    validation = [clean_row(18), {**answer, "tools": clean_row(0)["tools"]}]
    data = module(tmp_path, train, validation, max_length=512)
    assert audited(data, tmp_path / "audit", strict=True) == []
    splits = json.loads((tmp_path / "audit" / "audit.json").read_text())["splits"]
    assert list(splits) == ["train", "validation"]  # test is validation again
    documents = data.prepared["train"].documents
    lengths = [len(ids) for ids in documents["input_ids"]]
    assert splits["train"]["lengths"] == lengths
    assert splits["train"]["calls"] == {"none": 0, "one": 18, "several": 0}
    assert splits["train"]["packing"] == pytest.approx(sum(lengths) / (512 * splits["train"]["packs"]))
    assert splits["train"]["tools"]["get_weather"] == 1
    assert splits["validation"]["calls"] == {"none": 1, "one": 1, "several": 0}
    assert splits["validation"]["known_tools"] == 0.5
    assert splits["validation"]["known_calls"] == 0.0


def test_the_page_marks_just_what_is_supervised(tmp_path, capsys):
    data = module(tmp_path, [clean_row(0)], [clean_row(1)])
    audited(data, tmp_path / "audit", examples=1)
    page = (tmp_path / "audit" / "audit.html").read_text()
    marked = [part.split("</mark>")[0] for part in page.split("<mark>")[1:]]
    assert len(marked) == 2
    assert marked[0].startswith("&lt;tool_call&gt;")
    assert "get_weather" in marked[0]
    assert marked[0].endswith("&lt;end_of_turn&gt;")
    assert "Lisbon tomorrow" not in marked[0]


@pytest.mark.parametrize(
    ("limits", "fails"), [(None, True), ({"duplicate": 0.3}, True), ({"duplicate": 0.5, "overlap": 1.0}, False)]
)
def test_strict_fails_above_the_limits(tmp_path, capsys, limits, fails):
    rows = [clean_row(0), faulty(0, "again")]
    data = module(tmp_path, rows, [clean_row(0)], audit_limits=limits)
    audited(data, tmp_path / "audit")
    if fails:
        with pytest.raises(AuditError, match="duplicate in 1 of 2 rows"):
            audited(data, tmp_path / "audit", strict=True)
    else:
        audited(data, tmp_path / "audit", strict=True)


def test_strict_on_the_command_line(tmp_path, capsys):
    source = write(tmp_path / "rows.jsonl", [clean_row(0), faulty(0, "again")])
    arguments = ["audit", "--config", TINY, f"--data.train=[{{path: {source.path}}}]", f"--output={tmp_path / 'audit'}"]
    main(arguments)
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--strict=true"])
    assert exit_.value.code == 1
    assert "error: the findings exceed `data.audit_limits`" in capsys.readouterr().err


def test_schemas_that_lead_nowhere_and_types_that_sources_invent():
    call = (Message("user", "a 5"), Message("assistant", "", None, (ToolCall("f", {"x": {"y": 5}}),)))

    def kinds(schema: dict) -> list[str]:
        conversation = Conversation("1", call, (Tool("f", "", schema),))
        return [one.kind for one in find({"train": [("rows:1", conversation)]})]

    assert kinds({"type": "object", "properties": {"x": {"type": "dict", "properties": {"y": {"type": "any"}}}}}) == []
    assert kinds({"$ref": "#"}) == ["bad_schema"]
    assert kinds({"$ref": "https://example.com/schema.json"}) == ["bad_schema"]
    assert kinds({"type": "dict", "properties": {"x": {"type": "float"}}}) == ["invalid_argument"]
    assert kinds({"properties": {"type": {"type": "str"}}, "required": ["type"]}) == ["missing_argument"]


def test_augmented_examples_are_shown(tmp_path, capsys):
    main(
        [
            *("audit", "--config", TINY, f"--output={tmp_path}", "--examples=1"),
            "--data.augmentation={mask_names: 1.0}",
        ]
    )
    printed = capsys.readouterr().out
    shown = printed[printed.index("train, augmented: quickstart_train_0001") :]
    assert "get_weather" not in shown.split("<start_of_turn>model")[1].split("<end_of_turn>")[0]
    assert "train, augmented" in (tmp_path / "audit.html").read_text()


def test_each_source_has_its_format_and_how_sure_that_is(tmp_path, capsys):
    cases = Path("tests/data/cases")
    names = {  # expected format, confidence, rows, usable rows and calls
        "01_toolace_python_calls.jsonl": ("toolace", "high", 1, 1, 2),
        "19_messages_as_json_string.jsonl": ("openai 50%, hermes 50%", "medium: several formats", 2, 2, 1),
        "52_rows.csv": ("none", "none of its rows can be used", 1, 0, 0),
        "b_weight0.jsonl": ("openai", "low: no tool and no call", 1, 1, 0),
    }
    held_out = write(tmp_path / "validation.jsonl", [clean_row(0)])
    sources = [Source(str(cases / name)) for name in [*names, "42_utf16.jsonl"]]
    data = FunctionCallingDataModule(BASE, sources, [held_out], cache_dir=str(tmp_path / "cache"))
    findings = audited(data, tmp_path / "audit")
    summaries = json.loads((tmp_path / "audit" / "audit.json").read_text())["sources"]
    found = {
        Path(one["path"]).name: (
            *map(one.get, ("format", "confidence", "rows")),
            one["rows"] - one["skipped"],
            one["calls"],
        )
        for one in summaries
        if one["split"] == "train"
    }
    assert found == names
    printed = capsys.readouterr().out
    assert "42_utf16.jsonl: encoded as UTF-16" in printed
    assert {Path(one.place).name for one in findings if one.kind == "unreadable_source"} == {"42_utf16.jsonl"}
    assert {Path(one.place).name for one in findings if one.kind == "no_calls"} == {"b_weight0.jsonl"}
