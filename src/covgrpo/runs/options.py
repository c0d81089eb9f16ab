"""Everything that ``covgrpo train`` can be told, in one dataclass: its fields are the flags and the YAML keys."""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from covgrpo.errors import UserError
from covgrpo.files import user_path
from covgrpo.suggest import check_choice, did_you_mean
from covgrpo.verify.machine import default_workers

LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo")  # TRL's
_MAX_TOKENS_A_MICRO_BATCH = 16_384
# At most, 10**12 where nothing is said: a product of several is then still a float. Problems are made before the run.
_MOST = {"train_problems": 10**6, "eval_problems": 10**6, "threads": 4096, "verifier_workers": 1024}


def option(default: Any, text: str, section: str) -> Any:
    """Make a dataclass field that carries its help text and its section; a dict or list default is copied."""
    metadata = {"help": text, "section": section}
    if isinstance(default, dict | list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class TrainOptions:
    """Options of a training run. Fractions are fractions; times are in seconds; lengths in tokens."""

    task: str = option("", "Task, e.g. addition, reasoning_gym:NAME, jsonl:PATH (see `covgrpo tasks`).", "task")
    task_params: dict[str, Any] = option({}, "Parameters of the task, KEY=VALUE.", "task")
    answer_format: str = option(
        "plain", "How the answer is written: plain, boxed, math, think, think_math or think_line.", "task"
    )
    system_prompt: str | None = option(None, "System prompt; default: the answer format's; empty: none.", "task")
    num_examples: int = option(0, "Solved examples before each question.", "task")
    train_problems: int = option(2000, "Distinct training problems at most; the run cycles over them.", "task")
    max_prompt_length: int | None = option(
        None, "Tokens of a prompt at most; training problems with more are left out. Default: none is.", "task"
    )
    correctness_weight: float = option(1.0, "Weight of the correctness reward.", "task")
    format_weight: float = option(0.0, "Weight of the format reward.", "task")
    verifier_timeout: float = option(
        5.0, "Seconds after which a verifier is stopped and the completion gets 0.", "task"
    )
    verifier_workers: int | None = option(
        None, "Verifier processes of a training process; default: one a core that it has for itself, at most 8.", "task"
    )
    verifier_memory: float = option(
        2.0, "GiB of address space of a verifier process, of which libraries reserve more than they use.", "task"
    )

    model: str = option("smollm2-135m", "Built-in name, local folder or hub id (see `covgrpo models`).", "model")
    dtype: str = option("float32", "Dtype of the weights: float32, bfloat16, float16 or auto.", "model")
    bf16: bool | None = option(None, "bfloat16 autocast; default: where the hardware has it.", "model")
    trust_remote_code: bool = option(False, "Run Python code that comes with the model.", "model")
    threads: int | None = option(None, "CPU threads; default: torch's choice.", "model")
    lora_r: int = option(0, "Rank of LoRA adapters on every linear layer; 0: train the weights.", "model")
    lora_alpha: int = option(32, "LoRA's scale is lora_alpha / lora_r.", "model")

    method: str = option("gaussian", "Method, a set of the options below and of TRL's (see docs/methods.md).", "method")
    weighting: str | None = option(
        None,
        "Token weighting, or module:Class of your own, which is imported and run; default: the method's.",
        "method",
    )
    weighting_kwargs: dict[str, Any] = option({}, "Hyperparameters of the weighting, KEY=VALUE.", "method")
    weighting_scope: str | None = option(
        None, "Tokens that share statistics: group or batch; default: the method's, or group.", "method"
    )
    fast_path: bool = option(True, "Share prompts and leave zero-advantage completions out; exact.", "method")

    steps: int = option(100, "Optimizer steps.", "optimisation")
    schedule_steps: int | None = option(
        None, "Steps of the learning rate's schedule, of which the run takes the first; default: steps.", "optimisation"
    )
    prompts_per_step: int = option(8, "Prompts in each optimizer step, over all processes.", "optimisation")
    num_generations: int = option(16, "Completions sampled for each prompt.", "optimisation")
    max_completion_length: int = option(64, "Tokens of a completion at most.", "optimisation")
    temperature: float = option(1.0, "Sampling temperature, which also divides the loss's logits.", "optimisation")
    loss_temperature: float | None = option(
        None, "Temperature that divides the loss's logits instead; costs a scoring pass.", "optimisation"
    )
    learning_rate: float = option(1e-5, "AdamW's learning rate.", "optimisation")
    lr_scheduler_type: str = option("constant", "Schedule: constant, linear, cosine, ...", "optimisation")
    warmup_steps: int = option(0, "Steps of linear warm-up.", "optimisation")
    weight_decay: float = option(0.0, "AdamW's weight decay.", "optimisation")
    adam_beta2: float = option(0.95, "AdamW's second-moment decay.", "optimisation")
    max_grad_norm: float = option(1.0, "Gradient norm above which the gradient is scaled down.", "optimisation")
    loss_type: str | None = option(None, "TRL's loss type; default: the method's, or dapo.", "optimisation")
    beta: float = option(0.0, "Weight of the KL penalty to the initial model.", "optimisation")
    num_iterations: int = option(1, "Updates for each rollout batch.", "optimisation")
    micro_batch_size: int | None = option(
        None, "Completions forwarded at once on a device; changes memory and speed only. Default: fits.", "optimisation"
    )
    trl: dict[str, Any] = option({}, "Any other option of TRL's GRPOConfig, KEY=VALUE.", "optimisation")

    output: str | None = option(None, "Run folder; default: runs/TASK-METHOD-sSEED.", "run")
    resume: bool = option(False, "Go on from the run folder's last checkpoint.", "run")
    seed: int = option(0, "Seed of everything.", "run")
    save_steps: int = option(50, "Steps between checkpoints.", "run")
    samples_per_step: int = option(4, "Completions a step kept in samples.jsonl.", "run")
    tokens_per_step: int = option(16, "Most damped tokens of a step kept in tokens.jsonl.", "run")
    entropy_probe_steps: int = option(
        0, "Steps between measurements of what an update does to the entropy; 0: none. Costs two forward passes.", "run"
    )
    evaluate: bool = option(False, "Measure accuracy on held-out problems before and after.", "run")
    eval_problems: int = option(100, "Held-out problems at most.", "run")
    eval_samples: int = option(4, "Sampled completions for each held-out problem.", "run")
    eval_steps: int = option(
        0, "Steps between evaluations in evaluations.jsonl, also before the first and after the last; 0: none.", "run"
    )
    eval_steps_samples: int = option(
        4, "Sampled completions a problem and temperature in those before the last.", "run"
    )
    eval_temperatures: list[float] = option([], "Temperatures of those; greedy comes by itself.", "run")
    eval_task: str = option(
        "", "Another task, e.g. a harder one, on whose held-out problems those measure the model too.", "run"
    )
    eval_task_length: int | None = option(
        None, "Tokens of a completion at most on eval_task; default: max_completion_length.", "run"
    )
    eval_batch_size: int = option(256, "Completions drawn at once in evaluations; fewer need less memory.", "run")
    report_to: list[str] = option([], "Loggers of transformers: tensorboard, wandb, trackio, ...", "run")

    def check(self) -> None:
        """Check what can be known without model, task and network.

        Raises:
            UserError: one sentence naming the option and its value.
        """
        if not self.task:
            raise UserError("no task given: pass --task, for example --task addition (see `covgrpo tasks`).")
        if self.output == "":
            raise UserError("output is empty; name a folder, or leave it out for runs/TASK-METHOD-sSEED.")
        self._check_sizes()
        self._check_numbers()
        if self.loss_type is not None:
            check_choice("loss_type", self.loss_type, LOSS_TYPES)
        if self.correctness_weight == 0 and self.format_weight == 0:
            raise UserError("correctness_weight and format_weight are both 0; no completion could earn a reward.")
        if self.eval_task and not self.eval_steps:
            raise UserError(f"eval_task is {self.eval_task!r} and eval_steps 0; without it nothing is measured on it.")
        if self.eval_task_length is not None and not self.eval_task:
            raise UserError(f"eval_task_length is {self.eval_task_length} and there is no eval_task.")

    def _check_sizes(self) -> None:
        """Refuse what no file system and no arithmetic takes."""
        for name, value in vars(self).items():
            if isinstance(value, int) and value > (most := _MOST.get(name, 10**12)):
                raise UserError(f"{name} is {value}; it must be at most {most}.")
            if isinstance(value, str) and "\0" in value:
                raise UserError(f"{name} is {value!r}; it must not hold a zero byte.")

    def _check_numbers(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{name} is {value}; it must be finite.")
        least = {
            "steps": 1, "prompts_per_step": 1, "max_completion_length": 1, "num_generations": 2, "num_iterations": 1,
            "train_problems": 1, "verifier_workers": 1, "save_steps": 1, "samples_per_step": 0, "eval_problems": 1,
            "tokens_per_step": 0, "entropy_probe_steps": 0, "eval_samples": 1, "warmup_steps": 0, "seed": 0,
            "eval_steps": 0, "eval_steps_samples": 1, "eval_task_length": 1, "eval_batch_size": 1,
            "max_prompt_length": 1, "schedule_steps": 1,
            "num_examples": 0,
            "threads": 1, "micro_batch_size": 1, "weight_decay": 0, "beta": 0, "lora_r": 0, "lora_alpha": 1,
        }  # fmt: skip
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise UserError(f"{name} is {value}; it must be at least {bound}.")
        if self.seed >= 2**32:
            raise UserError(f"seed is {self.seed}; it must be below 2**32.")
        positive = ("temperature", "loss_temperature", "learning_rate", "max_grad_norm")
        for name in (*positive, "verifier_timeout", "verifier_memory"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} is {value}; it must be above 0.")
        if self.schedule_steps is not None and self.steps > self.schedule_steps:
            raise UserError(f"steps is {self.steps}; it must be at most schedule_steps, {self.schedule_steps}.")
        for value in self.eval_temperatures:
            if not (value > 0 and math.isfinite(value)):
                raise UserError(f"eval_temperatures holds {value}; each must be above 0 and finite.")
        if not 0 <= self.adam_beta2 < 1:
            raise UserError(f"adam_beta2 is {self.adam_beta2}; it must be at least 0 and below 1.")

    def verifier_limits(self) -> dict[str, Any]:
        """How many processes verify, and what each may take: arguments of :class:`covgrpo.verify.VerifierPool`."""
        workers = default_workers() if self.verifier_workers is None else self.verifier_workers
        return {"num_workers": workers, "timeout_s": self.verifier_timeout, "memory_gib": self.verifier_memory}

    def run_folder(self) -> str:
        """Return the run folder: as given, or by task, method and seed."""
        if self.output:
            return str(user_path(self.output))
        task = self.task.split("?")[0].replace(":", "-").replace("/", "-").strip("-.")
        method = self.weighting.split(":")[-1] if self.weighting else self.method
        return str(Path("runs") / f"{task}-{method}-s{self.seed}".replace("/", "-"))  # of a name, no folders

    def per_device_batch(self, world_size: int) -> tuple[int, int]:
        """Split a step's completions: (micro-batch size, micro-batches) on each of ``world_size`` processes.

        Raises:
            UserError: the completions do not divide evenly.
        """
        total = self.prompts_per_step * self.num_generations
        if total % world_size:
            raise UserError(
                f"prompts_per_step x num_generations = {total} does not divide over {world_size} processes."
            )
        local = total // world_size
        size = self.micro_batch_size
        if size is None:
            most = max(1, _MAX_TOKENS_A_MICRO_BATCH // self.max_completion_length)
            size = max(n for n in range(1, min(local, most) + 1) if local % n == 0)
        if local % size:
            raise UserError(f"micro_batch_size is {size}; it must divide the {local} completions of a process's step.")
        return size, local // size


def options_from_dict(values: dict[str, Any], source: str) -> TrainOptions:
    """Build options from a mapping, with types checked.

    Args:
        values: option name -> value; missing ones keep their default.
        source: what the values came from, for the error.

    Raises:
        UserError: an unknown key (the nearest is suggested) or a value of the wrong type.
    """
    known = {f.name for f in dataclasses.fields(TrainOptions)}
    hints = typing.get_type_hints(TrainOptions)
    checked = {}
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{source}: unknown option {key!r}.{did_you_mean(str(key), known, cutoff=0.5)}")
        checked[key] = typed_value(value, hints[key], f"{source}: option {key!r}")
    return TrainOptions(**checked)


def union_members(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union; another type alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def typed_value(value: Any, hint: Any, where: str) -> Any:
    """Return ``value`` if it has the type; ints, and text that is a number, pass as floats.

    Raises:
        UserError: another type; begins with ``where``.
    """
    kinds = union_members(hint)
    for kind in kinds:
        plain = typing.get_origin(kind) or kind
        if plain is float and isinstance(value, int | str) and not isinstance(value, bool):
            try:
                return float(value)
            except (ValueError, OverflowError):  # a whole number may be beyond the range of a float
                continue
        if isinstance(value, plain) and not (plain is int and isinstance(value, bool)):
            inner = typing.get_args(kind)
            if plain is list and inner:
                return [typed_value(item, inner[0], f"an item of {where}") for item in value]
            return value
    names = " or ".join(
        getattr(typing.get_origin(k) or k, "__name__", str(k)).replace("NoneType", "null") for k in kinds
    )
    raise UserError(f"{where} must be {names}, not {value!r}.")
