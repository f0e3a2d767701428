"""Prompts for prediction that cannot be what somebody meant."""

import pytest

from fc_lightning.data.prompts import read_prompts
from fc_lightning.data.sources import DataError


def test_a_file_and_a_question_are_not_given_together(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    with pytest.raises(DataError, match="either a file of prompts"):
        read_prompts(str(tmp_path / "prompts.jsonl"), "What time is it?", None)


@pytest.mark.parametrize("content", ["", "\n"])
def test_a_file_without_rows_is_an_error(tmp_path, content):
    (tmp_path / "prompts.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"prompts\.jsonl: no rows"):
        read_prompts(str(tmp_path / "prompts.jsonl"), None, None)
