"""A resumed run goes on as if it had not been stopped: same prompts, same rollouts, same updates.

Transformers restores weights, optimizer, schedule and random states. Three things of TRL's are added: its count of
micro-batches; the rollouts that a checkpoint in the middle of a generation batch still needs; and the order of prompts
in later epochs, which hangs on how often the sampler's generator was used.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from trl.trainer.utils import RepeatSampler

from covgrpo.files import replacing
from covgrpo.trl.rollout import Rollout

_STATE = "covgrpo_state.json"


class EpochSampler(RepeatSampler):
    """TRL's sampler, with the order of any epoch to be had without going through the epochs before it."""

    @classmethod
    def like(cls, theirs: RepeatSampler) -> "EpochSampler":
        """Make one with the settings of TRL's."""
        return cls(
            data_source=theirs.data_source,
            mini_repeat_count=theirs.mini_repeat_count,
            batch_size=theirs.batch_size,
            repeat_count=theirs.repeat_count,
            shuffle=theirs.shuffle,
            seed=theirs.seed,
        )

    def set_epoch(self, epoch: int) -> None:
        """Put the generator where it stands after ``epoch`` epochs."""
        if self.shuffle and self.seed is not None:
            self.generator.manual_seed(self.seed)
            for _ in range(epoch):
                torch.randperm(self.num_samples, generator=self.generator)


class EpochOrder(TrainerCallback):
    """Puts the sampler of prompts into the order of the epoch that begins."""

    def __init__(self) -> None:
        self.sampler: EpochSampler | None = None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the order."""
        if self.sampler is not None:
            self.sampler.set_epoch(int((state.epoch or 0.0) + 1e-6))


def save_state(trainer: Any, folder: Path) -> None:
    """Write what a resumed run needs into a checkpoint, on every process, before transformers completes it.

    Whatever is missing when the run is stopped in between, transformers' own state is: the checkpoint does not count.
    """
    generate_every = trainer.args.steps_per_generation * trainer.num_iterations
    pending = trainer._buffered_inputs if trainer._step % generate_every else None
    folder.mkdir(parents=True, exist_ok=True)
    if pending is not None:
        save_file(_flat(pending), folder / _rollouts_file(trainer))
    if trainer.args.should_save:
        others = [_others(micro) for micro in pending] if pending is not None else None
        state = {"micro_batches_done": trainer._step, "pending": others}
        if trainer.entropy_hold is not None:
            state["entropy_hold"] = trainer.entropy_hold.state_dict()
        with replacing(folder / _STATE) as file:
            json.dump(state, file)
    trainer.accelerator.wait_for_everyone()


def load_state(trainer: Any, checkpoint: str | None) -> None:
    """Go on from a checkpoint; one that is not of this trainer is left to TRL's own way of resuming.

    Raises:
        ValueError: the rollouts that it needs are not of this version.

    """
    if checkpoint is None or not (Path(checkpoint) / _STATE).is_file():
        return
    state = json.loads((Path(checkpoint) / _STATE).read_text(encoding="utf-8"))
    trainer._step = state["micro_batches_done"]
    if trainer.entropy_hold is not None and "entropy_hold" in state:
        trainer.entropy_hold.load_state_dict(state["entropy_hold"])
        trainer.weigher.weighting = trainer.entropy_hold.weighting
    if state["pending"] is not None:
        path = Path(checkpoint) / _rollouts_file(trainer)
        tensors = load_file(path, device=str(trainer.accelerator.device))
        pending = [{**_unflat(tensors, index), **others} for index, others in enumerate(state["pending"])]
        if any(Rollout.read(micro) is None for micro in pending):
            raise ValueError(
                f"{path} was written by an earlier version of covgrpo in the middle of a rollout batch; go on from a "
                "checkpoint at the end of one, or with that version."
            )
        trainer._buffered_inputs = pending


def _rollouts_file(trainer: Any) -> str:
    return f"rollouts-{trainer.accelerator.process_index}.safetensors"


def _flat(micro_batches: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {
        f"{index}.{name}": value.detach().contiguous().clone()
        for index, micro in enumerate(micro_batches)
        for name, value in micro.items()
        if isinstance(value, torch.Tensor)
    }


def _unflat(tensors: dict[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
    start = f"{index}."
    return {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}


def _others(micro: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in micro.items() if not isinstance(value, torch.Tensor)}
