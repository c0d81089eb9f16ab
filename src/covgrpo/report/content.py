"""What a report shows, as plain data: every page, figure and summary is drawn from it."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from covgrpo.report.conclusion import conclusions
from covgrpo.report.idle import nothing_learnt
from covgrpo.report.reading import RunRecords
from covgrpo.report.series import Curve, correlation, curve, last, number
from covgrpo.report.tokens import completions, damped_tokens, histogram_frames

# Curves of the page: metric, title, unit. A curve that no run has is left out.
CURVES = (
    ("reward", "Reward", "mean"),
    ("entropy", "Entropy of the policy", "nats a token"),
    ("hold/target", "Entropy: target", "nats a token"),
    ("hold/entropy", "Entropy: as the controller estimates it", "nats a token"),
    ("hold/kappa", "Kappa, the share of the covariance that the weights take away", ""),
    ("grad_norm", "Gradient norm before clipping", ""),
    ("cov/sigma", "Covariance: sigma", "nats x advantage"),
    ("cov/pos_0.01", "Covariance reached by the top 1 % of tokens with c > 0", "nats x advantage"),
    ("cov/neg_0.01", "Covariance reached by the bottom 1 % of tokens with c < 0", "nats x advantage"),
    ("weight/ess", "Effective share of the tokens, (sum w)² / (N sum w²)", "fraction"),
    ("weight/min", "Smallest token weight", ""),
    ("weight/reversed", "Share of the tokens whose push is reversed (weight below 0)", "fraction"),
    ("update/top_share", "Share of the update carried by 1 % of the tokens, weighted", "fraction"),
    ("update/top_share_unweighted", "The same, had nothing been weighted", "fraction"),
    ("frac_reward_zero_std", "Completions without advantage", "fraction"),
    ("completions/mean_length", "Mean length of a completion", "tokens"),
    ("verifier/failures", "Verifier failures", "count"),
    ("step_time", "Time of a step", "seconds"),
)

_ONLY_ABOVE_0 = "weight/reversed"  # a curve that most weightings do not have

# arXiv 2605.11538: the covariance that a fraction of the tokens of a side reaches.
PAPER_TABLE = {
    "pos": {"0.0001": 11.52, "0.01": 3.32, "0.2": 0.58, "0.4": 0.33, "1": 0.06},
    "neg": {"0.0001": -13.62, "0.01": -3.34, "0.2": -0.36, "0.4": -0.22, "1": -0.04},
}

# Options that say where and how long a run went, not what was done differently.
_NOT_A_DIFFERENCE = {
    *("seed", "output", "resume", "threads", "report_to", "save_steps", "samples_per_step", "tokens_per_step"),
    *("evaluate", "eval_problems", "eval_samples", "steps", "micro_batch_size", "verifier_workers"),
    *("verifier_memory", "entropy_probe_steps", "method", "weighting", "fast_path"),
}

_MOST_POINTS = 3000


@dataclass(frozen=True)
class Group:
    """Runs of one set-up, with different seeds; drawn as one curve with a band."""

    label: str
    runs: list[RunRecords]


@dataclass(frozen=True)
class Content:
    """Everything that a report shows of some runs."""

    groups: list[Group]
    curves: dict[str, list[Curve | None]]  # metric -> one curve a group
    tables: list[dict[str, Any]]  # covariance quantiles, one a group
    entropy_changes: list[dict[str, Any] | None]  # one a group
    conclusions: list[str]  # a sentence each
    runs: list[dict[str, Any]]  # facts, histograms, tokens and completions of each run
    skipped: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON's types, for the page."""
        return {
            "groups": [{"label": group.label, "runs": [run.label for run in group.runs]} for group in self.groups],
            "curves": [
                {"key": key, "title": title, "unit": unit, "groups": [c.to_dict() if c else None for c in curves]}
                for key, title, unit in CURVES
                if (curves := self.curves.get(key))
            ],
            "tables": self.tables,
            "paper": PAPER_TABLE,
            "entropy_changes": self.entropy_changes,
            "conclusions": self.conclusions,
            "runs": self.runs,
            "skipped": self.skipped,
        }


def collect(runs: Sequence[RunRecords]) -> Content:
    """Put together what a report shows of runs, in their order."""
    groups = _grouped(runs)
    curves = {key: [curve(group.runs, key) for group in groups] for key, _, _ in CURVES}
    if not any(any(drawn.high) for drawn in curves[_ONLY_ABOVE_0] if drawn):
        del curves[_ONLY_ABOVE_0]
    described = [_described(run, index) for index, group in enumerate(groups) for run in group.runs]
    return Content(
        groups=groups,
        curves={key: values for key, values in curves.items() if any(values)},
        tables=[_quantile_table(group) for group in groups],
        entropy_changes=[_entropy_changes(group) for group in groups],
        conclusions=conclusions({group.label: group.runs for group in groups}),
        runs=described,
        skipped=[f"{run.label}: {text}" for run in runs for text in run.skipped],
    )


def _grouped(runs: Sequence[RunRecords]) -> list[Group]:
    """Runs that differ in nothing but the seed form a group; so do runs that were given one label."""
    keys: dict[str, list[RunRecords]] = {}
    differing = _differing_options(runs)
    unknown = _names_apart([run.path for run in runs if not run.labelled and not run.options])
    for run in runs:
        if run.labelled:
            key = run.label
        elif run.options:
            key = ", ".join([_scheme(run.options), *(f"{name}={run.options.get(name)}" for name in differing)])
        else:
            key = unknown.get(run.path, run.label)
        keys.setdefault(key, []).append(run)
    return [Group(key, members) for key, members in keys.items()]


def _scheme(options: dict[str, Any]) -> str:
    """The method; with another weighting than its own both, but for `gaussian`, which sets nothing else."""
    method, weighting = str(options.get("method")), options.get("weighting")
    if weighting in (None, method):
        return method
    return str(weighting) if method == "gaussian" else f"{method} + {weighting}"


def _names_apart(paths: Sequence[Path]) -> dict[Path, str]:
    """As many of the last parts of each path as tell them apart: two scripts' ``out`` are two set-ups."""
    whole = {path: path.resolve().parts for path in paths}
    for count in range(1, max(map(len, whole.values()), default=0) + 1):
        names = {path: str(Path(*parts[-count:])) for path, parts in whole.items()}
        if len(set(names.values())) == len(set(whole.values())):
            return names
    return {}


def _differing_options(runs: Sequence[RunRecords]) -> list[str]:
    known = [run.options for run in runs if run.options]
    names = dict.fromkeys(name for options in known for name in options)
    return [
        name
        for name in names
        if name not in _NOT_A_DIFFERENCE and len({repr(options.get(name)) for options in known}) > 1
    ]


def _quantile_table(group: Group) -> dict[str, Any]:
    """Mean over the steps (and runs) of each quantile of the covariance."""
    table: dict[str, Any] = {}
    for side, quantiles in PAPER_TABLE.items():
        for name in quantiles:
            key = f"cov/{side}_{name}"
            values = [v for run in group.runs for record in run.metrics if (v := number(record.get(key))) is not None]
            table.setdefault(side, {})[name] = statistics.fmean(values) if values else None
    return table


def _entropy_changes(group: Group) -> dict[str, Any] | None:
    """Predicted and measured change of the entropy at each step that has both.

    Measured on the same tokens where the run probed it; else from one step's tokens to the next one's.
    """
    probed = [
        (run.label, record["step"], record.get("entropy/predicted"), record.get("entropy/change"), record)
        for run in group.runs
        for record in run.metrics
    ]
    points = [_point(label, step, a, b, record) for label, step, a, b, record in probed if _both(a, b)]
    same_tokens = bool(points)
    if not points:
        for run in group.runs:
            for one, next_one in pairwise(run.metrics):
                before, after = number(one.get("entropy")), number(next_one.get("entropy"))
                if before is not None and after is not None and _both(one.get("entropy/predicted"), 0.0):
                    change = after - before
                    points.append(_point(run.label, one["step"], one["entropy/predicted"], change, one))
    if not points:
        return None
    x, y = [p["predicted"] for p in points], [p["change"] for p in points]
    found = {"points": points, "same_tokens": same_tokens, "correlation": correlation(x, y)}
    with_step = [p for p in points if p["predicted_step"] is not None]
    found["correlation_step"] = correlation([p["predicted_step"] for p in with_step], [p["change"] for p in with_step])
    found["points"] = points[:: -(-len(points) // _MOST_POINTS)]  # to draw; the correlations are those of all
    return found


def _both(a: Any, b: Any) -> bool:
    return number(a) is not None and number(b) is not None


def _point(label: str, step: int, predicted: Any, change: Any, record: dict[str, Any]) -> dict[str, Any]:
    return {
        "run": label,
        "step": step,
        "predicted": float(predicted),
        "predicted_step": number(record.get("entropy/predicted_step")),
        "change": float(change),
    }


def _described(run: RunRecords, group: int) -> dict[str, Any]:
    options = run.options
    planned = options.get("steps")
    reached = run.metrics[-1]["step"] if run.metrics else 0
    facts = {name: options[name] for name in ("task", "model", "method", "learning_rate") if name in options}
    note = nothing_learnt(run.metrics)
    return {
        "label": run.label,
        "group": group,
        "seed": run.seed,
        "facts": facts if note is None else {**facts, "note": note},
        "steps": reached,
        "planned": planned if isinstance(planned, int) else None,
        "reward": last([run], "reward"),
        "entropy": last([run], "entropy"),
        "evaluation": _accuracies(run.evaluation),
        "histograms": histogram_frames(run),
        "damped": damped_tokens(run),
        "completions": completions(run),
    }


def _accuracies(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Accuracies of ``eval.json``: {greedy, sampled} -> {before, after} -> accuracy, low, high; and n."""
    found: dict[str, Any] = {}
    for when in ("before", "after"):
        result = evaluation.get(when)
        if not isinstance(result, dict):
            continue
        found["n"] = result.get("n")
        for name in ("greedy", "sampled"):
            value = result.get(name)
            if isinstance(value, dict) and _both(value.get("accuracy"), 0.0):
                found.setdefault(name, {})[when] = {key: value.get(key) for key in ("accuracy", "low", "high")}
    return found
