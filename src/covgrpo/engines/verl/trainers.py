"""Where the weights enter verl's trainers: the driver's one advantage call, which sees the whole training batch.

A trainer is served when it is built, from its config, before models are loaded. The names below are verl's; a version
that lacks one of them is refused with a sentence.
"""

import functools
import inspect
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from covgrpo.engines.entropy import EntropyHold, weighs_by_entropies
from covgrpo.engines.verl.batch import column_of, weigh_batch
from covgrpo.engines.verl.config_section import Choice, choose, uses_engine_log_probs
from covgrpo.errors import UserError
from covgrpo.files import replacing

STATE_FILE = "covgrpo_entropy_hold.json"

# What is overridden or called, with the parameters that it must have.
SEAMS = {
    "verl.trainer.ppo.v1.trainer_base": {
        "PPOTrainer.__init__": ["self", "config"],
        "PPOTrainer._compute_advantage": ["self", "batch", "metrics"],
        "PPOTrainer._save_checkpoint": ["self"],
        "PPOTrainer._load_checkpoint": ["self"],
        "tq.kv_batch_get": ["keys", "partition_id", "select_fields"],
        "compute_advantage_for_multi_trajectories": ["data", "batch_keys", "config"],
    },
    "verl.trainer.ppo.ray_trainer": {
        "RayPPOTrainer.__init__": ["self", "config"],
        "RayPPOTrainer.fit": ["self"],
        "RayPPOTrainer._compute_old_log_prob": ["self", "batch"],
        "RayPPOTrainer._update_actor": ["self", "batch"],
        "RayPPOTrainer._save_checkpoint": ["self"],
        "RayPPOTrainer._load_checkpoint": ["self"],
        "compute_advantage": ["data", "config"],
    },
}


class WeightedAdvantages:
    """verl's advantage function followed by the weights; keeps the metrics until they are asked for.

    Attributes:
        entropies: (B, T) of the next batch, nats; where the weighting needs them, the trainer's function sets them.

    """

    def __init__(self, function: Callable[..., Any], choice: Choice):
        # A second trainer in one process must not weigh a second time.
        self.function: Callable[..., Any] = function.function if isinstance(function, WeightedAdvantages) else function
        self.choice = choice
        self.hold = EntropyHold(choice.weighting) if hasattr(choice.weighting, "controller") else None
        self.needs_entropies = weighs_by_entropies(choice.weighting)
        self.entropies: Tensor | None = None
        self._metrics: dict[str, float] | None = None

    def __call__(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """Return verl's result with its advantages weighted."""
        data = self.function(data, *args, **kwargs)
        started = time.perf_counter()
        entropies, self.entropies = self.entropies, None
        self._metrics = weigh_batch(data, self.choice, kwargs.get("batch_keys"), self.hold, entropies)
        self._metrics["timing_s/cov_weights"] = time.perf_counter() - started
        return data

    def take_metrics(self) -> dict[str, float]:
        """Return the metrics of the last batch, once.

        Raises:
            UserError: no batch has passed since they were last taken: verl went another way.

        """
        metrics, self._metrics = self._metrics, None
        if metrics is None:
            raise UserError("verl computed advantages without the function that covgrpo weighs; its seam has moved.")
        return metrics


def serve_v1(module: ModuleType, trainer: Any, choice: Choice) -> None:
    """Weigh the advantages of a V1 trainer (sync, colocate_async, separate_async)."""
    weighted = WeightedAdvantages(module.compute_advantage_for_multi_trajectories, choice)
    module.compute_advantage_for_multi_trajectories = weighted  # type: ignore[attr-defined]
    compute_advantage = trainer._compute_advantage

    @functools.wraps(compute_advantage)
    def _compute_advantage(batch: Any, metrics: dict[str, Any]) -> Any:
        if weighted.needs_entropies:
            weighted.entropies = _read_entropies(module, batch)
        batch = compute_advantage(batch, metrics)
        metrics.update(weighted.take_metrics())
        return batch

    trainer._compute_advantage = _compute_advantage
    _keep_state(trainer, weighted)


def _read_entropies(module: ModuleType, batch: Any) -> Tensor:
    """Entropies (B, T) of a V1 batch, which verl puts into its queue together with the old log-probs."""
    columns = module.tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["entropy"])
    return column_of(columns.to_padded_tensor(), "entropy")


def serve_legacy(module: ModuleType, trainer: Any, choice: Choice) -> None:
    """Weigh the advantages of the legacy trainer (``trainer.use_v1=False``).

    Its ``fit`` keeps the metrics to itself, so ours join those of the actor's update.

    Raises:
        UserError: a subclass with its own loop (one-step-off, fully asynchronous), which calls other functions.

    """
    if type(trainer).fit is not module.RayPPOTrainer.fit:
        raise UserError(
            f"algorithm.covgrpo.weighting={choice.name!r}: {type(trainer).__name__} has a training loop of its own, "
            "which the weights do not reach; use the trainer of verl.trainer.main_ppo."
        )
    weighted = WeightedAdvantages(module.compute_advantage, choice)
    module.compute_advantage = weighted  # type: ignore[attr-defined]
    update_actor, compute_old_log_prob = trainer._update_actor, trainer._compute_old_log_prob

    @functools.wraps(compute_old_log_prob)
    def _compute_old_log_prob(batch: Any) -> Any:
        computed, *others = compute_old_log_prob(batch)
        weighted.entropies = column_of(computed.batch, "entropys") if weighted.needs_entropies else None
        return computed, *others

    @functools.wraps(update_actor)
    def _update_actor(batch: Any) -> Any:
        output = update_actor(batch)
        # verl reduces lists by their mean.
        output.meta_info["metrics"].update({name: [value] for name, value in weighted.take_metrics().items()})
        return output

    trainer._update_actor, trainer._compute_old_log_prob = _update_actor, _compute_old_log_prob
    _keep_state(trainer, weighted)


def _keep_state(trainer: Any, weighted: WeightedAdvantages) -> None:
    """Have verl's checkpoints hold the state of a controller: a file of our own in each."""
    hold = weighted.hold
    if hold is None:
        return
    save, load = trainer._save_checkpoint, trainer._load_checkpoint

    @functools.wraps(save)
    def _save_checkpoint(*args: Any, **kwargs: Any) -> Any:
        # Before verl's own files: its callbacks see the folder, and its pointer names it, as soon as those are there.
        path = _checkpoint(trainer) / STATE_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(json.dumps(hold.state_dict()))
        return save(*args, **kwargs)

    @functools.wraps(load)
    def _load_checkpoint(*args: Any, **kwargs: Any) -> Any:
        result = load(*args, **kwargs)
        if trainer.global_steps:
            _restore(hold, _checkpoint(trainer, resumed=True) / STATE_FILE)
        return result

    trainer._save_checkpoint, trainer._load_checkpoint = _save_checkpoint, _load_checkpoint


def _checkpoint(trainer: Any, resumed: bool = False) -> Path:
    """Folder of verl's checkpoint of the current step; of the one that was ``resumed``."""
    options = trainer.config.trainer
    if resumed and options.resume_mode == "resume_path":
        return Path(options.resume_from_path)
    return Path(options.default_local_dir) / f"global_step_{trainer.global_steps}"


def _restore(hold: EntropyHold, path: Path) -> None:
    try:
        hold.load_state_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: the entropy controller's state cannot be read ({error}); the run cannot go on."
        ) from error


SERVE = {"PPOTrainer": serve_v1, "RayPPOTrainer": serve_legacy}


def watch(module: ModuleType, by_variable: bool) -> None:
    """Have the trainers of ``module`` read the choice when they are built.

    Raises:
        UserError: the module has no such trainer.

    """
    name = next(iter(SEAMS[module.__name__])).partition(".")[0]
    trainer_class = getattr(module, name, None)
    if trainer_class is None:
        raise UserError(missing(f"{module.__name__}.{name}"))
    init = trainer_class.__init__

    @functools.wraps(init)
    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        config = kwargs["config"] if "config" in kwargs else args[0]
        choice = choose(config, by_variable)
        if choice is not None:
            check_seams(module)
        init(self, *args, **kwargs)
        if choice is None or (uses_engine_log_probs(config) and not choice.weighs):
            return
        SERVE[name](module, self, choice)
        print(f"covgrpo: weighting={choice.name} scope={choice.scope} in {type(self).__name__}", flush=True)

    trainer_class.__init__ = build


def check_seams(module: ModuleType) -> None:
    """Compare the functions of ``module`` with ``SEAMS``.

    Raises:
        UserError: one is missing or lacks a parameter; names it.

    """
    for path, expected in SEAMS[module.__name__].items():
        found: Any = module
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is None:
            raise UserError(missing(f"{module.__name__}.{path}"))
        function = found.function if isinstance(found, WeightedAdvantages) else found
        parameters = inspect.signature(function).parameters
        for parameter in expected:
            if parameter not in parameters:
                raise UserError(missing(f"{module.__name__}.{path}({parameter})"))


def missing(seam: str) -> str:
    """Say that a seam is missing, and what to do."""
    return f"covgrpo.verl needs {seam}, which this verl does not have; docs/verl.md names the tested versions."
