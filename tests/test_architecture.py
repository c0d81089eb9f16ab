"""docs/architecture.md points at what it names, and the trainer is one class."""

import ast
import re
from pathlib import Path

from trl import GRPOTrainer

import covgrpo
from covgrpo.trl import CovGRPOTrainer
from covgrpo.trl import trainer as module

ROOT = Path(covgrpo.__file__).parent
PAGE = ROOT.parent.parent / "docs/architecture.md"
LINK = re.compile(r"\[`(\w+)`\]\(\.\./src/covgrpo/([\w/]+\.py)#L(\d+)\)")


def lines_of(name: str, source: str) -> list[int]:
    """Lines on which a class, a function or a module's value of this name is defined."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            found.append(node.lineno)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            found.append(node.lineno)
    return found


def test_every_anchor_stands_at_what_it_names():
    links = LINK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(links) > 25
    wrong = []
    for name, path, line in links:
        found = lines_of(name, (ROOT / path).read_text(encoding="utf-8"))
        if int(line) not in found:
            wrong.append(f"{path}#L{line} is not {name}, which stands at {found}")
    assert not wrong, "\n".join(wrong)


def test_the_trainer_is_the_only_class_between_trl_and_its_user():
    ours = [kind for kind in CovGRPOTrainer.__mro__ if kind.__module__.startswith("covgrpo")]
    assert ours == [CovGRPOTrainer]
    assert CovGRPOTrainer.__bases__ == (GRPOTrainer,)


def test_the_trainer_is_one_short_file_of_short_methods():
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert len(source.splitlines()) < 250
    (trainer,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    lengths = {node.name: len(node.body) for node in trainer.body if isinstance(node, ast.FunctionDef)}
    assert {name for name, statements in lengths.items() if statements > 9} <= {"__init__"}
    overridden = [name for name in lengths if hasattr(GRPOTrainer, name)]
    assert len(overridden) <= 13, overridden
