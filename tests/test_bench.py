"""`covgrpo bench`: both sides do the same step; numbers add up; bad input is one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_tokenizer

from covgrpo.bench import SWEEPS, BenchCase, measure, sweep
from covgrpo.bench.case import PHASES
from covgrpo.bench.operations import matmul_peak, useful_operations
from covgrpo.bench.workload import fixed_reward, prompts_of
from covgrpo.cli import main
from covgrpo.errors import UserError

SMALL = ["--prompts-per-step", "2", "--num-generations", "4", "--steps", "2"]


@pytest.fixture(scope="module")
def ragged(tiny_folder: Path) -> dict[str, Any]:
    """Two measured steps of both sides: random prompts, ragged completions, half of the groups without advantage."""
    case = BenchCase(
        model=str(tiny_folder), layers=1, prompts_per_step=2, num_generations=4, micro_batch_size=4, steps=2,
        prompt_length=20, completion_length=12, lengths="ragged", zero_share=0.5, bf16=False, threads=1,
    )  # fmt: skip
    seen: list[tuple[str, int]] = []
    found = measure(case, progress=lambda side, step, seconds: seen.append((side, step)))
    assert seen == [("covgrpo", 1), ("trl", 1), ("covgrpo", 2), ("trl", 2)]  # in turn
    assert [step["tokens"] for step in found.steps["covgrpo"]] == [step["tokens"] for step in found.steps["trl"]]
    assert all(step["tokens"] < 8 * 12 for step in found.steps["covgrpo"])  # some ended early
    return found.to_dict()


def test_sides_are_summed_up(ragged: dict[str, Any]) -> None:
    for side in ("covgrpo", "trl"):
        found = ragged[side]
        assert sum(found["share"].values()) == pytest.approx(1, abs=1e-6)
        assert tuple(found["share"]) == PHASES
        assert found["share"]["update"] > 0
        assert found["share"]["sampling"] > 0
        assert found["zero_share"] == 0.5
        assert found["reward"] == [0.25, 0.25]  # every other completion of one group of two
        assert len(found["step_s"]["all"]) == 2
        assert found["step_s"]["min"] <= found["step_s"]["median"] <= found["step_s"]["max"]
        assert found["peak_memory_bytes"] > 100e6
        assert 0 < found["peak_fraction"] < 1
    assert ragged["model"]["threads"] == 1
    assert ragged["model"]["bf16"] is False


def test_ratios_are_stock_over_ours(ragged: dict[str, Any]) -> None:
    ours, stock, ratios = ragged["covgrpo"], ragged["trl"], ragged["ratios"]
    assert ratios["step_mean"] == pytest.approx(stock["step_s"]["mean"] / ours["step_s"]["mean"])
    assert ratios["peak_memory"] == pytest.approx(stock["peak_memory_bytes"] / ours["peak_memory_bytes"])
    pairs = [a / b for a, b in zip(stock["step_s"]["all"], ours["step_s"]["all"], strict=True)]
    assert ratios["step_median_of_pairs"] == pytest.approx(sum(pairs) / 2)


def test_layers_are_cut(ragged: dict[str, Any]) -> None:
    # tiny.py: hidden 32, MLP 64, 4 heads on 2 key-value heads.
    layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64
    assert ragged["model"]["body_weights"] == layer
    assert ragged["model"]["attention_width"] == 32


def test_useful_operations_by_hand() -> None:
    model = {"body_weights": 10, "head_weights": 7, "attention_width": 3}
    # One prompt of 2 tokens, completions of 1 and 3 tokens; keys: 1+2 | 3 | 3+4+5.
    forward = 2 * (10 * (2 + 4) + 7 * 4) + 4 * 3 * (3 + 3 + 12)
    assert useful_operations([2], [1, 3], [False], model) == forward  # sampled only
    assert useful_operations([2], [1, 3], [True], model) == 4 * forward  # and forwarded and differentiated
    assert useful_operations([2, 2], [1, 3, 1, 3], [True, False], model) == 5 * forward


def test_matmul_peak_is_plausible() -> None:
    assert 1e8 < matmul_peak(bf16=False, threads=1, repeats=2) < 1e16


@pytest.mark.parametrize(("share", "without"), [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_fixed_reward_has_the_share_of_groups_without_advantage(share: float, without: int) -> None:
    rewards = fixed_reward(share, 3)(completions=["x"] * 12)
    groups = [rewards[i : i + 3] for i in range(0, 12, 3)]
    assert [len(set(group)) == 1 for group in groups] == [True] * without + [False] * (4 - without)


def test_random_prompts_have_the_length_asked_for_and_differ() -> None:
    tokenizer = tiny_tokenizer()
    prompts = [row["prompt"] for row in prompts_of(BenchCase(prompt_length=9, prompts_per_step=3, steps=4), tokenizer)]
    assert {len(tokenizer(prompt)["input_ids"]) for prompt in prompts} == {9}
    assert len({prompt[0] for prompt in prompts}) > 3
    assert len(prompts) == 3 * 5


@pytest.mark.parametrize("name", SWEEPS)
def test_sweeps_change_one_field(name: str) -> None:
    cases = sweep(BenchCase(), name)
    field = SWEEPS[name][0]
    assert [getattr(case, field) for case in cases] == list(SWEEPS[name][1])
    others = [{**vars(case), field: None} for case in cases]
    assert all(other == others[0] for other in others)
    assert all(case.zero_share is not None and case.lengths == "equal" for case in cases)


def test_sweep_checks_its_points() -> None:
    with pytest.raises(UserError, match="num_generations is 1; it must be at least 2"):
        sweep(BenchCase(), "generations", [1])


def test_one_side_alone(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--model", str(tiny_folder), "--only", "covgrpo", *SMALL]) == 0
    captured = capsys.readouterr()
    assert "step   2  covgrpo" in captured.err
    assert "trl" not in captured.out + captured.err
    assert "share of the time" in captured.out


@pytest.mark.slow
def test_sweep_as_a_user_runs_it(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "--model", str(tiny_folder), *SMALL, "--sweep", "completion-length", "--points", "4"]
    assert main([*argv, "--json", "--plot", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sweep"] == "completion-length"
    assert [result["case"]["completion_length"] for result in found["results"]] == [4]
    # The verifier does not reward the tiny model; fixed rewards give each group an advantage. 2 x 4 x 2 tokens a step.
    for result in found["results"]:
        assert result["trl"]["zero_share"] == 0
        tokens = 2 * 4 * result["case"]["completion_length"] * 2
        seconds = sum(result["covgrpo"]["step_s"]["all"])
        assert result["covgrpo"]["tokens_per_s"] == pytest.approx(tokens / seconds)
    assert (tmp_path / "bench-completion-length.png").read_bytes().startswith(b"\x89PNG")
