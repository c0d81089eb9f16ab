"""Evaluations on a run's own and on another task's held-out problems: votes, problems, and what is refused."""

from collections import Counter

import pytest
from tiny import tiny_model, tiny_tokenizer

from covgrpo.cli import main
from covgrpo.errors import UserError
from covgrpo.evaluation import EvalSettings, evaluate
from covgrpo.evaluation.evaluate import evaluate_temperatures
from covgrpo.runs.held_out import load_other
from covgrpo.runs.options import TrainOptions
from covgrpo.tasks import PromptFormat, load_task
from covgrpo.tasks.base import vote_of
from covgrpo.verify.pool import Verdict


class Judge:
    """In a verifier's place: keeps the answers, and takes those that begin with a letter before m for right."""

    def __init__(self):
        self.answers = []

    def score(self, items):
        self.answers += [answer for _, answer in items]
        return [Verdict(float(answer[:1].lower() < "m")) for _, answer in items]


def test_votes_of_an_evaluation_against_a_loop():
    judge, samples, num_problems = Judge(), 12, 5
    found = evaluate_temperatures(
        tiny_model(), tiny_tokenizer(), load_task("addition").problems("eval", num_problems, 0), [], PromptFormat(),
        judge, EvalSettings(max_completion_length=3), {0.0: 1, 1.0: samples}, vote=lambda answer: answer[:1].lower(),
    )  # fmt: skip
    greedy, sampled = found
    assert "majority" not in greedy and len(judge.answers) == num_problems * (1 + samples)
    drawn = judge.answers[num_problems:]
    for i, (size, correct) in enumerate(zip(sampled["majority"], sampled["majority_correct"], strict=True)):
        votes = Counter(answer[0].lower() for answer in drawn[i * samples : (i + 1) * samples] if answer)
        # a counter lists equals in the order in which they came
        winner, count = votes.most_common(1)[0] if votes else ("z", 0)
        assert (size, correct) == (count, int(winner < "m"))
    assert max(sampled["majority"]) > 1 and len(sampled["correct"]) == len(sampled["majority"]) == num_problems


# Of the version whose evaluations were published: 5 problems in batches of 4, so that one batch follows another.
KEPT = [
    *(": i m", ": i m", "8 g m", ": i m", ": i m"),
    *("t ^ P 9 >", "r ^ P 5", "\\ v", ": O 5 6 [", "8 & > : v", "| v : f 2", "] > d L f", ": Y ^ P 4", ": i Q"),
    *("I N t m .", "M r J e ]", "\\ b > \\ ^", "\\ > : w i", '\\ " " P q', ': " " R "'),
]


def test_one_process_draws_what_it_drew_for_the_kept_evaluations():
    judge = Judge()
    settings = EvalSettings(max_completion_length=5, batch_size=4, seed=7, bf16=False)
    problems = load_task("addition").problems("eval", 5, 0)
    greedy, sampled = evaluate_temperatures(
        tiny_model(), tiny_tokenizer(), problems, [], PromptFormat(), judge, settings, {0.0: 1, 1.0: 3}
    )
    assert judge.answers == KEPT
    assert (greedy["correct"], sampled["correct"]) == ([1, 1, 1, 1, 1], [1, 2, 3, 2, 3])
    assert (greedy["mean_length"], sampled["mean_length"]) == (4.0, 4.8)
    assert greedy["entropy"] == pytest.approx(3.093379461765289, rel=1e-5)
    assert sampled["entropy"] == pytest.approx(3.144494437509113, rel=1e-5)


def test_a_task_without_a_vote_of_its_own_is_compared_by_its_whole_answer():
    assert vote_of(load_task("addition"))(" 12 3") == " 12 3"
    assert vote_of(load_task("countdown:?style=tries"))("1+2=3 x;2+3=5!") == "2+3=5"


def test_the_other_tasks_problems_are_its_own_with_the_runs_seed():
    options = TrainOptions(
        task="addition", eval_task="countdown:?numbers=4&style=tries", eval_task_length=160, eval_steps=1, seed=3,
        eval_problems=7, num_examples=2,
    )  # fmt: skip
    options.check()
    other = load_other(options)
    task = load_task(options.eval_task)
    assert other.problems == task.problems("eval", 7, 3) and all(len(p.payload["numbers"]) == 4 for p in other.problems)
    assert other.examples == task.problems("train", 3, 3)
    assert (other.options.max_completion_length, options.max_completion_length) == (160, 64)
    assert load_other(TrainOptions(task="addition")) is None
    assert load_other(TrainOptions(eval_task="addition")).options.max_completion_length == 64
    assert load_other(TrainOptions(eval_task="addition")).examples == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eval_task": "addition"}, "eval_task is 'addition' and eval_steps 0"),
        ({"eval_task_length": 5, "eval_steps": 1}, "eval_task_length is 5 and there is no eval_task"),
        ({"eval_task": "addition", "eval_steps": 1, "eval_task_length": 0}, "eval_task_length is 0; .* at least 1"),
    ],
)
def test_what_cannot_be_is_one_sentence(changes, words):
    with pytest.raises(UserError, match=words):
        TrainOptions(task="addition", **changes).check()


def test_training_problems_are_measured_without_the_solved_examples(monkeypatch, capsys):
    """They are drawn from the same split: what is shown as an example is not asked for as well."""
    asked = {}

    def kept(model, tokenizer, problems, examples, *rest):
        asked.update(problems=problems, examples=examples)
        return evaluate(model, tokenizer, problems, examples, *rest)

    monkeypatch.setattr("covgrpo.evaluation.evaluate", kept)
    words = [
        "--task",
        "countdown:?style=tries",
        "--num-examples",
        "2",
        "--max-completion-length",
        "4",
        "--samples",
        "1",
    ]
    assert main(["eval", "traces-1m", *words, "--split", "train", "--problems", "6"]) == 0
    questions = [problem.question for problem in asked["problems"]]
    assert len(questions) == 6 and not set(questions) & {example.question for example in asked["examples"]}
    assert len(asked["examples"]) == 2 and "n=6 problems" in capsys.readouterr().out
