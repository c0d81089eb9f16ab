"""verl's own trainer on CPUs, with Ray and FSDP2: ``make test-verl``. Some two minutes a run; needs verl's environment.

What the policy loss receives on the workers is compared with the core's weights times verl's advantages, both from the
driver's batch; and what training gives, over numbers of workers and micro-batch sizes.
"""

import functools
import subprocess
from pathlib import Path

import pytest
import torch
import verl_runs
from verl_trl_cases import compare

from covgrpo.core import gaussian_weights, neutral_weights
from covgrpo.engines.training_batch import number

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        verl_runs.verl_python() is None, reason="verl has an environment of its own: `make test-verl` runs these tests"
    ),
]

SPLITS = [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (2, 4)]  # (workers, micro-batch)
REFERENCE = (1, 2)
# Three mini-batches of two prompts do not fit four prompts evenly: verl appends rows of padding.
PADDED = ("data.train_batch_size=3", "actor_rollout_ref.actor.ppo_mini_batch_size=2")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs by their arguments, each made once."""
    folder = tmp_path_factory.mktemp("verl")
    data = folder / "data"
    data.mkdir()
    verl_runs.prepare(data)

    @functools.cache
    def run(*overrides, workers=1, micro_batch=2, plugin=True):
        name = f"run-{len(list(folder.iterdir()))}"
        made = verl_runs.run(data, folder / name, *overrides, workers=workers, micro_batch=micro_batch, plugin=plugin)
        assert made.returncode == 0, made.output[-4000:]
        return made

    return run


def rows(tensors, advantages):
    """(bytes of a row's log-probs, its advantages) of each row with a valid token."""
    for logps, A, mask in zip(tensors["old_log_probs"], tensors[advantages], tensors["response_mask"], strict=True):
        if (mask := mask.bool()).any():
            yield logps[mask].numpy().tobytes(), A[mask]


def largest_difference(run):
    """Of the loss's advantages from core weights x verl's advantages; every row of the driver must have arrived."""
    expected = {}
    count = 0
    for dump in run.dumps("driver"):
        batch = dump.tensors
        group = number(dump.metadata["uid"])
        weights = gaussian_weights(batch["old_log_probs"], batch["advantages"], batch["response_mask"], group)
        batch["expected"] = weights * batch["advantages"]
        for key, A in rows(batch, "expected"):
            # Equal completions of equal prompts have equal keys, and each its own group's advantages.
            expected.setdefault(key, []).append(A)
            count += 1
    found = [row for dump in run.dumps("loss") for row in rows(dump.tensors, "advantages")]
    assert len(found) == count
    assert {key for key, _ in found} == set(expected)
    return max(min((A - other).abs().max().item() for other in expected[key]) for key, A in found)


def test_the_weights_are_not_trivial(runs):
    for dump in runs().dumps("driver"):
        batch = dump.tensors
        assert (batch["weighted"] - batch["advantages"]).abs().max() > 0.1
    assert "covgrpo: weighting=gaussian scope=group in PPOTrainerSync" in runs().output
    assert all({"cov/mean", "cov/sigma", "weight/ess", "update/top_share"} <= set(step) for step in runs().metrics)


@pytest.mark.parametrize(("workers", "micro_batch"), SPLITS)
def test_the_loss_receives_core_weights_times_verls_advantages(runs, workers, micro_batch):
    run = runs(workers=workers, micro_batch=micro_batch)
    assert len(run.dumps("driver")) == len(run.metrics) == verl_runs.STEPS
    assert largest_difference(run) < 1e-6


@pytest.mark.parametrize(("workers", "micro_batch"), [split for split in SPLITS if split != REFERENCE])
def test_workers_and_micro_batches_do_not_change_the_update(runs, workers, micro_batch):
    reference, run = runs(), runs(workers=workers, micro_batch=micro_batch)
    for mine, theirs in zip(run.metrics, reference.metrics, strict=True):
        for name in ("actor/grad_norm", "cov/sigma", "cov/weighted", "weight/ess", "critic/score/mean"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4), name
    for name, expected in reference.weights(verl_runs.STEPS).items():
        # Training moves them by 3e-3; Adam's first updates divide rounding noise by itself.
        torch.testing.assert_close(run.weights(verl_runs.STEPS)[name], expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("trainer", [(), ("trainer.use_v1=False",)], ids=["v1", "legacy"])
def test_hold_entropy_weighs_each_batch_with_the_kappa_that_it_logs(runs, trainer):
    """After ten steps the controller chooses kappa. The weights are the core's, from the driver's batch."""
    steps = 12
    overrides = ("+algorithm.covgrpo.weighting=hold_entropy", "+algorithm.covgrpo.scope=batch", *trainer)
    run = runs(*overrides, f"trainer.total_training_steps={steps}", "trainer.total_epochs=4")
    dumps = run.dumps("driver")
    assert len(dumps) == len(run.metrics) == steps
    for dump, logged in zip(dumps, run.metrics, strict=True):
        batch, kappa = dump.tensors, dump.metadata["metrics"]["hold/kappa"]
        mask = batch["response_mask"].bool()
        assert batch["entropies"][mask].mean().item() == pytest.approx(logged["actor/entropy"], rel=1e-5)
        x = batch["old_log_probs"] + batch["entropies"]
        expected = neutral_weights(x, batch["advantages"], mask, kappa=kappa) * batch["advantages"]
        assert (batch["weighted"] - expected).abs().max() < 1e-6
    kappas = [step["hold/kappa"] for step in run.metrics]
    assert kappas[:9] == [1.0] * 9 and all(kappa != 1.0 for kappa in kappas[10:])
    assert all(step["hold/target"] == run.metrics[-1]["hold/target"] > 0 for step in run.metrics[10:])


def test_rows_of_padding_take_no_part(runs):
    run = runs(*PADDED, workers=2)
    padded = [uid for dump in run.dumps("driver") for uid in dump.metadata["uid"] if uid.startswith("pad")]
    assert len(padded) == 4 * verl_runs.STEPS
    assert largest_difference(run) < 1e-6


def test_none_is_verl_as_it_was(runs):
    """The same metrics, beside those that are ours or times, and the same weights as without the plug-in."""
    none, plain = runs("+algorithm.covgrpo.weighting=none"), runs(plugin=False)
    ours = ("cov/", "weight/", "update/")
    for mine, theirs in zip(none.metrics, plain.metrics, strict=True):
        for name, value in theirs.items():
            if not name.startswith(("timing", "perf/")) and "memory" not in name and "mfu" not in name:
                assert mine[name] == value, name
        assert all(name.startswith((*ours, "timing")) for name in set(mine) - set(theirs))
    for name, expected in plain.weights(verl_runs.STEPS).items():
        assert torch.equal(none.weights(verl_runs.STEPS)[name], expected)


def test_a_key_is_enough_where_verl_finds_the_plug_in_itself(runs):
    """Installed, and not named in the variable: the entry point loads it and the key chooses."""
    probe = "from importlib.metadata import entry_points as e; print([p.value for p in e(group='verl.plugins')])"
    found = subprocess.run([verl_runs.verl_python(), "-c", probe], capture_output=True, text=True, check=True).stdout
    if "covgrpo.verl" not in found:
        pytest.skip("covgrpo is not installed in verl's environment: pip install --no-deps .")
    run = runs("+algorithm.covgrpo.weighting=gaussian", plugin=False)
    for mine, theirs in zip(run.metrics, runs().metrics, strict=True):
        for name in ("actor/grad_norm", "cov/sigma", "weight/ess"):
            assert mine[name] == theirs[name], name


def test_a_wrong_choice_stops_before_a_model_is_loaded(runs, tmp_path):
    data = Path(runs().folder).parent / "data"
    run = verl_runs.run(data, tmp_path / "wrong", "+algorithm.covgrpo.weighting=gausian")
    assert run.returncode != 0
    assert "algorithm.covgrpo.weighting='gausian': unknown weighting 'gausian'" in run.output
    assert not run.dumps("weights")


@pytest.mark.parametrize(
    "overrides",
    [
        ("trainer.v1.trainer_mode=colocate_async", "trainer.v1.sampler.custom_sampler.path=null"),
        ("trainer.use_v1=False",),
    ],
    ids=["colocate", "legacy"],
)
def test_other_trainers_are_served_too(runs, overrides):
    run = runs(*overrides)
    assert largest_difference(run) < 1e-6
    assert all("cov/sigma" in step for step in run.metrics)


def test_trl_gives_the_same_weights_to_the_same_tokens(runs, tmp_path):
    data = Path(runs().folder).parent / "data"
    difference, _, count = compare(tmp_path, runs().first_batch(data))
    assert count > 50
    assert difference < 1e-5


@pytest.mark.parametrize(
    "recipe", ["recipes/verl/qwen2.5-1.5b.sh", "recipes/verl/qwen2.5-7b.sh", "examples/verl_gsm8k.sh"]
)
def test_recipes_are_configs_of_this_verl(recipe, tmp_path):
    """Every override names a key that verl has, and verl's own check of the whole config passes."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec "{verl_runs.verl_python()}" "{tmp_path}/compose.py" "$@"\n')
    program.chmod(0o755)
    (tmp_path / "compose.py").write_text(verl_runs.COMPOSE)
    done = verl_runs.sh(verl_runs.ROOT / recipe, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "choice gaussian group" in done.stdout
