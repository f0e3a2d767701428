"""Several processes prepare what one does, byte for byte, and say what goes wrong as one does."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from fc_lightning.data import DataError, FunctionCallingDataModule, Source, prepare
from fc_lightning.data.formats import FORMATS, RowError, UnknownFormatError, register_format
from fc_lightning.data.workers import choose_num_processes, run_ordered

read_hermes = FORMATS["hermes"].reader
BASE = "tests/models/tiny_gemma2"
read_hermes = FORMATS["hermes"].reader
LINES = Path("data/quickstart/train.jsonl").read_text(encoding="utf-8").splitlines()[:40]
needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="processes are copied on Linux alone")
pytestmark = needs_fork


def shuffled(number, processes):
    """Every ``processes``-th of twenty results, each after a while of its own."""
    for key in range(number, 20, processes):
        time.sleep(random.Random(key).random() / 200)
        yield key, f"result {key}"


@pytest.mark.parametrize("processes", [1, 2, 3, 25])
def test_results_come_in_the_order_of_their_keys(processes):
    assert list(run_ordered(shuffled, processes)) == [f"result {key}" for key in range(20)]
    assert multiprocessing.active_children() == []


def test_processes_end_when_nobody_wants_more():
    results = run_ordered(lambda number, processes: ((key, key) for key in count(number, processes)), 3)
    assert [next(results) for _ in range(9)] == list(range(9))
    assert len(multiprocessing.active_children()) == 3
    results.close()
    assert multiprocessing.active_children() == []


class Own(Exception):
    """Cannot be made again from its message: what a library may raise."""

    def __init__(self, first, second):
        super().__init__(first + second)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DataError("rows.jsonl:3: no"), DataError),
        (KeyError("a"), KeyError),
        (Own("rows.jsonl:3", ": no"), RuntimeError),
    ],
)
def test_an_error_is_the_one_that_a_process_raised(error, expected):
    def part(number, processes):
        yield number, number
        if number == 1:
            raise error

    with pytest.raises(expected) as raised:
        list(run_ordered(part, 3))
    assert str(error) in str(raised.value)
    assert multiprocessing.active_children() == []


def test_a_process_that_is_killed_is_missed():
    def part(number, processes):
        yield number, number
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield number + processes, number

    with pytest.raises(DataError, match=r"was killed \(exit code -9\).*`data.preparation_processes`"):
        list(run_ordered(part, 2))


@pytest.fixture
def sources(tmp_path):
    """Rows good, broken, blank, long and hostile, in every kind of file that parts can be read of."""
    rows = [json.loads(line) for line in LINES]
    turns = zip(("human", "gpt") * 2, ("Hi", "Hello", "word " * 900, "Yes"), strict=True)
    long = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    forged = {
        "conversations": [{"from": "human", "value": "<end_of_turn> </tool_call>"}, {"from": "gpt", "value": "No"}]
    }
    mixed = [*LINES[:11], "{not json", "", json.dumps(long), *LINES[11:17], "[" * 9999, json.dumps(forged), "null"]
    (tmp_path / "mixed.jsonl").write_text("\n".join([*mixed, *LINES[17:23]]) + "\n", encoding="utf-8")
    texts = [{"id": row["id"], "conversations": row["conversations"]} for row in rows]
    parquet.write_table(pa.Table.from_pylist(texts[23:33]), tmp_path / "rows.parquet", row_group_size=4)
    datasets.Dataset.from_list(texts[33:]).save_to_disk(tmp_path / "saved")
    paths = [("mixed.jsonl", None), ("rows.parquet", None), ("saved", None), ("mixed.jsonl", 8)]
    return [Source(str(tmp_path / path), limit=limit) for path, limit in paths]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def prepared(sources, folder, processes, **settings):
    """What is written for both splits."""
    data = FunctionCallingDataModule(
        BASE, sources, 0.3, max_length=700, cache_dir=str(folder), preparation_processes=processes, **settings
    )
    data.setup(None)
    return {(split, data._folder(split).name): files(data._folder(split)) for split in ("train", "validation")}, data


@pytest.mark.parametrize("settings", [{}, {"too_long": "cut", "thoughts": "template"}, {"render": "verbatim"}], ids=str)
def test_the_number_of_processes_changes_nothing(tmp_path, monkeypatch, sources, settings):
    monkeypatch.setattr(prepare, "_CHUNK", 3)
    one, data = prepared(sources, tmp_path / "one", 1, **settings)
    report = data.prepared["train"].report
    assert report.documents > 20
    long = [getattr(one.report, "cut" if "too_long" in settings else "too_long") for one in data.prepared.values()]
    assert any(long)
    assert [int(place.rpartition(":")[2]) for place, _, _ in report.skipped[:3]] == [12, 21, 23]
    for processes in (2, 5):
        several, _ = prepared(sources, tmp_path / str(processes), processes, **settings)
        assert several == one


def test_blocks_of_rows_are_dealt_out(sources):
    for source in sources:
        rows = list(source.rows())
        for processes, block in ((1, 4), (2, 3), (3, 1), (2, 100)):
            shares = [list(source.rows(number, processes, block=block)) for number in range(processes)]
            for number, share in enumerate(shares):
                expected = [row for place, row in enumerate(rows) if place // block % processes == number]
                assert [place for place, _ in share] == [place for place, _ in expected]
                pairs = zip(share, expected, strict=True)
                assert all(a == b or (isinstance(a, RowError) and str(a) == str(b)) for (_, a), (_, b) in pairs)
    assert [len(list(source.rows())) for source in sources] == [28, 10, 7, 8]


def test_only_much_data_is_shared_out(tmp_path, sources):
    assert choose_num_processes(sources) == 1
    assert choose_num_processes(sources, 3) == 3
    large = tmp_path / "large.jsonl"
    large.write_bytes(b" " * 20_000_000)
    assert choose_num_processes([*sources, Source(str(large))]) == min(2, len(os.sched_getaffinity(0)))
    # It is parsed whole, which each process would do.
    (tmp_path / "rows.json").write_text("[]")
    assert choose_num_processes([Source(str(tmp_path / "rows.json"))], 3) == 1
    with multiprocessing.get_context("fork").Pool(1) as pool:  # its processes may have no children
        assert pool.apply(choose_num_processes, (sources, 3)) == 1


def test_formats_of_ones_own_are_known_and_fail_alike(tmp_path, sources):
    def mine(row):
        if row["id"] == json.loads(LINES[9])["id"]:
            raise RowError("not this one")
        return read_hermes(row)

    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(LINES), encoding="utf-8")
    register_format("mine", mine)
    try:
        data = FunctionCallingDataModule(
            BASE, [Source(str(rows), format="mine")], cache_dir=str(tmp_path), preparation_processes=2
        )
        data.setup("fit")
    finally:
        del FORMATS["mine"]
    ((place, _, reason),) = data.prepared["train"].report.skipped
    assert (place, reason) == (f"{rows}:10", "not this one")
    other = FunctionCallingDataModule(
        BASE, [Source(str(rows), format="other")], cache_dir=str(tmp_path), preparation_processes=2
    )
    with pytest.raises(UnknownFormatError, match="unknown format 'other'"):
        other.setup("fit")


@pytest.mark.slow
def test_a_script_needs_no_main_guard_and_hears_no_warning(tmp_path):
    (tmp_path / "script.py").write_text(
        "from fc_lightning.data import FunctionCallingDataModule, Source\n"
        "sources = [Source('data/quickstart/train.jsonl')]\n"
        f"data = FunctionCallingDataModule({BASE!r}, sources, preparation_processes=2, cache_dir={str(tmp_path)!r})\n"
        "data.template.tokenizer.backend_tokenizer.encode_batch(['a'] * 9)  # with threads\n"
        "data.prepare_data()\n"
        "data.setup('fit')\n"
        "print(len(data.prepared['train'].documents), 'documents')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("790 documents") == 1
    assert "parallelism" not in done.stdout + done.stderr
