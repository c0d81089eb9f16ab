"""Docstrings as the site shows them.

Formulas keep their lines, roles such as ``:class:`x``` become code, and names of pages become links.
"""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|data|mod|attr):`~?([^`]+)`")
PAGE = re.compile(r"``docs/(\w+)\.md``")
# Types in the manner of transformers, `name (`int`, defaults to `0`):`, which the signature says better.
TYPED = re.compile(r"^( +\w+) \(`\w+`, [^)\n]*\):$", re.MULTILINE)


def shown(text: str) -> str:
    """Return a docstring's text with its formulas as blocks of code.

    A formula is a paragraph with columns in it: three spaces or more between two words.
    """
    text = PAGE.sub(r"[\1](../\1.md)", TYPED.sub(r"\1:", ROLE.sub(r"`\1`", text)))
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(f"```text\n{part}\n```" if _is_formula(part) else part for part in paragraphs)


def _is_formula(paragraph: str) -> bool:
    lines = paragraph.splitlines()
    return (
        "```" not in paragraph
        and not lines[0].startswith(" ")
        and not re.match(r"(Args|Parameters|Returns|Raises|Attributes|Yields):", lines[0])
        and any(re.search(r"\S {3,}\S", line) for line in lines)
    )


class Formulas(griffe.Extension):
    """Rewrites every docstring as it is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object, if it has one."""
        if obj.docstring:
            obj.docstring.value = shown(obj.docstring.value)
