"""A run without any advantage says so: while it goes on, at its end, and in its report."""

import json

import pytest

from covgrpo.cli import main
from covgrpo.report import collect, read_run
from covgrpo.report.idle import IDLE_STEPS, IdleWarning, nothing_learnt


def step(number, idle=1.0, reward=0.0):
    return {"step": number, "frac_reward_zero_std": idle, "reward": reward, "loss": 0.0}


def test_a_run_without_an_advantage_is_named_and_no_other():
    assert nothing_learnt([]) is None
    assert nothing_learnt([{"step": 1}]) is None, "another trainer's records"
    assert nothing_learnt([step(1), step(2, idle=0.5)]) is None
    assert "in 2 steps" in nothing_learnt([step(1), step(2)])
    assert "every reward was 0.0" in nothing_learnt([step(1), step(2)])
    assert "rewards differed between prompts alone" in nothing_learnt([step(1), step(2, reward=0.5)])


def test_the_warning_comes_once_and_only_from_the_first_step_on():
    said = []
    warning = IdleWarning(said.append)
    for number in range(1, IDLE_STEPS):
        warning(step(number))
    assert said == []
    warning(step(IDLE_STEPS))
    warning(step(IDLE_STEPS + 1))
    assert len(said) == 1 and said[0].startswith("warning: nothing was learnt in 10 steps")
    learning = IdleWarning(said.append)
    for number in range(1, 30):
        learning(step(number, idle=0.5 if number == 1 else 1.0))
    resumed = IdleWarning(said.append)
    for number in range(11, 40):
        resumed(step(number))
    assert len(said) == 1


@pytest.mark.slow
def test_a_run_that_cannot_learn_says_so_and_its_report_too(work, capsys):
    """No completion of one token, a character, is a sum of three digits."""
    words = "train --model ../tiny --task addition?min=50&max=90 --max-completion-length 1 --prompts-per-step 2"
    words += " --num-generations 2"
    assert main([*words.split(), "--steps", "2", "--output", "run", "--threads", "1"]) == 0
    sentence = "nothing was learnt in 2 steps: no two completions of a prompt earned different rewards"
    assert sentence in capsys.readouterr().out
    content = collect([read_run("run")])
    assert content.runs[0]["facts"]["note"].startswith(sentence)
    metrics = [json.loads(line) for line in (work / "run/metrics.jsonl").read_text().splitlines()]
    assert [record["frac_reward_zero_std"] for record in metrics] == [1.0, 1.0]
