"""``covgrpo tasks`` and ``covgrpo models``."""

import argparse
import dataclasses
import json
from typing import Any


def add_parser(commands: Any) -> None:
    """Add both sub-commands."""
    tasks = commands.add_parser("tasks", help="list tasks and their parameters")
    tasks.add_argument("pattern", nargs="?", default="", help="only tasks whose name holds this text")
    models = commands.add_parser("models", help="list built-in models")
    for parser, function in ((tasks, run_tasks), (models, run_models)):
        parser.add_argument("--json", action="store_true", help="print one JSON array")
        parser.set_defaults(run=function)


def run_tasks(args: argparse.Namespace) -> int:
    """Print the tasks; with their parameters where a pattern narrows them down."""
    from covgrpo.errors import UserError
    from covgrpo.tasks import list_tasks

    found = [task for task in list_tasks() if args.pattern in task.name]
    if not found:
        raise UserError(f"no task's name holds {args.pattern!r}.")
    if args.json:
        print(json.dumps([dataclasses.asdict(task) for task in found], indent=2, default=str))
        return 0
    for task in found:
        print(f"{task.name:<44} {task.description}")
        for name, default in task.parameters.items() if args.pattern else ():
            print(f"    {name} = {default!r}")
    if not args.pattern:
        print(
            "\n`covgrpo tasks NAME` shows parameters; pass them as --task 'NAME?key=value' or --task-params key=value."
        )
    return 0


def run_models(args: argparse.Namespace) -> int:
    """Print the built-in models."""
    from covgrpo.models import list_models

    found = list_models()
    if args.json:
        print(json.dumps([dataclasses.asdict(model) for model in found], indent=2, default=str))
        return 0
    for model in found:
        state = "ready" if model.cached else "made on first use"
        size = f"{model.parameters / 1e6:.0f}M parameters"
        print(f"{model.name:<16} {size}, {model.licence}, from {model.source}; {state}")
    print("\nA local folder or a hub id (org/name) works as well.")
    return 0
