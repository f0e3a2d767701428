"""xLAM: ``query``, ``tools`` and ``answers``, one exchange per row."""

from __future__ import annotations

from fc_lightning.conversation.parsing import CallSyntaxError
from fc_lightning.conversation.types import Conversation
from fc_lightning.data.formats.builder import ConversationBuilder
from fc_lightning.data.formats.chat import COMMON_KEYS
from fc_lightning.data.formats.format import Format
from fc_lightning.data.formats.values import Row, RowError, as_list, column_text

NO_CALL_ANSWER = "None of the available tools can help with this request."


def _detect(row: Row) -> bool:
    return "query" in row and "answers" in row


def _read(row: Row) -> Conversation:
    builder = ConversationBuilder()
    builder.read_tools(row.get("tools"), python_types=True)
    builder.add(1, "user", column_text(row, "query", needed=True))
    if _calls_nothing(row.get("answers")):
        builder.add_assistant(2, NO_CALL_ANSWER)
        builder.notices.append(("no_answer", f"`answers` is empty: the answer is “{NO_CALL_ANSWER}”"))
    else:
        builder.add_assistant(2, "", None, *builder.read_calls(2, row.get("answers")))
    return builder.build(row)


def _calls_nothing(answers: object) -> bool:
    if answers is None:
        raise RowError("the row has no `answers`")
    try:
        return as_list(answers) == []
    except CallSyntaxError:
        return False


FORMAT = Format(_read, _detect, COMMON_KEYS | {"query", "answers"}, ("query", "answers"))
