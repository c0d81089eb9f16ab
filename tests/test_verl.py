"""The verl integration without verl: the driver's batch as verl hands it over, the choice, the rewards."""

import asyncio
import json
import threading

import pytest
import torch
from verl_cases import LENGTHS, UIDS, by_group, config, entropies_of, keys_of, make, make_data, rows_of, weigh

from covgrpo.core import WEIGHTINGS, gaussian_weights, get_weighting, neutral_weights, token_covariance
from covgrpo.engines.entropy import EntropyHold
from covgrpo.errors import UserError
from covgrpo.tasks import Problem
from covgrpo.verl import choose, weigh_batch

DRIVER_SCHEMES = sorted(name for name in WEIGHTINGS if not hasattr(get_weighting(name), "penalties"))


def test_each_prompt_has_its_own_statistics():
    data = make_data()
    expected = by_group(data)
    weighted, _ = weigh(data)
    torch.testing.assert_close(weighted, expected, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(weighted, data.batch["returns"])


def test_returns_stay_what_they_were():
    data = make_data()
    before = data.batch["returns"].clone()
    weigh(data)
    assert torch.equal(data.batch["returns"], before)


@pytest.mark.parametrize("scope", ["group", "batch"])
@pytest.mark.parametrize("name", DRIVER_SCHEMES)
def test_order_of_rows_does_not_matter(name, scope):
    """verl balances the rows over its workers before the advantages are computed."""
    parameters = {"low": 0.1, "ratio": 0.2} if name == "clip_cov" else {}
    choice = make(name, scope, **parameters)
    order = torch.tensor([7, 2, 9, 0, 5, 1, 8, 4, 3, 6])
    data = make_data()
    keys = keys_of(data)
    shuffled = rows_of(make_data(), order)
    first, metrics = weigh(data, choice, keys)
    second, shuffled_metrics = weigh(shuffled, choice, [keys[i] for i in order])
    torch.testing.assert_close(second, first[order], rtol=1e-6, atol=1e-7)
    assert shuffled_metrics == pytest.approx(metrics, rel=1e-6, abs=1e-9)
    if name == "clip_cov":
        assert (first == 0).sum() > (make_data().batch["advantages"] == 0).sum()


def test_padding_rows_change_nothing():
    """verl appends rows without a valid token under a uid of their own, to make the batch divisible."""
    plain, metrics = weigh(make_data())
    uids, lengths = (*UIDS, "pad0", "pad0"), (*LENGTHS, 0, 0)
    padded = make_data(uids=uids, lengths=lengths)
    for name, value in make_data().batch.items():
        padded.batch[name][: len(UIDS)] = value
    for scope in ("group", "batch"):
        result, padded_metrics = weigh(rows_of(padded, torch.arange(12)), make(scope=scope))
        reference, reference_metrics = weigh(make_data(), make(scope=scope))
        torch.testing.assert_close(result[:10], reference, rtol=1e-6, atol=1e-7)
        assert (result[10:] == 0).all()
        assert padded_metrics == pytest.approx(reference_metrics)
    assert metrics["cov/sigma"] > 0
    assert plain.shape == (10, 6)


def test_a_batch_of_padding_alone_has_no_metrics():
    data = make_data(uids=("pad",) * 2, lengths=(1, 1))
    data.batch = {name: torch.zeros(2, 4) for name in data.batch}
    weighted, metrics = weigh(data)
    assert metrics == {}
    assert (weighted == 0).all()


def test_several_trajectories_of_a_prompt_are_one_group():
    """A session that was cut into several trajectories has as many rows, all with the prompt's uid and advantage."""
    data = make_data(uids=("p",) * 5 + ("q",) * 5)
    data.batch["advantages"][1] = data.batch["advantages"][0, 0] * data.batch["response_mask"][1]
    keys = ["p_0_0", "p_0_1", "p_1_0", "p_2_0", "p_2_1", *(f"q_{i}_0" for i in range(5))]
    expected = by_group(data)
    weighted, _ = weigh(data, keys=keys)
    torch.testing.assert_close(weighted, expected, rtol=1e-6, atol=1e-7)


def test_filtered_groups_and_lost_rows_leave_the_others_alone():
    whole, _ = weigh(make_data())
    rest = torch.tensor([0, 1, 2, 3, 7, 8, 9])
    filtered, _ = weigh(rows_of(make_data(), rest))
    torch.testing.assert_close(filtered, whole[rest], rtol=1e-6, atol=1e-7)
    fewer = rows_of(make_data(), torch.tensor([0, 1, 4, 5, 6, 7, 8, 9]))
    expected = by_group(fewer)
    weighted, _ = weigh(fewer)
    torch.testing.assert_close(weighted, expected, rtol=1e-6, atol=1e-7)


def test_a_group_of_equal_advantages_keeps_them():
    data = make_data()
    data.batch["advantages"][:4] = 0.25 * data.batch["response_mask"][:4]
    before = data.batch["advantages"].clone()
    weighted, _ = weigh(data)
    torch.testing.assert_close(weighted[:4], before[:4])
    assert not torch.allclose(weighted[4:], before[4:])


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf, 1e30])
@pytest.mark.parametrize("scope", ["group", "batch"])
def test_masked_positions_never_count(poison, scope):
    clean, metrics = weigh(make_data(), make(scope=scope))
    data = make_data()
    masked = data.batch["response_mask"] == 0
    data.batch["old_log_probs"][masked] = poison
    data.batch["advantages"] = data.batch["advantages"].masked_fill(masked, poison)
    weighted, poisoned_metrics = weigh(data, make(scope=scope))
    assert torch.equal(weighted, clean)
    assert poisoned_metrics == metrics


def test_a_hole_in_the_mask_is_not_counted():
    """Tool output stands in the middle of a response."""
    data = make_data()
    data.batch["response_mask"][2, 2:4] = 0
    data.batch["old_log_probs"][2, 2:4] = torch.nan
    expected = by_group(data)
    weighted, _ = weigh(data)
    torch.testing.assert_close(weighted, expected, rtol=1e-6, atol=1e-7)


def test_token_advantages_of_a_critic_are_taken_as_they_are():
    data = make_data()
    data.batch["advantages"] = torch.randn(10, 6, generator=torch.Generator().manual_seed(3))
    expected = by_group(data) * data.batch["response_mask"]
    weighted, _ = weigh(data)
    torch.testing.assert_close(weighted, expected, rtol=1e-6, atol=1e-7)


def test_batch_scope_is_one_group_of_all_rows():
    data = make_data()
    logps, A, mask = (data.batch[name] for name in ("old_log_probs", "advantages", "response_mask"))
    expected = gaussian_weights(logps, A, mask) * A
    weighted, _ = weigh(data, make(scope="batch"))
    torch.testing.assert_close(weighted, expected, rtol=1e-6, atol=1e-7)


def test_none_leaves_the_tensor_itself():
    data = make_data()
    before = data.batch["advantages"]
    weighted, metrics = weigh(data, make("none"))
    assert weighted is before
    assert metrics["weight/min"] == metrics["weight/max"] == 1


def test_metrics_are_those_of_docs_metrics():
    data = make_data()
    logps, A, mask = (data.batch[name].clone() for name in ("old_log_probs", "advantages", "response_mask"))
    group = torch.tensor([0] * 4 + [1] * 3 + [2] * 3)
    _, metrics = weigh(data)
    c = token_covariance(logps, A, mask, group)[mask.bool()].double()
    w = gaussian_weights(logps, A, mask, group)[mask.bool()].double()
    assert metrics["cov/mean"] == pytest.approx(c.mean().item())
    assert metrics["cov/sigma"] == pytest.approx(c.std(correction=0).item())
    assert metrics["weight/max"] == pytest.approx(w.max().item())
    assert "entropy" not in metrics


def test_the_draw_of_a_random_scheme_belongs_to_the_rows_names():
    choice = make("clip_cov", "batch", low=-9, high=9, ratio=0.3)
    one, _ = weigh(make_data(), choice, keys_of(make_data()))
    again, _ = weigh(make_data(), choice, keys_of(make_data()))
    other, _ = weigh(make_data(), choice, [f"x{key}" for key in keys_of(make_data())])
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", ["old_log_probs", "advantages", "response_mask"])
def test_a_missing_column_is_named(name):
    data = make_data()
    del data.batch[name]
    with pytest.raises(UserError, match=name):
        weigh_batch(data, make())


def test_a_missing_uid_is_named():
    data = make_data()
    del data.non_tensor_batch["uid"]
    with pytest.raises(UserError, match="uid"):
        weigh_batch(data, make())


@pytest.mark.parametrize("name", ["neutral", "hold_entropy", "entropy_floor"])
def test_entropies_are_added_to_the_log_probs(name):
    """In the schemes that say so, without a controller's state too; in no other."""
    data, entropies = make_data(), entropies_of(make_data())
    logps, A, mask = (data.batch[name] for name in ("old_log_probs", "advantages", "response_mask"))
    weigh_batch(data, make(name, "batch"), entropies=entropies)
    expected = neutral_weights(logps + entropies, A, mask) * A
    torch.testing.assert_close(data.batch["advantages"], expected, rtol=1e-6, atol=1e-7)
    others = [make_data(), make_data()]
    for other, given in zip(others, (entropies, None), strict=True):
        weigh_batch(other, make("gaussian", "batch"), entropies=given)
    assert torch.equal(others[0].batch["advantages"], others[1].batch["advantages"])


def test_a_held_entropy_needs_entropies_of_the_right_shape():
    choice = make("hold_entropy", "batch")
    with pytest.raises(ValueError, match="entropies are needed by a weighting that holds the entropy"):
        weigh_batch(make_data(), choice, hold=EntropyHold(choice.weighting))
    with pytest.raises(ValueError, match=r"entropies have the shape \(10, 5\) and logps \(10, 6\)"):
        weigh_batch(make_data(), choice, entropies=torch.ones(10, 5))


# The choice


def test_what_is_chosen_without_a_key():
    assert choose(config(), by_variable=False) is None
    choice = choose(config(), by_variable=True)
    assert (choice.name, choice.scope, choice.weighs) == ("gaussian", "group", True)


def test_what_is_chosen_with_keys():
    choice = choose(
        config({"weighting": "clip_cov", "scope": "batch", "weighting_kwargs": {"ratio": 0.01}}), by_variable=False
    )
    assert choice == make("clip_cov", "batch", ratio=0.01)
    assert not choose(config({"weighting": "none"}), by_variable=True).weighs
    assert choose(config({"scope": "batch"}), by_variable=False) == make("gaussian", "batch")


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"weighting": "gausian"}, "algorithm.covgrpo.weighting='gausian': unknown weighting .* mean 'gaussian'"),
        ({"scope": "micro"}, "algorithm.covgrpo.scope='micro': known are group and batch"),
        ({"weigthing": "none"}, "algorithm.covgrpo.weigthing: unknown key; .* mean 'weighting'"),
        ({"weighting_kwargs": {"sigma": 1}}, "weighting 'gaussian' does not take {'sigma': 1}"),
        ({"weighting": "kl_cov"}, "weighting='kl_cov': the scheme adds a penalty to the loss"),
        ("gaussian", "algorithm.covgrpo='gaussian': expected a section with weighting, scope"),
    ],
)
def test_a_wrong_choice_is_one_sentence(section, says):
    with pytest.raises(UserError, match=says) as caught:
        choose(config(section), by_variable=True)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_exact_is_refused_unless_nothing_is_weighted():
    bypass = {"rollout_correction": {"bypass_mode": True}}
    with pytest.raises(UserError, match="bypass_mode=True"):
        choose(config({}, **bypass), by_variable=True)
    with pytest.raises(UserError, match="loss_mode=clip_cov"):
        choose(config({}, loss_mode="clip_cov"), by_variable=True)
    assert choose(config({"weighting": "none"}, **bypass, loss_mode="kl_cov"), by_variable=True).name == "none"


@pytest.mark.parametrize(
    ("mode", "normaliser"),
    [("token-mean", "token"), ("seq-mean-token-sum", "token"), ("seq-mean-token-mean", "completion")],
)
def test_the_weighting_is_told_what_verls_loss_divides_by(mode, normaliser):
    chosen = choose(config({"weighting": "gaussian_through"}, loss_agg_mode=mode), by_variable=True)
    assert chosen.weighting == get_weighting("gaussian_through", normaliser=normaliser)
    assert choose(config({"weighting": "gaussian"}, loss_agg_mode=mode), by_variable=True).weighs


@pytest.mark.parametrize("options", [{"loss_agg_mode": "max"}, {"loss_mode": "gspo"}])
def test_a_loss_that_fits_no_normaliser_is_refused(options):
    (said,) = (f"{name}={value} does neither" for name, value in options.items())
    with pytest.raises(UserError, match=said):
        choose(config({"weighting": "gaussian_through"}, **options), by_variable=True)
    assert choose(config({"weighting": "gaussian"}, **options), by_variable=True).weighs


# The rewards


def test_a_problem_survives_the_way_through_verls_data():
    from covgrpo.verl.rewards import compute_score, verl_row

    problem = Problem("digits/1", "Sort 21.", "12", {"gold": "12"})
    extra = {"answer_format": "boxed", "format_weight": 0.5}
    row = json.loads(json.dumps(verl_row("covgrpo.tasks.digits:score", problem, "Box it.", extra)))
    assert [message["content"] for message in row["prompt"]] == ["Box it.", "Sort 21."]
    given = row["data_source"], row["reward_model"]["ground_truth"], row["extra_info"]
    scores = [compute_score(given[0], text, given[1], given[2]) for text in (r"\boxed{12}", r"\boxed{21}", "12")]
    assert [score["score"] for score in scores] == [1.5, 0.5, 0.0]
    assert scores[0] == {"score": 1.5, "acc": 1.0, "format": 1.0}
    assert compute_score(given[0], "12", given[1])["score"] == 1.0


@pytest.mark.slow
def test_verls_threads_verify_at_the_same_time(tmp_path):
    """As many as there are workers; also from a loop's executor, as verl 0.9 calls."""
    from concurrent.futures import ThreadPoolExecutor

    from covgrpo.verl.rewards import compute_score

    workers, barrier = 3, threading.Barrier(3)

    def score(folder, name):
        payload = json.dumps({"folder": str(folder), "count": workers})
        barrier.wait()
        return compute_score("test_verify:together", name, payload, verifier_workers=workers)["acc"]

    async def score_all(folder, executor):
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, score, folder, name) for name in "abc"))

    with ThreadPoolExecutor(workers) as executor:
        for name in ("starts the workers", "finds them started"):
            (tmp_path / name).mkdir()
            scores = asyncio.run(score_all(tmp_path / name, executor))
    assert scores == [1.0] * workers


def test_verl_without_workers_is_refused():
    from covgrpo.verl.rewards import compute_score

    with pytest.raises(UserError, match="verifier_workers is 0"):
        compute_score("test_verify:misbehave", "fine", "{}", verifier_workers=0)
