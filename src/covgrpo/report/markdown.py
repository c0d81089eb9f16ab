"""A summary in Markdown, for a pull request or a lab book."""

from typing import Any

from covgrpo.report.content import PAPER_TABLE, Content, Group
from covgrpo.report.series import last

_ROWS = (
    ("reward", "reward, last 10 steps"),
    ("entropy", "entropy, nats a token, last 10 steps"),
    ("grad_norm", "gradient norm, last 10 steps"),
    ("weight/ess", "effective share of the tokens"),
)


def markdown_summary(content: Content, title: str) -> str:
    """Return the summary: runs, the covariance table, the entropy prediction, what was left out."""
    said = [line for sentence in content.conclusions for line in (sentence, "")]
    parts = [f"## {title}", "", *said, *_runs(content), "", *_quantiles(content)]
    for group, found in zip(content.groups, content.entropy_changes, strict=True):
        if found:
            parts += ["", f"{group.label}: {entropy_sentence(found)}"]
    if content.skipped:
        parts += ["", "Left out:", *(f"- {text}" for text in content.skipped)]
    return "\n".join(parts) + "\n"


def entropy_sentence(found: dict[str, Any]) -> str:
    """Say how well the covariance predicted the change of the entropy."""
    where = "on the step's own tokens" if found["same_tokens"] else "from one step's tokens to the next one's"
    texts = []
    for key, name in (("correlation", "-lr Cov(log p, w A)"), ("correlation_step", "the step's effective rate")):
        value = found[key]
        if value:
            texts.append(
                f"with {name} Pearson {value['pearson']:.2f}, Spearman {value['spearman']:.2f} (n = {value['n']})"
            )
    return f"entropy change, predicted against measured {where}: {'; '.join(texts) or 'too few points'}."


def _runs(content: Content) -> list[str]:
    header = ["", *(_cell(group.label) for group in content.groups)]
    lines = [_line(header), _line(["---"] * len(header))]
    lines.append(_line(["runs", *(str(len(group.runs)) for group in content.groups)]))
    lines.append(_line(["steps", *(_steps(group) for group in content.groups)]))
    for name in ("greedy", "sampled"):
        values = [_accuracy(content, index, name) for index in range(len(content.groups))]
        if any(values):
            lines.append(_line([f"accuracy, {name}, before → after", *(value or "" for value in values)]))
    for key, label in _ROWS:
        lines.append(_line([label, *(_number(last(group.runs, key)) for group in content.groups)]))
    return lines


def _quantiles(content: Content) -> list[str]:
    names = list(PAPER_TABLE["pos"])
    header = ["covariance reached by the fraction", *names]
    lines = [_line(header), _line(["---"] * len(header))]
    for side, sign in (("pos", "c > 0"), ("neg", "c < 0")):
        for group, table in zip(content.groups, content.tables, strict=True):
            lines.append(_line([f"{sign}, {_cell(group.label)}", *(_number(table[side][name]) for name in names)]))
        lines.append(_line([f"{sign}, paper", *(_number(PAPER_TABLE[side][name]) for name in names)]))
    return lines


def _accuracy(content: Content, index: int, name: str) -> str | None:
    found = [run["evaluation"][name] for run in content.runs if run["group"] == index and name in run["evaluation"]]
    both = [entry for entry in found if "before" in entry and "after" in entry]
    if not both:
        return None
    means = [sum(entry[when]["accuracy"] for entry in both) / len(both) for when in ("before", "after")]
    return f"{means[0]:.3f} → {means[1]:.3f}"


def _steps(group: Group) -> str:
    return ", ".join(dict.fromkeys(str(run.metrics[-1]["step"] if run.metrics else 0) for run in group.runs))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
