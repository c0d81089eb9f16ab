"""Sampling at another temperature than the loss's: the sampler's log-probs are not the loss's."""

import pytest
import torch
from trl_runs import logs, ours, reference_weighted, relative, stock, weights

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("weighting", "options"),
    [
        ("gaussian", {}),
        ("gaussian", {"num_iterations": 2}),
        ("none", {}),
        ("none", {"off_policy_mask_threshold": 0.01}),
    ],
    ids=str,
)
def test_everything_is_scored_at_the_losss_temperature(tmp_path, weighting, options):
    """TRL's own trainer on the same completions, weighted by the reference."""
    options = {"max_steps": 3, "temperature": 1.0, "generation_kwargs": {"temperature": 0.5}, **options}
    mine = ours(tmp_path / "a", weighting=weighting, **options)
    drawn, sample = [], mine.sampler.sample
    mine.sampler.sample = lambda prompts: (drawn.append(sample(prompts)), drawn[-1])[1]
    mine.train()
    replay = iter(drawn)
    theirs = (stock if weighting == "none" else reference_weighted)(
        tmp_path / "b", rollouts=lambda *args, **kwargs: (next(replay).token_ids, None), **options
    )
    theirs.train()
    assert drawn, "our sampler drew"
    assert set(mine.scorer.first_use.values()) == {None}, "prompts are shared in the update all the same"
    for step, (a, b) in enumerate(zip(mine.gradients, theirs.gradients, strict=True)):
        assert relative(a, b) < (1e-5 if step == 0 else 1e-4)
    assert relative(weights(mine), weights(theirs)) < 1e-5
    torch.testing.assert_close(
        torch.tensor(logs(mine, "entropy", "loss")), torch.tensor(logs(theirs, "entropy", "loss")), rtol=1e-4, atol=1e-5
    )
