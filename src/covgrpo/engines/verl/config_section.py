"""What a verl config asks for, checked before anything is started."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from covgrpo.core import Weighting, fit_normaliser, get_weighting
from covgrpo.core.weighting.none import NoWeighting
from covgrpo.engines.training_batch import SCOPES
from covgrpo.errors import UserError
from covgrpo.suggest import did_you_mean

SECTION = "algorithm.covgrpo"

_DEFAULTS: dict[str, Any] = {"weighting": "gaussian", "scope": "group", "weighting_kwargs": {}}
# verl's own covariance losses take c from the advantages that they are given, which are weighted by then.
_COVARIANCE_LOSSES = ("clip_cov", "kl_cov")
# What verl's loss_agg_mode divides a token by, up to one number for all.
_NORMALISERS = {
    "token-mean": "token",
    "seq-mean-token-sum": "token",
    "seq-mean-token-sum-norm": "token",
    "seq-mean-token-mean": "completion",
}
# Losses whose ratio is one of a whole completion.
_SEQUENCE_LOSSES = ("gspo", "geo_mean")


@dataclass(frozen=True)
class Choice:
    """A token weighting and the tokens over which it takes its statistics.

    Args:
        name: as in the config.
        weighting: the scheme.
        scope: ``group``, the rows of one prompt; or ``batch``, all rows of the driver's training batch.

    """

    name: str
    weighting: Weighting
    scope: str = "group"

    @property
    def weighs(self) -> bool:
        """Whether the advantages change at all."""
        return not isinstance(self.weighting, NoWeighting)


def choose(config: Any, by_variable: bool) -> Choice | None:
    """Read ``algorithm.covgrpo`` of a verl config.

    Args:
        config: verl's config: an OmegaConf ``DictConfig``, or nested mappings.
        by_variable: whether ``VERL_USE_EXTERNAL_MODULES`` names this plug-in, which alone chooses ``gaussian``.

    Returns:
        ``None`` where nothing is chosen.

    Raises:
        UserError: an unknown key, weighting, hyperparameter or scope; a scheme that weights of the advantages cannot
            express; log-probs of the inference engine in place of the trainer's; one of verl's covariance losses.

    """
    section = _at(config, SECTION)
    if section is None:
        if not by_variable:
            return None
        section = {}
    if not isinstance(section, Mapping) and not hasattr(section, "keys"):
        raise UserError(f"{SECTION}={section!r}: expected a section with {', '.join(_DEFAULTS)}.")
    options = {**_DEFAULTS, **{str(key): section[key] for key in section}}
    _refuse_unknown_keys(options)
    choice = Choice(str(options["weighting"]), _build(options, config), str(options["scope"]))
    if choice.scope not in SCOPES:
        raise UserError(f"{SECTION}.scope={choice.scope!r}: known are {' and '.join(SCOPES)}.")
    if choice.weighs:
        _refuse_what_cannot_be_exact(config, choice)
    return choice


def uses_engine_log_probs(config: Any) -> bool:
    """Whether verl takes the inference engine's log-probs for those of the old policy."""
    return bool(_at(config, "algorithm.rollout_correction.bypass_mode"))


def _build(options: dict[str, Any], config: Any) -> Weighting:
    kwargs = options["weighting_kwargs"] or {}
    mode = str(_at(config, "actor_rollout_ref.actor.loss_agg_mode") or "token-mean")
    loss_mode = str(_at(config, "actor_rollout_ref.actor.policy_loss.loss_mode") or "vanilla")
    normaliser, loss = _NORMALISERS.get(mode), f"loss_agg_mode={mode}"
    if loss_mode in _SEQUENCE_LOSSES:
        normaliser, loss = None, f"loss_mode={loss_mode}"
    try:
        weighting = get_weighting(str(options["weighting"]), **{str(key): kwargs[key] for key in kwargs})
        return fit_normaliser(weighting, normaliser, f"actor_rollout_ref.actor: {loss}")
    except ValueError as error:
        raise UserError(f"{SECTION}.weighting={options['weighting']!r}: {error}") from error


def _refuse_unknown_keys(options: dict[str, Any]) -> None:
    for key in options:
        if key not in _DEFAULTS:
            hint = did_you_mean(key, _DEFAULTS, cutoff=0.4)
            raise UserError(f"{SECTION}.{key}: unknown key; known: {', '.join(_DEFAULTS)}.{hint}")


def _refuse_what_cannot_be_exact(config: Any, choice: Choice) -> None:
    if hasattr(choice.weighting, "penalties"):
        raise UserError(
            f"{SECTION}.weighting={choice.name!r}: the scheme adds a penalty to the loss, which weights of the "
            "advantages cannot express; use verl's own loss or covgrpo's trainer for TRL."
        )
    loss_mode = _at(config, "actor_rollout_ref.actor.policy_loss.loss_mode")
    if loss_mode in _COVARIANCE_LOSSES:
        raise UserError(
            f"actor_rollout_ref.actor.policy_loss.loss_mode={loss_mode}: verl would take covariances from advantages "
            f"that {SECTION}.weighting={choice.name!r} has weighted; choose one of the two."
        )
    if uses_engine_log_probs(config):
        raise UserError(
            "algorithm.rollout_correction.bypass_mode=True: the weights need the trainer's log-probs, and in this mode "
            f"verl has only the inference engine's; set it to False or {SECTION}.weighting=none."
        )


def _at(config: Any, path: str) -> Any:
    """Return the value at a dotted path; ``None`` where a part of it is missing."""
    for key in path.split("."):
        if config is None or not hasattr(config, "get"):
            return None
        config = config.get(key, None)
    return config
