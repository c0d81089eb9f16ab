"""Task specs as text: ``kind:body?name=value&name=value``.

Values are JSON where they parse as JSON, else plain strings. Only ``%``, ``&`` and ``?`` need escaping
(``%25``, ``%26``, ``%3F``); other percent signs stay as they are.
"""

import json
from typing import Any

from covgrpo.errors import UserError
from covgrpo.files import parse_exactly

_ESCAPES = {"%26": "&", "%3F": "?", "%25": "%"}  # the percent sign last when unescaping, first when escaping


def _escape(text: str) -> str:
    for code, char in reversed(_ESCAPES.items()):
        text = text.replace(char, code)
    return text


def _unescape(text: str) -> str:
    for code, char in _ESCAPES.items():
        text = text.replace(code, char)
    return text


def _parse_value(text: str) -> Any:
    try:
        return parse_exactly(text)
    except (ValueError, RecursionError):
        return text


def _format_value(value: Any) -> str:
    if isinstance(value, str) and _parse_value(value) == value:
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def parse_spec(spec: str) -> tuple[str, str, dict[str, Any]]:
    """``kind:body?a=1&b=["+"]`` -> ``("kind", "body", {"a": 1, "b": ["+"]})``; ``:body`` may be left out.

    Raises:
        UserError: a parameter without ``=``, without a name, or given twice.
    """
    head, _, query = spec.partition("?")
    kind, _, body = head.partition(":")
    params: dict[str, Any] = {}
    for part in query.split("&") if query else []:
        name, equals, value = part.partition("=")
        if not equals or not name:
            raise UserError(f"Task {spec!r}: {part!r} is not of the form name=value.")
        if name in params:
            raise UserError(f"Task {spec!r}: parameter {name!r} is given twice.")
        params[name] = _parse_value(_unescape(value))
    return kind, _unescape(body), params


def format_spec(kind: str, body: str, params: dict[str, Any], defaults: dict[str, Any]) -> str:
    """The canonical spec: parameters sorted by name, those at their default left out."""
    changed = {name: value for name, value in params.items() if value != defaults.get(name, ...)}
    query = "&".join(f"{name}={_escape(_format_value(value))}" for name, value in sorted(changed.items()))
    return f"{kind}:{_escape(body)}" + (f"?{query}" if query else "")
