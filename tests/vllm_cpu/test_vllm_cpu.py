"""`covgrpo eval --engine vllm` with a real vLLM on a CPU: ``make test-vllm``. Needs vLLM's environment."""

import json
import math
from pathlib import Path

import pytest
import torch
from vllm_runs import evaluate, in_vllm, known_policy, problems, vllm_python

from covgrpo.cli import main
from covgrpo.models import load_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        vllm_python() is None, reason="vLLM has an environment of its own: `make test-vllm` runs these tests"
    ),
]

# Of one token; "7" is right. Entropy 1.6 nats.
CHANCES = {"7": 0.3, "1": 0.2, "2": 0.2, "3": 0.1, "4": 0.1, "5": 0.1}


def ours(model, benchmark, capsys, *flags):
    """The same by our sampler."""
    argv = ["eval", str(model), "--benchmark", str(benchmark), "--engine", "own", *flags, "--json"]
    assert main(argv) == 0
    return json.loads(capsys.readouterr().out)


def completions(records):
    """Problem id -> texts."""
    found: dict[str, list[str]] = {}
    for line in records.read_text().splitlines()[1:]:
        one = json.loads(line)
        found.setdefault(one["id"], []).append(one["completion"])
    return found


def test_pass_at_k_of_a_policy_with_known_entropy(tmp_path, capsys):
    """pass@k = 1 - (1 - p)^k, by vLLM and by our sampler; the tokens have the policy's entropy."""
    model = known_policy(tmp_path / "known", CHANCES)
    benchmark = problems(tmp_path / "b.jsonl", [(f"q{i}?", "7") for i in range(100)])
    records = tmp_path / "r.jsonl"
    flags = ["--samples", "8", "--max-completion-length", "1", "--temperature", "1", "--top-p", "1"]
    flags += ["--answer-format", "plain", "--batch-size", "50"]
    by_vllm = evaluate(model, benchmark, *flags, "--records", str(records))
    own = ours(model, benchmark, capsys, *flags)
    p = CHANCES["7"]
    for found in (by_vllm, own):
        for k in (1, 2, 4, 8):
            # An interval over 100 problems; the margin leaves a false alarm in some 10^4.
            low, high = found[f"pass@{k}"]["low"] - 0.03, found[f"pass@{k}"]["high"] + 0.03
            assert low < 1 - (1 - p) ** k < high
    drawn = [text.strip() for texts in completions(records).values() for text in texts]  # vLLM parts words by spaces
    assert len(drawn) == 800
    shares = [drawn.count(text) / len(drawn) for text in CHANCES]
    assert sum(shares) == pytest.approx(1)
    entropy = -sum(share * math.log(share) for share in shares)
    assert entropy == pytest.approx(-sum(c * math.log(c) for c in CHANCES.values()), abs=0.06)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The built-in model in transformers' format, which vLLM reads."""
    folder = tmp_path_factory.mktemp("smollm2")
    model, tokenizer = load_model("smollm2-135m")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_built_in_model_is_as_good_by_vllm_as_by_our_sampler(tmp_path, smollm2, capsys):
    pairs = [(f"What is {a} + {b}? Answer with the number only.", str(a + b)) for a in range(1, 6) for b in range(1, 6)]
    benchmark, records = problems(tmp_path / "sums.jsonl", pairs), tmp_path / "r.jsonl"
    flags = ["--samples", "8", "--max-completion-length", "12", "--temperature", "1", "--top-p", "1"]
    by_vllm = evaluate(smollm2, benchmark, *flags, "--records", str(records))
    own = ours(smollm2, benchmark, capsys, *flags)
    assert by_vllm["avg@8"]["low"] <= own["avg@8"]["high"]
    assert own["avg@8"]["low"] <= by_vllm["avg@8"]["high"]
    assert own["avg@8"]["accuracy"] > 0.02, "where nothing is right there is nothing to compare"
    distinct = [len(set(texts)) for texts in completions(records).values()]
    assert sum(distinct) / len(distinct) > 5, "the 8 samples of a problem are drawn independently"


def test_logps_of_the_drawn_tokens_are_the_trainers(smollm2):
    """vLLM computes in bfloat16: a logit of 16 to 32 is known to 1/16."""
    text = in_vllm(str(Path(__file__).with_name("vllm_logps.py")), str(smollm2), "12")
    rows = json.loads(text[text.index("ROWS") + 4 :].splitlines()[0])
    model, _ = load_model(str(smollm2))
    differences = []
    for row in rows:
        ids = torch.tensor([row["prompt"] + row["completion"]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(row["prompt"]) - 1 : -1].double()
        exact = logits.log_softmax(dim=-1).gather(1, torch.tensor(row["completion"])[:, None])[:, 0]
        differences += (torch.tensor(row["logps"]).double() - exact).abs().tolist()
    differences.sort()
    assert len(differences) > 100
    assert differences[len(differences) // 2] < 0.03
    assert differences[-1] < 0.5
