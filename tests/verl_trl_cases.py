"""verl's rollouts in covgrpo's trainer for TRL, and what the two are compared on."""

import sys
from pathlib import Path

import torch
from datasets import Dataset
from tiny import tiny_model, tiny_tokenizer
from trl_runs import BASE

from covgrpo.trl import CovGRPOConfig, CovGRPOTrainer
from covgrpo.trl.rollout import Rollout

VERL_CPU = Path(__file__).parent / "verl_cpu"
sys.path.insert(0, str(VERL_CPU))

from verl_reward import compute_score  # noqa: E402

GENERATIONS = 4


class Recorded(CovGRPOTrainer):
    """Keeps the generation batch as it leaves scoring, before TRL shuffles it."""

    def _generate_and_score_completions(self, inputs):
        self.generation_batch = super()._generate_and_score_completions(inputs)
        return self.generation_batch


def trl_trainer(folder, dump, **changes):
    """A trainer of ours on verl's questions, whose sampler returns verl's completions and whose reward is verl's."""
    tokenizer, gold = tiny_tokenizer(), dump.metadata["gold"]
    prompts = [[{"role": "user", "content": question}] for question in gold]
    ids = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=True)["input_ids"] for p in prompts]
    sampled = {tuple(rollout["prompt"]) for rollout in dump.metadata["rollouts"]}
    rows = [
        {"prompt": prompt, "gold": gold[prompt[0]["content"]]}
        for prompt, own in zip(prompts, ids, strict=True)
        if tuple(own) in sampled
    ]

    def rollouts(prompt_ids, *_, **__):
        left = list(dump.metadata["rollouts"])
        completions = []
        for prompt in prompt_ids:
            found = next(rollout for rollout in left if rollout["prompt"] == list(prompt))
            left.remove(found)
            completions.append(found["tokens"])
        assert not left
        return completions, None

    def reward(completions, gold, **_):
        texts = [completion[0]["content"] for completion in completions]
        return [compute_score("test", text, answer) for text, answer in zip(texts, gold, strict=True)]

    options = {
        **BASE,
        "per_device_train_batch_size": len(dump.metadata["rollouts"]),
        "num_generations": GENERATIONS,
        "max_completion_length": 16,
        "temperature": 1.0,
        "max_steps": 1,
        **changes,
    }
    trainer = Recorded(
        model=tiny_model(),
        reward_funcs=reward,
        args=CovGRPOConfig(output_dir=str(folder), **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )
    trainer._generate_single_turn = rollouts
    return trainer


def rows_by_tokens(tokens, values, mask):
    """Values of each completion by its tokens."""
    return {tuple(t): v[m.bool()] for t, v, m in zip(tokens, values, mask, strict=True)}


def trl_weights_of_the_rollouts(folder, dump):
    """Train one step with TRL on verl's rollouts: its own scoring, advantages and weights."""
    trainer = trl_trainer(folder, dump)
    trainer.train()
    batch = trainer.generation_batch
    mask = batch["completion_mask"]
    prompts = [p[m.bool()].tolist() for p, m in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)]
    tokens = [[*p, -1, *c[m.bool()].tolist()] for p, c, m in zip(prompts, batch["completion_ids"], mask, strict=True)]
    rollout = Rollout.read(batch)
    return rows_by_tokens(tokens, rollout.weights_BT, mask), rows_by_tokens(tokens, rollout.logps_BT, mask)


def verl_weights(dump):
    """The weights that verl's advantages were multiplied by, where the advantage is not 0."""
    A, weighted, mask = (dump.tensors[name] for name in ("advantages", "weighted", "response_mask"))
    tokens = [[*rollout["prompt"], -1, *rollout["tokens"]] for rollout in dump.metadata["rollouts"]]
    weights = torch.where(A == 0, torch.nan, weighted / A)
    return rows_by_tokens(tokens, weights, mask), rows_by_tokens(tokens, dump.tensors["old_log_probs"], mask)


def compare(folder, dump):
    """Largest differences of weights and log-probs, and how many weights were compared."""
    (trl_w, trl_l), (verl_w, verl_l) = trl_weights_of_the_rollouts(folder, dump), verl_weights(dump)
    assert set(trl_w) == set(verl_w)
    differences = torch.cat([(trl_w[key] - verl_w[key]).abs() for key in verl_w])
    logps = torch.cat([(trl_l[key] - verl_l[key]).abs() for key in verl_l])
    valid = differences[~differences.isnan()]
    return valid.max().item(), logps.max().item(), len(valid)
