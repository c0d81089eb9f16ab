"""What a training run would do, worked out on paper: no model is loaded, nothing is downloaded."""

import math
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from covgrpo.files import user_path
from covgrpo.models.shapes import ModelShape, shape_of
from covgrpo.runs.needed_packages import lacking
from covgrpo.runs.options import TrainOptions

# An accelerator to reckon with: NVIDIA A100 80 GB, bf16 operations and bytes a second, and what is reached of them.
_PEAK_FLOPS = 312e12
_PEAK_BYTES = 2.0e12
_REACHED = 0.4
_PROMPT_TOKENS = 256  # of a mathematics problem with its instruction
_WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}
_HEAD_TOKENS = 1024  # scored at a time by TRL's fused head
_GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """A run on paper.

    Args:
        facts: name -> value, in reading order.
        memory_bytes: part -> bytes on each device.
        seconds: part -> seconds of a step, were every completion of full length; an estimate.
        downloads: what would be fetched.
        problems: what does not fit together, a sentence each.

    """

    facts: dict[str, Any]
    memory_bytes: dict[str, int]
    seconds: dict[str, float]
    downloads: list[str]
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON's types."""
        return dict(vars(self))


def plan_training(options: TrainOptions, args: Any, processes: int = 1, shards: str = "none") -> Plan:
    """Work out a run.

    With N weights of which T are trained, B completions of at most L tokens in a micro-batch, s tokens in all with
    their prompts (each prompt once a group on the shared path), h the width, l the layers:

        weights     N x 2 or 4 bytes                           gradients  T x as many bytes
        AdamW       8 T bytes                                  vocabulary head  3 x 4 x 1,024 x vocabulary bytes
        reference model, with a KL penalty and no LoRA         as the weights
        activations 34 h bytes a token and layer; with checkpointing 2 h, and one layer's 34 h   (arXiv 2205.05198)
        cache       completions of the device x length x 4 l x key heads x head size bytes

    divided by the processes where ``shards`` says so (zero2: gradients and AdamW; zero3, fsdp2: the weights too).
    Seconds on an A100: 6 operations a weight and token (8 with checkpointing) at 0.4 of 312 TFLOP/s, and 2 for each
    pass without gradient: the reference model's, and the policy's where the sampler returns no log-probs to weigh by;
    sampling reads all weights and the cache once a token at 0.4 of 2 TB/s. Every completion is reckoned at full
    length; a sampler that waits for kernel launches, as a small model's does, is slower than that.

    Args:
        options: of the run.
        args: the trainer's resolved configuration (``CovGRPOConfig``).
        processes: devices.
        shards: none, zero2, zero3 or fsdp2.

    """
    shape = shape_of(options.model)
    size, micro_batches = options.per_device_batch(processes)
    completions = options.prompts_per_step * options.num_generations
    facts: dict[str, Any] = {
        "processes": processes,
        "completions a step": completions,
        "prompts a step": options.prompts_per_step,
        "completions a prompt": options.num_generations,
        "micro-batch on a device": size,
        "micro-batches a step": micro_batches,
        "updates a rollout batch": options.num_iterations,
        "completion tokens a step, at most": completions * options.max_completion_length,
        "completions over the run": completions * math.ceil(options.steps / options.num_iterations),
        "method": options.method,
        "weighting": _weighting(args),
        "loss": f"{args.loss_type}, advantages scaled by {args.scale_rewards}",
        "KL penalty": f"{args.beta:g} x KL to the initial model" if args.beta else "none",
        "learning rate": _schedule(options, args),
        "optimizer": f"AdamW ({args.adam_beta1:g}, {args.adam_beta2:g}), weight decay {args.weight_decay:g}, "
        f"gradient norm at most {args.max_grad_norm:g}",
        "sampling": "vLLM" if args.use_vllm else "the trainer's own",
        "temperature": f"{options.temperature:g} in sampling, {args.temperature:g} in the loss",
        "rewards": f"correctness x {options.correctness_weight:g}, format x {options.format_weight:g} "
        f"({options.answer_format})",
        "prompt tokens, at most": options.max_prompt_length or "as they come",
        "seed": str(options.seed),
    }
    plan = Plan(facts, {}, {}, _downloads(options), _problems(options, args, shape, processes, shards))
    if shape is not None:
        facts["weights"] = shape.parameters
        plan.memory_bytes.update(_memory(options, args, shape, processes, shards))
        plan.memory_bytes["in all"] = sum(plan.memory_bytes.values())
        plan.seconds.update(_seconds(options, args, shape, processes))
        plan.seconds["in all"] = sum(plan.seconds.values())
    return plan


def _weighting(args: Any) -> str:
    if args.weighting == "none":
        return "none"
    extra = "".join(f", {name} {value}" for name, value in (args.weighting_kwargs or {}).items())
    return f"{args.weighting}, statistics by {args.weighting_scope}{extra}"


def _schedule(options: TrainOptions, args: Any) -> str:
    """The rate's way over the steps of the schedule, and how many of them the run takes."""
    kind = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    extra = "".join(f", {name} {value:g}" for name, value in (args.lr_scheduler_kwargs or {}).items())
    taken = "" if options.steps == args.max_steps else f"; the run takes the first {options.steps}"
    warm_up = args.get_warmup_steps(args.max_steps)
    return f"{args.learning_rate:g}, {kind}{extra}, over {args.max_steps} steps, {warm_up} of warm-up{taken}"


def _trained(options: TrainOptions, shape: ModelShape) -> int:
    """Weights that are trained: all, or those of LoRA adapters on every linear layer: r (inputs + outputs) each."""
    if not options.lora_r:
        return shape.parameters
    head = shape.head_size or shape.hidden // shape.heads
    queries, keys = shape.heads * head, shape.key_heads * head
    sides = 2 * (shape.hidden + queries) + 2 * (shape.hidden + keys) + 3 * (shape.hidden + shape.intermediate)
    return shape.layers * options.lora_r * sides


def _reference(options: TrainOptions, args: Any, shape: ModelShape) -> int:
    """Weights of the initial model that the KL penalty keeps; adapters are switched off instead."""
    return shape.parameters if args.beta and not options.lora_r else 0


def _memory(options: TrainOptions, args: Any, shape: ModelShape, processes: int, shards: str) -> dict[str, int]:
    number = _WEIGHT_BYTES[options.dtype]
    trained = _trained(options, shape)
    share = processes if shards in ("zero3", "fsdp2") else 1
    share_of_updates = processes if shards != "none" else 1
    size, _ = options.per_device_batch(processes)
    length = _PROMPT_TOKENS + options.max_completion_length
    tokens = size * length
    layer = 34 * shape.hidden * tokens
    activations = (
        (2 * shape.hidden * tokens * shape.layers + layer) if args.gradient_checkpointing else layer * shape.layers
    )
    rows = options.prompts_per_step * options.num_generations // processes
    cache = 0 if args.use_vllm else rows * length * shape.cache_bytes_per_token
    parts = {
        "weights": shape.parameters * number // share,
        "gradients": trained * number // share_of_updates,
        "AdamW": trained * 8 // share_of_updates,
        "reference model": _reference(options, args, shape) * number // share,
        "activations": activations,
        "vocabulary head": 3 * 4 * min(tokens, _HEAD_TOKENS) * shape.vocabulary,
        "cache of sampling": cache,
    }
    if args.use_vllm and args.vllm_mode == "colocate":
        parts["vLLM"] = int(args.vllm_gpu_memory_utilization * 80 * _GIB)
    return parts


def _seconds(options: TrainOptions, args: Any, shape: ModelShape, processes: int) -> dict[str, float]:
    rows = options.prompts_per_step * options.num_generations // processes
    length = options.max_completion_length
    passes = 8 if args.gradient_checkpointing else 6
    update = passes * shape.parameters * rows * (length + _PROMPT_TOKENS)
    # Half of the completion is in the cache at its middle token.
    read = 2 * shape.parameters + rows * (_PROMPT_TOKENS + length / 2) * shape.cache_bytes_per_token
    compute = 2 * shape.parameters * rows
    token_s = max(read / (_PEAK_BYTES * _REACHED), compute / (_PEAK_FLOPS * _REACHED))
    two_temperatures = options.loss_temperature not in (None, options.temperature)
    rescored = args.use_vllm or not args.fast_path or two_temperatures
    passes = bool(args.beta) + (args.weighting != "none" and rescored)
    scoring = 2 * passes * shape.parameters * rows * (length + _PROMPT_TOKENS)
    flops, steps = _PEAK_FLOPS * _REACHED, options.num_iterations  # of a rollout batch
    return {"sampling": length * token_s / steps, "scoring": scoring / flops / steps, "update": update / flops}


def _downloads(options: TrainOptions) -> list[str]:
    found = []
    model = user_path(options.model)
    if "/" in options.model and not model.exists():
        shape = shape_of(options.model)
        amount = f", about {2 * shape.parameters / 1e9:.1f} GB" if shape else ""
        found.append(f"model {options.model}{amount}")
    tasks = dict.fromkeys((options.task, options.eval_task))
    found += [f"data set {task[4:].partition('?')[0]}" for task in tasks if task.startswith("hub:")]
    return found


def _problems(options: TrainOptions, args: Any, shape: ModelShape | None, processes: int, shards: str) -> list[str]:
    found = []
    if shape is None:
        found.append(f"the sizes of {options.model} are not known without loading it, so nothing is estimated")
    else:
        prompt = options.max_prompt_length or _PROMPT_TOKENS
        if prompt + options.max_completion_length > shape.context:
            found.append(
                f"prompts of {'up to' if options.max_prompt_length else 'about'} {prompt} tokens and completions of "
                f"{options.max_completion_length} do not fit the model's context of {shape.context}"
            )
    size, _ = options.per_device_batch(processes)
    shares = args.fast_path and shards == "none"
    if size % options.num_generations and shares:
        found.append(
            f"micro-batches of {size} split groups of {options.num_generations}: exact, prompts are forwarded oftener"
        )
    if args.use_vllm and find_spec("vllm") is None:
        found.append("use_vllm is set and vLLM is not installed here")
    found += [sentence.rstrip(".") for sentence in lacking(options)]
    if options.lora_r and find_spec("peft") is None:
        found.append("lora_r is set and peft is not installed here (pip install covgrpo[peft])")
    if options.format_weight and options.answer_format == "plain":
        found.append("format_weight is above 0 and the plain format asks for nothing")
    return found
