"""The pages of the documentation and their fenced code blocks."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def code_blocks(language: str, pages: list[Path] = PAGES) -> list[tuple[str, str]]:
    """Fenced blocks of a language, each with the name of its page."""
    found = []
    for page in pages:
        for name, text in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
            found += [(page.name, text)] if name == language else []
    return found
