"""A training run from its options: task -> model -> trainer -> run folder."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from covgrpo.errors import UserError
from covgrpo.models.resolve import DTYPES
from covgrpo.processes import from_first
from covgrpo.runs.adapters import adapter_config, check_base
from covgrpo.runs.held_out import HeldOut, OtherProblems, kept_evaluation, load_other
from covgrpo.runs.hub import HUB_OPTIONS, HubRepository
from covgrpo.runs.libraries import quiet_libraries
from covgrpo.runs.model_card import write_cards
from covgrpo.runs.needed_packages import lacking
from covgrpo.runs.options import TrainOptions
from covgrpo.runs.plan import Plan, plan_training
from covgrpo.runs.prompts import check_prompts, prompt_tokens
from covgrpo.runs.record.checkpoint import whole_model_of
from covgrpo.runs.record.folder import RESUME_IGNORES, RunFolder
from covgrpo.runs.sharded import check_evaluations, save_whole, whole
from covgrpo.runs.trainer_config import plain_config, trainer_config
from covgrpo.suggest import check_choice
from covgrpo.tasks import Problem, PromptFormat, Task, load_task
from covgrpo.tasks.base import vote_of

# What a resumed run may be told differently: where and how far it goes, not what it computes.
_MAY_CHANGE = RESUME_IGNORES | {
    *("options.resume", "options.output", "options.report_to", "options.threads", "options.steps", "trainer"),
    *("options.samples_per_step", "options.tokens_per_step", "options.entropy_probe_steps", "options.eval_batch_size"),
    *("options.verifier_workers", "options.verifier_memory"),
    *(f"options.trl.{name}" for name in HUB_OPTIONS),
}

_FULL_BYTES = 1 << 20  # free space of a disk that counts as full


@dataclass
class Watcher:
    """What the command line does while a run goes on; every hook is optional."""

    message: Callable[[str], None] = print
    started: Callable[[int, int], None] = lambda step, steps: None
    step: Callable[[dict[str, Any]], None] = lambda record: None
    completion: Callable[[dict[str, Any]], None] = lambda sample: None
    evaluating: Callable[[str, int, int], None] = lambda what, done, total: None


@dataclass
class TrainResult:
    """How a run ended: the folder, the last step, evaluations where asked for, the signal that stopped it if any."""

    folder: Path
    step: int
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    stopped_by: int | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _Data:
    task: Task
    prompt_format: PromptFormat
    examples: list[Problem]
    train: list[Problem]
    held_out: list[Problem]
    other: OtherProblems | None


def run_training(options: TrainOptions, watcher: Watcher) -> TrainResult:
    """Train as ``options`` say and leave a run folder that stands alone.

    Raises:
        UserError: bad input; one sentence.
    """
    options.check()
    data = _load_data(options)
    _set_threads(options.threads)
    quiet_libraries()
    from accelerate import PartialState

    from covgrpo.models import load_model, resolve_model

    resolve_model(options.model)
    check_base(options)
    for sentence in lacking(options):
        raise UserError(sentence)
    args = trainer_config(options)
    check_evaluations(options, args)
    config = {"command": "train", "options": dataclasses.asdict(options), "trainer": plain_config(args)}
    config["task"], config["examples"] = data.task.spec, [problem.id for problem in data.examples]
    hub = HubRepository.of(options)
    run, checkpoint, hub = _open(options, config, watcher, PartialState().is_main_process, hub)
    try:
        # A run whose last checkpoint is its end has nothing left to train. (Adapters are loaded onto their base.)
        name, saved = options.model, False
        if checkpoint and _step_of(checkpoint) >= options.steps and not options.lora_r:
            whole_model = whole_model_of(checkpoint)
            name, saved = str(whole_model), whole_model != checkpoint
        model, tokenizer = load_model(name, options.dtype, options.trust_remote_code)
        data = _without_long_prompts(data, tokenizer, options.max_prompt_length, watcher)
        for problems in (data.train, data.held_out):
            check_prompts(model, tokenizer, data.prompt_format, problems, data.examples, options.max_completion_length)
        if (other := data.other) is not None:
            length = other.options.max_completion_length
            check_prompts(model, tokenizer, data.prompt_format, other.problems, other.examples, length, "on eval_task ")
        return _Session(options, watcher, data, args, run, hub).go(model, tokenizer, checkpoint, saved)
    except UserError:
        if run is not None and not options.resume:
            run.discard()
        raise
    finally:
        if run is not None:
            run.release()


def plan(options: TrainOptions, processes: int = 1, shards: str = "none") -> Plan:
    """Resolve everything that needs neither model nor network, and work the run out on paper.

    Raises:
        UserError: bad input; one sentence.
    """
    options.check()
    check_choice("dtype", options.dtype, DTYPES)
    check_choice("shards", shards, ("none", "zero2", "zero3", "fsdp2"))
    if processes < 1:
        raise UserError(f"processes is {processes}; it must be at least 1.")
    load_task(options.task, options.task_params)
    if options.eval_task:
        load_task(options.eval_task)
    PromptFormat(options.answer_format, options.system_prompt, options.num_examples)
    options.per_device_batch(processes)
    HubRepository.of(options)
    return plan_training(options, trainer_config(options), processes, shards)


def _without_long_prompts(data: _Data, tokenizer: Any, most: int | None, watcher: Watcher) -> _Data:
    """Leave out training problems whose prompt has more tokens than ``most``.

    Raises:
        UserError: none is left, or a chat template that refuses one.
    """
    if most is None:
        return data
    prompts = (data.prompt_format.messages(problem, data.examples) for problem in data.train)
    lengths = [prompt_tokens(tokenizer, prompt) for prompt in prompts]
    kept = [problem for problem, length in zip(data.train, lengths, strict=True) if length <= most]
    if not kept:
        raise UserError(f"max_prompt_length is {most}, and the shortest training prompt has {min(lengths)} tokens.")
    if len(kept) < len(lengths):
        watcher.message(f"{len(lengths) - len(kept)} of {len(lengths)} training problems left out: prompt above {most}")
    return dataclasses.replace(data, train=kept)


def _step_of(checkpoint: Path | None) -> int:
    return int(checkpoint.name.split("-")[1]) if checkpoint else 0


def _open(
    options: TrainOptions, config: dict[str, Any], watcher: Watcher, first: bool, hub: HubRepository | None
) -> tuple[RunFolder | None, Path | None, HubRepository | None]:
    """The run's folder, on the first process, and the checkpoint and repository, the same on all.

    Raises:
        UserError: the first process cannot use one of them; on all of them, as none could go on without it.
    """
    run = checkpoint = error = None
    if first:
        try:
            folder = RunFolder(Path(options.run_folder()))
            checkpoint = folder.checkpoint_to_resume() if options.resume else None
            run = RunFolder.create(folder.path, config, resume=options.resume, ignore=_MAY_CHANGE, lock=True)
            hub = None if hub is None else hub.create()
            if options.resume:
                run.truncate_after(_step_of(checkpoint))
                watcher.message(f"resuming {run.path} from step {_step_of(checkpoint)}")
        except UserError as found:
            error = str(found)
            if run is not None:
                if not options.resume:
                    run.discard()
                run.release()
    checkpoint, hub, error = from_first((checkpoint, hub, error))
    if error is not None:
        raise UserError(error)
    return run, checkpoint, hub


def _load_data(options: TrainOptions) -> _Data:
    task = load_task(options.task, options.task_params)
    prompt_format = PromptFormat(options.answer_format, options.system_prompt, options.num_examples)
    train = task.problems("train", options.train_problems + options.num_examples, options.seed)
    # A task may have fewer problems than asked for; solved examples come first and are not trained on.
    if len(train) <= options.num_examples:
        raise UserError(f"task {task.spec} has {len(train)} training problems, too few for num_examples and training.")
    examples, train = train[: options.num_examples], train[options.num_examples :]
    held_out = (
        task.problems("eval", options.eval_problems, options.seed) if options.evaluate or options.eval_steps else []
    )
    return _Data(task, prompt_format, examples, train, held_out, load_other(options))


@dataclass
class _Session:
    options: TrainOptions
    watcher: Watcher
    data: _Data
    args: Any
    run: RunFolder | None
    hub: HubRepository | None

    def go(self, model: Any, tokenizer: Any, checkpoint: Path | None, saved: bool) -> TrainResult:
        """Train, save and evaluate; ``saved``: ``model`` is read, by all processes, from where it would be saved."""
        from covgrpo.report.idle import IdleWarning
        from covgrpo.runs.record.recorder import RunRecorder, StopRequest
        from covgrpo.trl.resume import rotate_checkpoints
        from covgrpo.verify import VerifierPool

        options = self.options
        stop = StopRequest(announce=self.watcher.message)
        result = TrainResult(Path(options.run_folder()), 0)
        with ExitStack() as stack:
            data = self.data
            limits = options.verifier_limits()
            pool = stack.enter_context(VerifierPool(data.task.verifier, **limits))
            share = (self.args.process_index, self.args.world_size)
            held_out = HeldOut(
                options, data.held_out, data.examples, data.prompt_format, tokenizer, pool, vote_of(data.task), *share
            )
            other = None
            if data.other is not None:
                verifier = data.other.task.verifier
                its = pool if verifier == pool.verifier else stack.enter_context(VerifierPool(verifier, **limits))
                other = held_out.of_other(data.other, its)
            result.before = self._evaluate("before", model, held_out)
            warn_if_idle = IdleWarning(self.watcher.message)

            def on_step(record: dict[str, Any]) -> None:
                warn_if_idle(record)
                self.watcher.step(record)

            recorder = RunRecorder(
                self.run, stop, options.samples_per_step, on_step, options.tokens_per_step,
                self.watcher.completion,
            )  # fmt: skip
            trainer = self._trainer(model, tokenizer, pool, recorder)
            if options.eval_steps:
                trainer.add_callback(self._periodic(trainer, recorder, held_out, other))
            result.step = _step_of(checkpoint)
            self.watcher.started(result.step, options.steps)
            if result.step < options.steps:
                with stop.listening(), _errors_named(result.folder):
                    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
                result.step, result.stopped_by = trainer.state.global_step, stop.signal
            else:
                if options.lora_r:
                    trainer._load_from_checkpoint(str(checkpoint))
                if self.run is not None:  # killed when its last checkpoint was there and older ones were still to go
                    rotate_checkpoints(str(result.folder), self.args.save_total_limit)
            if result.step >= options.steps:
                if not saved:
                    with _errors_named(result.folder):
                        save_whole(trainer, result.folder / "model")
                result.stopped_by = None
                with whole(trainer.accelerator, trainer.model) as trained:
                    result.after = self._evaluate("after", trained, held_out)
        if self.run is not None:
            result.metrics = self.run.read_metrics()
            if result.stopped_by is None:
                self._publish(result)
        return result

    def _publish(self, result: TrainResult) -> None:
        """Write the model's card, and upload the model where that is asked for."""
        prompt = self.data.prompt_format.messages(self.data.train[0], self.data.examples)
        hub_id = None if self.hub is None else self.hub.name
        write_cards(result.folder, self.options, result.metrics, result.before, result.after, prompt, hub_id)
        if self.hub is not None:
            self.watcher.message(f"uploaded to {self.hub.upload(result.folder / 'model')}")

    def _trainer(self, model: Any, tokenizer: Any, pool: Any, recorder: Any) -> Any:
        from transformers import PrinterCallback

        from covgrpo.rewards import CorrectnessReward, FormatReward
        from covgrpo.runs.record.recorder import LastStep
        from covgrpo.trl import CovGRPOTrainer

        try:
            trainer = CovGRPOTrainer(
                model=model,
                reward_funcs=[
                    CorrectnessReward(pool, self.options.answer_format),
                    FormatReward(self.options.answer_format),
                ],
                args=self.args,
                train_dataset=self._dataset(),
                processing_class=tokenizer,
                callbacks=[recorder, LastStep(self.options.steps)],
                peft_config=adapter_config(self.options),
            )
        except (ValueError, ImportError) as error:
            raise UserError(" ".join(str(error).split())) from error
        trainer.remove_callback(PrinterCallback)
        recorder.trainer = trainer
        return trainer

    def _dataset(self) -> Any:
        from datasets import Dataset

        rows = [
            {
                "prompt": self.data.prompt_format.messages(problem, self.data.examples),
                "payload": json.dumps(problem.payload),
                "problem_id": problem.id,
            }
            for problem in self.data.train
        ]
        # The sampler drops an incomplete batch of prompts, so a tiny task is repeated until it fills one.
        return Dataset.from_list(rows * -(-self.options.prompts_per_step // len(rows)))

    def _evaluate(self, when: str, model: Any, held_out: HeldOut) -> dict[str, Any] | None:
        """Evaluate on all processes and keep the result in ``eval.json``; a resumed run keeps its own 'before'."""
        if not self.options.evaluate:
            return None
        path = None if self.run is None else self.run.path / "eval.json"
        kept = from_first({} if path is None or not path.exists() else kept_evaluation(path))
        if when == "before" and "before" in kept:
            return dict(kept["before"])
        if when == "before":
            # Where the trainer will put it: before and after are measured on one device, in one precision.
            model = model.to(self.args.device)
        found = held_out.evaluate(model, lambda done, total: self.watcher.evaluating(when, done, total))
        if self.run is not None:
            self.run.write_json("eval.json", {**kept, when: found})
        return found

    def _periodic(self, trainer: Any, recorder: Any, held_out: HeldOut, other: HeldOut | None) -> Any:
        from covgrpo.runs.evaluations import Measure, PeriodicEvaluation

        def measure(problems: HeldOut) -> Measure:
            def at_temperatures(model: Any, samples: int) -> list[dict[str, Any]]:
                with whole(trainer.accelerator, model) as policy:
                    return problems.at_temperatures(policy, samples)

            return at_temperatures

        return PeriodicEvaluation(
            self.run,
            measure(held_out),
            every=self.options.eval_steps,
            steps=self.options.steps,
            samples=self.options.eval_samples,
            samples_between=self.options.eval_steps_samples,
            measure_other=None if other is None else measure(other),
            leave_out=recorder.leave_out,
        )


@contextmanager
def _errors_named(folder: Path) -> Iterator[None]:
    """Turn what a weighting refuses, a poisoned checkpoint and the many errors of a full disk into one sentence."""
    from covgrpo.core import WeightingError

    try:
        yield
    except UserError:
        raise
    except WeightingError as error:
        raise UserError(str(error)) from error
    except UnpicklingError as error:
        raise UserError(f"the last checkpoint of {folder} holds what could run code; remove it to go on.") from error
    except Exception as error:
        if "No space left" in str(error) or shutil.disk_usage(folder).free < _FULL_BYTES:
            raise UserError(
                f"no space left for the run folder {folder}; make space and go on with --resume."
            ) from error
        raise


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
