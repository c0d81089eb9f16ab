"""Reports from run folders, whole and damaged."""

import json
import math
import random
import re
import time
from pathlib import Path

import pytest
from report_cases import make_run, metrics_of, sample_of, write_lines

from covgrpo.cli import main
from covgrpo.errors import UserError
from covgrpo.report import collect, html_page, markdown_summary, read_run
from covgrpo.report.conclusion import conclusions
from covgrpo.report.reading import RunRecords
from covgrpo.report.series import MOST_POINTS, correlation, curve


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def embedded(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1])


# --- reading -------------------------------------------------------------------------------------------------------


def test_a_whole_run_leaves_nothing_out(tmp_path):
    content = collect([read_run(make_run(tmp_path / "run"))])
    assert content.skipped == []
    run = content.runs[0]
    assert run["steps"] == run["planned"] == 60
    assert run["evaluation"]["greedy"]["after"]["accuracy"] == 1.0
    assert len(run["histograms"]["frames"]) == 60
    assert len(run["completions"]) == 42 and run["completions"][-1]["step"] == 60
    assert sum(token["count"] for token in run["damped"]) == 60 * 16


def test_what_is_damaged_is_skipped_and_named(tmp_path):
    run = make_run(tmp_path / "run", steps=10)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    lines[2] = "not json\n"
    lines[4] = json.dumps({**json.loads(lines[4]), "reward": math.nan}) + "\n"
    lines[6] = "[1, 2]\n"
    (run / "metrics.jsonl").write_text("".join(lines))
    append(run / "metrics.jsonl", '{"step": 11, "rew')
    append(run / "tokens.jsonl", '{"step": 11')
    append(run / "histograms.jsonl", '{"step": 11, "c": [1], "weight": [], "c_edges": "x", "weight_edges": []}\n')
    append(run / "samples.jsonl", json.dumps({"step": 10, "tokens": {"text": ["a"], "logp": []}}) + "\n")
    (run / "eval.json").write_text("{")
    content = collect([read_run(run)])
    said = "\n".join(content.skipped)
    for text in (
        "metrics.jsonl line 3: no JSON object with a step",
        "metrics.jsonl line 7: no JSON object with a step",
        "metrics.jsonl line 11: torn",
        "2 of 10 steps are missing",
        "reward is no finite number in 1 of 8 steps",
        "tokens.jsonl line 161: torn",
        "eval.json: cannot be read",
    ):
        assert text in said
    reward = content.curves["reward"][0]
    assert reward.y[reward.steps.index(5)] is None
    assert html_page(content, "damaged") and markdown_summary(content, "damaged")


def test_many_damaged_lines_are_counted(tmp_path):
    run = make_run(tmp_path / "run", steps=3)
    append(run / "tokens.jsonl", "x\n" * 50)
    said = collect([read_run(run)]).skipped
    assert len(said) == 4 and said[-1].endswith("tokens.jsonl: 50 lines in all are damaged")


def test_a_step_written_twice_counts_once(tmp_path):
    run = make_run(tmp_path / "run", steps=3)
    append(run / "metrics.jsonl", json.dumps({"step": 2, "reward": 9.0}) + "\n")
    records = read_run(run).metrics
    assert [record["step"] for record in records] == [1, 2, 3] and records[1]["reward"] == 9.0


def test_a_run_that_has_just_begun(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("")
    content = collect([read_run(run)])
    assert content.skipped == ["run: metrics.jsonl: no step yet"]
    assert embedded(html_page(content, "empty"))["runs"][0]["steps"] == 0
    assert markdown_summary(content, "empty").startswith("## empty")


def test_metrics_alone_are_enough(tmp_path):
    run = make_run(tmp_path / "run", steps=5)
    for name in ("config.json", "eval.json", "tokens.jsonl", "histograms.jsonl", "samples.jsonl"):
        (run / name).unlink()
    content = collect([read_run(run)])
    assert content.groups[0].label == "run" and content.skipped == []
    assert content.runs[0]["histograms"] is None and content.runs[0]["damped"] == []


@pytest.mark.parametrize("made", ["nothing", "a folder without metrics", "a file"])
def test_what_is_no_run_is_refused(tmp_path, made, capsys):
    path = tmp_path / "run"
    if made == "a file":
        path.write_text("")
    elif made != "nothing":
        path.mkdir()
    with pytest.raises(UserError, match="run"):
        read_run(path)
    assert main(["report", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


# --- curves ---------------------------------------------------------------------------------------------------------


def test_seeds_are_a_band_and_methods_are_curves(tmp_path):
    runs = [make_run(tmp_path / f"g{seed}", seed=seed, steps=20 + seed) for seed in (0, 1)]
    runs.append(make_run(tmp_path / "plain", method="grpo", seed=0, steps=20))
    content = collect([read_run(run) for run in runs])
    assert [(group.label, len(group.runs)) for group in content.groups] == [("gaussian", 2), ("grpo", 1)]
    found = content.curves["entropy"][0]
    records = [{record["step"]: record["entropy"] for record in group.metrics} for group in content.groups[0].runs]
    for i, step in enumerate(found.steps):
        values = [record[step] for record in records if step in record]
        assert found.y[i] == pytest.approx(sum(values) / len(values))
        assert (found.low[i], found.high[i]) == (min(values), max(values))
    assert found.steps[-1] == 21, "the longer run goes on alone"


def test_the_share_of_reversed_tokens_is_drawn_where_there_are_any(tmp_path):
    runs = [make_run(tmp_path / name, method=name, steps=3) for name in ("gaussian", "gaussian_through")]
    for run, share in zip(runs, (0.0, 0.02), strict=True):
        records = [{**metrics_of(step, random.Random(0)), "weight/reversed": share} for step in (1, 2, 3)]
        write_lines(run / "metrics.jsonl", records)
    assert "weight/reversed" not in collect([read_run(runs[0])]).curves
    both = collect([read_run(run) for run in runs]).curves["weight/reversed"]
    assert [curve.y for curve in both] == [[0.0] * 3, [0.02] * 3]


def test_what_differs_beside_the_seed_is_in_the_label(tmp_path):
    runs = [make_run(tmp_path / f"r{i}", seed=i, learning_rate=rate) for i, rate in enumerate((1e-5, 2e-5, 2e-5))]
    content = collect([read_run(run) for run in runs])
    assert [group.label for group in content.groups] == [
        "gaussian, learning_rate=1e-05",
        "gaussian, learning_rate=2e-05",
    ]


def test_runs_of_one_label_are_one_group(tmp_path):
    runs = [make_run(tmp_path / f"r{i}", method=name) for i, name in enumerate(("grpo", "prob"))]
    content = collect([read_run(run, "both") for run in runs])
    assert [(group.label, len(group.runs)) for group in content.groups] == [("both", 2)]


def test_long_curves_are_thinned_with_their_extremes_kept(tmp_path):
    run = make_run(tmp_path / "run", steps=2)
    spikes = {777: 50.0, 4242: -50.0}
    write_lines(run / "metrics.jsonl", ({"step": s, "reward": spikes.get(s, 0.5)} for s in range(1, 5001)))
    found = curve([read_run(run)], "reward")
    assert len(found.steps) <= MOST_POINTS and found.steps[-1] == 5000
    assert max(found.high) == 50 and min(found.low) == -50
    assert curve([read_run(run)], "no_such_metric") is None


def test_correlation_of_hand_made_points():
    found = correlation([1.0, 2.0, 3.0, 4.0], [1.0, 4.0, 9.0, 16.0])
    # x about its mean: -1.5 -0.5 0.5 1.5; y: -6.5 -3.5 1.5 8.5; sums 25, 5, 129
    assert found == pytest.approx({"n": 4, "pearson": 25 / math.sqrt(5 * 129), "spearman": 1.0, "slope": 5.0})
    ties = correlation([1.0, 1.0, 2.0], [3.0, 1.0, 2.0])
    # ranks 0.5 0.5 2 and 2 0 1
    assert ties["spearman"] == pytest.approx(0.0, abs=1e-12)
    assert correlation([1.0, 2.0], [1.0, 2.0]) is None and correlation([1.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]) is None


def test_the_entropy_prediction(tmp_path):
    run = make_run(tmp_path / "run", steps=30)
    between = collect([read_run(run)]).entropy_changes[0]
    assert not between["same_tokens"] and between["correlation"]["n"] == 29
    records = [
        {**record, "entropy/change": 100 * record["entropy/predicted"], "entropy/predicted_step": -record["step"] / 1e3}
        for record in read_run(run).metrics
        if record["step"] % 3 == 0
    ]
    write_lines(run / "metrics.jsonl", records)
    probed = collect([read_run(run)]).entropy_changes[0]
    assert probed["same_tokens"] and probed["correlation"]["n"] == 10
    assert probed["correlation"]["pearson"] == pytest.approx(1) and probed["correlation"]["slope"] == pytest.approx(100)
    assert probed["correlation_step"]["n"] == 10


def test_the_quantile_table_is_the_mean_over_steps(tmp_path):
    run = make_run(tmp_path / "run", steps=7)
    values = [record["cov/neg_0.01"] for record in read_run(run).metrics]
    assert collect([read_run(run)]).tables[0]["neg"]["0.01"] == pytest.approx(sum(values) / 7)


def test_histogram_frames_add_up(tmp_path):
    run = make_run(tmp_path / "run", steps=450)
    found = collect([read_run(run)]).runs[0]["histograms"]
    assert len(found["frames"]) == 150 and (found["frames"][0]["first"], found["frames"][0]["last"]) == (1, 3)
    records = [json.loads(line) for line in (run / "histograms.jsonl").read_text().splitlines()]
    for key in ("c", "weight"):
        assert [sum(column) for column in zip(*(f[key] for f in found["frames"]), strict=True)] == [
            sum(column) for column in zip(*(r[key] for r in records), strict=True)
        ]


# --- the page, the summary, the figures -----------------------------------------------------------------------------


def test_text_of_a_completion_cannot_leave_its_place(tmp_path):
    run = make_run(tmp_path / "run", steps=2)
    evil = "</script><script>alert(1)</script><!--\u2028"
    write_lines(run / "samples.jsonl", [sample_of(2, [evil, "x"], __import__("random").Random(0))])
    page = html_page(collect([read_run(run)]), "</title><b>")
    assert "<script>alert" not in page and "<b>" not in page.split("<style>")[0]
    assert embedded(page)["runs"][0]["completions"][0]["tokens"]["text"][0] == evil


def test_the_page_names_nothing_outside_itself(tmp_path):
    page = html_page(collect([read_run(make_run(tmp_path / "run"))]), "run")
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:)""", page)
    assert not re.search(r"url\((?!data:)|@import|fetch\(|XMLHttpRequest|WebSocket", page)
    assert "default-src 'none'" in page


def test_the_command(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    page = (run / "report.html").read_text()
    assert [entry["key"] for entry in embedded(page)["curves"]][:3] == ["reward", "entropy", "grad_norm"]


def test_the_command_with_everything(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", method="grpo")
    words = ["report", "a=with | weights", "b", "--output", "out/all.html", "--title", "Both", "--markdown", "out/s.md"]
    assert main([*words, "--figures", "out/figures", "--formats", "svg", "png"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["report: out/all.html", "summary: out/s.md"]
    summary = (tmp_path / "out/s.md").read_text()
    assert summary.startswith("## Both\n") and "| runs | 1 | 1 |" in summary and "with \\| weights" in summary
    assert "accuracy, greedy, before → after | 0.250 → 1.000" in summary
    assert "| c > 0, paper | 11.5 | 3.32 | 0.58 | 0.33 | 0.06 |" in summary
    names = {path.name for path in (tmp_path / "out/figures").iterdir()}
    assert {"reward.svg", "reward.png", "cov-sigma.svg", "histograms-b.png", "entropy-change.svg"} <= names
    assert (tmp_path / "out/figures/reward.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_a_hundred_thousand_steps(tmp_path):

    run = make_run(tmp_path / "run", steps=1)
    rng = random.Random(0)
    from report_cases import histogram_of, token_of

    def write(name, record_of, a_step=1):
        """A hundred thousand steps of a hundred different records."""
        lines = [json.dumps({**record_of(1, i), "step": "STEP"}) + "\n" for i in range(100)]
        with (run / name).open("w") as file:
            for place in range(100_000 * a_step):
                file.write(lines[place % 100].replace('"STEP"', str(place // a_step + 1), 1))

    write("metrics.jsonl", lambda step, _: metrics_of(step, rng))
    write("histograms.jsonl", lambda step, _: histogram_of(step, rng))
    write("tokens.jsonl", lambda step, i: token_of(step, i % 4, rng), a_step=4)
    write("samples.jsonl", lambda step, _: sample_of(step, ["a", "b"], rng), a_step=4)
    started = time.process_time()
    assert main(["report", str(run)]) == 0
    assert time.process_time() - started < 60  # 25 s alone; processor time grows beside other work
    assert (run / "report.html").stat().st_size < 5e6


# --- what is concluded -----------------------------------------------------------------------------------------------


def test_a_report_is_called_after_its_run_and_says_what_to_conclude(tmp_path):
    run = make_run(tmp_path / "my-run")
    assert main(["report", str(run), "--markdown", str(tmp_path / "s.md")]) == 0
    assert "<title>my-run</title>" in (run / "report.html").read_text()
    summary = (tmp_path / "s.md").read_text()
    assert "## my-run\n\ngaussian: the reward rose from 0." in summary
    assert "went from 0.250 to 1.000 (their intervals overlap, so no change is shown)." in summary


def records(rewards, **more):
    return [{"step": step, "reward": reward, **more} for step, reward in enumerate(rewards, start=1)]


def of(label, *metrics, evaluation=None):
    runs = [RunRecords(Path(f"{label}-{i}"), label, {}, evaluation or {}, one) for i, one in enumerate(metrics)]
    return conclusions({label: runs})


def test_a_change_within_the_scatter_of_the_steps_is_none():
    noise = [0.4, 0.6] * 10
    assert of("a", records(noise)) == ["a: the reward stayed at about 0.5."]
    assert of("a", records([*noise[:10], 0.9, *noise[11:]])) == ["a: the reward stayed at about 0.55."]
    assert of("a", records([0.1] * 10 + [0.2] * 10)) == ["a: the reward rose from 0.1 to 0.2."]
    assert of("a", records([0.2] * 10 + [0.1] * 10, entropy=1.0)) == [
        "a: the reward fell from 0.2 to 0.1; the entropy stayed at about 1 nats a token."
    ]
    assert of("a", records([0.1] * 19)) == []  # too few steps


def test_intervals_decide_on_the_accuracy():
    low, high = ({"greedy": {"accuracy": x, "low": x - 0.1, "high": x + 0.1}} for x in (0.3, 0.9))
    text = "held-out accuracy, greedy, went from 0.300 to 0.900 (their intervals do not overlap)."
    assert of("a", records([]), evaluation={"before": low, "after": high}) == [f"a: {text}"]
    assert of("a", records([]), evaluation={"before": low}) == []
    assert of("a", records([]), records([]), evaluation={"before": low, "after": high}) == []


def test_few_seeds_say_nothing_on_which_is_better():
    one, three = ([RunRecords(Path("x"), "x")] * n for n in (1, 3))
    assert "a has 1 of the three seeds or more" in conclusions({"a": one, "b": three})[-1]
    assert conclusions({"a": three, "b": three})[-1].startswith("The bands are extremes over seeds, no intervals")
    idle = records([0.0] * 30, frac_reward_zero_std=1.0)
    assert of("a", idle)[0].startswith("a: nothing was learnt in 30 steps")


# --- which runs are one set-up ---------------------------------------------------------------------------------------


def labels_of(*runs):
    return [(group.label, len(group.runs)) for group in collect([read_run(*run) for run in runs]).groups]


def as_options(folder, **options):
    config = json.loads((folder / "config.json").read_text())
    config["options"] |= options
    (folder / "config.json").write_text(json.dumps(config))
    return (folder,)


def test_methods_of_one_weighting_are_apart(tmp_path):
    runs = [
        as_options(make_run(tmp_path / f"{i}"), method=method, weighting=weighting)
        for i, (method, weighting) in enumerate(
            [("gaussian", None), ("gaussian", "gaussian"), ("dr_grpo", "gaussian"), ("gaussian", "prob")]
        )
    ]
    assert labels_of(*runs) == [("gaussian", 2), ("dr_grpo + gaussian", 1), ("prob", 1)]


def test_outputs_of_one_name_are_apart_and_runs_of_one_label_are_not(tmp_path):
    """A TRL script leaves no options by which to tell its runs apart."""
    first, second = (make_run(tmp_path / name / "out") for name in ("a", "b"))
    for folder in (first, second):
        (folder / "config.json").unlink()
    assert labels_of((first,), (second,)) == [("a/out", 1), ("b/out", 1)]
    assert labels_of((first,)) == [("out", 1)]
    assert labels_of((first, "out"), (second, "out")) == [("out", 2)]
