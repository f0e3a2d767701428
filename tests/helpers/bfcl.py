"""A package with the layout of bfcl-eval."""

import json
from pathlib import Path

from fc_lightning.data.bfcl import CATEGORIES, IRRELEVANCE

FUNCTION = {
    "name": "clock",
    "description": "Tells the time.",
    "parameters": {"type": "dict", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def write_bfcl_package(site: Path, ask=lambda category, number: "Time?"):
    """Two questions per category, put by ``ask``; importing the package fails."""
    data = site / "bfcl_eval" / "data"
    (data / "possible_answer").mkdir(parents=True)
    (data.parent / "__init__.py").write_text("raise ImportError('the package is not imported')")
    for category in CATEGORIES:
        rows = [
            {
                "id": f"{category}_{number}",
                "question": [[{"role": "user", "content": ask(category, number)}]],
                "function": [FUNCTION],
            }
            for number in range(2)
        ]
        (data / f"BFCL_v4_{category}.json").write_text("\n".join(map(json.dumps, rows)))
        answers = [{"id": row["id"], "ground_truth": [{"clock": {"city": ["Rome", "Roma"]}}]} for row in rows]
        if category not in IRRELEVANCE:
            (data / "possible_answer" / f"BFCL_v4_{category}.json").write_text("\n".join(map(json.dumps, answers)))
