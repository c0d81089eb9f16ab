"""What a study's records come to: outcomes, statistics and tables, against SciPy and loops by hand."""

import csv
import io
import itertools
import math
import random
import statistics

import numpy as np
import pytest
import scipy.stats
from study_cases import STUDY, evaluation, made_record, made_study, with_other, write_records

from covgrpo.studies import read_records
from covgrpo.studies.analysis import BY_SEED, EVERYWHERE, analyse, tuned
from covgrpo.studies.outcomes import OUTCOMES, diverged, largest_drop, running_mean, steps_to, threshold
from covgrpo.studies.records import _thinned
from covgrpo.studies.statistics import holm, interval, sign_flip_p, verdict
from covgrpo.studies.tables import results_csv, results_markdown

# --- outcomes ------------------------------------------------------------------------------------------------------


def test_outcomes_of_a_run_by_hand():
    record = made_record(
        "r", "m", 0, 0.0,
        curves={
            "reward": [0.0] * 10 + [1.0] * 10 + [0.5] * 20,
            "entropy": [2.0] * 36 + [0.1, 0.2, 0.3, 0.4],
            "grad_norm": [1.0] * 39 + [7.0],
        },
        evaluations=[
            evaluation(0, [0, 0], {0.6: (2, [0, 0], 1.0), 1.0: (2, [0, 1], 2.0)}),
            evaluation(20, [1, 1], {0.6: (2, [2, 1], 1.0), 1.0: (2, [1, 1], 1.0)}),
            evaluation(30, [0, 0], {0.6: (2, [1, 1], 1.0), 1.0: (2, [0, 0], 1.0)}),
            evaluation(40, [1, 0], {0.6: (16, [16, 4], 0.5), 1.0: (16, [8, 0], 0.5)}),
        ],
    )  # fmt: skip
    value = {name: info.of(record) for name, info in OUTCOMES.items()}
    assert value["accuracy@0"] == 0.5 and value["accuracy@0.6"] == 20 / 32 and value["accuracy@1"] == 8 / 32
    assert value["best@0"] == 1.0 and value["best@0.6"] == 0.75 and value["best@1"] == 0.5
    assert value["late@0"] == 0.25 and value["late@1"] == 0.125  # of steps 30 and 40
    assert value["late@0.6"] == pytest.approx((0.5 + 20 / 32) / 2)
    assert value["drop@0"] == 1.0 and value["drop@0.6"] == pytest.approx(0.25)
    assert value["pass16@1"] == 0.5 and value["pass16@0.6"] == 1.0
    one = 1 - math.comb(8, 4) / math.comb(16, 4)
    assert value["pass4@1"] == pytest.approx(one / 2)
    assert value["growth@1"] == pytest.approx(0.5 - 0.25) and value["growth@0.6"] == pytest.approx(1 - 20 / 32)
    assert value["area"] == pytest.approx(0.5) and value["grad_norm"] == 7.0
    assert value["entropy"] == pytest.approx(0.25)
    assert value["entropy_held_out"] == 0.5 and value["entropy_retained"] == 0.25
    assert value["reward_drop"] == pytest.approx(0.5)
    assert value["diverged"] == 0.0  # 0.5 is half of the best, not below
    # 2 samples in between, one task, no votes
    assert all(value[name] is None for name in value if name.startswith(("drop_pass", "maj16", "harder")))


def test_outcomes_of_a_record_without_anything_are_none():
    """What was not measured is no 0."""
    record = made_record("r", "m", 0, 0.0, curves={}, evaluations=[])
    assert {info.of(record) for info in OUTCOMES.values()} == {None}
    assert threshold([record]) is None and steps_to(record, None) is None
    unseen = made_record("r", "m", 0, 0.0, evaluations=[evaluation(0, [1], {1.0: (16, [3], 0.5)})])
    names = {name for name, info in OUTCOMES.items() if info.of(unseen) is None}
    assert {name for name in OUTCOMES if name.endswith("@0.6")} <= names
    assert {"drop@0", "drop_pass16@1", "late@1", "maj16@1", "harder_pass16@1"} <= names  # one evaluation has no drop
    short = made_record("r", "m", 0, 0.0, curves={"reward": [1.0, 0.0]})
    assert OUTCOMES["reward_drop"].of(short) is None  # one mean of all its steps


def made_evaluations(samples_between=16):
    n = samples_between
    right = {16: ([16, 1], [1, 0]), 8: ([8, 1], [1, 0])}[n]
    return [
        with_other(
            evaluation(0, [0, 0], {0.6: (n, [n // 2, n // 2], 1.0), 1.0: (n, right[0], 2.0)}),
            evaluation(0, [0, 0], {0.6: (n, [n // 2, 0], 1.0), 1.0: (n, [0, 0], 2.0)}),
        ),
        with_other(
            evaluation(10, [1, 0], {0.6: (n, [n, n // 2], 1.0), 1.0: (n, right[1], 2.0)}),
            evaluation(10, [0, 0], {0.6: (n, [n, n // 2], 1.0), 1.0: (n, [1, 1], 2.0)}),
        ),
        with_other(
            evaluation(20, [1, 0], {0.6: (16, [16, 8], 1.0), 1.0: (16, [1, 1], 2.0)}),
            evaluation(20, [0, 0], {0.6: (16, [4, 4], 1.0), 1.0: (16, [1, 0], 2.0)}),
        ),
    ]


@pytest.mark.parametrize("kept", [lambda found: found, _thinned], ids=["whole", "thinned"])
def test_drops_of_pass_at_k_and_harder_problems_by_hand(kept):
    record = made_record("r", "m", 0, 0.0, evaluations=kept(made_evaluations()))
    value = {name: info.of(record) for name, info in OUTCOMES.items()}
    assert value["drop_pass16@1"] == 0.5  # 1, 0.5, 1
    assert value["drop_pass8@1"] == pytest.approx(0.5)  # (1 + 0.5) / 2, 0.5 / 2, 0.5
    # 0.25, 0.75, 0.25 on the harder ones; 0.5, 0.75, 0.75 on the run's own
    assert value["harder_accuracy@0.6"] == 0.25 and value["harder_drop@0.6"] == 0.5
    assert value["harder_pass16@1"] == 0.5 and value["pass16@1"] == 1.0 and value["drop@0.6"] == 0.0
    record = made_record("r", "m", 0, 0.0, evaluations=kept(made_evaluations(8)))
    assert OUTCOMES["drop_pass16@1"].of(record) is None
    assert OUTCOMES["drop_pass8@1"].of(record) == pytest.approx(0.5)  # 1, 0.5, 0.5


def test_records_made_before_evaluations_kept_pass_at_k():
    evaluations = _thinned(made_evaluations())
    for result in evaluations[1]["results"]:
        result.pop("pass", None)
    record = made_record("r", "m", 0, 0.0, evaluations=evaluations)
    assert OUTCOMES["drop_pass8@1"].of(record) is None and OUTCOMES["drop@0.6"].of(record) == 0.0


def test_majority_of_16_by_hand():
    evaluations = made_evaluations()
    at = {result["temperature"]: result for result in evaluations[-1]["results"]}
    at[0.6] |= {"majority": [16, 8], "majority_correct": [1, 0]}
    record = made_record("r", "m", 0, 0.0, evaluations=evaluations)
    assert OUTCOMES["maj16@0.6"].of(record) == 0.5 and OUTCOMES["maj16@1"].of(record) is None
    at[0.6]["samples"] = 32  # a vote of 32 is none of 16
    assert OUTCOMES["maj16@0.6"].of(record) is None


def test_evaluations_between_keep_pass_at_k_for_each_problems_counts():
    whole = made_evaluations()
    for entry in whole:
        entry["results"][1] |= {"majority": [3, 4], "majority_correct": [1, 1]}
    first, between, last = _thinned(whole)
    assert (first, last) == (whole[0], whole[-1])
    assert between["step"] == 10 and between["n"] == between["other"]["n"] == 2
    for results in (between["results"], between["other"]["results"]):
        greedy, *sampled = results
        gone = {"correct", "majority", "majority_correct"}
        assert all(not gone & set(result) for result in results) and "pass" not in greedy
        assert [list(result["pass"]) for result in sampled] == [["2", "4", "8", "16"]] * 2
    assert between["results"][2]["pass"] == {"2": 1 / 16, "4": 1 / 8, "8": 1 / 4, "16": 1 / 2}
    assert between["results"][1]["accuracy"] == 0.75 and "correct" in whole[1]["results"][0]


def test_divergence():
    steady = {"reward": [0.0] * 10 + [1.0] * 10 + [0.6] * 20, "grad_norm": [1.0] * 40, "entropy": [1.0] * 40}
    assert not diverged(made_record("r", "m", 0, 0.0, curves=steady))
    fallen = {**steady, "reward": [0.0] * 10 + [1.0] * 10 + [0.4] * 20}
    assert diverged(made_record("r", "m", 0, 0.0, curves=fallen))
    assert diverged(made_record("r", "m", 0, 0.0, curves={**steady, "grad_norm": [1.0] * 39 + [None]}))
    assert diverged(made_record("r", "m", 0, 0.0, curves={**steady, "reward": [None, *steady["reward"][1:]]}))


def test_steps_to_the_pairs_best():
    slow = made_record("r", "a", 0, 0.0, curves={"reward": [0.1 * (i // 10) for i in range(100)]})
    fast = made_record("r", "b", 0, 0.0, curves={"reward": [min(0.8, 0.1 * i) for i in range(100)]})
    best = threshold([slow, fast])
    assert best == pytest.approx(0.9 * 0.9)
    assert steps_to(fast, best) == 100  # never: the run's length
    assert steps_to(slow, 0.45) == next(
        end for end in range(10, 101) if statistics.fmean(slow.curves["reward"][end - 10 : end]) >= 0.45
    )


def test_running_mean_and_drop_against_loops():
    rng = random.Random(0)
    for _ in range(50):
        values = [rng.random() for _ in range(rng.randint(1, 30))]
        width = rng.randint(1, 12)
        w = min(width, len(values))
        assert running_mean(values, width) == pytest.approx(
            [sum(values[i : i + w]) / w for i in range(len(values) - w + 1)]
        )
        drops = [a - b for (i, a), (j, b) in itertools.product(enumerate(values), repeat=2) if i <= j]
        assert largest_drop(values) == (pytest.approx(max(drops)) if len(values) > 1 else None)
    assert largest_drop([]) is None


# --- statistics ----------------------------------------------------------------------------------------------------


def test_interval_against_scipy():
    values = [0.1, -0.2, 0.4, 0.35, 0.05, 0.2]
    found = interval(values)
    low, high = scipy.stats.t.interval(0.95, 5, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert (found.t_low, found.t_high) == pytest.approx((low, high))
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=50_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert (found.n, found.mean, found.median) == (6, pytest.approx(0.15), pytest.approx(0.15))
    assert interval([0.3]).t_high == math.inf
    with pytest.raises(ValueError, match="finite"):
        interval([0.1, math.nan])


@pytest.mark.parametrize(
    ("values", "margin", "expected"),
    [
        ([0.10, 0.12, 0.11, 0.10], None, "higher"),
        ([-0.10, -0.12, -0.11, -0.10], 0.05, "lower"),
        ([-0.010, -0.012, -0.011, -0.010], 0.05, "lower, within ±0.05"),
        ([-0.010, 0.012, -0.001, 0.0], 0.05, "within ±0.05"),
        ([-0.010, 0.012, -0.001, 0.0], None, "undecided"),
        ([-0.1, 0.3, 0.1, 0.0], 0.05, "undecided"),
        ([0.10, 0.12, 0.11], None, "too few pairs"),
        ([0.2], 0.05, "too few pairs"),  # one seed says nothing of seeds
        ([0.0, 0.0], 0.05, "too few pairs"),
        ([0.0] * 5, 0.05, "no variance"),
        ([0.1] * 7, 0.05, "no variance"),  # their standard deviation is rounding's
    ],
)
def test_the_verdict_is_students(values, margin, expected):
    assert verdict(interval(values), margin) == expected


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_the_permutation_test_against_scipy_and_counting(n):
    rng = np.random.default_rng(n)
    d = rng.normal(0.3, 1, n)
    hits = sum(
        abs(sum(s * x for s, x in zip(signs, d, strict=True))) >= abs(sum(d)) - 1e-12
        for signs in itertools.product((-1, 1), repeat=n)
    )
    assert sign_flip_p(list(d)) == pytest.approx(hits / 2**n)
    if n > 2:
        theirs = scipy.stats.permutation_test(
            (d, np.zeros(n)), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
        )
        assert sign_flip_p(list(d)) == pytest.approx(theirs.pvalue)


def test_the_permutation_test_of_many_pairs():
    rng = np.random.default_rng(0)
    d = rng.normal(0.3, 1, 20)
    theirs = scipy.stats.permutation_test(
        (d, np.zeros(20)), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=50_000, rng=rng
    )
    assert sign_flip_p(list(d)) == pytest.approx(theirs.pvalue, abs=0.01)
    assert sign_flip_p([0.0] * 20) == 1.0 and sign_flip_p([1.0] * 20) == pytest.approx(1 / 100_001)


def test_the_tests_level_holds_under_no_difference():
    rng = np.random.default_rng(3)
    rejected = sum(sign_flip_p(list(rng.normal(0, 1, 8))) <= 0.05 for _ in range(400))
    assert 0.02 < rejected / 400 < 0.08


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5}) == pytest.approx(
        {"a": 0.04, "b": 0.09, "c": 0.09, "d": 0.5}
    )
    assert holm({"a": 0.9, "b": 0.8}) == pytest.approx({"a": 1.0, "b": 1.0})
    assert holm({}) == {}


# --- analysis and tables -------------------------------------------------------------------------------------------

FINALS = {
    ("easy", "grpo", 3): 0.5, ("easy", "grpo", 4): 0.25, ("easy", "grpo", 5): 0.75,
    ("easy", "gaussian", 3): 0.75, ("easy", "gaussian", 4): 0.5, ("easy", "gaussian", 5): 0.75,
    ("hard", "grpo", 3): 0.25, ("hard", "gaussian", 3): 0.75, ("hard", "gaussian", 4): 1.0,
}  # fmt: skip


def made_results(tmp_path):
    study = made_study(tmp_path)
    write_records(tmp_path, study, FINALS)
    return study, read_records(tmp_path, study.runs)


def test_differences_are_paired_by_seed(tmp_path):
    study, records = made_results(tmp_path)
    cells = {(cell.regime, cell.method): cell for cell in analyse(study, records, "accuracy@0.6")}
    easy = cells["easy", "gaussian"]
    assert easy.values == {3: 0.75, 4: 0.5, 5: 0.75} and easy.own.mean == pytest.approx(2 / 3)
    assert easy.difference.n == 3 and easy.difference.mean == pytest.approx(0.5 / 3) and easy.p == 0.5
    hard = cells["hard", "gaussian"]  # seed 4 has no baseline: not in the difference
    assert hard.own.n == 2 and hard.difference.n == 1 and hard.difference.mean == pytest.approx(0.5)
    assert cells["easy", "grpo"].difference is None and ("easy", "clip_cov") not in cells
    everywhere = cells[EVERYWHERE, "gaussian"]
    assert everywhere.difference.n == 4 and everywhere.difference.mean == pytest.approx((0.25 + 0.25 + 0 + 0.5) / 4)
    by_seed = cells[BY_SEED, "gaussian"]  # seed 3: 0.25 and 0.5; 4: 0.25; 5: 0
    assert by_seed.difference.n == 3 and by_seed.difference.mean == pytest.approx((0.375 + 0.25 + 0) / 3)
    assert by_seed.p == 0.5 and by_seed.p_corrected is None and (BY_SEED, "grpo") not in cells
    p_values = {key: cell.p for key, cell in cells.items() if cell.p is not None and key[0] != BY_SEED}
    assert {key: cells[key].p_corrected for key in p_values} == pytest.approx(holm(p_values))


def test_tuned_chooses_without_the_seed_it_judges(tmp_path):
    text = STUDY.replace("regimes: {easy: {}, hard: {num_iterations: 4}}", "sweep: {learning_rate: [1e-5, 1e-4]}")
    study = made_study(tmp_path, text.replace("hard_regimes: [hard]", ""))
    low, high = study.regimes
    finals = {(low, "grpo", s): v for s, v in ((3, 0.5), (4, 0.5), (5, 0.5))}
    finals |= {(high, "grpo", s): v for s, v in ((3, 1.0), (4, 0.25), (5, 0.25))}
    finals |= {(low, "gaussian", s): 0.5 for s in (3, 4, 5)} | {(high, "gaussian", s): 0.75 for s in (3, 4, 5)}
    write_records(tmp_path, study, finals)
    cells, chosen = tuned(study, read_records(tmp_path, study.runs), "learning_rate", "accuracy@0.6", "accuracy@0.6")
    by_method = {cell.method: cell for cell in cells}
    # without seed 3 the high rate looks bad (0.25), so its 1.0 is not taken; without 4 or 5 it looks better (0.625)
    assert by_method["grpo"].values == {3: 0.5, 4: 0.25, 5: 0.25}
    assert chosen["", "grpo"] == ["1e-05", "0.0001", "0.0001"] and chosen["", "gaussian"] == ["0.0001"] * 3
    assert by_method["gaussian"].difference.mean == pytest.approx((0.25 + 0.5 + 0.5) / 3)


def test_tables_hold_the_figures(tmp_path):
    study, records = made_results(tmp_path)
    text = results_markdown(study, records, ["learning_rate"])
    assert "9 of 16 runs" in text and "Named beforehand as hard on grpo: hard." in text
    assert "| easy | gaussian | 3 | 0.667 | 0.750 | +0.167 |" in text
    assert "own learning_rate" not in text  # nothing was swept
    rows = list(csv.DictReader(io.StringIO(results_csv(study, records))))
    by_key = {(row["regime"], row["method"], row["outcome"]): row for row in rows}
    row = by_key["easy", "gaussian", "accuracy@0.6"]
    assert float(row["difference"]) == pytest.approx(1 / 6, abs=1e-5) and row["values"] == "3:0.75 4:0.5 5:0.75"
    again = by_key[BY_SEED, "gaussian", "accuracy@0.6"]
    assert again["pairs"] == "3" and float(again["p"]) == 0.5 and again["p_corrected"] == ""
    assert results_markdown(study, {}).count("0 of 16 runs") == 1


def test_secondary_outcomes_have_a_table_with_its_verdicts(tmp_path):
    study = made_study(tmp_path, f"{STUDY}margin: 0.6\nsecondary: [entropy_held_out]\n")
    text = results_markdown(study, made_results(tmp_path)[1])
    primary, entropy = text.split("\n## ")[1:3]
    # d = 0.25, 0.25, 0: t_2 = 4.303, s / sqrt(3) = 0.0833
    easy = "| easy | gaussian | 3 | 0.667 | 0.750 | +0.167 |"
    assert f"{easy} [+0.000, +0.250] | [-0.192, +0.525] | too few pairs | 0.500 |" in primary
    assert "| hard | gaussian | 2 | 0.875 | 0.875 | +0.500 |  |  | too few pairs |  |  |" in primary  # one pair
    assert entropy.startswith("Entropy on held-out problems at the end, nats")
    assert "| easy | gaussian | 3 | 0.400 | 0.400 | +0.000 |  |  | too few pairs |  |  |" in entropy


def test_four_pairs_have_a_verdict_and_equal_differences_none(tmp_path):
    text = f"{STUDY}margin: 0.6\nsecondary: [entropy_held_out]\n".replace("[3, 4, 5]", "[3, 4, 5, 6]")
    study = made_study(tmp_path, text)
    finals = {("easy", "grpo", s): v for s, v in ((3, 0.5), (4, 0.25), (5, 0.75), (6, 0.5))}
    write_records(tmp_path, study, finals | {("easy", "gaussian", s): 0.75 for s in (3, 4, 5, 6)})
    text = results_markdown(study, read_records(tmp_path, study.runs))
    primary, entropy, regime = text.split("\n## ")[1:4]
    # d = 0.25, 0.5, 0, 0.25: t_3 = 3.182, s / sqrt(4) = 0.102; of the signs of three differences 2 of 8 give 1
    assert "| easy | gaussian | 4 | 0.750 | 0.750 | +0.250 |" in primary
    assert "| [-0.075, +0.575] | within ±0.6 | 0.250 | 0.250 |" in primary
    assert "| easy | gaussian | 4 | 0.400 | 0.400 | +0.000 |  |  | no variance |  |  |" in entropy
    assert "| entropy on held-out problems at the end, nats | 0.400 | 0.400 (+0.000) |" in regime


def test_what_was_not_measured_is_in_no_table(tmp_path):
    text = STUDY.replace("[0.6, 1.0]", "[1.0]").replace("outcome: accuracy@0.6", "outcome: drop@0.6")
    study = made_study(tmp_path, f"{text}secondary: [accuracy@1]\n")
    both = [evaluation(step, [1, 0], {1.0: (16, [8, 4], 0.5)}) for step in (0, 20)]
    finals = {("easy", method, seed): 0.5 for method in ("grpo", "gaussian") for seed in (3, 4)}
    write_records(tmp_path, study, finals, evaluations=both)
    records = read_records(tmp_path, study.runs)
    text = results_markdown(study, records)
    assert "## Largest drop of accuracy, temperature 0.6\n\nNot measured in any run.\n" in text
    assert "## easy\n" in text and "| accuracy at the end, temperature 1 | 0.375 | 0.375 (+0.000) |" in text
    assert "temperature 0.6 |" not in text and "@0.6" not in results_csv(study, records)


def test_figures_and_pages(tmp_path):
    from covgrpo.studies.figures import save_figures
    from covgrpo.studies.pages import write_pages

    study, records = made_results(tmp_path)
    assert all(path.stat().st_size > 5000 for path in save_figures(study, records, tmp_path))
    pages = write_pages(study, records, tmp_path)
    assert [page.name for page in pages] == ["easy.html", "hard.html"]
    assert '"label":"gaussian"' in pages[0].read_text()
