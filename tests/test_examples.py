"""The examples as a user runs them, in a tiny form: each does what its docstring and examples/README.md promise.

The Python scripts run in this process, which has the libraries; what is on the command line is theirs. Nothing is
downloaded: data sets are files of the same columns, the model is that of tiny.py.
"""

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model, tiny_tokenizer

from covgrpo.cli import main
from covgrpo.tasks import get_answer_format, load_task
from covgrpo.verl import choose

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
NOTEBOOK = EXAMPLES / "quickstart.ipynb"
# What in a kept output would name the machine that made it, or is noise.
PRIVATE = re.compile(r"/(?:home|root|work|tmp|usr|opt|Users)/|site-packages|[Ww]arning|Traceback")


@pytest.fixture
def example(work, monkeypatch):
    """Run an example in ``work``, with its own folder on the import path as ``python examples/NAME.py`` has it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", work / "cache")

    def run(name, *words):
        path = str(EXAMPLES / name)
        monkeypatch.setattr(sys, "argv", [path, *words])
        return runpy.run_path(path, run_name="__main__")

    yield run
    sys.modules.pop("own_weighting", None)


def metrics(folder):
    return [json.loads(line) for line in (Path("runs") / folder / "metrics.jsonl").read_text().splitlines()]


def often_said(*messages):
    """What the tiny model most often says first."""
    prompt = [{"role": role, "content": text} for role, text in zip(("system", "user"), messages, strict=True)]
    tokenizer = tiny_tokenizer()
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    logits = tiny_model()(**ids).logits[0, -1]
    logits[:3] = -torch.inf  # the special tokens
    return tokenizer.decode(logits.argmax())


# Files


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_short_and_says_what_it_shows_how_it_runs_and_on_what(path):
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 90
    said = ast.get_docstring(ast.parse(source)) or ""
    assert f"python examples/{path.name}" in said
    assert re.search(r"^Hardware: ", said, re.MULTILINE)


def test_the_page_names_every_example():
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh", ".ipynb")}
    assert set(re.findall(r"^\| \[`([\w.]+)`\]", page, re.MULTILINE)) == files
    assert len(files) == 9


# Scripts


@pytest.mark.slow
def test_trl_gsm8k_learns_from_verified_answers(example, work, capsys):
    system, question = get_answer_format("math").instruction, "How many?"
    rows = [{"question": question, "answer": f"Count them.\n#### {often_said(system, question)}"} for _ in range(32)]
    folder = work / "gsm8k"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: train.jsonl\n---\n"
    )
    example("trl_gsm8k.py", "--model", "../tiny", "--dataset", str(folder), "--steps", "2", "--length", "1")
    first, second = metrics("trl_gsm8k")
    assert 0 < first["rewards/correctness/mean"] < 1
    assert first["verifier/failures"] == 0
    assert first["weight/min"] < 0.9 < 1 < first["weight/max"]
    trained = load_file(work / "runs/trl_gsm8k/model/model.safetensors")
    start = load_file(work / "../tiny/model.safetensors")
    assert any(not torch.equal(trained[name], start[name]) for name in start)
    assert second["step"] == 2


@pytest.mark.slow
def test_lora_trains_adapters_alone(example, work, capsys):
    words = ["--model", "../tiny", "--task", "own.tasks:letters", "--format", "plain"]
    example("lora_one_gpu.py", *words, "--steps", "2", "--length", "4")
    assert re.search(r"trainable params: [\d,]+ \|\| all params", capsys.readouterr().out)
    adapter = load_file(work / "runs/lora_one_gpu/adapter/adapter_model.safetensors")
    assert adapter.keys() and all("lora_" in name for name in adapter)
    assert {values.dtype for values in adapter.values()} == {torch.float32}
    assert any(values.any() for name, values in adapter.items() if "lora_B" in name), "lora_B starts at 0"
    assert metrics("lora_one_gpu")[0]["weight/min"] < 0.9


@pytest.mark.slow
def test_own_rewards_count_and_are_weighted(example, capsys):
    names = example("own_reward.py", "--model", "../tiny", "--steps", "1", "--length", "4")
    (record,) = metrics("own_reward")
    assert record["animals/mean"] == record["rewards/named/mean"] == 0.0, "the tiny model knows no animal"
    assert record["reward"] == pytest.approx(0.2 * record["rewards/short/mean"])
    said = [[{"role": "assistant", "content": text}] for text in ("Dogs, cat, cow.", "dog dog", "")]
    assert names["named"]([], said, count=[2, 2, 4]) == [1.0, 0.5, 0.0]
    assert names["short"]([], said) == pytest.approx([0.85, 0.93, 1.0])


@pytest.mark.slow
def test_own_weighting_weighs_the_trainers_tokens(example, capsys):
    words = ["--model", "../tiny", "--task", "own.tasks:letters", "--steps", "1"]
    cauchy = example("own_weighting.py", *words)["Cauchy"]
    (narrow,) = metrics("own_weighting")
    assert narrow["weight/min"] < 0.9 < 1 < narrow["weight/max"]
    example("own_weighting.py", *words, "--scale", "1e6", "--output", "runs/wide")
    (wide,) = metrics("wide")
    assert wide["weight/min"] == pytest.approx(1) == wide["weight/max"]
    assert wide["cov/sigma"] == narrow["cov/sigma"] > 0
    words = ["--task", "addition", "--weighting", "own_weighting:Cauchy", "--weighting-kwargs", "scale=2"]
    assert main(["train", "--dry-run", *words]) == 0
    assert "own_weighting:Cauchy, statistics by group" in capsys.readouterr().out

    logps, A = -torch.rand(4, 5), torch.tensor([1.0, -1.0, 0.5, 0.5])
    mask, group = torch.arange(5) < torch.tensor([[5], [3], [2], [4]]), torch.tensor([7, 7, 3, 3])
    w = cauchy(2.0)(logps, A, mask, group)
    assert (w[2:] == 1).all(), "equal advantages"
    valid = mask[:2]
    of_tokens = logps[:2][valid], A[:2, None].expand(2, 5)[valid]
    c = torch.stack([column - column.mean() for column in of_tokens]).prod(dim=0)
    expected = 1 / (1 + c.square() / (4 * c.var(correction=0)))
    torch.testing.assert_close(w[:2][valid], expected / expected.mean())
    torch.testing.assert_close(w[:2], cauchy(2.0)(logps[:2], A[:2], mask[:2]))


@pytest.mark.slow
def test_the_stock_trainers_diagnostics_leave_weights_at_one(example, work, capsys):
    example("stock_trainer_diagnostics.py", "--model", "../tiny", "--steps", "5")
    records = metrics("stock_trainer_diagnostics")
    assert len(records) == 5
    assert all(record["weight/min"] == record["weight/max"] == 1 and record["cov/sigma"] > 0 for record in records)
    assert [record["step"] for record in records if "entropy/change" in record] == [5]
    printed = dict(re.findall(r"^(\S+) +(-?\d+\.\d{3})$", capsys.readouterr().out, re.MULTILINE))
    assert float(printed["cov/sigma"]) == pytest.approx(records[-1]["cov/sigma"], abs=1e-3)
    assert printed.keys() >= {"reward", "entropy", "cov/pos_0.01", "update/top_share"}
    assert (work / "runs/stock_trainer_diagnostics/tokens.jsonl").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize(("weighting", "steps"), [("gaussian", "100"), ("none", "60")])
def test_the_bare_loop_learns(example, capsys, weighting, steps):
    example("bare_loop.py", "--weighting", weighting, "--steps", steps)
    rows = re.findall(r"reward (\S+)  entropy (\S+)  smallest weight (\S+)", capsys.readouterr().out)
    rewards, entropies, weights = ([float(value) for value in column] for column in zip(*rows, strict=True))
    assert rewards[0] < 0.25 and rewards[-1] > 0.9
    assert entropies[-1] < 0.5 * entropies[0]
    assert (max(weights) == 1) == (weighting == "none")


@pytest.mark.slow
def test_an_evaluation_keeps_its_completions_and_goes_on_from_them(example, work, capsys):
    question = "How many?"
    answer = often_said(get_answer_format("math").instruction, question)
    rows = [{"id": f"p{i}", "problem": question, "answer": answer if i else "no such answer"} for i in range(3)]
    (work / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--model", "../tiny", "--benchmark", "problems.jsonl", "--length", "1"]
    example("evaluate_math500.py", *words)
    found = json.loads((work / "runs/evaluate_math500/result.json").read_text())
    assert (found["n"], found["k"], found["unscored"], found["truncated"]) == (3, 4, 0, pytest.approx(1, abs=0.5))
    assert 0 < found["avg@4"]["accuracy"] <= found["pass@4"]["accuracy"] <= 0.67
    first = capsys.readouterr().out
    assert "avg@4 " in first and "maj@4 " in first and "0/12 completions" in first
    completions = (work / "runs/evaluate_math500/completions.jsonl").read_bytes()
    example("evaluate_math500.py", *words)
    assert capsys.readouterr().out == first.replace("0/12 completions\n", "", 1)
    assert (work / "runs/evaluate_math500/completions.jsonl").read_bytes() == completions


# verl


def test_the_verl_script_sets_the_variable_and_keys_of_the_recipes(tmp_path):
    """What it hands to python, by a program in python's place; `make test-verl` composes verl's configuration of it."""
    (tmp_path / "python").write_text('#!/bin/sh\necho "$VERL_USE_EXTERNAL_MODULES"\nprintf "%s\\n" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    command = ["bash", str(EXAMPLES / "verl_gsm8k.sh"), "+algorithm.covgrpo.weighting=gaussian_through"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout
    variable, *words = said.splitlines()
    (spec,) = re.findall(r"verl_data.py '(\S+)'", (EXAMPLES / "verl_gsm8k.sh").read_text(encoding="utf-8"))
    assert load_task(spec).params["question"] == "question"
    assert variable == "covgrpo.verl"
    assert words[:2] == ["-m", "verl.trainer.main_ppo"]
    given = dict(word.split("=", 1) for word in words[2:])
    recipe = (ROOT / "recipes/verl/qwen2.5-1.5b.sh").read_text(encoding="utf-8")
    known = set(re.findall(r"^  ([\w.]+)=", recipe, re.MULTILINE)) | {"+algorithm.covgrpo.weighting"}
    assert given.keys() <= known
    algorithm = {"covgrpo": {"weighting": given["+algorithm.covgrpo.weighting"]}}
    actor = {"policy_loss": {"loss_mode": "vanilla"}}
    actor["loss_agg_mode"] = given["actor_rollout_ref.actor.loss_agg_mode"]
    choice = choose({"algorithm": algorithm, "actor_rollout_ref": {"actor": actor}}, by_variable=True)
    assert (choice.name, choice.scope, choice.weighting.normaliser) == ("gaussian_through", "group", "token")


# The notebook


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_the_notebook_is_kept_with_its_outputs_and_names_no_machine():
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    found = outputs(notebook)
    assert sum("image/png" in output.get("data", {}) for output in found) == 2
    text = "".join(output.get("text", "") + str(output.get("data", {}).get("text/plain", "")) for output in found)
    assert not PRIVATE.search(text)
    assert {output.get("name", "stdout") for output in found} == {"stdout"}
    after = {m: float(a) for m, a in re.findall(r"^(\S.*?) +after +accuracy (\S+)", text, re.MULTILINE)}
    before = {m: float(a) for m, a in re.findall(r"^(\S.*?) +before +accuracy (\S+)", text, re.MULTILINE)}
    assert after.keys() == before.keys() == {"plain GRPO", "covariance-aware"}
    assert all(after[method] > before[method] + 0.3 for method in after), "it learns visibly"
    assert NOTEBOOK.stat().st_size < 300_000


@pytest.mark.slow
def test_the_notebook_runs(work, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("QUICKSTART_MODEL", "../tiny")
    monkeypatch.setenv("QUICKSTART_STEPS", "2")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kept = [output.output_type for output in outputs(notebook)]
    where = {"metadata": {"path": str(work)}}
    NotebookClient(notebook, timeout=300, coalesce_streams=True, resources=where).execute()
    found = outputs(notebook)
    assert [output.output_type for output in found] == kept
    assert {output.get("name", "stdout") for output in found} == {"stdout"}, "no library has anything to say"
    for method in ("grpo", "gaussian"):
        config = json.loads((work / f"runs/quickstart/{method}/config.json").read_text())
        assert config["options"]["method"] == method
        assert [record["step"] for record in metrics(f"quickstart/{method}")] == [1, 2]
