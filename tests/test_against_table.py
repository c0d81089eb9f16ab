"""The tables of one method against the others: what stands in the docs is what the kept records say."""

import sys
from pathlib import Path

import pytest
from study_cases import STUDY, made_study, write_records

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import against_table
import page_tables

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("page", "study", "method", "steps"),
    [
        ("results.md", "floor", "floor 0.75", False),
        ("results.md", "floor-sums", "floor 0.75", False),
        ("results.md", "traces-kl", "KL 0.04", False),
        ("results.md", "candidates", None, False),
        ("results.md", "floor-cold", None, False),
        ("entropy.md", "hold", "grpo", False),
        ("entropy.md", "hold-sums-32", "grpo", False),
        ("traces.md", "traces-pilot", None, False),
        ("traces.md", "traces-late", None, True),
        ("traces.md", "traces-offpolicy", None, True),
        ("traces.md", "traces-candidates", None, False),
        ("traces.md", "traces-paper", None, False),
    ],
)
def test_the_docs_hold_the_tables_of_the_kept_records(page, study, method, steps):
    page = (ROOT / "docs" / page).read_text()
    text = against_table.tables(study, method, steps)
    assert page_tables.inserted(page, text, against_table.marks(study)) == page


@pytest.fixture
def made(tmp_path, monkeypatch):
    text = STUDY.replace("regimes: {easy: {}, hard: {num_iterations: 4}}\n", "").replace("hard_regimes: [hard]\n", "")
    study = made_study(tmp_path, text)
    finals = {("", "grpo", s): v for s, v in ((3, 0.5), (4, 0.25), (5, 0.75))}
    finals |= {("", "gaussian", s): v for s, v in ((3, 0.75), (4, 0.75), (5, 0.75))} | {("", "clip_cov", 3): 1.0}
    write_records(tmp_path / "made", study, finals)
    monkeypatch.setattr(against_table, "STUDIES", tmp_path)
    return tmp_path


def cells(text):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line]


def test_rows_by_hand(made):
    rows = cells(against_table.tables("made", "gaussian"))
    # differences 0.25, 0.5, 0; t_2 = 4.303, s / sqrt(3) = 0.144; every problem has a right sample: pass@16 is 1
    assert rows[0] == ["method", "seeds", "accuracy at 0.6", "pass@16 at 1.0", "maj@16 at 0.6", "entropy"]
    assert rows[2] == ["grpo", "3", "0.500", "1.000", "", "0.400"]
    assert rows[3] == ["gaussian", "3", "0.750", "1.000", "", "0.400"]
    assert rows[4] == ["clip_cov", "1", "1.000", "1.000", "", "0.400"]
    assert rows[5][:3] == ["minus grpo [Student]", "pairs", "accuracy at 0.6"]
    assert rows[7] == ["gaussian", "3", "+0.250 [-0.371, +0.871]", "+0.000", "", "+0.000"]
    assert rows[8] == ["clip_cov", "1", "+0.500", "+0.000", "", "+0.000"]
    assert rows[9][:2] == ["minus gaussian [Student]", "pairs"]
    assert rows[11][:3] == ["grpo", "3", "-0.250 [-0.871, +0.371]"]
    assert rows[12][:3] == ["clip_cov", "1", "+0.250"], "the one seed that both have"
    assert len(rows) == 13
    assert cells(against_table.tables("made")) == rows[:5], "without a method the means alone"


def test_between_its_marks_or_not_at_all(made, tmp_path, capsys):
    first, last = against_table.marks("made")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{first}old\n{last}after\n")
    assert against_table.main(["made", "gaussian", "--write", str(page)]) == 0
    assert page.read_text() == f"before\n{first}{against_table.tables('made', 'gaussian')}{last}after\n"
    page.write_text("nothing\n")
    assert against_table.main(["made", "gaussian", "--write", str(page)]) == 2
    assert page.read_text() == "nothing\n"
    assert against_table.main(["made", "gausian"]) == 2 and against_table.main(["none", "gaussian"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("against_table: ") for line in lines)
    assert "'gausian'" in lines[1]


def test_harder_problems_have_columns_where_the_study_names_them(made):
    assert "harder" not in against_table.tables("made", "gaussian")
    path = made / "made.yaml"
    path.write_text(path.read_text() + "secondary: [harder_accuracy@0.6]\n")
    rows = cells(against_table.tables("made", "gaussian"))
    assert rows[0][-1] == "harder problems, accuracy" and rows[2][-1] == "", "no record has them here"


def test_the_means_at_each_evaluation(made, capsys):
    assert against_table.main(["made", "--steps"]) == 0
    rows = cells(capsys.readouterr().out)
    assert rows[0][:4] == ["step", "method", "seeds", "accuracy at 0.6"]
    # at step 0 one of two samples of the last of four problems is right
    assert rows[2] == ["0", "grpo", "3", "0.125", "", "", "2.000"]
    assert [row[:2] for row in rows[2:]] == [[s, m] for s in ("0", "20") for m in ("grpo", "gaussian", "clip_cov")]
    assert [row[1:] for row in rows[5:]] == cells(against_table.tables("made"))[2:]


def test_several_regimes_have_a_column_in_both_tables(tmp_path, monkeypatch):
    study = made_study(tmp_path, STUDY)
    finals = {("easy", "grpo", 3): 0.5, ("hard", "grpo", 3): 0.25, ("hard", "gaussian", 3): 0.75}
    write_records(tmp_path / "made", study, finals)
    monkeypatch.setattr(against_table, "STUDIES", tmp_path)
    rows = cells(against_table.tables("made", "grpo"))
    assert [row[:4] for row in rows[2:5]] == [
        ["easy", "grpo", "1", "0.500"],
        ["hard", "grpo", "1", "0.250"],
        ["hard", "gaussian", "1", "0.750"],
    ]
    assert rows[5][:3] == ["regime", "minus grpo [Student]", "pairs"]
    assert [row[:4] for row in rows[7:]] == [["hard", "gaussian", "1", "+0.500"]], "no third table for the baseline"
    with pytest.raises(against_table.UserError, match="has no method 'gausian'; it has grpo, gaussian, clip_cov"):
        against_table.tables("made", "gausian")
