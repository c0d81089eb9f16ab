"""Move the target of a `hold_entropy` run that has been stopped; it goes on with the new one.

    covgrpo train --method hold_entropy --steps 150 --schedule-steps 300 --output runs/moved ...
    python scripts/move_target.py runs/moved --factor 0.8
    covgrpo train --method hold_entropy --steps 300 --schedule-steps 300 --output runs/moved --resume ...

The last checkpoint's controller is told another target; all else stays as it was. Prints both targets, in nats.
"""

import argparse
import json
import sys
from pathlib import Path

from covgrpo.errors import UserError
from covgrpo.files import load_json, replacing
from covgrpo.runs.record.folder import RunFolder


def move_target(run: Path, factor: float) -> tuple[float, float]:
    """Multiply the target in the run's last checkpoint by ``factor``: returns the old and the new one, nats.

    Raises:
        UserError: no checkpoint, one of another method, or none with a target yet; or the run was given its target,
            which it would take again.
    """
    options = load_json(RunFolder(run).config)["options"] if RunFolder(run).config.exists() else {}
    if "target" in (options.get("weighting_kwargs") or {}):
        raise UserError(f"{run} was given its target in weighting_kwargs and takes it again when it goes on.")
    checkpoint = RunFolder(run).latest_checkpoint()
    if checkpoint is None:
        raise UserError(f"{run} has no checkpoint.")
    path = checkpoint / "covgrpo_state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    controller = state.get("entropy_hold", {}).get("controller", {})
    target = controller.get("target")
    if target is None:
        raise UserError(f"{path} holds no target: the run does not hold its entropy, or is still measuring it.")
    controller["target"] = target * factor
    with replacing(path) as file:
        json.dump(state, file)
    return target, target * factor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--factor", type=float, required=True)
    arguments = parser.parse_args()
    try:
        old, new = move_target(arguments.run, arguments.factor)
    except UserError as error:
        sys.exit(str(error))
    print(f"target {old:.4f} -> {new:.4f} nats")


if __name__ == "__main__":
    main()
