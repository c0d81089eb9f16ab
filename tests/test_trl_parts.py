"""The trainer's parts, each without a trainer."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from tiny import tiny_model
from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

from covgrpo.core import WeightingError, get_weighting, token_covariance
from covgrpo.engines.training_batch import weigh_rows
from covgrpo.trl.micro_batch import MicroBatch
from covgrpo.trl.rollout import Rollout
from covgrpo.trl.sampler import Sampler
from covgrpo.trl.step_plan import StepPlan
from covgrpo.trl.weigher import Weigher, attach_covariance, constant_reward_rows
from covgrpo.trl.whole_groups import keep_groups, may_keep_groups

G = 4


def batch(rows=8, length=6, seed=0, **more):
    """TRL's dict of a rollout batch: ragged completions, log-probs and advantages."""
    torch.manual_seed(seed)
    lengths = torch.randint(1, length + 1, (rows,))
    mask = (torch.arange(length) < lengths[:, None]).long()
    logps = torch.where(mask.bool(), -torch.rand(rows, length), 0.0)
    return {
        "prompt_ids": torch.ones(rows, 2, dtype=torch.long),
        "completion_ids": torch.arange(rows * length).view(rows, length),
        "completion_mask": mask,
        "advantages": torch.randn(rows),
        "old_per_token_logps": logps,
        **more,
    }


def rollout_of(inputs, step=3):
    return Rollout.sampled(inputs, torch.arange(len(inputs["advantages"])), G, step)


def weigher(name="gaussian", scope="group"):
    return Weigher(Accelerator(cpu=True), get_weighting(name), scope, seed=0)


def test_a_rollout_travels_through_trls_shuffle_and_split():
    inputs = batch()
    rollout = rollout_of(inputs)
    weigher().weigh(rollout, rollout.group_B)
    rollout.write(inputs)
    assert torch.equal(inputs["advantages"], rollout.advantages_B[:, None] * rollout.weights_BT)
    parts = [Rollout.read(part) for part in split_tensor_dict(shuffle_sequence_dict(inputs), 2)]
    assert sorted(torch.cat([part.row_B for part in parts]).tolist()) == list(range(8))
    for part in parts:
        rows = part.row_B
        assert torch.equal(part.group_B, rows // G)
        assert int(part.step) == 3
        for name in ("mask_BT", "advantages_B", "logps_BT", "weights_BT", "c_BT"):
            assert torch.equal(getattr(part, name), getattr(rollout, name)[rows]), name
        assert part.entropies_BT is None
        assert part.penalties_BT is None


def test_what_is_no_rollout_is_none():
    assert Rollout.read(batch()) is None
    assert MicroBatch.of(batch(), global_step=0) is None


@pytest.mark.parametrize(
    ("name", "lacks", "says"), [("gaussian", "logps_BT", "log-probs"), ("neutral", "entropies_BT", "entropies")]
)
def test_what_nobody_has_taken_is_one_sentence(name, lacks, says):
    rollout = rollout_of(batch())
    rollout.entropies_BT = torch.ones_like(rollout.logps_BT)
    weigher(name).weigh(rollout, rollout.group_B)
    setattr(rollout, lacks, None)
    with pytest.raises(ValueError, match=f"the rollout has no {says} yet: score it first"):
        weigher(name).weigh(rollout, rollout.group_B)


def test_tool_output_is_masked():
    inputs = batch(tool_mask=torch.tensor([1, 0, 1, 1, 1, 1]).expand(8, 6))
    rollout = rollout_of(inputs)
    assert rollout.mask_BT[:, 1].sum() == 0
    weigher().weigh(rollout, rollout.group_B)
    assert rollout.weights_BT[:, 1].abs().sum() == 0
    weights = [rollout.weights_BT[g : g + G][rollout.mask_BT[g : g + G].bool()] for g in (0, G)]
    assert [w.mean().item() for w in weights] == pytest.approx([1.0, 1.0])


def test_weighing_a_step_together_is_weighing_its_rows_at_once():
    """Micro-batches of different widths, as one group; what an earlier step has weighed stays."""
    whole = batch()
    rollout = rollout_of(whole)
    once = rollout_of(whole)
    weigher(scope="batch").weigh(once, torch.zeros(8, dtype=torch.long))
    rollout.write(whole)
    micro = split_tensor_dict(whole, 4)
    width = int(micro[1]["completion_mask"].sum(dim=1).max())
    for name, value in micro[1].items():  # as TRL cuts padding that a micro-batch does not need
        if value.dim() == 2 and value.shape[1] == 6:
            micro[1][name] = value[:, :width]
    weigher(scope="batch").weigh_together(micro)
    for i, part in enumerate(Rollout.read(m) for m in micro):
        expected = once.weights_BT[2 * i : 2 * i + 2, : part.mask_BT.shape[1]]
        torch.testing.assert_close(part.weights_BT, expected, rtol=1e-6, atol=1e-7)
    before = [m["advantages"].clone() for m in micro]
    late = batch(rows=2, seed=5)
    rollout_of(late).write(late)
    weigher(scope="batch").weigh_together([*micro, late])
    assert all(torch.equal(m["advantages"], old) for m, old in zip(micro, before, strict=True))
    assert late["advantages"].dim() == 2


def test_a_plan_prepares_and_weighs_a_step_once():
    seen = []

    class Noting:
        def weigh_together(self, micro_batches):
            seen.append(("weigh", len(micro_batches)))

    shared = {"a": 1}

    def prepare(step, generation_batch):
        seen.append((step, generation_batch))
        return shared if generation_batch == "again" else {"of": step}

    plan = StepPlan(Noting())
    plan.begin(["x", "again", "again"], first=6)
    assert plan.micro_batch(6, prepare) == {"of": 6}
    assert plan.micro_batch(7, prepare) is plan.micro_batch(8, prepare) is shared
    assert seen == [(6, "x"), (7, "again"), (8, "again"), ("weigh", 2)]
    plan.begin(["y"], first=9)
    assert plan.micro_batch(9, prepare) == {"of": 9}


def test_rows_without_advantage_are_left_out_and_one_row_stays():
    inputs = batch(advantages=torch.tensor([0.0, 1, 0, 0, 0, 0, -1, 0]))
    rollout_of(inputs).write(inputs)
    micro = MicroBatch.of(inputs, global_step=3)
    micro.leave_out_idle_rows()
    assert micro.rows.active.nonzero()[:, 0].tolist() == [1, 6]
    assert micro.rows.logps is None, "only our sampler's numbers stand for a scoring pass"
    inputs = batch(advantages=torch.zeros(8))
    rollout_of(inputs).write(inputs)
    micro = MicroBatch.of(inputs, global_step=3)
    micro.leave_out_idle_rows()
    shortest = inputs["completion_mask"].sum(dim=1).min()
    assert [int(inputs["completion_mask"][row].sum()) for row in micro.rows.active.nonzero()[:, 0]] == [shortest]


@pytest.mark.parametrize(("step", "acts"), [(3, False), (4, True)])
def test_a_penalty_acts_off_policy_alone_and_leaves_the_rollout_as_it_was(step, acts):
    inputs = batch()
    rollout = rollout_of(inputs)
    weigher("kl_cov").weigh(rollout, rollout.group_B)
    rollout.write(inputs)
    kept = inputs["advantages"].clone()
    micro = MicroBatch.of(inputs, global_step=step)
    assert micro.penalised == acts
    logps = (rollout.logps_BT - 0.5).requires_grad_()
    scored, entropies, _ = micro.scored(logps, torch.ones_like(logps), None)
    assert torch.equal(inputs["advantages"], kept)
    assert torch.equal(micro.logps_BT, scored.detach())
    assert torch.equal(micro.entropies_BT, entropies)
    ratio = torch.exp(scored - rollout.logps_BT)
    loss = -(ratio * micro.inputs["advantages"])  # TRL's, unclipped
    expected = -(ratio * kept) + (rollout.penalties_BT * 0.5 if acts else 0)
    torch.testing.assert_close(loss, expected.to(loss.dtype))


def test_micro_batches_of_whole_groups_hold_the_same_rows():
    inputs = batch(num_items_in_batch=torch.tensor(7.0), images=None)
    rollout_of(inputs).write(inputs)
    micro = split_tensor_dict(shuffle_sequence_dict(inputs), 2)
    dealt = keep_groups(micro)
    assert [Rollout.read(m).group_B.tolist() for m in dealt] == [[0] * G, [1] * G]
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.dim():
            assert torch.equal(torch.cat([m[name] for m in dealt]), value), name
    assert [m["num_items_in_batch"].item() for m in dealt] == [7.0, 7.0]
    pictures = [{**m, "pixel_values": torch.ones(9, 3)} for m in micro]
    assert keep_groups(pictures) is pictures


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, True),
        ({"steps_per_generation": 2}, True),
        ({"loss_type": "bnpo"}, False),  # divides by the micro-batch's tokens
        ({"steps_per_generation": 8}, False),  # which rows an update sees
        ({"steps_per_generation": 3}, False),
        ({"steps_per_generation": 1}, False),  # nothing to deal
        ({"fast_path": False}, False),
        ({"entropy_coef": 0.01}, False),  # a mean over the micro-batch's tokens
        ({"use_adaptive_entropy": True}, False),
        ({"top_entropy_quantile": 0.2}, False),
        ({"router_loss": True}, False),
    ],
)
def test_groups_are_kept_where_an_update_takes_whole_rollout_batches(changes, kept):
    router_loss = changes.pop("router_loss", False)
    args = {"fast_path": True, "loss_type": "dapo", "gradient_accumulation_steps": 4, "steps_per_generation": 4}
    args |= {"entropy_coef": 0.0, "use_adaptive_entropy": False, "top_entropy_quantile": 1.0, **changes}
    assert may_keep_groups(SimpleNamespace(**args), router_loss) == kept


def test_covariances_are_attached_where_log_probs_are_known():
    inputs = batch()
    rollout = rollout_of(inputs)
    attach_covariance(Accelerator(cpu=True), rollout)
    expected = token_covariance(rollout.logps_BT, rollout.advantages_B, rollout.mask_BT, rollout.group_B)
    assert torch.equal(rollout.c_BT, expected)
    rollout.logps_BT = rollout.c_BT = None
    attach_covariance(Accelerator(cpu=True), rollout)
    assert rollout.c_BT is None


def test_groups_of_equal_rewards_are_found_through_rounding():
    nan = float("nan")
    rewards = torch.tensor([[0.1, 0.2], [0.2, 0.1], [0.3, nan], [nan, nan], [1.0, 0.0], [0.0, 0.0]])
    assert constant_reward_rows(rewards, torch.ones(2), 2).tolist() == [True] * 4 + [False] * 2
    assert constant_reward_rows(rewards, torch.tensor([0.0, 1.0]), 2).tolist() == [False] * 2 + [True] * 4


def test_the_sampler_draws_what_it_understands_and_nothing_else():
    model = tiny_model().eval()
    options = {
        "max_new_tokens": 3, "do_sample": True, "pad_token_id": 0, "temperature": 1.0, "top_p": 1.0, "top_k": 0,
        "min_p": None, "repetition_penalty": 1.0, "cache_implementation": None, "eos_token_id": [2],
    }  # fmt: skip

    @contextmanager
    def generating():
        yield model

    def sampler(**changes):
        return Sampler(Accelerator(cpu=True), model, generating, {**options, **changes}, [2], allowed=True)

    mine = sampler()
    tokens, logps = mine.draw([[5, 6], [5, 6]], more_than_text=False, loss_temperature=1.0)
    assert mine.checked
    assert [len(row) for row in tokens] == [len(row) for row in logps]
    rollout = Rollout(*[torch.zeros(2)] * 5)
    mine.lend_scores(rollout, {"sampling_per_token_logps": torch.zeros(2, 3)}, one_turn=True)
    assert (rollout.entropies_BT > 0).sum(dim=1).tolist() == [len(row) for row in tokens]
    assert mine.draw([[5, 6]], more_than_text=True, loss_temperature=1.0) is None
    assert mine.latest is None
    tokens, logps = mine.draw([[5, 6]], more_than_text=False, loss_temperature=0.5)
    assert (len(tokens), logps, mine.latest) == (1, None, None)
    assert sampler(renormalize_logits=True).draw([[5, 6]], more_than_text=False, loss_temperature=1.0) is None
    assert sampler(do_sample=False).draw([[5, 6]], more_than_text=False, loss_temperature=1.0) is None
    assert sampler(eos_token_id=2).serves() and not sampler(eos_token_id=[2, 7]).serves()
    # What is None, `generate` takes from the model.
    assert sampler(top_p=None).serves() and not sampler(top_k=None).serves()
    for name, value in (("min_p", 0.5), ("top_p", 0.9), ("repetition_penalty", 1.2)):
        setattr(model.generation_config, name, value)
        assert sampler(top_p=0.8, min_p=0.1, repetition_penalty=1.1).serves()
        assert not sampler(**{name: None}).serves(), name
        setattr(model.generation_config, name, None)


class Returning:
    """A scheme that returns what it is told."""

    def __init__(self, value):
        self.value = value

    def __call__(self, logps, advantages, mask, group_ids=None):
        return self.value(logps)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (lambda logps: torch.where(logps == logps.min(), torch.nan, 1.0), "Returning returned nan at row"),
        (lambda logps: torch.full_like(logps, torch.inf), "Returning returned inf at row 0, position 0"),
        (lambda logps: torch.ones(len(logps)), r"Returning returned weights of shape \(8,\); it must be \(B, T\) = "),
        (lambda logps: logps > -0.5, "Returning returned a tensor of torch.bool; it must return a floating-point"),
        (lambda logps: None, "Returning returned a NoneType"),
    ],
)
def test_a_scheme_that_returns_no_weights_is_named(value, sentence):
    rollout = rollout_of(batch())
    mine = Weigher(Accelerator(cpu=True), Returning(value), "group", seed=0)
    with pytest.raises(WeightingError, match=sentence):
        mine.weigh(rollout, rollout.group_B)
    with pytest.raises(WeightingError, match=sentence):
        A = rollout.advantages_B[:, None].expand(8, 6)
        weigh_rows(Returning(value), "group", rollout.logps_BT, A, rollout.mask_BT.bool(), rollout.group_B.tolist())


def test_what_stands_behind_the_mask_may_be_anything():
    rollout = rollout_of(batch())
    masked = ~rollout.mask_BT.bool()
    mine = Weigher(
        Accelerator(cpu=True),
        Returning(lambda logps: torch.ones_like(logps).masked_fill(masked, torch.nan)),
        "group",
        0,
    )
    mine.weigh(rollout, rollout.group_B)
    assert torch.equal(rollout.weights_BT, rollout.mask_BT.float())


def as_function(logps, advantages, mask, group_ids=None):
    return torch.ones_like(logps)


def factory(scale=1.0):
    return Returning(lambda logps: scale * torch.ones_like(logps))


INSTANCE = Returning(torch.ones_like)
NUMBER = 3


def test_a_function_and_an_instance_are_schemes_too():
    logps, advantages, mask = -torch.rand(2, 3), torch.randn(2), torch.ones(2, 3)
    for name, parameters, weight in (("as_function", {}, 1), ("INSTANCE", {}, 1), ("factory", {"scale": 2.0}, 2)):
        scheme = get_weighting(f"{__name__}:{name}", **parameters)
        assert (scheme(logps, advantages, mask) == weight).all()
    for name, parameters, sentence in (
        ("as_function", {"scale": 2.0}, "is no class, so it does not take"),
        ("INSTANCE", {"scale": 2.0}, "is no class, so it does not take"),
        ("NUMBER", {}, "is a int, not a class"),
        ("str", {}, "cannot be imported"),
    ):
        with pytest.raises(ValueError, match=sentence):
            get_weighting(f"{__name__}:{name}", **parameters)
    with pytest.raises(ValueError, match="is a dict, which cannot be called with log-probs"):
        get_weighting("builtins:dict")
