"""The record of a run: its folder on disk, and the machine and versions it ran with."""

from covgrpo.runs.record.environment import describe_environment
from covgrpo.runs.record.folder import RunFolder
from covgrpo.runs.record.json_values import differences

__all__ = ["RunFolder", "describe_environment", "differences"]
