"""The trainer's configuration from a run's options."""

import typing
from datetime import timedelta
from typing import Any

from covgrpo.errors import UserError
from covgrpo.runs.hub import without_hub
from covgrpo.runs.needed_packages import check_deepspeed
from covgrpo.runs.options import TrainOptions, typed_value, union_members
from covgrpo.suggest import check_choice, did_you_mean

# Options that TRL's config has under the same name.
_PASSED_ON = (
    *("fast_path", "num_generations", "max_completion_length", "temperature"),
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta2", "max_grad_norm"),
    *("beta", "num_iterations", "save_steps", "bf16", "entropy_probe_steps"),
)
# Likewise, and decided by the method where they are not given.
_METHODS_OWN = ("weighting", "weighting_scope", "loss_type")

# Those that an option of ours decides under another name.
_DECIDED_BY = {
    "output_dir": "output",
    "max_steps": "steps",
    "per_device_train_batch_size": "micro_batch_size",
    "gradient_accumulation_steps": "micro_batch_size",
    "reward_weights": "correctness_weight",
    **{name: name for name in (*_PASSED_ON, *_METHODS_OWN, "seed", "report_to", "weighting_kwargs")},
}

# Names that TRL would look at only after the first batch has been sampled.
_CHOICES = {
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}


def trainer_config(options: TrainOptions) -> Any:
    """Return the ``CovGRPOConfig`` of a run.

    Raises:
        UserError: an option that does not fit the others, TRL or the method; one sentence.
    """
    from transformers import SchedulerType

    from covgrpo.trl import CovGRPOConfig

    check_choice("lr_scheduler_type", options.lr_scheduler_type, [kind.value for kind in SchedulerType])
    given = _given_to_trl(options.trl, typing.get_type_hints(CovGRPOConfig))
    size, micro_batches = options.per_device_batch(_state(given).num_processes)
    settings: dict[str, Any] = {
        "output_dir": options.run_folder(),
        "seed": options.seed,
        # Where the schedule ends; where the run ends before it, `LastStep` stops it.
        "max_steps": options.schedule_steps or options.steps,
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": micro_batches,
        "reward_weights": [options.correctness_weight, options.format_weight],
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_total_limit": 2,
        "disable_tqdm": True,
        "report_to": options.report_to,
        "weighting_kwargs": options.weighting_kwargs or None,
    }
    settings.update({name: getattr(options, name) for name in _PASSED_ON})
    settings.update(_method_settings(options))
    settings.update(without_hub(given))
    if options.loss_temperature not in (None, options.temperature):
        settings.update(_two_temperatures(options, settings.get("generation_kwargs") or {}))
    try:
        args = CovGRPOConfig(**settings)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(" ".join(str(error).split())) from error
    _check_schedule(args)
    return args


def _check_schedule(args: Any) -> None:
    """Make the schedule once: some kinds need arguments, and say so only when they are made.

    Raises:
        UserError: the schedule lacks an argument, or does not know one.
    """
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    steps = {"num_warmup_steps": args.get_warmup_steps(args.max_steps), "num_training_steps": args.max_steps}
    kind, kwargs = args.lr_scheduler_type, args.lr_scheduler_kwargs
    try:
        get_scheduler(kind, optimizer, **steps, scheduler_specific_kwargs=dict(kwargs or {}))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"lr_scheduler_type {getattr(kind, 'value', kind)!r} with lr_scheduler_kwargs {kwargs or {}} (--trl "
            f"lr_scheduler_kwargs=...): {' '.join(str(error).split())}"
        ) from error


def plain_config(args: Any) -> dict[str, Any]:
    """The trainer's resolved options as JSON, without what names the machine."""
    hidden = {"logging_dir", "output_dir", "run_name"}
    return {name: value for name, value in args.to_dict().items() if name not in hidden and "token" not in name}


def _state(given: dict[str, Any]) -> Any:
    """Accelerate's state. The process group is made here, and keeps the device and the timeout that it is made with."""
    import torch
    from accelerate import PartialState

    from covgrpo.trl import CovGRPOConfig

    timeout_s = given.get("ddp_timeout", CovGRPOConfig.__dataclass_fields__["ddp_timeout"].default)
    use_cpu = given.get("use_cpu")
    cpu = not torch.accelerator.is_available() if use_cpu is None else use_cpu
    return PartialState(cpu=cpu, timeout=timedelta(seconds=timeout_s))


def _given_to_trl(given: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """The options under ``trl``, checked by name and, where the type is plain, by type."""
    settings = {}
    for name, value in given.items():
        if name not in known:
            raise UserError(f"trl: GRPOConfig has no option {name!r}.{did_you_mean(name, known)}")
        if name in _DECIDED_BY:
            raise UserError(f"trl: {name!r} follows from the option {_DECIDED_BY[name]!r}; set that one.")
        settings[name] = value
        if name in _CHOICES and not isinstance(value, bool):
            check_choice(f"trl: option {name!r}:", str(value), _CHOICES[name])
        if name == "deepspeed" and value:
            check_deepspeed(value)
        # Other types, such as those that TRL parses from text, are TRL's to check.
        if {*union_members(known[name])} <= {int, float, bool, type(None)}:
            settings[name] = typed_value(value, known[name], f"trl: option {name!r}")
    return settings


def _two_temperatures(options: TrainOptions, generation: Any) -> dict[str, Any]:
    """TRL's one temperature is the loss's, and sampling gets its own through ``generation_kwargs``."""
    if not isinstance(generation, dict) or "temperature" in generation:
        raise UserError("trl: generation_kwargs must be a mapping without a temperature beside loss_temperature.")
    return {
        "temperature": options.loss_temperature,
        "generation_kwargs": {**generation, "temperature": options.temperature},
    }


def _method_settings(options: TrainOptions) -> dict[str, Any]:
    from covgrpo.trl.methods import method_options

    try:
        settings = method_options(options.method)
    except ValueError as error:
        raise UserError(str(error)) from error
    given = {name: getattr(options, name) for name in _METHODS_OWN}
    return settings | {name: value for name, value in given.items() if value is not None}
