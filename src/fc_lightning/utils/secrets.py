"""What may not be written down: keys, tokens and passwords, wherever they turn up."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

_SECRET_NAME = re.compile(
    r"^(.*[_-])?(api[_-]?key|access[_-]key|secret|secret[_-]key|password|passwd|passphrase|authorization|cookie|"
    r"(access|api|auth|bearer|hf|hub)[_-]token|token)$",
    re.I,
)
_SECRET_VARIABLE = re.compile(
    r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWD|CREDENTIALS|PAT|MYSQL_PWD)$|PASS(WORD|PHRASE)$", re.I
)
# Of the hub, OpenAI and its like, GitHub, GitLab, AWS, Slack; and what a header brings.
_SHAPE = re.compile(
    r"\b(hf_\w{20,}|sk-[\w-]{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|AKIA[A-Z0-9]{16}|xox[abprs]-[\w-]{10,})"
    r"|(?<=Bearer )[\w.~+/-]{8,}=*"
)
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
_SECRET_IN_QUERY = re.compile(r"(?i)([?&](?:token|access_token|api_?key|key|sig|signature|password)=)[^&\s]+")
_NAME = r"(?:api[_-]?key|access[_-]?key|token|secret|password|passwd|credentials?)"
# KEY=VALUE and KEY: VALUE, and a flag alone, where the key's last word is one of those.
_ASSIGNED = re.compile(rf"((?:^|[^a-z0-9])(?:[\w.-]*[._-])?{_NAME}[\"']?\s*[=:]\s*)([^\s,}}]+)", re.I)
_FLAG = re.compile(rf"^-{{1,2}}(?:[\w.-]*[._-])?{_NAME}$", re.I)
_HIDDEN = "***"
_SHORTEST = 8  # characters; what is shorter would also be found where it means something else


def redact(text: str) -> str:
    """A text without the values of secret environment variables, and without those in its URLs.

    A variable counts as secret by its name: one that ends in ``KEY``, ``TOKEN``, ``SECRET`` or ``PASSWORD``. What looks
    like a token of a well-known service is one, wherever it comes from.
    """
    for secret in _secrets_of_environment():
        text = text.replace(secret, _HIDDEN)
    return _SHAPE.sub(_HIDDEN, _SECRET_IN_QUERY.sub(rf"\1{_HIDDEN}", _USER_IN_URL.sub("", text)))


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command without the values of those that are named as secrets; all redacted, see above."""
    out = []
    for before, one in zip(["", *arguments], arguments, strict=False):
        out.append(_HIDDEN if _FLAG.match(before) else redact(_ASSIGNED.sub(rf"\1{_HIDDEN}", one)))
    return out


def redact_config(value: Any, path: str = "") -> Iterator[str]:
    """Take the secrets out of a configuration, in place.

    A setting whose name says that it is secret is left out altogether: its library then looks for it in the
    environment. Other texts are redacted, see :func:`redact`.

    Args:
        value: A mapping or a ``jsonargparse.Namespace``, or a list of such, however deep.
        path: Where it stands.

    Yields:
        Where something was taken out.
    """
    if isinstance(value, list):
        keys: list[Any] = list(range(len(value)))
    elif isinstance(value, dict):
        keys = list(value)
    else:
        keys = list(vars(value)) if hasattr(value, "__dict__") and type(value).__name__ == "Namespace" else []
    plain = value if isinstance(value, list | dict) else vars(value) if keys else {}
    for key in keys:
        item, place = plain[key], f"{path}.{key}" if path else str(key)
        if isinstance(item, str):
            if _SECRET_NAME.match(str(key)):
                del plain[key]
                yield place
            elif (clean := redact(item)) != item:
                plain[key] = clean
                yield place
        else:
            yield from redact_config(item, place)


def _secrets_of_environment() -> list[str]:
    values = {value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name) and len(value) >= _SHORTEST}
    return sorted(values, key=len, reverse=True)
