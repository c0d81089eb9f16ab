"""The sampler and the evaluation on the accelerator."""

import json

import pytest
import torch
from test_sampling import EOS, PAD, PROMPTS, likely_to_end, settings
from transformers import GenerationConfig

from covgrpo.cli import main
from covgrpo.hardware import best_device
from covgrpo.rollouts import sample

pytestmark = pytest.mark.gpu


def generated(model, device) -> list[list[int]]:
    """Greedy completions of transformers' `generate`, cut after the first end token."""
    length = max(map(len, PROMPTS))
    ids = torch.tensor([[PAD] * (length - len(p)) + p for p in PROMPTS], device=device)
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in PROMPTS], device=device)
    config = GenerationConfig(max_new_tokens=12, pad_token_id=PAD, eos_token_id=EOS, do_sample=False)
    rows = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, length:].tolist()
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]


@pytest.mark.parametrize("seed", range(3))
def test_greedy_is_generates_greedy(device, seed):
    model = likely_to_end(seed).to(device)
    assert sample(model, PROMPTS, settings(temperature=0.0)).token_ids == generated(model, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_logps_are_those_of_a_plain_forward(device, dtype):
    """In bfloat16 a logit of size 8 is known to 1/32."""
    model = likely_to_end().to(device, dtype)
    drawn = sample(model, PROMPTS, settings(temperature=1.0), torch.Generator().manual_seed(0))
    worst = 0.0
    for prompt, ids, logps in zip(PROMPTS, drawn.token_ids, drawn.logps, strict=True):
        logits = model(torch.tensor([prompt + ids], device=device)).logits[0, len(prompt) - 1 : -1].float()
        scored = logits.log_softmax(dim=-1).gather(1, torch.tensor(ids, device=device)[:, None])[:, 0]
        worst = max(worst, (torch.tensor(logps) - scored.cpu()).abs().max().item())
    assert worst < (1e-3 if dtype == torch.float32 else 0.25)


def test_draws_follow_the_models_distribution(device):
    """Chi-square test of 4,000 draws of one token."""
    model, prompt, draws = likely_to_end().to(device), [10, 11, 12], 4000
    drawn = sample(model, [prompt] * draws, settings(max_new_tokens=1), torch.Generator().manual_seed(1))
    counts = torch.bincount(torch.tensor([row[0] for row in drawn.token_ids]), minlength=model.config.vocab_size)
    expected = model(torch.tensor([prompt], device=device)).logits[0, -1].double().softmax(dim=0).cpu() * draws
    often = expected >= 5
    chi2 = ((counts[often] - expected[often]) ** 2 / expected[often]).sum()
    freedom = int(often.sum())
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5 + 5


@pytest.mark.slow
def test_eval_runs_on_the_accelerator(device, tiny_folder, capsys, monkeypatch):
    seen = []
    import covgrpo.evaluation

    evaluate = covgrpo.evaluation.evaluate

    def watching(model, *args, **kwargs):
        seen.append(next(model.parameters()).device.type)
        return evaluate(model, *args, **kwargs)

    monkeypatch.setattr(covgrpo.evaluation, "evaluate", watching)
    argv = ["eval", str(tiny_folder), "--task", "addition", "--problems", "4", "--samples", "2", "--json"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 <= found["greedy"]["accuracy"] <= 1 and 0 <= found["sampled"]["accuracy"] <= 1
    assert seen == [best_device().type] == [device.type]
