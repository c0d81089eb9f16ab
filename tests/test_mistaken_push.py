"""The script that counts the push on the mistakes of traces: by hand, and through the small model's tokenizer."""

import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import mistaken_push
import small_model
from mistaken_push import mistaken_tokens, pushes, table

NUMBERS, TARGET = [3, 4, 5], 8


def sample(advantage, correct, tokens, probabilities, weights, end="<eos>"):
    """Tokens as texts; the last is the end where it is ``end``."""
    written = "".join(text for text in tokens if text != end)
    record = {"text": tokens, "logp": [math.log(p) for p in probabilities], "weight": weights}
    rewards = {"correctness": correct, "format": 1.0}
    return {"prompt": "3 4 5=8", "completion": written, "rewards": rewards, "advantage": advantage, "tokens": record}


# "!" after a try that misses, and a right trace with a wrong result on its way
WRONG = sample(-1.0, 0.0, ["3+4=7", " 7*5=35", "!", "<eos>"], [0.5, 0.5, 0.25, 0.5], [1.0, 1.0, 0.25, 1.0])
RIGHT = sample(
    2.0, 1.0, ["3+4=", "8", " x;", "5-3=2", " 2*4=8!", "<eos>"], [0.5, 0.25, 1, 1, 1, 1], [1.0, 0.5, 1, 1, 1, 1]
)


def test_two_completions_by_hand():
    without = sample(0.0, 0.0, ["9"], [0.5], [1.0])
    unplaced = sample(1.0, 0.0, ["3", "+"], [0.5, 0.5], [1.0, 1.0]) | {"completion": "3-"}
    untrained = {key: value for key, value in WRONG.items() if key != "tokens"}
    found, left_out = pushes([WRONG, RIGHT, without, unplaced, untrained])
    assert left_out == 1
    values = {
        key: (push.tokens, push.weight, push.before, push.after, push.gradient_before, push.gradient_after)
        for key, push in found.items()
    }
    assert values == {
        ("wrong", "mistaken"): pytest.approx((1, 0.25, 1, 0.25, 0.75, 0.1875)),
        ("wrong", "other"): pytest.approx((3, 3, 3, 3, 1.5, 1.5)),
        ("right", "mistaken"): pytest.approx((1, 0.5, 2, 1, 1.5, 0.75)),
        ("right", "other"): pytest.approx((5, 5, 10, 10, 1, 1)),
    }
    # of 16 and 14.25, of 4.75 and 3.4375
    assert table(found)[2:] == [
        "| wrong | mistaken | 1 | 0.062 | 0.018 | 0.250 | 0.158 | 0.055 | 0.250 |",
        "| wrong | other | 3 | 0.188 | 0.211 | 1.000 | 0.316 | 0.436 | 1.000 |",
        "| right | mistaken | 1 | 0.125 | 0.070 | 0.500 | 0.316 | 0.218 | 0.500 |",
        "| right | other | 5 | 0.625 | 0.702 | 1.000 | 0.211 | 0.291 | 1.000 |",
    ]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["3+4=7", "<eos>"], [False, True]),  # an end without "!"
        (["3+4=7"], [False]),  # cut off
        (["<eos>"], [True]),
        (["3+4=7", " 7*", "6=42", " x;"], [False, False, True, False]),
        (["3+4=7", " 7*5=35", " x;", "5-3=2 2*4=8!", "5"], [False, False, False, False, True]),
    ],
)
def test_which_tokens_are_mistaken(tokens, expected):
    written = "".join(text for text in tokens if text != "<eos>")
    assert mistaken_tokens(NUMBERS, TARGET, written, tokens) == expected


def test_tokens_that_do_not_make_up_the_completion():
    assert mistaken_tokens(NUMBERS, TARGET, "3+4", ["3", "<pad>", "+4"]) is None
    assert mistaken_tokens(NUMBERS, TARGET, "3+4=7", ["3", "+4"]) is None
    assert mistaken_tokens(NUMBERS, TARGET, "3" * 1001, ["3" * 1001]) is None


def test_through_the_small_models_tokenizer():
    tokenizer = small_model.make_tokenizer("tries")
    ids = [*tokenizer.encode("3+4=8 x;5-3=2 2*4=8!"), tokenizer.eos_token_id]
    texts, written = [tokenizer.decode([i]) for i in ids], tokenizer.decode(ids, skip_special_tokens=True)
    marked = mistaken_tokens(NUMBERS, TARGET, written, texts)
    assert [place for place, wrong in enumerate(marked) if wrong] == [4] and len(marked) == len(ids)


def test_the_command_line(tmp_path, capsys):
    path = tmp_path / "samples.jsonl"
    with pytest.raises(SystemExit, match="is not there"):
        mistaken_push.main([str(tmp_path)])
    path.write_text("".join(json.dumps(record) + "\n" for record in (WRONG, RIGHT)))
    mistaken_push.main([str(tmp_path)])
    assert capsys.readouterr().out.splitlines() == table(pushes([WRONG, RIGHT])[0])
    path.write_text(json.dumps(WRONG | {"prompt": "What is 3 + 4?"}) + "\n")
    with pytest.raises(SystemExit, match=r"'What is 3 \+ 4\?' is none of countdown"):
        mistaken_push.main([str(tmp_path)])
