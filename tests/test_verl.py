"""The verl integration without verl: the driver's batch as verl hands it over, the choice, the seams, the loading."""

import importlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

import covgrpo
from covgrpo.core import WEIGHTINGS, gaussian_weights, get_weighting, token_covariance
from covgrpo.errors import UserError
from covgrpo.verl import Choice, choose, weigh_batch
from covgrpo.verl import trainers as seams

DRIVER_SCHEMES = sorted(name for name in WEIGHTINGS if not hasattr(get_weighting(name), "penalties"))
LENGTHS = (5, 3, 6, 1, 4, 6, 2, 5, 3, 4)
UIDS = ("p", "p", "p", "p", "q", "q", "q", "r", "r", "r")


def make(name="gaussian", scope="group", **parameters) -> Choice:
    return Choice(name, get_weighting(name, **parameters), scope)


def make_data(seed=0, uids=UIDS, lengths=LENGTHS):
    """A padded DataProto as `compute_advantage` leaves it: advantages and returns are one tensor."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(uids), max(lengths))
    mask = (torch.arange(shape[1])[None] < torch.tensor(lengths)[:, None]).long()
    logps = -3 * torch.rand(shape, generator=generator)
    advantages = torch.randn(shape[0], 1, generator=generator) * mask
    batch = {"old_log_probs": logps, "advantages": advantages, "returns": advantages, "response_mask": mask}
    return SimpleNamespace(batch=batch, non_tensor_batch={"uid": np.array(uids, dtype=object)})


def rows_of(data, order):
    batch = {name: value[order] for name, value in data.batch.items()}
    return SimpleNamespace(batch=batch, non_tensor_batch={"uid": data.non_tensor_batch["uid"][order]})


def keys_of(data):
    return [f"{uid}_{i}_0" for i, uid in enumerate(data.non_tensor_batch["uid"])]


def weigh(data, choice=None, keys=None):
    metrics = weigh_batch(data, choice or make(), keys)
    return data.batch["advantages"], metrics


def by_group(data):
    """Core weights of each prompt's rows by themselves, times the advantages."""
    expected = torch.zeros_like(data.batch["advantages"])
    for uid in set(data.non_tensor_batch["uid"]):
        rows = torch.from_numpy(data.non_tensor_batch["uid"] == uid)
        logps, A, mask = (data.batch[name][rows] for name in ("old_log_probs", "advantages", "response_mask"))
        expected[rows] = gaussian_weights(logps, A, mask) * A
    return expected


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


# The choice


def config(covgrpo=None, **algorithm):
    section = {} if covgrpo is None else {"covgrpo": covgrpo}
    loss = {"policy_loss": {"loss_mode": algorithm.pop("loss_mode", "vanilla")}}
    return {"algorithm": {**section, **algorithm}, "actor_rollout_ref": {"actor": loss}}


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


# The seams, on modules with verl's names


def trainer_base():
    """A module like verl.trainer.ppo.v1.trainer_base: a trainer that calls the module's advantage function."""
    module = ModuleType("verl.trainer.ppo.v1.trainer_base")
    source = """
    def compute_advantage_for_multi_trajectories(data, batch_keys, adv_estimator=None, config=None):
        return data

    class PPOTrainer:
        def __init__(self, config):
            self.config = config

        def _compute_advantage(self, batch, metrics):
            compute_advantage_for_multi_trajectories(batch.data, batch_keys=batch.keys, config=None)
            return batch
    """
    exec(textwrap.dedent(source), module.__dict__)
    return module


def legacy():
    module = ModuleType("verl.trainer.ppo.ray_trainer")
    source = """
    from types import SimpleNamespace

    def compute_advantage(data, adv_estimator=None, config=None):
        return data

    class RayPPOTrainer:
        def __init__(self, config):
            self.config = config

        def _update_actor(self, batch):
            return SimpleNamespace(meta_info={"metrics": {"actor/loss": [1.0]}})

        def fit(self, data):
            data = compute_advantage(data, config=None)
            return self._update_actor(data).meta_info["metrics"]
    """
    exec(textwrap.dedent(source), module.__dict__)
    return module


def step(module, trainer_config, data):
    metrics = {}
    batch = SimpleNamespace(data=data, keys=keys_of(data))
    module.PPOTrainer(trainer_config)._compute_advantage(batch, metrics=metrics)
    return metrics


def test_a_v1_trainer_weighs_once_and_logs():
    module = trainer_base()
    seams.watch(module, by_variable=True)
    for _ in range(2):  # the second trainer of a process
        data = make_data()
        expected = by_group(data)
        metrics = step(module, config(), data)
        torch.testing.assert_close(data.batch["advantages"], expected, rtol=1e-6, atol=1e-7)
        assert {"cov/mean", "cov/sigma", "weight/ess", "timing_s/cov_weights"} <= set(metrics)


def test_without_a_choice_nothing_is_touched():
    module = trainer_base()
    function = module.compute_advantage_for_multi_trajectories
    seams.watch(module, by_variable=False)
    assert step(module, config(), make_data()) == {}
    assert module.compute_advantage_for_multi_trajectories is function


def test_the_legacy_trainer_weighs_once_and_logs():
    module = legacy()
    seams.watch(module, by_variable=True)
    data = make_data()
    expected = by_group(data)
    metrics = module.RayPPOTrainer(config()).fit(data)
    torch.testing.assert_close(data.batch["advantages"], expected, rtol=1e-6, atol=1e-7)
    assert metrics["actor/loss"] == [1.0]
    assert len(metrics["cov/mean"]) == 1


def test_a_legacy_trainer_with_its_own_loop_is_refused():
    module = legacy()
    seams.watch(module, by_variable=True)
    other = type("FullyAsyncTrainer", (module.RayPPOTrainer,), {"fit": lambda self: None})
    with pytest.raises(UserError, match="FullyAsyncTrainer has a training loop of its own"):
        other(config())
    module = legacy()
    seams.watch(module, by_variable=False)
    type("FullyAsyncTrainer", (module.RayPPOTrainer,), {"fit": lambda self: None})(config())


def test_a_wrong_choice_stops_when_the_trainer_is_built():
    module = trainer_base()
    seams.watch(module, by_variable=False)
    with pytest.raises(UserError, match="gausian"):
        module.PPOTrainer(config({"weighting": "gausian"}))


@pytest.mark.parametrize("make_module", [trainer_base, legacy])
def test_a_missing_function_is_one_sentence(make_module):
    for path in list(seams.SEAMS[make_module().__name__])[1:]:
        module = make_module()
        seams.watch(module, by_variable=True)
        owner, _, name = path.rpartition(".")
        delattr(getattr(module, owner) if owner else module, name)
        trainer = module.PPOTrainer if hasattr(module, "PPOTrainer") else module.RayPPOTrainer
        with pytest.raises(UserError, match=rf"needs {module.__name__}.{path}, which this verl does not have"):
            trainer(config())


def test_a_changed_parameter_is_one_sentence():
    module = trainer_base()
    module.compute_advantage_for_multi_trajectories = lambda data, config=None: data
    seams.watch(module, by_variable=True)
    with pytest.raises(UserError, match=r"multi_trajectories\(batch_keys\)"):
        module.PPOTrainer(config())


def test_a_missing_trainer_is_one_sentence():
    module = trainer_base()
    del module.PPOTrainer
    with pytest.raises(UserError, match=r"trainer_base\.PPOTrainer"):
        seams.watch(module, by_variable=True)


def test_going_round_the_seam_is_an_error():
    module = trainer_base()
    module.PPOTrainer._compute_advantage = lambda self, batch, metrics: batch
    seams.watch(module, by_variable=True)
    with pytest.raises(UserError, match="its seam has moved"):
        step(module, config(), make_data())


# Loading, in a package that imports plug-ins as verl does

FAKE_VERL = """
import importlib, os
__version__ = {version!r}
for name in filter(None, os.getenv("VERL_USE_EXTERNAL_MODULES", "").split(",")):
    importlib.import_module(name)
if os.getenv("BY_ENTRY_POINT"):
    try:
        importlib.import_module("covgrpo.verl")
    except Exception:
        pass
"""
FAKE_TRAINER = """
class PPOTrainer:
    def __init__(self, config):
        print("built")
    def _compute_advantage(self, batch, metrics): ...
def compute_advantage_for_multi_trajectories(data, batch_keys, config=None): ...
"""


def fake_verl(folder, version="0.9.1", trainer=FAKE_TRAINER):
    package = folder / "verl" / "trainer" / "ppo" / "v1"
    package.mkdir(parents=True)
    for parent in (package, *package.parents[:3]):
        (parent / "__init__.py").touch()
    (folder / "verl" / "__init__.py").write_text(FAKE_VERL.format(version=version))
    (package.parent / "ray_trainer.py").write_text("class RayPPOTrainer:\n    def __init__(self, config): ...\n")
    if trainer:
        (package / "trainer_base.py").write_text(trainer)


def start(folder, program, *arguments, **environment):
    sources = str(Path(covgrpo.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), sources]), **environment}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=env, timeout=120, check=False
    )


BUILD = "import verl; from verl.trainer.ppo.v1.trainer_base import PPOTrainer; PPOTrainer({'algorithm': {}})"
VARIABLE = {"VERL_USE_EXTERNAL_MODULES": "covgrpo.verl"}
ENTRY_POINT = {"BY_ENTRY_POINT": "1"}
CHOICE = "+algorithm.covgrpo.weighting=gaussian"


def test_the_variable_alone_is_enough(tmp_path):
    fake_verl(tmp_path)
    done = start(tmp_path, BUILD, **VARIABLE)
    assert done.stdout.splitlines() == ["built", "covgrpo: weighting=gaussian scope=group in PPOTrainer"], done.stderr


def test_found_by_its_entry_point_it_does_nothing(tmp_path):
    fake_verl(tmp_path)
    done = start(tmp_path, BUILD, **ENTRY_POINT)
    assert (done.stdout, done.stderr) == ("built\n", "")


def test_no_trainer_module_is_imported_for_the_plug_in(tmp_path):
    fake_verl(tmp_path)
    done = start(tmp_path, "import sys, verl; print(any('trainer' in m for m in sys.modules if 'covgrpo' not in m))",
                 **VARIABLE)  # fmt: skip
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    ("verl", "says"),
    [
        ({"version": "0.10.0"}, "covgrpo.verl is tested with verl 0.9.x, and this is verl 0.10.0."),
        ({"trainer": None}, "covgrpo.verl needs verl.trainer.ppo.v1.trainer_base, which this verl does not have"),
    ],
)
def test_an_unknown_verl_is_never_passed_over(tmp_path, verl, says):
    fake_verl(tmp_path, **verl)
    done = start(tmp_path, "import verl", **VARIABLE)
    assert done.returncode == 1
    assert says in done.stderr.splitlines()[-1]
    done = start(tmp_path, "import verl; print('on')", CHOICE, **ENTRY_POINT)
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr.splitlines()[-1]
    done = start(tmp_path, "import verl; print('on')", **ENTRY_POINT)
    assert (done.returncode, done.stdout) == (0, "on\n")
    assert says in done.stderr


def test_looking_for_the_module_does_not_use_up_the_watch(tmp_path):
    fake_verl(tmp_path)
    look = "import importlib.util, verl; importlib.util.find_spec('verl.trainer.ppo.v1.trainer_base'); "
    done = start(tmp_path, look + BUILD, **VARIABLE)
    assert "covgrpo: weighting=gaussian" in done.stdout, done.stderr


def test_the_module_is_otherwise_as_imported(tmp_path):
    fake_verl(tmp_path)
    program = "import verl, inspect, verl.trainer.ppo.v1.trainer_base as m; print(type(m.__loader__).__name__, "
    done = start(tmp_path, program + "type(m.__spec__.loader).__name__, len(inspect.getsource(m)))", **VARIABLE)
    assert done.stdout == f"SourceFileLoader SourceFileLoader {len(FAKE_TRAINER)}\n", done.stderr


def test_the_package_needs_torch_alone():
    probe = "import sys, covgrpo.verl; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=120, check=True)
    assert not set(done.stdout.split()) & {"transformers", "trl", "accelerate", "datasets", "verl", "ray"}


def test_the_entry_point_is_declared():
    from importlib.metadata import entry_points

    if not (points := [point for point in entry_points(group="verl.plugins") if point.name == "covgrpo"]):
        pytest.skip("the installed covgrpo is older than its entry point: pip install -e . again")
    assert points[0].value == "covgrpo.verl"
    assert importlib.import_module(points[0].value).weigh_batch is weigh_batch
