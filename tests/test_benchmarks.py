"""`covgrpo eval --benchmark`: benchmarks by name and file, completions made elsewhere, records, the table."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from vllm_stand_in import put_in_place

from covgrpo.cli import main
from covgrpo.errors import UserError
from covgrpo.evaluation.benchmarks import BENCHMARKS, load_benchmark
from covgrpo.evaluation.completions import read_completions
from covgrpo.evaluation.generation import Drawn, GenerationSettings, draw_all
from covgrpo.evaluation.table import PAPER, benchmark_name
from covgrpo.tasks import get_answer_format
from covgrpo.tasks.hub import HubTask, problems_in

PROBLEMS = [
    {"id": "a", "problem": "What is 1 + 1?", "answer": "2"},
    {"id": "b", "problem": "What is half of 1?", "answer": "\\frac{1}{2}"},
    {"id": "c", "problem": "Which set?", "answer": "\\{1, 2\\}"},
]


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path):
    problems = write(tmp_path / "math500-part.jsonl", PROBLEMS)
    rows = [
        {"id": "a", "completion": "So the answer is \\boxed{2}."},
        {"id": "b", "completion": "<think>\\boxed{7}</think> It is \\boxed{0.5}"},
        {"id": "a", "completion": "\\boxed{3}"},
        {"id": "b", "completion": "I do not know"},
        {"id": "c", "completion": "The answer is $\\{2, 1\\}$."},
        {"id": "c", "completion": ""},
    ]
    return problems, write(tmp_path / "completions.jsonl", rows)


def test_completions_made_elsewhere(files, capsys):
    problems, completions = map(str, files)
    scores = files[0].parent / "out" / "scores.jsonl"
    words = ["--benchmark", problems, "--completions", completions, "--scores", str(scores)]
    assert main(["eval", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in scores.read_text().splitlines()]
    assert [(row["id"], row["score"]) for row in rows] == list(zip("aabbcc", (1, 0, 1, 0, 1, 0), strict=True))
    assert rows[2] == {"id": "b", "gold": "\\frac{1}{2}", "answer": "0.5", "score": 1.0}
    assert (found["n"], found["k"], found["unscored"]) == (3, 2, 0)
    assert found["accuracy"] == found["avg@2"]["accuracy"] == pytest.approx(0.5)
    assert found["pass@1"]["accuracy"] == pytest.approx(0.5) and found["pass@2"]["accuracy"] == 1.0
    assert found["maj@2"]["accuracy"] == 1.0, "of two answers the earlier one"
    assert 0 < found["low"] < 0.5 < found["high"] < 1 or found["low"] == found["high"] == 0.5
    assert "model" not in found and "length" not in found


def test_in_words(files, capsys):
    problems, completions = map(str, files)
    assert main(["eval", "--benchmark", problems, "--completions", completions, "--problems", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("completions on ") and "n=3 problems, 2 completions each" in lines[0]
    assert lines[1].startswith("  accuracy  0.500  95 % interval [")


def test_problems_without_completions_are_named(files, capsys):
    problems, completions = files
    write(completions, [{"id": "a", "completion": "\\boxed{2}"}])
    assert main(["eval", "--benchmark", str(problems), "--completions", str(completions)]) == 0
    assert "2 problems have no completion and are left out" in capsys.readouterr().out


def test_a_name_without_the_hub_says_what_serves_instead(monkeypatch, capsys, files):
    def refuse(*args, **kwargs):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    assert main(["eval", "--benchmark", "aime24", "--completions", str(files[1])]) == 2
    error = capsys.readouterr().err
    assert "HuggingFaceH4/aime_2024" in error and "no network" in error and "JSON-lines" in error


def test_benchmarks_from_the_hub(monkeypatch):
    rows = {
        "HuggingFaceH4/MATH-500": [{"problem": " q ", "answer": "7"}],
        "knoveleng/Minerva-Math": [{"problem": "q", "solution": "So \\boxed{1} or rather \\boxed{\\frac{1}{2}}."}],
        "knoveleng/OlympiadBench": [{"question": "q", "answer": ["$2$"]}],
    }
    monkeypatch.setattr("datasets.load_dataset", lambda dataset, config, split: rows[dataset])
    assert load_benchmark("math500")[0].question == "q" and load_benchmark("math500")[0].id == "math500/0"
    assert load_benchmark("minerva")[0].payload == {"gold": "\\frac{1}{2}"}
    assert load_benchmark("olympiadbench")[0].answer == "$2$"


def test_a_task_from_the_hub(monkeypatch):
    rows = [{"problem": f"q{i}", "answer": i} for i in range(50)]
    monkeypatch.setattr("datasets.load_dataset", lambda dataset, config, split: rows)
    task = HubTask("org/name")
    train, held_out = task.problems("train", 100, 0), task.problems("eval", 100, 0)
    assert len(train) + len(held_out) == 50 and not {p.id for p in train} & {p.id for p in held_out}
    assert len(HubTask("org/name", split="all").problems("train", 100, 0)) == 50
    with pytest.raises(UserError, match="'what'"):
        HubTask("org/name", what=1)
    with pytest.raises(UserError, match="row 1: column 'answer' holds no answer"):
        problems_in([{"problem": "q", "answer": "1"}, {"problem": "r", "answer": None}], "x", "problem", "answer")


@pytest.mark.parametrize(
    ("column", "gold"),
    [
        ("Half of 96 is <<96/2=48>>48.\n#### 48", "48"),
        ("So it costs\n#### 1,234 ", "1,234"),
        ("#### 1\nno, rather\n#### -2.5", "-2.5"),
        ("\\boxed{7}\n#### 8", "7"),
        ("issue #### 3 of the list, 4", "issue #### 3 of the list, 4"),
        ("nothing follows\n####", "nothing follows\n####"),
    ],
)
def test_the_gold_answer_of_a_worked_solution_as_gsm8k_writes_it(column, gold):
    (problem,) = problems_in([{"question": "q", "answer": column}], "x", "question", "answer")
    assert (problem.answer, problem.payload) == (gold, {"gold": gold})


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("<think>\\boxed{1}</think> \\boxed{2}", "2"),
        ("<think> \\boxed{1} </think> so it is 1", "1"),
        ("x" * 5000 + " the answer is $5$", ("x" * 5000 + " the answer is $5$")[-1000:]),
        ("$y" + " so" * 500 + "$ and the answer is $5$", "and the answer is $5$"),
        ("", ""),
    ],
)
def test_extraction(text, answer):
    assert get_answer_format("math").extract(text) == answer


def test_thought_then_box():
    well_formed = get_answer_format("think_math").is_well_formed
    assert well_formed("<think>\nlong\n</think>\n\\boxed{2}") and well_formed("long\n</think>\nIt is \\boxed{2}.")
    assert not any(
        map(
            well_formed, ("\\boxed{2}", "<think></think>", "a <think></think> \\boxed{2}", "</think></think>\\boxed{2}")
        )
    )


# --- completions drawn here ------------------------------------------------------------------------------------------


class Scripted:
    """Completions that tell their problem, batch seed and place."""

    def __init__(self, fail_after: int = 10**9):
        self.batches: list[int] = []
        self.fail_after = fail_after

    def draw(self, prompts, seed):
        if len(self.batches) == self.fail_after:
            raise KeyboardInterrupt
        self.batches.append(len(prompts))
        return [Drawn(f"{p[-1]['content']} {seed} {i}", i, i == 0) for i, p in enumerate(prompts)]


PROMPTS = {key: [{"role": "user", "content": key}] for key in "abcde"}
SETTINGS = GenerationSettings(samples=2, batch_size=4)


def test_a_stopped_evaluation_goes_on(tmp_path):
    whole = draw_all(lambda: Scripted(), PROMPTS, SETTINGS, None, {})
    assert {key: len(drawn) for key, drawn in whole.items()} == dict.fromkeys("abcde", 2)
    records, engine = tmp_path / "deep" / "records.jsonl", Scripted(fail_after=2)
    with pytest.raises(KeyboardInterrupt):
        draw_all(lambda: engine, PROMPTS, SETTINGS, records, {})
    with records.open("a") as file:
        file.write('{"id": "e", "comp')
    engine = Scripted()
    assert draw_all(lambda: engine, PROMPTS, SETTINGS, records, {}) == whole and engine.batches == [2]
    assert draw_all(lambda: pytest.fail("nothing is left to draw"), PROMPTS, SETTINGS, records, {}) == whole


@pytest.mark.parametrize("other", ["settings", "model", "prompts", "no records"])
def test_records_of_another_evaluation_are_refused(tmp_path, other):
    records = tmp_path / "records.jsonl"
    draw_all(lambda: Scripted(), PROMPTS, SETTINGS, records, {"model": "m"})
    if other == "no records":
        records.write_text("hello\nworld\n")
    settings = GenerationSettings(samples=2, batch_size=4, seed=1) if other == "settings" else SETTINGS
    prompts = {**PROMPTS, "a": [{"role": "user", "content": "new"}]} if other == "prompts" else PROMPTS
    with pytest.raises(UserError, match="another --records"):
        draw_all(lambda: Scripted(), prompts, settings, records, {"model": "n" if other == "model" else "m"})


def test_vllm_draws_where_it_is_asked_for(monkeypatch, files, tmp_path, capsys):
    """With a stand-in: what it is handed, and what is read of its answers."""
    vllm = put_in_place(monkeypatch)
    records = tmp_path / "records.jsonl"
    words = ["org/name", "--benchmark", str(files[0]), "--samples", "2", "--batch-size", "4", "--engine", "vllm"]
    assert main(["eval", *words, "--records", str(records), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert vllm.handed["options"] == {"model": "org/name", "trust_remote_code": False, "seed": 0}
    assert {(p.temperature, p.top_p, p.max_tokens, p.n) for p in vllm.handed["parameters"]} == {(0.6, 0.95, 32_768, 1)}
    assert len({p.seed for p in vllm.handed["parameters"]}) == 6, "a seed for each completion"
    assert [c[-1]["content"] for c in vllm.handed["conversations"]][::2] == [p["problem"] for p in PROBLEMS]
    recorded = [json.loads(line) for line in records.read_text().splitlines()[1:]]
    assert found["truncated"] == sum(row["truncated"] for row in recorded) / 6 and found["length"]["mean"] == 3
    assert main(["eval", *words[:-1], "own", "--records", str(records)]) == 2
    assert "another evaluation" in capsys.readouterr().err, "another engine draws other completions"


@pytest.mark.slow
def test_a_model_on_a_benchmark(tiny_folder, files, tmp_path, capsys):
    words = ["eval", str(tiny_folder), "--benchmark", str(files[0]), "--samples", "4", "--max-completion-length", "8"]
    words += ["--records", str(tmp_path / "r.jsonl"), "--result", str(tmp_path / "out" / "r.json"), "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["k"]) == (3, 4) and found["model"] == str(tiny_folder)
    assert {"avg@4", "pass@1", "pass@2", "pass@4", "maj@2", "maj@4"} <= set(found)
    assert 0 < found["length"]["mean"] <= 8 and 0 <= found["truncated"] <= 1
    assert json.loads((tmp_path / "out" / "r.json").read_text()) == found
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 13
    assert main(words) == 0 and json.loads(capsys.readouterr().out) == found, "from the records alone"


# --- the table -------------------------------------------------------------------------------------------------------


def result(path: Path, label: str, benchmark: str, accuracy: float) -> str:
    found = {
        "label": label,
        "benchmark": benchmark,
        "accuracy": accuracy,
        "low": accuracy - 0.1,
        "high": accuracy + 0.1,
    }
    path.write_text(json.dumps(found))
    return str(path)


def test_the_table(tmp_path, capsys):
    files = [
        result(tmp_path / f"{i}.json", label, name, value)
        for i, (label, name, value) in enumerate(
            [("my gaussian", f"../data/{name}.jsonl", 0.5) for name in BENCHMARKS] + [("grpo-baseline", "math500", 0.8)]
        )
    ]
    assert main(["table", *files, "--paper", "1.5b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| model | AIME24 | MATH-500 | AMC23 | Minerva | OlympiadBench | average |"
    assert lines[2].startswith("| my gaussian | 0.500 [0.400, 0.600] |") and lines[2].endswith("| 0.500 |")
    assert lines[3].endswith("| 0.800 [0.700, 0.900] |  |  |  |  |")
    assert "| paper: gaussian | 0.300 | 0.870 | 0.775 | 0.298 | 0.520 | 0.553 |" in lines
    assert any(line.startswith("| my gaussian less paper: gaussian | 0.200 [0.100, 0.300] |") for line in lines)
    assert any(line.startswith("| grpo-baseline less paper: grpo |  | -0.050 [-0.150, 0.050] |") for line in lines)
    assert main(["table", *files, "--csv"]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows[0][0] == "model" and rows[1][0] == "my gaussian" and len(rows) == 3


def test_the_papers_averages_are_those_of_its_columns():
    printed = {"1.5b": (48.9, 52.6, 53.6, 55.3), "7b": (41.4, 44.1, 44.7, 46.7)}
    for size, averages in printed.items():
        for values, average in zip(PAPER[size].values(), averages, strict=True):
            assert abs(100 * sum(values) / 5 - average) < 0.06


def test_bad_results(tmp_path, capsys):
    good = result(tmp_path / "a.json", "x", "math500", 0.5)
    assert main(["table", good, good]) == 2 and "x has math500 twice" in capsys.readouterr().err
    (tmp_path / "b.json").write_text("{}")
    assert main(["table", str(tmp_path / "b.json")]) == 2 and "b.json is no result" in capsys.readouterr().err
    assert main(["table", good, "--paper", "3b"]) == 2 and "'3b' is unknown" in capsys.readouterr().err


def test_names_of_files():
    assert [benchmark_name(x) for x in ("math500", "data/MATH-500.jsonl", "amc23_part.jsonl", "own.jsonl")] == [
        "math500", "math500", "amc23", "own",
    ]  # fmt: skip


def test_ids_may_be_numbers(tmp_path):
    path = write(tmp_path / "c.jsonl", [{"id": 7, "completion": "x", "other": 1}])
    assert read_completions(path, {"7"}) == {"7": ["x"]}


# --- a model that does not take the prompts, and one that has changed -----------------------------------------------


def own_model(folder: Path, tiny_folder: Path, **config) -> Path:
    shutil.copytree(tiny_folder, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, **config}))
    return folder


def on_benchmark(model: Path, files, *more: str) -> list[str]:
    return ["eval", str(model), "--benchmark", str(files[0]), "--engine", "own", "--samples", "1", *more]


@pytest.mark.parametrize("template", [None, "{{ raise_exception('System role not supported') }}"])
def test_a_template_that_does_not_take_the_prompts_is_one_sentence(tiny_folder, files, tmp_path, capsys, template):
    model = own_model(tmp_path / "model", tiny_folder)
    tokenizer = AutoTokenizer.from_pretrained(model)
    (model / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(model)
    assert main(on_benchmark(model, files, "--max-completion-length", "4")) == 2
    assert "the model's chat template does not take the prompt" in capsys.readouterr().err


def test_completions_are_as_long_as_the_context_has_room_for(tiny_folder, files, tmp_path, capsys):
    model = own_model(tmp_path / "model", tiny_folder, max_position_embeddings=120)
    assert main([*on_benchmark(model, files), "--json"]) == 0
    out, err = capsys.readouterr()
    room = int(re.search(r"completions have (\d+) tokens at most: the model's context is 120", err)[1])
    assert 0 < room < 120 and json.loads(out)["length"]["max"] <= room
    assert main(on_benchmark(model, files, "--max-completion-length", "119")) == 2
    assert "does not fit the model's context of 120 tokens" in capsys.readouterr().err


def test_records_are_of_the_weights_that_drew_them(tiny_folder, files, tmp_path, capsys):
    """A run that goes on has other weights under the same name."""
    model, records = own_model(tmp_path / "model", tiny_folder), tmp_path / "r.jsonl"
    words = on_benchmark(model, files, "--max-completion-length", "3", "--records", str(records))
    assert main(words) == main(words) == 0
    earlier = records.read_text().splitlines()
    head = json.loads(earlier[0])
    del head["evaluation"]["weights"]
    (tmp_path / "old.jsonl").write_text("\n".join([json.dumps(head), *earlier[1:]]) + "\n")
    assert main([*words[:-1], str(tmp_path / "old.jsonl")]) == 0, "as an earlier version wrote it"
    weights = load_file(model / "model.safetensors")
    save_file({name: value * 0 for name, value in weights.items()}, model / "model.safetensors", {"format": "pt"})
    capsys.readouterr()
    assert main(words) == 2
    assert "holds completions of another evaluation" in capsys.readouterr().err
    assert records.read_text().splitlines() == earlier
