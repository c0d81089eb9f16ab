"""The code of the how-to pages and of docs/method.md does what the pages say."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from report_cases import make_run
from tiny import tiny_model, tiny_tokenizer

from covgrpo import get_weighting
from covgrpo.tasks import load_task

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import method_figures

ROOT = Path(__file__).resolve().parents[1]


def python_blocks(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder, on the import path as it is for scripts; what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.split(".")[0] in ("my_weighting", "plain", "my_tasks"):
            del sys.modules[name]


def save(folder: Path, code: str) -> None:
    """Write a block to the file that its first line names."""
    path = folder / code.splitlines()[0].removeprefix("# ")
    path.parent.mkdir(exist_ok=True)
    path.write_text(code, encoding="utf-8")


def test_a_weighting_of_your_own(here, capsys):
    ours, _, plain, tried = python_blocks("how-to/own-weighting.md")
    save(here, ours)
    save(here, plain)
    exec(tried, {})
    assert "tensor([[" in capsys.readouterr().out
    generator = torch.Generator().manual_seed(0)
    logps = -torch.rand(4, 6, generator=generator, dtype=torch.float64)
    A, mask, ids = torch.tensor([1.0, -1.0, 0.0, 0.0]), torch.ones(4, 6, dtype=torch.bool), torch.tensor([0, 0, 1, 1])
    mask[0, 3:] = False
    w = get_weighting("my_weighting:Cauchy", scale=2.0)(logps, A, mask, ids)
    assert w[:2].sum() == pytest.approx(9) and (w[2:] == 1).all() and (w[0, 3:] == 0).all()
    c = (logps[:2] - logps[:2][mask[:2]].mean()) * (A[:2] - A[:2].repeat_interleave(6)[mask[:2].flatten()].mean())[
        :, None
    ]
    raw = 1 / (1 + (c / (2 * c[mask[:2]].std(correction=0))) ** 2)
    assert torch.allclose(w[:2][mask[:2]], (raw / raw[mask[:2]].mean())[mask[:2]])
    w = get_weighting("plain:spare_the_right")(logps, A, mask, ids)
    assert (w[0, :3] == 1).all() and (w[0, 3:] == 0).all() and (w[1] != 1).all()


def test_a_task_of_your_own(here, capsys):
    task_file, tried = python_blocks("how-to/own-task.md")
    save(here, task_file)
    exec(tried, {})
    assert (
        len(
            re.findall(
                r"^Is the number of ones in [01]{6} even or odd\? -> (?:even|odd)$", capsys.readouterr().out, re.M
            )
        )
        == 3
    )
    task = load_task("my_tasks.parity:Parity?bits=6")
    assert load_task(task.spec) == task
    train, held_out = (task.problems(split, 64, seed=0) for split in ("train", "eval"))
    assert len({p.question for p in train + held_out}) == len(train) + len(held_out) == 64
    score = sys.modules["my_tasks.parity"].score
    for problem in train:
        right = ("even", "odd")[problem.id.count("1") % 2]
        assert problem.answer == right and score(problem.payload, f" {right.upper()}\n") == 1
        assert score(problem.payload, "neither") == 0


def test_a_reward_of_your_own():
    names: dict = {}
    exec(python_blocks("how-to/own-reward.md")[0], names)
    logged = []
    chat = [{"role": "assistant", "content": "Cat, dog and dog"}]
    rewards = names["reward"](
        prompts=["a"] * 3,
        completions=["a cow", chat, "none"],
        count=[2, 4, 1],
        log_metric=lambda *pair: logged.append(pair),
    )
    assert rewards == [0.5, 0.5, 0.0] and logged == [("animals/mean", 1.0)]
    assert names["reward"](prompts=["a"] * 2, completions=["cat", None], count=[1, 1]) == [1.0, 0.0]


@pytest.mark.slow
def test_a_trl_script_trains_and_leaves_a_run_folder(here, monkeypatch):
    monkeypatch.setattr("covgrpo.models.load_model", lambda name: (tiny_model(), tiny_tokenizer()))
    code = python_blocks("how-to/trl-script.md")[0]
    assert "max_steps=20" in code
    exec(code.replace("max_steps=20", "max_steps=1, use_cpu=True, bf16=False"), {"__name__": "script"})
    [record] = [json.loads(line) for line in (here / "out/metrics.jsonl").read_text().splitlines()]
    assert record["step"] == 1 and {"reward", "cov/sigma", "weight/ess"} <= set(record)


def test_what_a_report_holds_as_data(here, capsys):
    make_run(here / "runs/demo", steps=3)
    [code] = python_blocks("how-to/read-a-report.md")
    exec(code, {})
    assert "reward" in capsys.readouterr().out


def test_the_core_on_a_few_numbers():
    [code] = python_blocks("api/core.md")
    names: dict = {}
    exec(code, names)
    assert names["w"].shape == (2, 3)


# --- the method in pictures ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rollout():
    return method_figures.read_rollout()


def test_the_page_of_the_method_holds_the_table_and_the_figures_numbers(rollout):
    page = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    assert "\n".join(method_figures.table(rollout)) + "\n" in page
    x = method_figures.covariance_by_sigma(rollout).abs()
    for number in (f"{len(x):,} tokens", f"{(x < 0.5).double().mean():.0%} of", f"{(x > 2).double().mean():.0%} lie"):
        assert number.replace("%", " %") in page
    A = rollout.arguments[1]
    shown = A[[prompt == method_figures.PROMPT for prompt in rollout.prompts]]
    assert f"A is {shown.max():.2f} for the right completions and {shown.min():.2f} for the wrong" in page


def test_the_rollout_is_whole(rollout):
    assert rollout.group_ids.bincount().tolist() == [12] * 4 and set(rollout.rewards.tolist()) == {0, 1}
    assert [len(tokens) for tokens in rollout.tokens] == rollout.mask.sum(dim=1).tolist()
    assert rollout.logps.max() <= 0


def test_the_figures_are_those_of_the_script(rollout, tmp_path):
    """As far as fonts of another machine allow."""
    from PIL import Image, ImageChops, ImageStat

    for name, draw in (("kernel", method_figures.draw_kernel), ("traces", method_figures.draw_traces)):
        draw(rollout).savefig(tmp_path / "drawn.png")
        drawn, kept = (Image.open(p).convert("RGB") for p in (tmp_path / "drawn.png", ROOT / f"docs/method-{name}.png"))
        assert drawn.size == kept.size
        assert max(ImageStat.Stat(ImageChops.difference(drawn, kept)).mean) < 4
