"""Records that no run writes, of a run given to a report and of a study: left out, or one sentence."""

import contextlib
import io
import json
import subprocess
import sys
import time

import pytest
from report_cases import make_run
from study_cases import made_record, made_study, write_records

from covgrpo.cli import main
from covgrpo.errors import UserError
from covgrpo.report import collect, html_page, markdown_summary, read_run
from covgrpo.studies.records import read_record, record_path
from covgrpo.yaml_text import YamlError, parse_yaml

HUGE = 10**400
NESTED = json.loads("[" * 900 + "]" * 900)

# Name -> (file of a run, what is changed in its records; of config.json and eval.json in their one object).
ODD = {
    "a metric beyond floats": ("metrics.jsonl", {"reward": HUGE, "grad_norm": -HUGE, "step_time": 1e308}),
    "metrics that cannot be squared": ("metrics.jsonl", {"entropy": 1e300, "entropy/predicted": 1e200}),
    "metrics that are not told apart": ("metrics.jsonl", {"entropy/predicted": 1e-300, "entropy/change": 5e-324}),
    "a step beyond the page": ("metrics.jsonl", {"step": 10**30}),
    "a list as reward": ("metrics.jsonl", {"reward": [1], "frac_reward_zero_std": 1.0}),
    "half of a character": ("samples.jsonl", {"prompt": "\ud800", "completion": "\udfff"}),
    "numbers as tokens": (
        "samples.jsonl",
        {"tokens": {key: [1] for key in ("text", "logp", "c", "weight", "entropy")}},
    ),
    "nan in tokens": (
        "samples.jsonl",
        {"tokens": {"text": ["a"], "logp": [0.1], "c": [float("nan")], "weight": [1.0], "entropy": [HUGE]}},
    ),
    "rewards beyond floats": ("samples.jsonl", {"rewards": {"correctness": HUGE, "x": float("inf")}}),
    "a token beyond floats": ("tokens.jsonl", {"c": HUGE}),
    "idle as text": ("histograms.jsonl", {"idle": "many"}),
    "a count beyond floats": ("histograms.jsonl", {"c": [HUGE], "c_edges": []}),
    "nan in the options": ("config.json", {"options": {"learning_rate": float("nan"), "task": HUGE, "steps": HUGE}}),
    "deep options": ("config.json", {"options": NESTED}),
    "nan in an evaluation": ("eval.json", {"before": {"n": float("nan"), "greedy": {"accuracy": HUGE}}, "after": {}}),
}


@pytest.mark.parametrize("name", ODD)
def test_what_no_run_writes_is_left_out_of_a_report(tmp_path, name):
    file, change = ODD[name]
    run = make_run(tmp_path / "run", steps=25)
    lines = (run / file).read_text().splitlines()
    (run / file).write_text("".join(json.dumps({**json.loads(line), **change}) + "\n" for line in lines))
    content = collect([read_run(run)])
    page = html_page(content, "odd")
    assert '<script type="application/json"' in page and markdown_summary(content, "odd")
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").read_bytes().decode("utf-8")


def test_a_number_that_cannot_be_drawn_is_counted_as_a_gap(tmp_path):
    run = make_run(tmp_path / "run", steps=3)
    (run / "metrics.jsonl").write_text('{"step": 1, "reward": 1e400}\n{"step": 2, "reward": 1' + "0" * 400 + "}\n")
    assert "run: metrics.jsonl: reward is no finite number in 2 of 2 steps" in collect([read_run(run)]).skipped


RESULT = made_record("easy", "grpo", 3, 0.5).evaluations[0]["results"][0]
# Name -> (a change to a record, a part of the sentence).
RECORDS = {
    "regime": ({"regime": 3}, "regime is not text"),
    "options": ({"options": []}, "options is not an object"),
    "seed": ({"seed": True}, "seed is no whole number"),
    "curves": ({"curves": []}, "curves is no object of lists"),
    "curve": ({"curves": {"reward": [HUGE]}}, "curve 'reward' holds what is neither a number nor null"),
    "curves of two lengths": ({"curves": {"reward": [1.0], "entropy": []}}, "its curves differ in length"),
    "evaluations": ({"evaluations": {}}, "evaluations is no list"),
    "step": ({"evaluations": [{"results": []}]}, "evaluation 0 has no step"),
    "results": ({"evaluations": [{"step": 1}]}, "evaluation 0 has no list of results"),
    "other": ({"evaluations": [{"step": 1, "results": [], "other": 3}]}, "evaluation 0 has no list of results"),
    **{
        f"{name} {value!r}": ({"evaluations": [{"step": 1, "results": [{**RESULT, name: value}]}]}, sentence)
        for name, value, sentence in (
            ("temperature", None, "temperature is no number"),
            ("accuracy", float("nan"), "accuracy is no number"),
            ("entropy", "x", "entropy is neither a number nor null"),
            ("samples", 0, "samples is no whole number above 0"),
            ("correct", [2], "correct is no list of counts"),
            ("correct", [], "correct is no list of counts"),
            ("majority_correct", [0.5], "majority_correct is no list of zeros and ones"),
            ("pass", {"2": "x"}, "pass is no object of numbers"),
        )
    },
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_that_no_run_writes_is_refused(tmp_path, name):
    change, sentence = RECORDS[name]
    record = {"version": 1, "study": "made", **vars(made_record("easy", "grpo", 3, 0.5)), **change}
    path = tmp_path / "r.json"
    path.write_text(json.dumps(record))
    with pytest.raises(UserError) as error:
        read_record(path)
    assert sentence in str(error.value)


def test_a_record_under_the_name_of_another_run_is_refused(tmp_path, capsys):
    study = made_study(tmp_path)
    write_records(tmp_path / "made", study, {("easy", "grpo", 3): 0.5})
    path = record_path(tmp_path / "made", study.runs[0])
    path.write_text(path.read_text().replace('"method": "grpo"', '"method": "gaussian"', 1))
    assert main(["compare", str(tmp_path / "made.yaml"), "--no-run"]) == 2
    assert "is the record of another run: its method is 'gaussian' and the study's 'grpo'" in capsys.readouterr().err


def test_aliases_that_mean_little_are_read():
    assert parse_yaml("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n") == {
        "a": {"x": 1},
        "b": {"x": 1},
        "c": {"x": 1, "y": 2},
    }


def test_many_digits_are_read_in_their_number_of_steps():
    """Digits that may be split in two places are tried in each pair of them: minutes for a file of 100 kB."""
    started = time.process_time()
    for text in ("1" * 200_000, "-" + "1" * 200_000 + "x", "." + "1" * 200_000):
        assert main(["train", "--learning-rate", text]) == 2
        with contextlib.suppress(YamlError):
            parse_yaml(f"a: {text}")
    assert time.process_time() - started < 10


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_the_output_cannot_encode_is_escaped(tmp_path, encoding):
    """A label from a file of others: half of a character, and one that an ASCII terminal lacks."""
    (tmp_path / "r.json").write_text(
        json.dumps({"label": "é\ud800", "benchmark": "math500", "accuracy": 0.5, "low": 0.4, "high": 0.6})
    )
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-m", "covgrpo", "table", "r.json"],
        cwd=tmp_path, capture_output=True, env={"PYTHONPATH": ":".join(sys.path), "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "é\\ud800" in done.stdout.decode() if encoding == "utf-8" else b"\\xe9\\ud800" in done.stdout


def test_a_stream_that_is_none_of_the_systems_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert main(["models"]) == 0
