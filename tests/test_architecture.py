"""docs/architecture.md points at what it names, and the trainer is one class."""

import ast
import runpy
from pathlib import Path

import pytest
from trl import GRPOTrainer

from covgrpo.trl import CovGRPOTrainer
from covgrpo.trl import trainer as module

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "scripts/architecture_anchors.py"))


def test_every_anchor_stands_at_what_it_names():
    text = SCRIPT["PAGE"].read_text(encoding="utf-8")
    assert len(SCRIPT["LINK"].findall(text)) > 25
    assert text == SCRIPT["anchored"](text), "run scripts/architecture_anchors.py"


def test_an_anchor_that_has_moved_is_found():
    link = "[`Rollout`](../src/covgrpo/trl/rollout.py#L1)"
    assert SCRIPT["anchored"](link) not in (link, "")
    with pytest.raises(ValueError, match="defines no Nothing"):
        SCRIPT["anchored"](link.replace("`Rollout`", "`Nothing`"))


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
