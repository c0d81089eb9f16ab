"""The model card of a finished run: ``README.md`` beside and inside ``model/``, with a picture of its curves.

Standard library only; the picture is an SVG, so that it needs no plotting package.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from covgrpo import __version__
from covgrpo.files import write_text
from covgrpo.runs.options import TrainOptions

PICTURE = "curves.svg"
_WIDTH, _HEIGHT, _MARGIN = 340, 200, 42  # pixels of one chart
_CURVES = (("reward", "reward", "#1f77b4"), ("entropy", "entropy, nats a token", "#d62728"))

_CARD = """\
---
{front}
library_name: {library}
pipeline_tag: text-generation
tags: [covgrpo, grpo, reinforcement-learning]
---

# {title}

{base}, trained with reinforcement learning from verifiable rewards by [covgrpo](https://arxiv.org/abs/2605.11538)
{version}.

| | |
|---|---|
| base model | {base} |
| method | {method} |
| task | `{task}` |
| training | {training} |
{accuracies}

![Reward and entropy over the steps]({picture})

## How to load it

```python
{code}
```

{whereabouts}

## Citation

The method is that of *Taming Extreme Tokens: Covariance-Aware GRPO with Gaussian-Kernel Advantage Reweighting*,
[arXiv 2605.11538](https://arxiv.org/abs/2605.11538).
"""

_CODE = """\
from transformers import AutoTokenizer
from {package} import {model_class}

name = "{name}"
tokenizer, model = AutoTokenizer.from_pretrained(name), {model_class}.from_pretrained(name)
messages = {messages}
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs, max_new_tokens={length}, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""


def write_cards(
    folder: Path,
    options: TrainOptions,
    metrics: Sequence[Mapping[str, Any]],
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    messages: list[dict[str, str]],
    hub_id: str | None = None,
) -> None:
    """Write the card and its picture into a run's folder and into its ``model/``.

    Args:
        folder: of the run.
        options: of the run.
        metrics: the records of its steps.
        before: held-out accuracy of the base model, as in ``eval.json``; ``None``: not measured.
        after: likewise, of the trained model.
        messages: a prompt of the task, to show how it is asked.
        hub_id: where the model goes on the hub.

    Raises:
        UserError: a file cannot be written.
    """
    write_text(folder / "model" / PICTURE, curves_svg(metrics))
    for place, picture in ((folder, f"model/{PICTURE}"), (folder / "model", PICTURE)):
        text = card(options, before, after, messages, hub_id or f"{folder.name}/model", picture)
        write_text(place / "README.md", text)


def card(
    options: TrainOptions,
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any] | None,
    messages: list[dict[str, str]],
    name: str,
    picture: str,
) -> str:
    """Return the card; ``name`` is what the model is loaded by."""
    base, on_hub = _base(options.model)
    adapters = options.lora_r > 0
    code = _CODE.format(
        package="peft" if adapters else "transformers",
        model_class="AutoPeftModelForCausalLM" if adapters else "AutoModelForCausalLM",
        name=name,
        messages=json.dumps(messages, ensure_ascii=False, indent=4),
        length=options.max_completion_length,
    )
    return _CARD.format(
        front=f"base_model: {base}" if on_hub else "# the base model has no name on the hub",
        library="peft" if adapters else "transformers",
        title=name.removesuffix("/model").split("/")[-1],
        base=f"[{base}](https://huggingface.co/{base})" if on_hub else f"`{base}`",
        version=__version__,
        method=f"`{options.weighting or options.method}`",
        task=options.task.replace("|", "\\|"),
        training=f"{options.steps} steps of {options.prompts_per_step} x {options.num_generations} completions, "
        f"learning rate {options.learning_rate:g}, seed {options.seed}",
        accuracies="\n".join(_accuracies(before, after)),
        picture=picture,
        code=code,
        whereabouts="The run's settings, its record of every step and its completions lie in the run's folder "
        "(`config.json`, `metrics.jsonl`, `samples.jsonl`).",
    )


def _base(model: str) -> tuple[str, bool]:
    """The base model's name, and whether it is one on the hub."""
    from covgrpo.models.builtin import BUILTIN_MODELS

    if model in BUILTIN_MODELS:
        return f"HuggingFaceTB/{BUILTIN_MODELS[model].title}", True
    on_hub = model.count("/") == 1 and not model.startswith((".", "~", "/")) and not Path(model).exists()
    return (model, True) if on_hub else (Path(model).name, False)


def _accuracies(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> list[str]:
    if after is None:
        return ["| accuracy | not measured on held-out problems (`--evaluate` does) |"]
    lines = []
    for kind in ("greedy", "sampled"):
        base = "" if before is None else f" (base model: {_interval(before[kind])})"
        lines.append(f"| accuracy, {kind}, {after['n']} held-out problems | {_interval(after[kind])}{base} |")
    return lines


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['accuracy']:.3f}, 95 % interval {value['low']:.3f} to {value['high']:.3f}"


def curves_svg(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Reward and entropy over the steps, side by side; without records, empty axes."""
    charts = [_chart(metrics, *curve, left=place * _WIDTH) for place, curve in enumerate(_CURVES)]
    width = _WIDTH * len(charts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" width="{width}" height="{_HEIGHT}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f"{''.join(charts)}</svg>\n"
    )


def _chart(metrics: Sequence[Mapping[str, Any]], key: str, title: str, colour: str, left: int) -> str:
    points = [(record["step"], record[key]) for record in metrics if record.get(key) is not None]
    steps, values = [step for step, _ in points] or [0], [value for _, value in points] or [0.0]
    low, high = min(0.0, *values), max(values)
    if high <= low:
        high = low + 1.0
    first, last = min(steps), max(*steps, min(steps) + 1)
    right, bottom = left + _WIDTH - 12, _HEIGHT - 30

    def place(step: float, value: float) -> str:
        x = left + _MARGIN + (step - first) / (last - first) * (right - left - _MARGIN)
        return f"{x:.1f},{bottom - (value - low) / (high - low) * (bottom - 30):.1f}"

    line = " ".join(place(*point) for point in points)
    return (
        f'<text x="{left + _MARGIN}" y="18" font-weight="bold">{escape(title)}</text>'
        f'<path d="M{left + _MARGIN},30V{bottom}H{right}" fill="none" stroke="#888"/>'
        f'<text x="{left + _MARGIN - 4}" y="34" text-anchor="end">{high:.3g}</text>'
        f'<text x="{left + _MARGIN - 4}" y="{bottom}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{left + _MARGIN}" y="{bottom + 16}">step {first}</text>'
        f'<text x="{right}" y="{bottom + 16}" text-anchor="end">{last}</text>'
        f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
    )
