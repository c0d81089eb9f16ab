"""What both sides import, once for all processes of a measurement: they are forks of a server that imports this."""

import datasets  # noqa: F401
import transformers  # noqa: F401
from trl import GRPOConfig, GRPOTrainer  # noqa: F401

import covgrpo.rewards
import covgrpo.tasks
import covgrpo.trl
import covgrpo.verify  # noqa: F401
