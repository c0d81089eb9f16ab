"""avg@k, pass@k and maj@k against hand-made numbers."""

from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covgrpo.evaluation.at_k import Scored, at_k, majority, majority_score
from covgrpo.evaluation.intervals import bootstrap_mean, wilson


def scored(*problems):
    """Each problem: text of answers, upper case where right."""
    return [
        Scored(str(i), [float(a.isupper()) for a in answers], [a.strip("-") for a in answers])
        for i, answers in enumerate(problems)
    ]


def test_hand_made():
    found = at_k(scored("Aab-", "BbBB", "cccc"))
    assert (found["n"], found["k"], found["unscored"]) == (3, 4, 0)
    assert found["accuracy"] == pytest.approx((1 / 4 + 3 / 4 + 0) / 3)
    assert found["avg@4"]["accuracy"] == pytest.approx(1 / 3)
    assert found["pass@1"]["accuracy"] == pytest.approx(1 / 3)
    # of 6 pairs 3 hold the one right of four; all hold one of three right of four
    assert found["pass@2"]["accuracy"] == pytest.approx((3 / 6 + 1 + 0) / 3)
    assert found["pass@4"]["accuracy"] == pytest.approx(2 / 3)
    # "A" and "a" are two answers, the earlier wins a tie; "BbBB": B
    assert found["maj@2"]["accuracy"] == pytest.approx(2 / 3)
    assert found["maj@4"]["accuracy"] == pytest.approx(2 / 3)


def test_one_completion_each_has_wilsons_interval():
    found = at_k(scored(*["A"] * 7, *["b"] * 13))
    assert (found["low"], found["high"]) == wilson(7, 20)
    assert [name for name in found if "@" in name] == ["avg@1", "pass@1"]


def test_several_completions_have_a_bootstrap_over_problems():
    problems = scored("Ab", "bb", "AA", "bA", "bb")
    found = at_k(problems, seed=3)
    assert (found["low"], found["high"]) == bootstrap_mean([0.5, 0, 1, 0.5, 0], seed=3)


def test_problems_with_different_numbers_of_completions():
    found = at_k(scored("AAAb", "bA", "b"))
    assert found["k"] == 1 and found["accuracy"] == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)


def test_powers_and_the_number_itself():
    assert [name for name in at_k(scored("A" * 6)) if name.startswith("pass")] == [
        "pass@1",
        "pass@2",
        "pass@4",
        "pass@6",
    ]


def test_white_space_is_no_difference_and_no_answer_is_no_vote():
    problem = Scored("x", [0.0, 1.0, 1.0, 0.0, 0.0], ["", "1 / 2", "1/2", "", ""])
    assert majority_score(problem, 5) == 1.0
    assert majority_score(Scored("x", [0.0, 0.0], ["", ""]), 2) == 0.0


def test_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        at_k([])
    with pytest.raises(ValueError, match="at least one"):
        at_k([Scored("x", [], [])])


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=4))
def test_pass_at_k_is_the_mean_over_all_subsets(rows):
    problems = [Scored(str(i), [float(x) for x in row], ["a"] * 4) for i, row in enumerate(rows)]
    found = at_k(problems)
    for k in (1, 2, 4):
        expected = fmean(fmean(float(any(chosen)) for chosen in combinations(row, k)) for row in rows)
        assert found[f"pass@{k}"]["accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["a", "b", " b ", "c d", "cd"], (1, 2)),  # the earliest of equals; white space does not count
        (["", "a", ""], (1, 1)),
        (["", "  "], (None, 0)),
        ([], (None, 0)),
    ],
)
def test_the_most_frequent_answer(answers, expected):
    assert majority(answers) == expected
