"""A run from its options to its folder: planning and running here, what it leaves on disk in ``record``."""

from covgrpo.runs.record import RunFolder, describe_environment, differences

__all__ = ["RunFolder", "describe_environment", "differences"]
