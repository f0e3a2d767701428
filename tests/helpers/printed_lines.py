"""The lines that each subcommand may print."""

import re

TABLE = r"[┏┡└│┃].*|\s*(exact match|audit|sources)\s*"
LIMIT = r"(train|validation|test):|  \S+: first \d+ rows of \d+ \(`limit`\)"
ROWS = r"\w+: \d+ of \d+ rows, .*"
# Regular expressions for every line that a subcommand may print.
ALLOWED = {
    "fit": [
        r"(model|train|validation|per epoch|training|memory|run|before|evaluation|best|last|adapter|report|next) *: .*",
        r"trainable params: .*",
        r"\d\d:\d\d:\d\d  step .*",
        r"\d+ optimizer steps(,| in) .*",
        r"question: .*",
        r"  (before|after|expected): .*",
        r" +python main\.py chat .*",
        r"resuming from .*",
    ],
    "validate": [ROWS, r"(run|report): .*"],
    "test": [ROWS, r"(run|report): .*"],
    "predict": [ROWS, r"predictions: .*"],  # and the answer to a question
    "chat": [r"(tools|try): .*", "An empty line ends the chat.", "you> .*"],
    "export": [r"loading .*", r"writing .*", r".* → .*", r"next: +transformers serve .*"],
    "audit": [r"\w+: \d+ of \d+ rows, .*", r"no findings|\d+ findings", r"─+ \w+: \w+ ─+", r".*/audit\.(html|json)"],
    "report": [r".*/comparison\.(html|md)"],
    "mine": [r"\d+ turns, \d+ with a mistake(: .*)?", r"pairs: .*"],
    "think": [r".*: \d+ conversations; answers: .*"],
    "init": [".*/work", r"next: +cd .* && fc-lightning fit --config configs/quickstart\.yaml"],
}


def surplus_lines(subcommand: str, lines: list[str], *also: str) -> list[str]:
    """Lines that are none of a subcommand's own.

    Args:
        subcommand: Its name.
        lines: What it printed.
        also: Regular expressions of further lines.
    """
    allowed = re.compile("|".join([TABLE, LIMIT, *ALLOWED[subcommand], *also]))
    return [line for line in lines if line.strip() and not allowed.fullmatch(line)]
