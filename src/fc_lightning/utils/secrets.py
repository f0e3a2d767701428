"""Redaction of keys, tokens and passwords from everything that a run prints and writes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from jsonargparse import Namespace

_SECRET_NAME = re.compile(
    r"^(.*[_-])?(api[_-]?key|access[_-]key|secret|secret[_-]key|password|passwd|passphrase|authorization|cookie|"
    r"(access|api|auth|bearer|hf|hub)[_-]token|token)$",
    re.I,
)
_SECRET_VARIABLE = re.compile(
    r"(^|_)(API_?KEY|KEY|TOKEN|SECRET|PASSWD|CREDENTIALS|PAT|MYSQL_PWD)$|PASS(WORD|PHRASE)$", re.I
)
# Tokens of the Hugging Face Hub, OpenAI-compatible APIs, GitHub, GitLab, AWS and Slack, and HTTP bearer tokens.
_TOKEN_SHAPE = re.compile(
    r"\b(hf_\w{20,}|sk-[\w-]{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|AKIA[A-Z0-9]{16}|xox[abprs]-[\w-]{10,})"
    r"|(?<=Bearer )[\w.~+/-]{8,}=*"
)
_USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+@")
_SECRET_IN_QUERY = re.compile(r"(?i)([?&](?:token|access_token|api_?key|key|sig|signature|password)=)[^&\s]+")
_NAME = r"(?:api[_-]?key|access[_-]?key|token|secret|password|passwd|credentials?)"
# KEY=VALUE and KEY: VALUE, and a flag whose value is the next argument, if the key ends in one of these words.
_ASSIGNMENT = re.compile(rf"((?<![a-z0-9]){_NAME}[\"']?\s*[=:]\s*)([^\s,}}]+)", re.I)
_FLAG = re.compile(rf"^-{{1,2}}(?:[\w.-]*[._-])?{_NAME}$", re.I)
_REDACTED = "***"
_MIN_SECRET_LENGTH = 8  # characters; a shorter value is likely to occur in other text by coincidence


def redact(text: str) -> str:
    """Remove secrets from a text.

    Secrets are the values of environment variables whose name ends in ``KEY``, ``TOKEN``, ``SECRET``, ``PASSWORD`` or
    similar, user names and secret query parameters in URLs, and text in the shape of a well-known service's tokens.
    """
    for secret in _secrets_of_environment():
        text = text.replace(secret, _REDACTED)
    return _TOKEN_SHAPE.sub(_REDACTED, _SECRET_IN_QUERY.sub(rf"\1{_REDACTED}", _USER_IN_URL.sub("", text)))


def redact_arguments(arguments: Sequence[str]) -> list[str]:
    """Remove secrets from the arguments of a command, including the values of options whose name says secret."""
    redacted = []
    for previous, argument in pairwise(["", *arguments]):
        is_secret = _FLAG.match(previous)
        redacted.append(_REDACTED if is_secret else redact(_ASSIGNMENT.sub(rf"\1{_REDACTED}", argument)))
    return redacted


def redact_config(config: Any, path: str = "") -> Iterator[str]:
    """Remove secrets from a configuration, in place.

    A setting with a secret name is removed, so that its library reads it from the environment on the next run. Other
    texts are redacted; see :func:`redact`.

    Args:
        config: A mapping, a ``jsonargparse.Namespace``, or a list of them, nested to any depth.
        path: Dotted path of ``config`` in the complete configuration.

    Yields:
        The dotted path of each change.
    """
    items = _mutable_items(config)
    for key in list(range(len(items)) if isinstance(items, list) else items):
        value, place = items[key], f"{path}.{key}" if path else str(key)
        if not isinstance(value, str):
            yield from redact_config(value, place)
        elif _SECRET_NAME.match(str(key)):
            del items[key]
            yield place
        elif (clean := redact(value)) != value:
            items[key] = clean
            yield place


def _mutable_items(config: Any) -> Any:
    """The list or dictionary that holds the items of a configuration; empty for a scalar."""
    if isinstance(config, list | dict):
        return config
    return vars(config) if isinstance(config, Namespace) else {}


def _secrets_of_environment() -> list[str]:
    names = filter(_SECRET_VARIABLE.search, os.environ)
    values = {os.environ[name] for name in names if len(os.environ[name]) >= _MIN_SECRET_LENGTH}
    return sorted(values, key=len, reverse=True)
