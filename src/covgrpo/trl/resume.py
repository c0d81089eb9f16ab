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
from torch import nn
from torch.utils.data import Sampler
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

_STATE = "covgrpo_state.json"


class EpochSampler(RepeatSampler):
    """TRL's sampler, with the order of any epoch to be had without going through the epochs before it."""

    def set_epoch(self, epoch: int) -> None:
        """Put the generator where it stands after ``epoch`` epochs."""
        if self.shuffle and self.seed is not None:
            self.generator.manual_seed(self.seed)
            for _ in range(epoch):
                torch.randperm(self.num_samples, generator=self.generator)


class _SetEpoch(TrainerCallback):
    def __init__(self, trainer: "ExactResume"):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.epoch_sampler is not None:
            self.trainer.epoch_sampler.set_epoch(int((state.epoch or 0.0) + 1e-6))


class ExactResume(GRPOTrainer):
    """Saves and restores what transformers does not."""

    epoch_sampler: EpochSampler | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_callback(_SetEpoch(self))

    def _get_train_sampler(self, dataset: Any = None) -> Sampler:
        theirs = super()._get_train_sampler(dataset)
        self.epoch_sampler = EpochSampler(
            data_source=theirs.data_source,
            mini_repeat_count=theirs.mini_repeat_count,
            batch_size=theirs.batch_size,
            repeat_count=theirs.repeat_count,
            shuffle=theirs.shuffle,
            seed=theirs.seed,
        )
        return self.epoch_sampler

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        generate_every = self.args.steps_per_generation * self.num_iterations
        pending = self._buffered_inputs if self._step % generate_every else None
        if pending is not None:
            save_file(_flat(pending), folder / self._rollouts_file())
        if self.args.should_save:
            others = [_others(micro) for micro in pending] if pending is not None else None
            state = {"micro_batches_done": self._step, "pending": others}
            hold = getattr(self, "entropy_hold", None)
            if hold is not None:
                state["entropy_hold"] = hold.state_dict()
            (folder / _STATE).write_text(json.dumps(state), encoding="utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not (Path(checkpoint) / _STATE).is_file():
            return  # not a checkpoint of this trainer: TRL's own way of resuming
        state = json.loads((Path(checkpoint) / _STATE).read_text(encoding="utf-8"))
        self._step = state["micro_batches_done"]
        hold = getattr(self, "entropy_hold", None)
        if hold is not None and "entropy_hold" in state:
            hold.load_state_dict(state["entropy_hold"])
            self.weighting = hold.weighting
        if state["pending"] is not None:
            tensors = load_file(Path(checkpoint) / self._rollouts_file(), device=str(self.accelerator.device))
            self._buffered_inputs = [
                {**_unflat(tensors, index), **others} for index, others in enumerate(state["pending"])
            ]

    def _rollouts_file(self) -> str:
        return f"rollouts-{self.accelerator.process_index}.safetensors"


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
