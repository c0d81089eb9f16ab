"""The record of a run: its folder on disk, and the machine and versions it ran with."""

from covgrpo.runs.environment import describe_environment
from covgrpo.runs.folder import RunFolder, differences

__all__ = ["RunFolder", "describe_environment", "differences"]
