"""LoRA on one GPU: adapters of a 1.5B model learn a task of the package, here sums and differences of several terms.

    pip install 'covgrpo[peft]'
    python examples/lora_one_gpu.py
    python examples/lora_one_gpu.py --task 'countdown?numbers=3' --vllm     # any of `covgrpo tasks`; vLLM samples

The base model stays as it is, in bfloat16. The adapters train in float32. A KL penalty (beta above 0) needs no second
model then: the base model without adapters is the reference.

Hardware: one GPU with 24 GB. Downloads the model from the Hugging Face hub; problems are made here.
"""

import argparse
import json
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig

from covgrpo.callbacks import RunWriter
from covgrpo.rewards import CorrectnessReward, FormatReward
from covgrpo.tasks import PromptFormat, load_task
from covgrpo.trl import CovGRPOConfig, CovGRPOTrainer
from covgrpo.verify import VerifierPool, default_workers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen2.5-1.5B-Instruct")
    parser.add_argument("--task", default="reasoning_gym:chain_sum?min_terms=4&max_terms=6")
    parser.add_argument("--format", default="boxed", help="how the answer is written: boxed, plain, math, ...")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--length", type=int, default=512, help="tokens of a completion")
    parser.add_argument("--vllm", action="store_true", help="sample with vLLM on the same GPU")
    parser.add_argument("--output", type=Path, default=Path("runs/lora_one_gpu"))
    options = parser.parse_args()

    task, prompts = load_task(options.task), PromptFormat(options.format)
    problems = task.problems("train", 2000, seed=0)
    rows = [{"prompt": prompts.messages(p), "payload": json.dumps(p.payload)} for p in problems]
    args = CovGRPOConfig(
        output_dir=str(options.output),
        model_init_kwargs={"dtype": "bfloat16"},
        use_vllm=options.vllm,
        vllm_mode="colocate",
        num_generations=8,
        per_device_train_batch_size=8,  # one group at a time; the weights do not depend on it
        gradient_accumulation_steps=8,  # 8 prompts a step
        max_completion_length=options.length,
        learning_rate=2e-5,  # adapters take ten times the rate of full training and more
        max_steps=options.steps,
        reward_weights=[1.0, 0.2],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    with VerifierPool(task.verifier, default_workers()) as pool:
        trainer = CovGRPOTrainer(
            model=options.model,
            reward_funcs=[CorrectnessReward(pool, options.format), FormatReward(options.format)],
            args=args,
            train_dataset=Dataset.from_list(rows),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
        trainer.add_callback(RunWriter(trainer))
        trainer.model.print_trainable_parameters()
        trainer.train()
    trainer.save_model(str(options.output / "adapter"))  # `covgrpo eval FOLDER --task ...` loads it with its base


if __name__ == "__main__":
    main()
