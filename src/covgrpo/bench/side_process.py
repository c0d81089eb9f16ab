"""One side of the comparison, in a process of its own: a trainer that takes a step when it is told to."""

import tempfile
import traceback
from typing import Any

from covgrpo.bench.case import BenchCase
from covgrpo.errors import UserError

SIDES = ("covgrpo", "trl")


def run_side(connection: Any, case: BenchCase, side: str) -> None:
    """Train for ``case.warmup + case.steps`` steps under the gate; sends (kind, value) messages.

    "model" once, "ready" and "step" for each step, "done" with the peak memory in bytes; or "error" with a sentence.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = _trainer(connection, case, side, folder)
            connection.send(("model", _describe(trainer)))
            trainer.train()
        from covgrpo.hardware import peak_memory_bytes

        connection.send(("done", peak_memory_bytes()))
    except UserError as error:
        connection.send(("error", str(error)))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return  # whoever measures has gone
    except Exception as error:
        traceback.print_exc()
        connection.send(("error", f"{side} failed with {type(error).__name__}: {error}"))


def _trainer(connection: Any, case: BenchCase, side: str, folder: str) -> Any:
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    from covgrpo.bench.step_gate import StepGate, TimedPhases
    from covgrpo.bench.workload import fixed_reward, load_case_model, prompts_of
    from covgrpo.hardware import has_bf16
    from covgrpo.rewards import CorrectnessReward
    from covgrpo.runs.libraries import quiet_libraries
    from covgrpo.tasks import load_task
    from covgrpo.trl import CovGRPOConfig, CovGRPOTrainer
    from covgrpo.verify import VerifierPool

    if case.threads is not None:
        torch.set_num_threads(case.threads)
    quiet_libraries()
    model, tokenizer = load_case_model(case)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    size = case.micro_batch_size or case.rows
    settings: dict[str, Any] = {
        "output_dir": folder,
        "seed": case.seed,
        "max_steps": case.steps + case.warmup,
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": case.rows // size,
        "num_generations": case.num_generations,
        "max_completion_length": case.completion_length,
        "learning_rate": case.learning_rate,
        "lr_scheduler_type": "constant",
        "bf16": has_bf16(device or torch.device("cpu")) if case.bf16 is None else case.bf16,
        "gradient_checkpointing": case.gradient_checkpointing,
        "use_cpu": device is None,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 10**9,
    }
    reward: Any
    if case.zero_share is None and case.prompt_length is None:
        # The verifier's process lives as long as this one, which does nothing else.
        pool = VerifierPool(load_task(case.task, {}).verifier, num_workers=1, timeout_s=5.0)
        reward = CorrectnessReward(pool, "plain")
    else:
        reward = fixed_reward(case.zero_share or 0.0, case.num_generations)
    ours = side == "covgrpo"
    base, config = (CovGRPOTrainer, CovGRPOConfig) if ours else (GRPOTrainer, GRPOConfig)
    gate = StepGate(connection)
    trainer = type("TimedTrainer", (TimedPhases, base), {})(
        model=model,
        reward_funcs=reward,
        args=config(**settings),
        train_dataset=Dataset.from_list(prompts_of(case, tokenizer)),
        processing_class=tokenizer,
        callbacks=[gate],
    )
    trainer.remove_callback(PrinterCallback)
    gate.trainer = trainer
    return trainer


def _describe(trainer: Any) -> dict[str, int]:
    """Return the sizes that the count of useful operations needs."""
    import torch

    model = trainer.accelerator.unwrap_model(trainer.model)
    config = model.config.get_text_config()
    body = sum(
        parameter.numel()
        for name, parameter in model.base_model.named_parameters()
        if parameter.dim() == 2 and "embed" not in name
    )
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "body_weights": body,
        "head_weights": model.get_output_embeddings().weight.numel(),
        "attention_width": config.num_hidden_layers * config.hidden_size,
        "threads": torch.get_num_threads(),
        "bf16": bool(trainer.args.bf16),
    }
