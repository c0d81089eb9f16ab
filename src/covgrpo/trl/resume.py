"""A resumed run goes on as if it had not been stopped: same prompts, same rollouts, same updates.

Transformers restores weights, optimizer, schedule and random states. Three things of TRL's are added: its count of
micro-batches; the rollouts that a checkpoint in the middle of a generation batch still needs, with the trainer's log of
them, from which samples are kept; and the order of prompts in later epochs, which hangs on how often the sampler's
generator was used.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import IterableDataset
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints
from trl.trainer.utils import RepeatSampler

from covgrpo.errors import UserError
from covgrpo.files import replacing
from covgrpo.processes import from_first, gathered
from covgrpo.trl.rollout import Rollout
from covgrpo.trl.rollout_log import LOGGED, LOGGED_BY_NAME, log_of

logger = get_logger(__name__)

_STATE, _THEIR_STATE = "covgrpo_state.json", "trainer_state.json"


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
    Nor does one that an earlier try left, of which transformers writes one file after the other anew.
    """
    generate_every = trainer.args.steps_per_generation * trainer.num_iterations
    pending = trainer._buffered_inputs if trainer._step % generate_every else None
    folder.mkdir(parents=True, exist_ok=True)
    if trainer.args.should_save:
        (folder / _THEIR_STATE).unlink(missing_ok=True)
    trainer.accelerator.wait_for_everyone()
    if pending is not None:
        save_file(_flat(pending), folder / _rollouts_file(trainer))
    if trainer.args.should_save:
        others = [_others(micro) for micro in pending] if pending is not None else None
        state = {"micro_batches_done": trainer._step, "pending": others, **_split(trainer)}
        with suppress(TypeError):  # of images there is no JSON
            if pending is not None:
                json.dumps(trainer.rollout_log)
                state["log"] = trainer.rollout_log
        if trainer.entropy_hold is not None:
            state["entropy_hold"] = trainer.entropy_hold.state_dict()
        with replacing(folder / _STATE) as file:
            json.dump(state, file)
    trainer.accelerator.wait_for_everyone()


@contextmanager
def rotating_by_step(trainer: Any, trial: Any) -> Iterator[None]:
    """Keep the ``save_total_limit`` checkpoints of the highest steps, where transformers keeps the latest by the clock.

    After a clock was set back that would be any but the one just written; and a folder whose removal was cut short is
    the latest that changed.
    """
    limit = trainer.args.save_total_limit
    trainer.args.save_total_limit = None
    try:
        yield
    finally:
        trainer.args.save_total_limit = limit
    if trainer.args.should_save:
        rotate_checkpoints(trainer._get_output_dir(trial=trial), limit, trainer.state.best_model_checkpoint)


def checkpoint_for_all(trainer: Any, checkpoint: str | Path | bool | None) -> str | bool | None:
    """The checkpoint to go on from, the first process's on all of them: TRL's ``resume_from_checkpoint``.

    Raises:
        UserError: a process lacks its part; the same sentence on every process, as all would wait for the one that
            cannot go on.

    """
    if checkpoint is True:
        folder = Path(trainer.args.output_dir)
        checkpoint = (get_last_checkpoint(folder) if folder.is_dir() else None) or True
    checkpoint = from_first(checkpoint)
    if checkpoint is None or isinstance(checkpoint, bool):
        return checkpoint
    checkpoint = str(checkpoint)
    state = from_first(_read_state(Path(checkpoint)))
    if state is None:  # not of this trainer
        return checkpoint
    by_rank = gathered(_lacking(trainer, Path(checkpoint), state))
    if any(by_rank):
        rank, names = next((rank, names) for rank, names in enumerate(by_rank) if names)
        raise UserError(
            f"cannot go on from {checkpoint}: process {rank} does not find {', '.join(names)} there; every process "
            "needs the whole checkpoint (a shared disk, or a copy), and the run as many processes as before."
        )
    return checkpoint


def _split(trainer: Any) -> dict[str, int]:
    """How rollout batches are split into micro-batches, in whose number TRL counts."""
    args = trainer.args
    return {
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "steps_per_generation": args.steps_per_generation,
        "num_iterations": trainer.num_iterations,
        "processes": trainer.accelerator.num_processes,
    }


def _rows(micro_batches: int, split: dict[str, int]) -> int:
    """Rollouts of the run after so many micro-batches of a process, its last rollout batch whole."""
    batches = -(-micro_batches // (split["steps_per_generation"] * split["num_iterations"]))
    return batches * split["steps_per_generation"] * split["per_device_train_batch_size"] * split["processes"]


def _micro_batches(rows: int, split: dict[str, int]) -> int:
    """TRL's count at the first rollout batch whose rows come after ``rows``: no row's place, nor its noise, twice."""
    of_batch = split["steps_per_generation"] * split["per_device_train_batch_size"] * split["processes"]
    return -(-rows // of_batch) * split["steps_per_generation"] * split["num_iterations"]


def _split_of(trainer: Any, state: dict[str, Any]) -> dict[str, int]:
    """The split of a checkpoint; what an earlier version did not note is as it is now."""
    return {name: state.get(name, now) for name, now in _split(trainer).items()}


def _read_state(checkpoint: Path) -> dict[str, Any] | None:
    path = checkpoint / _STATE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _lacking(trainer: Any, checkpoint: Path, state: dict[str, Any]) -> list[str]:
    """The files of a checkpoint that this process needs and does not find."""
    before, now = _split_of(trainer, state), _split(trainer)
    needed = [_STATE, _THEIR_STATE]
    if state["pending"] is not None and before == now:
        needed.append(_rollouts_file(trainer))
    if before["processes"] == now["processes"] > 1 and not trainer.args.save_only_model:
        needed.append(f"rng_state_{trainer.accelerator.process_index}.pth")
    return [name for name in needed if not (checkpoint / name).is_file()]


def load_state(trainer: Any, checkpoint: str | None) -> None:
    """Go on from a checkpoint; one that is not of this trainer is left to TRL's own way of resuming.

    Raises:
        ValueError: the rollouts that it needs are not of this version.

    """
    state = None if checkpoint is None else _read_state(Path(checkpoint))
    if checkpoint is None or state is None:
        return
    if isinstance(trainer.train_dataset, IterableDataset):
        # transformers skips as many batches of a first pass as there were steps: its count of passes knows no length.
        logger.warning(
            "The training data is a stream: a run that had gone through it more than once begins it anew and goes on "
            "with other prompts than if it had not been stopped."
        )
    trainer._step = done = state["micro_batches_done"]
    if trainer.entropy_hold is not None and "entropy_hold" in state:
        trainer.entropy_hold.load_state_dict(state["entropy_hold"])
        trainer.weigher.weighting = trainer.entropy_hold.weighting
    if (before := _split_of(trainer, state)) != _split(trainer):
        trainer._step = _micro_batches(_rows(done, before), _split(trainer))
        logger.warning(
            f"{checkpoint} was written with rollout batches split otherwise ({before}): the run goes on from the same "
            "weights and optimizer with new rollouts, by other random numbers."
        )
    elif state["pending"] is not None:
        path = Path(checkpoint) / _rollouts_file(trainer)
        # By way of the CPU: safetensors does not know cpu:0, the device of the first of several processes.
        device = trainer.accelerator.device
        tensors = {name: value.to(device) for name, value in load_file(path).items()}
        pending = [{**_unflat(tensors, index), **others} for index, others in enumerate(state["pending"])]
        if any(Rollout.read(micro) is None for micro in pending):
            raise ValueError(
                f"{path} was written by an earlier version of covgrpo in the middle of a rollout batch; go on from a "
                "checkpoint at the end of one, or with that version."
            )
        trainer._buffered_inputs = pending
        _restore_log(trainer, state.get("log", {}))


def _restore_log(trainer: Any, log: dict[str, Any]) -> None:
    for name in LOGGED & log.keys():
        trainer._logs[name].extend(log[name])
    for kind in LOGGED_BY_NAME:
        for name, values in log.get(kind, {}).items():
            trainer._logs[kind][name].extend(values)
    trainer.rollout_log = log_of(trainer)


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
