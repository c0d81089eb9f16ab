"""The script that puts a model's token covariances beside the paper's."""

import math
import sys
from fractions import Fraction
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch

from covgrpo.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import covariance_quantiles as script


def make_batch(seed: int, completions: int = 3, tokens: int = 40) -> script.Batch:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, tokens + 1, (2 * completions,), generator=generator)
    mask = torch.arange(tokens) < lengths[:, None]
    logps = -(torch.rand(mask.shape, generator=generator) ** -0.7) + 1
    return script.Batch(
        logps=logps.where(mask, torch.nan),
        entropies=torch.full(mask.shape, 0.25).where(mask, torch.nan),
        mask=mask,
        rewards=torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0]),
        group_ids=torch.arange(2).repeat_interleave(completions),
        truncated=1,
    )


def covariances(batch: script.Batch) -> list[float]:
    """Group by group and token by token."""
    found = []
    for group in (0, 1):
        rows = [i for i, g in enumerate(batch.group_ids.tolist()) if g == group]
        rewards = [batch.rewards[i].item() for i in rows]
        A = {i: (r - fmean(rewards)) / (stdev(rewards) + 1e-4) for i, r in zip(rows, rewards, strict=True)}
        pairs = [(logp, A[i]) for i in rows for logp in batch.logps[i].tolist() if not math.isnan(logp)]
        mean_l, mean_A = fmean(l for l, _ in pairs), fmean(a for _, a in pairs)  # noqa: E741
        found += [(logp - mean_l) * (a - mean_A) for logp, a in pairs]
    return found


def cells(text: str) -> dict[str, list[str]]:
    rows = [
        line.strip("| ").split("|") for line in text.splitlines() if line.startswith("| 0") or line.startswith("| 1")
    ]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_quantiles_are_those_of_all_tokens_of_a_side():
    batches = [make_batch(seed) for seed in range(4)]
    c = sorted((c for batch in batches for c in covariances(batch)), reverse=True)
    positive, negative = [x for x in c if x > 0], [x for x in reversed(c) if x < 0]
    text = script.table(batches, completions=3)
    found = cells(text)
    assert list(found) == ["0.0001", "0.01", "0.2", "0.4", "1"]
    for name, row in found.items():
        for side, (value, reported, ratio) in zip((positive, negative), (row[:3], row[3:]), strict=True):
            expected = side[math.ceil(Fraction(name) * len(side)) - 1]
            assert float(value) == pytest.approx(expected, abs=6e-4)
            assert float(ratio) == pytest.approx(expected / float(reported), abs=6e-3)
    assert found["0.01"][1::3] == ["3.32", "-3.34"]
    tokens = sum(int(batch.mask.sum()) for batch in batches)
    assert text.startswith(
        f"4 batches, 24 completions, {tokens} tokens ({tokens / 24:.1f} a completion, 0.167 truncated)"
    )
    assert "accuracy 0.500, entropy 0.250 nats" in text


def test_advantages_are_normalised_in_each_group():
    A = script.normalised_advantages(torch.tensor([1.0, 0.0, 1.0, 1.0]), 2)
    assert A.tolist() == pytest.approx([0.5 / (0.5**0.5 + 1e-4), -0.5 / (0.5**0.5 + 1e-4), 0.0, 0.0])


@pytest.mark.slow
def test_a_model_on_a_task(work, capsys):
    """Rewards of the tiny model are shares of letters, so that its groups are mixed."""
    arguments = ["--model", "../tiny", "--task", "own.tasks:letters", "--prompts", "2", "--completions", "4"]
    arguments += ["--batches", "2", "--max-completion-length", "6"]
    shown = []
    for seed in ("0", "0", "1"):
        script.main([*arguments, "--seed", seed])
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != shown[2]
    assert shown[0].startswith("2 batches, 16 completions, ")
    row = cells(shown[0])["0.2"]
    assert float(row[0]) > 0 > float(row[3])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--completions", "1"], "--completions is 1; it must be at least 2"),
        (["--prompts", "0"], "--prompts is 0; it must be at least 1"),
        (["--temperature", "0"], "--temperature is 0.0; it must be above 0"),
    ],
)
def test_wrong_input_is_refused(arguments, words):
    with pytest.raises(UserError, match=words):
        script.main(["--model", "x", "--task", "countdown:", *arguments])
