"""The tables of docs/entropy.md: how entropies are held and moved targets followed, as the kept records say."""

import json
import sys
from pathlib import Path

import pytest
from study_cases import STUDY, made_study, write_records

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import held_entropy
import moved_targets
import page_tables

PAGE = (Path(__file__).resolve().parents[1] / "docs/entropy.md").read_text()


def cells(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]


@pytest.mark.parametrize("script", [held_entropy, moved_targets])
def test_the_page_holds_the_table_of_the_kept_records(script):
    assert page_tables.inserted(PAGE, script.tables(), script.MARKS) == PAGE


def test_held_by_hand(tmp_path, monkeypatch):
    """A target of 2, then means of 25 that are known; a study without regimes goes by a name of its own."""
    text = STUDY.replace("regimes: {easy: {}, hard: {num_iterations: 4}}\n", "").replace("hard_regimes: [hard]\n", "")
    study = made_study(tmp_path, text.replace("steps: 20", "steps: 500"), "held")
    entropy = [2.0] * 10 + [1.0] * 15 + [1.5] * 25 + [1.0] * 25 + [3.0] * 25 + [2.0] * 400
    curves = {"reward": [0.5] * 500, "entropy": entropy, "grad_norm": [1.0] * 500}
    write_records(tmp_path / "held", study, {("", "gaussian", 3): 0.5, ("", "gaussian", 4): 0.5}, curves=curves)
    monkeypatch.setattr(held_entropy, "STUDIES", tmp_path)
    monkeypatch.setattr(held_entropy, "HELD", {"held": "made"})
    rows = cells(held_entropy.tables())
    assert rows[0][:4] == ["task", "method", "runs", "step 50"]
    # 1.5 / 2 at step 50, 3 / 2 at step 100; step 75's 1 / 2 counts for the lowest, those of steps 25 and 50 do not;
    # both lie outside of a tenth, in each of two runs
    assert rows[2:] == [
        ["made", "`gaussian`", "2", "0.75", "1.50", "1.00", "1.00", "1.00", "1.00", "0.50, 1.50", "32 of 36"]
    ]


def test_a_run_of_another_length_is_refused(tmp_path, monkeypatch, capsys):
    study = made_study(tmp_path, STUDY, "held")  # 20 steps
    write_records(tmp_path / "held", study, {("easy", "gaussian", 3): 0.5})
    monkeypatch.setattr(held_entropy, "STUDIES", tmp_path)
    monkeypatch.setattr(held_entropy, "HELD", {"held": ""})
    assert held_entropy.main([]) == 2
    assert capsys.readouterr().err == (
        "held_entropy: easy gaussian, seed 3: 500 steps with a finite entropy are needed, 20 were found.\n"
    )


@pytest.fixture
def run(tmp_path):
    """A run's folder: target 0.2 for 100 steps, then 0.24; the entropy follows in 40 steps and goes a little beyond."""

    def make(targets=(0.2,) * 100 + (0.24,) * 100):
        folder = tmp_path / "run"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"options": {"seed": 7}}))
        after = [0.2] * 10 + [0.21] * 10 + [0.22] * 10 + [0.23] * 10 + [0.244] * 10 + [0.24] * 50
        lines = [
            {"step": i + 1, "entropy": entropy, "hold/kappa": 2.0, "weight/ess": 0.9, "hold/target": target}
            for i, (entropy, target) in enumerate(zip([0.2] * 100 + after, targets, strict=True))
        ]
        for line in lines:
            if line["hold/target"] is None:
                del line["hold/target"]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return make


@pytest.fixture
def alone(tmp_path):
    """A record of the run left alone: its entropy stays, but for the ten steps in which its copy's is highest."""

    def make(after=(0.2,) * 40 + (0.204,) * 10 + (0.2,) * 50):
        path = tmp_path / "alone.json"
        path.write_text(json.dumps({"curves": {"entropy": [0.2] * 100 + list(after)}}))
        return path

    return make


def test_moved_by_hand(run, alone, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(moved_targets, "KEPT", tmp_path / "kept")
    folder = run((None,) * 9 + (0.2,) * 91 + (0.24,) * 100)
    assert moved_targets.main(["--keep", "made", "--alone", str(alone()), str(folder)]) == 0
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["made--s7--1.2.json"]
    rows = cells(moved_targets.tables())
    assert rows[0][3:7] == ["steps 11 to 20", "21 to 30", "31 to 40", "41 to 50"]
    assert rows[2] == ["made", "1.2", "1", "0.25", "0.50", "0.75", "1.10", "20", "1.10", "1.00", "1.10", "0.90"]
    assert capsys.readouterr().out == "made--s7--1.2.json\n"
    page = tmp_path / "page.md"
    page.write_text("".join(moved_targets.MARKS))
    assert moved_targets.main(["--write", str(page)]) == 0 and "| made |" not in capsys.readouterr().out
    assert "| made |" in page.read_text()


@pytest.mark.parametrize(
    "targets", [(0.2,) * 200, (None,) * 200, (None,) * 9 + (0.2,) * 191], ids=["none", "unheld", "set"]
)
def test_a_run_whose_target_was_not_moved_is_refused(run, alone, targets, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(moved_targets, "KEPT", tmp_path / "kept")
    assert moved_targets.main(["--keep", "made", "--alone", str(alone()), str(run(targets))]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "target was moved is needed" in error
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(("after", "found"), [([0.2] * 99, "199 were"), ([], "100 were")], ids=["199", "100"])
def test_the_run_left_alone_must_be_as_long(run, alone, after, found, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(moved_targets, "KEPT", tmp_path / "kept")
    assert moved_targets.main(["--keep", "made", "--alone", str(alone(after)), str(run())]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "200 steps and the first 100 the same" in error and found in error
    assert not (tmp_path / "kept").exists()


def test_the_run_left_alone_may_be_a_folder(run, alone, tmp_path):
    folder, record = run(), alone([0.202] * 100)
    curve = json.loads(record.read_text())["curves"]["entropy"]
    left = tmp_path / "left"
    left.mkdir()
    (left / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": i, "entropy": h}) + "\n" for i, h in enumerate(curve))
    )
    assert moved_targets.read_moves("made", folder, left) == moved_targets.read_moves("made", folder, record)


def test_the_run_left_alone_must_be_the_same_until_the_move(run, alone, tmp_path, monkeypatch, capsys):
    record = alone()
    record.write_text(record.read_text().replace("0.2,", "0.3,", 1))
    monkeypatch.setattr(moved_targets, "KEPT", tmp_path / "kept")
    assert moved_targets.main(["--keep", "made", "--alone", str(record), str(run())]) == 2
    assert "200 were found, of which the first 0 are the same" in capsys.readouterr().err


def test_each_move_of_a_run_is_one_of_its_own(run, alone, tmp_path, monkeypatch):
    """0.2 to 0.24, and back after 100 more steps: the first one ends where the second begins."""
    monkeypatch.setattr(moved_targets, "KEPT", tmp_path / "kept")
    folder = run((0.2,) * 100 + (0.24,) * 50 + (0.2,) * 50)
    record = alone([0.202] * 100)
    there, back = moved_targets.read_moves("made", folder, record)
    assert (there.factor, there.moved_after, len(there.entropy)) == (1.2, 100, 150)
    assert (back.factor, back.moved_after, len(back.entropy)) == (0.83, 150, 200)
    assert there.way() == pytest.approx([0, 0.25, 0.5, 0.75, 1.1]) and there.settled() == "20"
    assert back.way() == pytest.approx([0] * 5) and back.settled() == "never"
    # the run left alone is 0.002 above 0.2, of moves by 0.04 and -0.04
    assert there.way_less_alone() == pytest.approx([-0.05, 0.2, 0.45, 0.7, 1.05])
    assert back.way_less_alone() == pytest.approx([0.05] * 5)
    moved_targets.keep("made", [folder], record)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["made--s7--0.83.json", "made--s7--1.2.json"]


@pytest.mark.parametrize("words", [["run"], ["--keep", "made"], ["--keep", "made", "run"], ["--alone", "record"]])
def test_a_task_and_its_runs_go_together(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        moved_targets.main(words)
    assert "go together" in capsys.readouterr().err
