"""Where the weights enter verl's trainers, on modules with verl's names; test_verl_loading.py has the loading."""

import textwrap
from types import ModuleType, SimpleNamespace

import pytest
import torch
from verl_cases import by_group, config, entropies_of, keys_of, make_data

from covgrpo.core import neutral_weights
from covgrpo.engines.verl import trainers as seams
from covgrpo.errors import UserError


def trainer_base():
    """A module like verl.trainer.ppo.v1.trainer_base: a trainer that calls the module's advantage function.

    Its queue has the columns of the batch that is trained on, ``queue``.
    """
    module = ModuleType("verl.trainer.ppo.v1.trainer_base")
    source = """
    from pathlib import Path

    queue = {}

    class Columns(dict):
        def to_padded_tensor(self):
            return dict(self)

    class tq:
        @staticmethod
        def kv_batch_get(keys, partition_id, select_fields):
            assert partition_id == "train" and len(keys) == 10
            return Columns({name: queue[name] for name in select_fields if name in queue})

    def compute_advantage_for_multi_trajectories(data, batch_keys, adv_estimator=None, config=None):
        return data

    class PPOTrainer:
        def __init__(self, config):
            self.config = config

        def _compute_advantage(self, batch, metrics):
            compute_advantage_for_multi_trajectories(batch.data, batch_keys=batch.keys, config=None)
            return batch

        def _save_checkpoint(self):
            folder = Path(self.config["trainer"].default_local_dir) / f"global_step_{self.global_steps}"
            folder.mkdir(parents=True, exist_ok=True)

        def _load_checkpoint(self):
            self.global_steps = self.config["trainer"].latest
    """
    exec(textwrap.dedent(source), module.__dict__)
    return module


def legacy():
    module = ModuleType("verl.trainer.ppo.ray_trainer")
    source = """
    from pathlib import Path
    from types import SimpleNamespace

    def compute_advantage(data, adv_estimator=None, config=None):
        return data

    class RayPPOTrainer:
        scores = {}

        def __init__(self, config):
            self.config = config

        def _compute_old_log_prob(self, batch):
            return SimpleNamespace(batch=dict(self.scores)), 0.5

        def _update_actor(self, batch):
            return SimpleNamespace(meta_info={"metrics": {"actor/loss": [1.0]}})

        def fit(self, data):
            old_log_prob, mfu = self._compute_old_log_prob(data)
            data = compute_advantage(data, config=None)
            return self._update_actor(data).meta_info["metrics"]

        def _save_checkpoint(self):
            folder = Path(self.config["trainer"].default_local_dir) / f"global_step_{self.global_steps}"
            folder.mkdir(parents=True, exist_ok=True)

        def _load_checkpoint(self):
            self.global_steps = self.config["trainer"].latest
    """
    exec(textwrap.dedent(source), module.__dict__)
    return module


def step(module, trainer_config, data):
    metrics = {}
    module.PPOTrainer(trainer_config)._compute_advantage(v1_batch(data), metrics=metrics)
    return metrics


def v1_batch(data):
    return SimpleNamespace(data=data, keys=keys_of(data), partition_id="train")


def give_entropies(module, entropies):
    """What verl has computed together with the old log-probs, where its trainers put it."""
    if hasattr(module, "PPOTrainer"):
        module.queue["entropy"] = entropies
    else:
        module.RayPPOTrainer.scores = {"entropys": entropies}


def train(module, trainer_config, data):
    """Metrics of a step of either trainer."""
    if hasattr(module, "PPOTrainer"):
        return step(module, trainer_config, data)
    return {name: value[0] for name, value in module.RayPPOTrainer(trainer_config).fit(data).items()}


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


@pytest.mark.parametrize("make_module", [trainer_base, legacy])
def test_neutral_weighs_by_log_probs_plus_entropies(make_module):
    module, data = make_module(), make_data()
    seams.watch(module, by_variable=True)
    logps, A, mask = (data.batch[name] for name in ("old_log_probs", "advantages", "response_mask"))
    entropies = entropies_of(data)
    give_entropies(module, entropies)
    train(module, config({"weighting": "neutral", "scope": "batch"}), data)
    weights = neutral_weights(logps + entropies, A, mask)
    torch.testing.assert_close(data.batch["advantages"], weights * A, rtol=1e-6, atol=1e-7)
    assert ((weights - neutral_weights(logps, A, mask)).abs() * mask).max() > 0.1


@pytest.mark.parametrize("make_module", [trainer_base, legacy])
def test_the_controller_is_told_the_entropies(make_module):
    module, data = make_module(), make_data()
    seams.watch(module, by_variable=True)
    entropies, mask = entropies_of(data), data.batch["response_mask"].bool()
    give_entropies(module, entropies)
    metrics = train(module, config({"weighting": "hold_entropy", "scope": "batch"}), data)
    assert metrics["hold/entropy"] == pytest.approx(entropies[mask].double().mean().item())


@pytest.mark.parametrize("name", ["neutral", "hold_entropy"])
@pytest.mark.parametrize(("make_module", "column"), [(trainer_base, "entropy"), (legacy, "entropys")])
def test_missing_entropies_are_one_sentence(make_module, column, name):
    module = make_module()
    seams.watch(module, by_variable=True)
    with pytest.raises(UserError, match=f"verl's batch has no '{column}' where the advantages"):
        train(module, config({"weighting": name}), make_data())
    assert train(module, config({"weighting": "gaussian"}), make_data())["weight/ess"] < 1


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


class Config(dict):
    """Like verl's config: sections by attribute where the trainer reads them so."""

    @property
    def trainer(self):
        return self["trainer"]


def holding(folder, latest=0, **options):
    found = Config(config({"weighting": "hold_entropy", "scope": "batch"}))
    found["trainer"] = SimpleNamespace(
        default_local_dir=str(folder), latest=latest, **{"resume_mode": "auto", **options}
    )
    return found


def advance(module, trainer, seeds):
    """Kappas of training batches, through either trainer's own way."""
    kappas = []
    for seed in seeds:
        data, metrics = make_data(seed), {}
        give_entropies(module, entropies_of(data))
        if hasattr(module, "PPOTrainer"):
            trainer._compute_advantage(v1_batch(data), metrics=metrics)
        else:
            metrics = {name: value[0] for name, value in trainer.fit(data).items() if name.startswith("hold/")}
        kappas.append(metrics["hold/kappa"])
    return kappas


@pytest.mark.parametrize("make_module", [trainer_base, legacy])
def test_a_held_entropy_goes_on_from_verls_checkpoint(tmp_path, make_module):
    """12 batches in one go, and in two parts with a checkpoint between them: the same kappas."""
    module = make_module()
    seams.watch(module, by_variable=True)
    build = module.PPOTrainer if hasattr(module, "PPOTrainer") else module.RayPPOTrainer
    whole = advance(module, build(holding(tmp_path / "none")), range(16))
    assert whole[:9] == [1.0] * 9 and len(set(whole[9:])) == 7
    first = build(holding(tmp_path))
    kappas = advance(module, first, range(12))
    first.global_steps = 12
    first._save_checkpoint()
    saved = tmp_path / "global_step_12" / seams.STATE_FILE
    for options in ({}, {"resume_mode": "resume_path", "resume_from_path": str(saved.parent)}):
        second = build(holding(tmp_path, latest=12, **options))
        second._load_checkpoint()
        assert kappas + advance(module, second, range(12, 16)) == whole
    saved.unlink()
    with pytest.raises(UserError, match=r"covgrpo_entropy_hold\.json: the entropy controller's state cannot be read"):
        build(holding(tmp_path, latest=12))._load_checkpoint()


@pytest.mark.parametrize("make_module", [trainer_base, legacy])
def test_a_resumed_run_holds_the_target_that_it_is_given(tmp_path, make_module):
    module = make_module()
    seams.watch(module, by_variable=True)
    build = module.PPOTrainer if hasattr(module, "PPOTrainer") else module.RayPPOTrainer
    first = build(holding(tmp_path))
    advance(module, first, range(12))
    first.global_steps = 12
    first._save_checkpoint()
    chosen = holding(tmp_path, latest=12)
    chosen["algorithm"]["covgrpo"]["weighting_kwargs"] = {"target": 0.123, "bound": 2.0}
    second = build(chosen)
    second._load_checkpoint()
    seams_function = getattr(module, "compute_advantage_for_multi_trajectories", None) or module.compute_advantage
    controller = seams_function.hold.controller
    assert (controller.target, controller.bound, controller.measured) == (0.123, 2.0, 12)


@pytest.mark.parametrize("make_module", [trainer_base, legacy])
def test_the_state_is_there_before_verl_points_at_the_checkpoint(tmp_path, monkeypatch, make_module):
    """verl calls callbacks on the folder, and names it as the latest, while it saves."""
    module = make_module()
    trainer_class = module.PPOTrainer if hasattr(module, "PPOTrainer") else module.RayPPOTrainer
    saved = tmp_path / "global_step_12" / seams.STATE_FILE
    seen = []
    monkeypatch.setattr(trainer_class, "_save_checkpoint", lambda self: seen.append(saved.exists()))
    seams.watch(module, by_variable=True)
    trainer = trainer_class(holding(tmp_path))
    trainer.global_steps = 12
    trainer._save_checkpoint()
    assert seen == [True]


def test_without_a_controller_checkpoints_are_verls_own(tmp_path):
    module = trainer_base()
    seams.watch(module, by_variable=True)
    chosen = holding(tmp_path)
    chosen["algorithm"]["covgrpo"] = {"weighting": "neutral"}
    trainer = module.PPOTrainer(chosen)
    trainer.global_steps = 1
    trainer._save_checkpoint()
    assert list((tmp_path / "global_step_1").iterdir()) == []
