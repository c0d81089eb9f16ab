"""Set the line anchors of docs/architecture.md to where what they name stands now.

    python scripts/architecture_anchors.py

`[`Rollout`](../src/covgrpo/trl/rollout.py#L12)`: the line of the class, function or module value of that name.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/architecture.md"
LINK = re.compile(r"\[`(\w+)`\]\(\.\./(src/covgrpo/[\w/]+\.py)#L(\d+)\)")


def lines_of(name: str, source: str) -> list[int]:
    """Lines on which a class, a function or an annotated value of this name is defined."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            found.append(node.lineno)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            found.append(node.lineno)
    return found


def anchored(text: str) -> str:
    """Return the page with every anchor at its place.

    Raises:
        ValueError: a name does not stand in its file; names both.
    """

    def link(match: re.Match[str]) -> str:
        name, path, line = match.groups()
        found = lines_of(name, (ROOT / path).read_text(encoding="utf-8"))
        if not found:
            raise ValueError(f"{path} defines no {name}")
        return f"[`{name}`](../{path}#L{line if int(line) in found else found[0]})"

    return LINK.sub(link, text)


def main() -> None:
    try:
        text = anchored(PAGE.read_text(encoding="utf-8"))
    except ValueError as error:
        sys.exit(str(error))
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
