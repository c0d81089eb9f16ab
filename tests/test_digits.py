"""The tasks digits:sort and digits:reverse."""

import pytest

from covgrpo.errors import UserError
from covgrpo.tasks import digits as digits_module
from covgrpo.tasks import load_task


@pytest.mark.parametrize(("operation", "gold"), [("sort", "1247"), ("reverse", "2714")])
def test_digits_in_another_order(operation, gold):
    task = load_task(f"digits:{operation}")
    problems = {p.id: p for split in ("train", "eval") for p in task.problems(split, 10_000, 0)}
    assert len(problems) == 10_000 and problems["4172"].answer == gold and "4172" in problems["4172"].question
    assert problems["0300"].answer == {"sort": "0003", "reverse": "0030"}[operation]
    for answer, score in ((gold, 1), (f" {gold}\n", 1), (gold + ".", 0), (gold[1:], 0), ("4172", 0), ("", 0)):
        assert digits_module.score(problems["4172"].payload, answer) == score
    assert load_task(f"digits:{operation}?length=4").spec == f"digits:{operation}"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("digits:srt", ["'srt'", "'sort'"]),
        ("digits:sort?length=1", ["length", "1"]),
        ("digits:sort?length=13", ["length", "13"]),
        ("digits:sort?size=3", ["'size'"]),
    ],
)
def test_wrong_digits(spec, words):
    with pytest.raises(UserError) as caught:
        load_task(spec)
    assert all(word in str(caught.value) for word in words)
