"""Reward functions as TRL calls them."""

import json
from collections import Counter

import pytest

from covgrpo.errors import UserError
from covgrpo.rewards import CorrectnessReward, FormatReward, completion_text, guarded
from covgrpo.verify import Verdict, VerifierPool


class FakePool:
    """Scores by equality with payload["gold"]; the answer "bad" is a failure. Records what it was asked."""

    def __init__(self):
        self.asked = []

    def score(self, items):
        self.asked += items
        return [
            Verdict(0.0, "timeout") if answer == "bad" else Verdict(float(answer == payload["gold"]))
            for payload, answer in items
        ]


def payloads(*golds: str) -> list[str]:
    return [json.dumps({"gold": gold}) for gold in golds]


def test_correctness_asks_once_for_equal_pairs_and_never_for_empty_answers():
    pool = FakePool()
    reward = CorrectnessReward(pool, "boxed")
    completions = ["\\boxed{1}", "no box", "\\boxed{1}", "so \\boxed{1}", "\\boxed{2}"]
    rewards = reward(["q"] * 5, completions, payload=payloads("1", "1", "1", "2", "2"), completion_ids=[[0]] * 5)
    assert rewards == [1.0, 0.0, 1.0, 0.0, 1.0]
    assert Counter((p["gold"], a) for p, a in pool.asked) == {("1", "1"): 1, ("2", "1"): 1, ("2", "2"): 1}
    assert reward.__name__ == "correctness" and reward.last_failures == 0


def test_correctness_counts_the_completions_that_failures_cost():
    reward, metrics = CorrectnessReward(FakePool()), []
    columns = {"payload": payloads("1", "1", "1"), "log_metric": lambda *metric: metrics.append(metric)}
    assert reward(["q"] * 3, ["bad", "bad", "1"], **columns) == [0.0, 0.0, 1.0]
    assert reward.last_failures == 2
    assert reward(["q"] * 3, ["1", "0", "1"], **columns) == [1.0, 0.0, 1.0]
    assert metrics == [("verifier/failures", 2.0), ("verifier/failures", 0.0)]


def test_correctness_refuses_columns_of_another_length():
    with pytest.raises(ValueError, match="zip"):
        CorrectnessReward(FakePool())(["q"] * 2, ["1", "1"], payload=payloads("1"))
    with pytest.raises(UserError, match="'boxes'"):
        CorrectnessReward(FakePool(), "boxes")


@pytest.mark.slow
def test_correctness_with_a_real_pool():
    with VerifierPool("covgrpo.tasks.addition:score") as pool:
        completions = [[{"role": "assistant", "content": text}] for text in ("<answer>5</answer>", "5")]
        reward = CorrectnessReward(pool, "think")
        assert reward(["q"] * 2, completions, payload=[json.dumps({"sum": 5})] * 2) == [1.0, 0.0]


def test_format_reward():
    reward = FormatReward("think")
    good = "<think>wrong</think><answer>7</answer>"
    assert reward(["q"] * 2, [good, "7"], payload=["{}"] * 2) == [1.0, 0.0]
    assert reward.__name__ == "format"


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("4", "4"),
        ([{"role": "assistant", "content": "4"}], "4"),
        ([{"role": "assistant", "content": "call"}, {"role": "tool", "content": "9"}], "call"),
        ([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}], "b"),
        ([{"role": "assistant", "content": None}], ""),
        ([{"role": "assistant", "content": [{"type": "text", "text": "4"}, {"type": "image"}]}], "4"),
        ([], ""),
    ],
)
def test_completion_text(completion, text):
    assert completion_text(completion) == text


# --- guarded -------------------------------------------------------------------------------------------------------


def test_guarded_passes_good_batches_through_in_one_call():
    calls = []

    def lengths(prompts, completions, **columns):
        calls.append(columns)
        return [float(len(c)) for c in completions[:-1]] + [None]

    reward = guarded(lengths)
    assert reward(["q"] * 3, ["a", "bb", "c"], level=[1, 2, 3]) == [1.0, 2.0, None]
    assert calls == [{"level": [1, 2, 3]}]
    assert reward.__name__ == "lengths" and reward.failures == 0


def test_an_exception_costs_one_completion(caplog):
    def inverse(prompts, completions, level, scale, **_):
        assert len(prompts) == len(completions) == len(level)
        return [scale * lev / int(c) for c, lev in zip(completions, level, strict=True)]

    reward = guarded(inverse)
    batch = ["1", "zero", "2", "0"]
    for _ in range(2):
        assert reward(["q"] * 4, batch, level=[1, 2, 3, 4], scale=2.0) == [2.0, 0.0, 3.0, 0.0]
    assert reward.failures == 4
    assert [r.message.count("inverse") for r in caplog.records] == [1]  # warned once


def test_a_wrong_number_of_rewards_is_an_exception_too():
    reward = guarded(lambda prompts, completions, **_: [1.0])
    assert reward(["q"] * 2, ["a", "b"]) == [1.0, 1.0]  # right when asked one by one
    assert guarded(lambda **_: [])(["q"], ["a"]) == [0.0]


def test_the_users_own_errors_are_not_swallowed():
    def broken(**_):
        raise UserError("no such verifier")

    with pytest.raises(UserError, match="no such verifier"):
        guarded(broken)(prompts=["q"], completions=["a"])

    async def later(**_):
        return [1.0]

    with pytest.raises(UserError, match="'later'"):
        guarded(later)
    assert guarded(FormatReward("plain")).__name__ == "format"


def logged(reward, completions):
    """Columns and metrics that a guarded reward has logged to TRL; its rewards."""
    extra, metrics = {}, []
    rewards = guarded(reward)(
        prompts=["p"] * len(completions),
        completions=completions,
        log_extra=lambda column, values: extra.setdefault(column, []).extend(values),
        log_metric=lambda name, value: metrics.append((name, value)),
    )
    return rewards, extra, metrics


def share(prompts, completions, log_extra, log_metric, **_):
    log_extra(column="length", values=[len(completion) for completion in completions])
    found = [1.0 / len(completion) for completion in completions]
    for value in found:  # row by row, as some do
        log_extra("share", [value])
    log_metric(name="mean", value=sum(found))
    return found


def test_what_a_reward_function_logs_arrives():
    assert logged(share, ["ab", "a"]) == ([0.5, 1.0], {"length": [2, 1], "share": [0.5, 1.0]}, [("mean", 1.5)])


def test_columns_have_one_value_a_completion_where_one_has_lost_its_reward():
    """TRL's table ends the run where columns differ in length; what was logged before the failure counts once."""
    rewards, extra, metrics = logged(share, ["ab", "", "a"])
    assert rewards == [0.5, 0.0, 1.0]
    assert extra == {"length": [2, None, 1], "share": [0.5, None, 1.0]}
    assert metrics == [("mean", 0.5), ("mean", 1.0)]


def test_a_function_that_takes_no_log_gets_none():
    assert guarded(lambda prompts, completions: [1.0])(prompts=["p"], completions=["a"]) == [1.0]
