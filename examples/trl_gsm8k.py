"""Covariance-aware GRPO in a TRL script: GSM8K, with a verifier that compares answers as mathematics.

    python examples/trl_gsm8k.py                                  # add --weighting none for plain GRPO
    accelerate launch --num_processes 4 examples/trl_gsm8k.py     # the weights stay exact over processes

Only two names differ from a script for TRL's GRPOTrainer: CovGRPOConfig and CovGRPOTrainer. Every option keeps its
meaning, also use_vllm=True where vLLM is installed.

Hardware: one GPU with 24 GB for the default model; a smaller --model or --batch needs less. Downloads the model and
openai/gsm8k from the Hugging Face hub.
"""

import argparse
import json
from pathlib import Path

from datasets import Dataset, load_dataset

from covgrpo.callbacks import RunWriter
from covgrpo.rewards import CorrectnessReward
from covgrpo.tasks import get_answer_format
from covgrpo.trl import CovGRPOConfig, CovGRPOTrainer  # was: from trl import GRPOConfig, GRPOTrainer
from covgrpo.verify import VerifierPool, default_workers

MATH = get_answer_format("math")  # asks for \boxed{}; takes the last box, or else the end of the text


def gsm8k(dataset: str, split: str) -> Dataset:
    """Chat prompts and, for the verifier, a column `payload`: JSON with the gold answer, what follows "####"."""

    def prepare(row):
        gold = row["answer"].split("####")[-1].strip()
        system, user = ({"role": "system", "content": MATH.instruction}, {"role": "user", "content": row["question"]})
        return {"prompt": [system, user], "payload": json.dumps({"gold": gold})}

    rows = load_dataset(dataset, "main", split=split)
    return rows.map(prepare, remove_columns=rows.column_names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen2.5-0.5B-Instruct")
    parser.add_argument("--dataset", default="openai/gsm8k", help="hub id, or a folder with the same columns")
    parser.add_argument("--weighting", default="gaussian")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--length", type=int, default=512, help="tokens of a completion")
    parser.add_argument("--batch", type=int, default=32, help="completions forwarded at once on a device")
    parser.add_argument("--output", type=Path, default=Path("runs/trl_gsm8k"))
    options = parser.parse_args()

    args = CovGRPOConfig(
        output_dir=str(options.output),
        weighting=options.weighting,
        num_generations=8,
        per_device_train_batch_size=options.batch,
        gradient_accumulation_steps=4,  # times --batch / 8: prompts a step on each device
        max_completion_length=options.length,
        learning_rate=1e-6,
        max_steps=options.steps,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
    )
    # The verifier runs in processes of its own: what a completion makes it do costs that completion, never the run.
    with VerifierPool("covgrpo.tasks.jsonl:score", default_workers()) as pool:
        trainer = CovGRPOTrainer(
            model=options.model,
            reward_funcs=CorrectnessReward(pool, MATH),
            args=args,
            train_dataset=gsm8k(options.dataset, "train"),
        )
        trainer.add_callback(RunWriter(trainer))  # metrics, completions and tokens for `covgrpo report OUTPUT`
        trainer.train()
    trainer.save_model(str(options.output / "model"))


if __name__ == "__main__":
    main()
