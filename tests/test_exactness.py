"""The update depends on the rollouts alone: not on micro-batches, accumulation, shuffling, padding or processes."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trl.trainer.grpo_trainer
from exactness_cases import CASES, SCHEMES, STOCK, run
from trl_runs import relative

pytestmark = pytest.mark.slow

SCOPES = ("group", "batch")


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    """Everything in one micro-batch of one process."""

    @functools.cache
    def of(scheme, scope, **options):
        return run(tmp_path_factory.mktemp("baseline"), scheme, scope, **options)

    return of


def assert_same(actual, expected, later=1e-5):
    """Relative 1e-5; ``later``: of gradients and losses after the first update, whose weights differ by rounding."""
    torch.testing.assert_close(actual["losses"], expected["losses"], rtol=1e-5, atol=max(1e-6, later / 10))
    for update, (a, b) in enumerate(zip(actual["gradients"], expected["gradients"], strict=True)):
        assert relative(a, b) < (later if update else 1e-5)
    assert relative(actual["weights"], expected["weights"]) < 1e-5
    assert_same_metrics(actual["metrics"], expected["metrics"])


def assert_same_metrics(actual, expected):
    """Token metrics of each step; of stock TRL, which has none but its mean of means, none are compared."""
    for found, wanted in zip(actual, expected, strict=True):
        if "cov/mean" in found and "cov/mean" in wanted:
            assert found == pytest.approx(wanted, rel=1e-3, abs=2e-5)


# Of the gradients after the first update. The gradient through the kernel answers to rounding of the log-probs about
# three times as strongly as the kernel itself does.
LATER = {"gaussian_through": 5e-5}

VARIANTS = {
    "micro-batch 1": {"size": 1},
    "micro-batch G/2": {"size": 2},
    "micro-batch G": {"size": 4},
    "micro-batch 2G": {"size": 8},
    "more padding on either side": {"size": 8, "pad_to_multiple_of": 32},
    "stock path": {"size": 4, "fast_path": False},
}
# A generation batch smaller than the optimizer step; with several updates a batch that is another algorithm.
SMALLER_GENERATIONS = {
    "one group a generation": {"size": 4, "steps_per_generation": 1},
    "two micro-batches a generation": {"size": 4, "steps_per_generation": 2},
    "four micro-batches a generation": {"size": 2, "steps_per_generation": 4},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_how_the_step_is_split_changes_nothing(tmp_path, baseline, scheme, scope, variant):
    assert_same(run(tmp_path, scheme, scope, **VARIANTS[variant]), baseline(scheme, scope), LATER.get(scheme, 1e-5))


@pytest.mark.parametrize("variant", SMALLER_GENERATIONS)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name != "kl_cov"])
def test_steps_per_generation_changes_nothing(tmp_path, baseline, scheme, scope, variant):
    assert_same(
        run(tmp_path, scheme, scope, **SMALLER_GENERATIONS[variant]), baseline(scheme, scope), LATER.get(scheme, 1e-5)
    )


# The gradient through the weights needs whole groups in the step that a scope spans; anything else is refused at start.
WHOLE_GROUPS = [
    (scheme, scope) for scheme in SCHEMES for scope in SCOPES if (scheme, scope) != ("gaussian_through", "batch")
]


@pytest.mark.parametrize(("scheme", "scope"), WHOLE_GROUPS)
def test_a_generation_batch_of_two_optimizer_steps(tmp_path, scheme, scope):
    """TRL shuffles rows over both steps; however these are split into micro-batches, the updates are the same."""
    whole = run(tmp_path / "a", scheme, scope, size=16, steps_per_generation=2)
    split = run(tmp_path / "b", scheme, scope, size=4, steps_per_generation=8)
    assert_same(split, whole, LATER.get(scheme, 1e-5))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_shuffle_changes_nothing(tmp_path, baseline, scheme, scope, monkeypatch):
    def reversed_rows(batch):
        return {
            name: value.flip(0) if isinstance(value, torch.Tensor) and value.dim() else value
            for name, value in batch.items()
        }

    monkeypatch.setattr(trl.trainer.grpo_trainer, "shuffle_sequence_dict", reversed_rows)
    assert_same(run(tmp_path, scheme, scope, size=4), baseline(scheme, scope), LATER.get(scheme, 1e-5))


@pytest.mark.parametrize("loss_type", ["dapo", "bnpo", "dr_grpo"])
def test_loss_types_whose_normaliser_spans_the_step(tmp_path, baseline, loss_type):
    """bnpo normalises by the micro-batch's tokens (TRL's definition), so only one micro-batch can be compared."""
    size = 16 if loss_type == "bnpo" else 4
    expected = baseline("gaussian", "group", loss_type=loss_type)
    assert_same(run(tmp_path, "gaussian", "group", loss_type=loss_type, size=size, pad_to_multiple_of=16), expected)


def test_schemes_and_scopes_differ(baseline):
    """The comparisons above could fail: schemes and scopes give different updates, and weighting changes it at all."""
    results = [baseline(scheme, scope)["gradients"] for scheme in ("gaussian", "clip_cov") for scope in SCOPES]
    results += [baseline("gaussian_through", scope)["gradients"] for scope in SCOPES]
    results.append(baseline("prob", "group")["gradients"])
    for index, a in enumerate(results):
        for b in results[:index]:
            assert relative(a[0], b[0]) > 1e-3
    kl = [baseline("kl_cov", scope)["gradients"] for scope in SCOPES]
    assert relative(kl[0][1], kl[1][1]) > 1e-4, "the second update of a rollout batch carries the penalty"


def test_the_sparse_and_masked_cases_have_idle_processes(baseline):
    """Two of sixteen prompts earn anything, so at most two of three steps have an advantage at all, and in each of
    these a process without it unless both prompts fall on different processes of one step, which leaves two steps idle.
    """
    sparse = baseline("gaussian", "group", sparse=True)["gradients"]
    assert sum(bool(gradient.abs().max() > 0) for gradient in sparse) in (1, 2)
    masked = baseline("gaussian", "group", mask_truncated_completions=True)["gradients"]
    assert relative(masked[0], baseline("gaussian", "group")["gradients"][0]) > 1e-3


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Results of all distributed cases, by engine; each engine is launched once."""

    @functools.cache
    def of(engine):
        output = tmp_path_factory.mktemp(engine) / "results.pt"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        script = Path(__file__).with_name("exactness_cases.py")
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, str(script), str(output), engine], env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return torch.load(output)

    return of


@pytest.mark.parametrize(
    ("engine", "index"),
    [
        pytest.param(engine, index, id="-".join(map(str, (engine, *case))))
        for engine, cases in CASES.items()
        for index, case in enumerate(cases)
    ],
)
def test_two_processes_are_one(two_processes, baseline, index, engine):
    scheme, scope, options = CASES[engine][index]
    kept = {name: value for name, value in options.items() if name not in ("size", "steps_per_generation")}
    # Without weights, stock TRL itself is the baseline.
    expected = baseline(STOCK if scheme == "none" else scheme, scope, **kept)
    assert_same(two_processes(engine)[index], expected, LATER.get(scheme, 1e-5))


CELLS = {
    **{name: options for name, options in VARIANTS.items() if name != "stock path"},
    "all at once": {},
    **SMALLER_GENERATIONS,
    "a generation of two steps": {"size": 4, "steps_per_generation": 8},
    "two updates a generation": {"size": 4, "num_iterations": 2},
    "few advantages": {"size": 4, "sparse": True},
    "truncated completions masked": {"size": 4, "mask_truncated_completions": True},
}


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "bnpo", "dr_grpo"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_fast_path_gives_the_gradients_of_stock_trl(tmp_path, cell, loss_type):
    """Cell by cell against TRL's own trainer on the same rollouts, with the same normalisers."""
    theirs = run(tmp_path / "a", STOCK, "group", loss_type=loss_type, **CELLS[cell])
    mine = run(tmp_path / "b", "none", "group", loss_type=loss_type, **CELLS[cell])
    assert set(mine["first_use"].values()) == {None}, "the fast path was not taken"
    # Adam's first updates divide gradients by their own size, those that are rounding noise included.
    assert_same(mine, theirs, later=3e-5)
