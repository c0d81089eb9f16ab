"""The script that makes a small model for countdown: its tokenizer, and what it saves."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from covgrpo.errors import UserError
from covgrpo.evaluation import EvalSettings, evaluate
from covgrpo.evaluation.evaluate import encode_prompt
from covgrpo.models import load_model
from covgrpo.tasks import PromptFormat, countdown_tries, is_eval_question, load_task
from covgrpo.tasks.countdown import score
from covgrpo.verify import VerifierPool

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "small_model.py"
sys.path.insert(0, str(SCRIPT.parent))
import small_model  # noqa: E402

TASK = "countdown:?numbers=3&style=compact"


def test_one_token_a_character_and_back():
    tokenizer = small_model.make_tokenizer()
    for problem in load_task("countdown:?numbers=6&style=compact").problems("train", 50, 0):
        for text in (problem.question, problem.answer):
            ids = tokenizer.encode(text)
            assert len(ids) == len(text) and tokenizer.unk_token_id not in ids
            assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text
    assert tokenizer.encode("x\n5") == [tokenizer.unk_token_id] * 2 + tokenizer.encode("5")


def test_a_prompt_is_the_last_question_alone():
    tokenizer = small_model.make_tokenizer()
    problem, example = load_task(TASK).problems("train", 2, 0)
    expected = [tokenizer.bos_token_id, *tokenizer.encode(f"{problem.question}:")]
    for prompt_format in (PromptFormat(), PromptFormat(system_prompt=""), PromptFormat(num_examples=1)):
        assert encode_prompt(tokenizer, prompt_format.messages(problem, [example])) == expected


def test_training_rows_are_prompt_and_answer_and_of_the_train_split_alone():
    tokenizer, task = small_model.make_tokenizer(), load_task(TASK)
    ids, labels = small_model.training_rows(task, tokenizer, seed=0, num_problems=40)
    for row, wanted in zip(ids, labels, strict=True):
        question, _, answer = tokenizer.decode(row, skip_special_tokens=True).partition(":")
        assert not is_eval_question(question)
        wanted = wanted[wanted != small_model.IGNORED]
        assert tokenizer.decode(wanted) == answer + "<eos>"
        numbers, target = question.split(" = ")
        payload = {"numbers": [int(number) for number in numbers.split()], "target": int(target)}
        assert score(payload, answer) == 1.0


# --- traces of tries -----------------------------------------------------------------------------------------------


def test_batches_of_traces_are_of_the_train_split_alone_and_come_from_the_seed():
    tokenizer, task = small_model.make_tokenizer("tries"), load_task("countdown:?style=tries")
    first, again, other = (small_model.trace_batches(task, tokenizer, 40, seed, harder=0.25) for seed in (0, 0, 1))
    given = Counter()
    for _ in range(5):
        ids, labels = next(first)
        assert all(torch.equal(a, b) for a, b in zip((ids, labels), next(again), strict=True))
        assert not torch.equal(ids[:, :8], next(other)[0][:, :8])
        for row, wanted in zip(ids, labels, strict=True):
            question, _, trace = tokenizer.decode(row, skip_special_tokens=True).partition(":")
            assert not is_eval_question(question)
            assert tokenizer.decode(wanted[wanted != small_model.IGNORED]) == trace + "<eos>"
            numbers, target = question.split("=")
            payload = {"numbers": [int(number) for number in numbers.split()], "target": int(target)}
            assert countdown_tries.score(payload, trace) == 1.0
            given[len(payload["numbers"])] += 1
    assert set(given) == {3, 4} and 20 < given[4] < 80


def test_one_token_a_character_of_a_trace():
    tokenizer = small_model.make_tokenizer("tries")
    text = "3+4=7 7*5=35 x;5-3=2 2*4=8!"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text) and tokenizer.unk_token_id not in ids
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_the_rate_is_a_cosine_or_constant_with_a_straight_end():
    def rates(*arguments: str) -> list[float]:
        options = small_model.parse(["--output", "x", "--steps", "400", *arguments])
        return [small_model.rate(step, options) for step in range(401)]

    cosine, straight = rates(), rates("--style", "tries", "--decay-steps", "100")
    assert cosine[0] == straight[0] == 1 / 41
    assert cosine[200] == pytest.approx(0.5) and cosine[400] == pytest.approx(0.0)
    assert straight[40:301] == [1.0] * 261
    assert straight[350] == 0.5 and straight[399] == 0.01


def test_parts_by_length_give_the_gradient_of_the_whole_batch(monkeypatch):
    monkeypatch.setattr(small_model, "autocast", lambda device: nullcontext())  # the same numbers on every CPU
    tokenizer, task = small_model.make_tokenizer("tries"), load_task("countdown:?style=tries")
    ids, labels = next(small_model.trace_batches(task, tokenizer, 7, 0, harder=0.25))
    found = []
    for num_parts in (1, 3, 20):
        model = small_model.make_model(tokenizer, 0)
        loss = small_model.backward(model, ids, labels, num_parts)
        found.append((loss, torch.cat([p.grad.flatten() for p in model.parameters()])))
    assert found[0][0] == pytest.approx(model(input_ids=ids, labels=labels).loss.item(), rel=1e-6)
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        torch.testing.assert_close(gradient, found[0][1], rtol=1e-3, atol=1e-6)
    parts = small_model.split_by_length(ids, labels, tokenizer.pad_token_id, 3)
    assert [len(part) for part, _ in parts] == [3, 2, 2]
    assert sum(part.numel() for part, _ in parts) < ids.numel()


@pytest.fixture
def threads() -> Iterator[None]:
    """The process's number of threads is its own again afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_few_steps_give_a_model_folder(tmp_path, capsys, threads):
    small = ["--steps", "3", "--batch-size", "8", "--problems", "30", "--eval-problems", "4"]
    outputs = [tmp_path / "a", tmp_path / "b"]
    for output in outputs:
        small_model.main(["--output", str(output), *small])
    assert "held-out accuracy over 4 problems: greedy 0." in capsys.readouterr().out
    weights = [(output / "model.safetensors").read_bytes() for output in outputs]
    assert weights[0] == weights[1], "the seed decides everything"

    model, tokenizer = load_model(str(outputs[0]))
    assert 0.8e6 < model.num_parameters() < 1.3e6
    task = load_task(TASK)
    with VerifierPool(task.verifier) as pool:
        settings = EvalSettings(samples=2, max_completion_length=5)
        found = evaluate(model, tokenizer, task.problems("eval", 3, 0), [], PromptFormat(), pool, settings)
    assert found.n == 3 and found.unscored == 0


@pytest.mark.slow
def test_a_few_steps_on_traces_give_a_model_folder(tmp_path, capsys, threads):
    arguments = ["--style", "tries", "--steps", "3", "--batch-size", "8", "--harder", "0.5", "--eval-problems", "2"]
    outputs = [tmp_path / "a", tmp_path / "b"]
    for output in outputs:
        small_model.main(["--output", str(output), *arguments])
    shown = capsys.readouterr().out
    assert "countdown:?style=tries: held-out accuracy over 2 problems: greedy 0." in shown
    assert "countdown:?numbers=4&style=tries: held-out accuracy over 2 problems" in shown
    weights = [(output / "model.safetensors").read_bytes() for output in outputs]
    assert weights[0] == weights[1], "the seed decides everything"
    model, tokenizer = load_model(str(outputs[0]))
    assert model.config.max_position_embeddings == 512 and 1e6 < model.num_parameters() < 2e6
    assert tokenizer.decode(tokenizer.encode("x;!")) == "x;!"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "exists already"),
        (["--steps", "0"], "--steps is 0; it must be above 0"),
        (["--batch-size", "-1"], "--batch-size is -1"),
        (["--numbers", "9"], "numbers must lie between 2 and 6"),
        (["--decay-steps", "0"], "--decay-steps is 0; it must be above 0"),
        (["--style", "tries", "--harder", "1"], "--harder is 1.0; it must be at least 0 and below 1"),
        (["--harder", "0.5"], "--harder is 0.5, which --style compact does not have"),
        (["--style", "tries", "--harder", "0.5", "--numbers", "6"], "numbers must lie between 2 and 6"),
    ],
)
def test_wrong_input_is_refused(tmp_path, threads, arguments, words):
    output = tmp_path / "new" if arguments else tmp_path
    with pytest.raises(UserError, match=words):
        small_model.main(["--output", str(output), *arguments])
    assert not (tmp_path / "new").exists()
