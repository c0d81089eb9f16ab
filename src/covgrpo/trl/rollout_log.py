"""TRL's log of the latest rollout batch: what of it is kept in samples and in a checkpoint."""

from typing import Any

# Of TRL's log: columns, and columns by name.
LOGGED, LOGGED_BY_NAME = {"prompt", "completion", "advantages"}, ("rewards", "extra")


def log_of(trainer: Any) -> dict[str, Any]:
    """A copy of TRL's log of the latest rollout batch, to which evaluations add their own completions later."""
    logs = trainer._logs
    log: dict[str, Any] = {name: list(logs[name]) for name in LOGGED}
    return log | {kind: {name: list(values) for name, values in logs[kind].items()} for kind in LOGGED_BY_NAME}
