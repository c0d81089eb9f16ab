"""The table of both claims: what stands in the docs is what the kept records say."""

import sys
from pathlib import Path

import pytest
from study_cases import STUDY, made_study, write_records

from covgrpo.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import claims_table
import page_tables

ROOT = Path(__file__).resolve().parents[1]


def test_the_docs_hold_the_table_of_the_kept_records():
    page = (ROOT / "docs" / "results.md").read_text()
    assert page_tables.inserted(page, claims_table.table(), claims_table.MARKS) == page


def test_a_row_by_hand(tmp_path, monkeypatch, capsys):
    study = made_study(tmp_path, f"{STUDY}margin: 0.9\n".replace("[3, 4, 5]", "[3, 4, 5, 6, 7]"))
    finals = {("easy", "grpo", s): v for s, v in ((3, 0.5), (4, 0.25), (5, 0.75), (6, 0.5), (7, 1.0))}
    finals |= {("easy", "gaussian", s): 0.75 for s in (3, 4, 5, 6)} | {("easy", "clip_cov", 3): 1.0}
    finals |= {("hard", "grpo", 3): 0.75, ("hard", "gaussian", 3): 0.25}
    write_records(tmp_path / "made", study, finals)
    monkeypatch.setattr(claims_table, "STUDIES", tmp_path)
    monkeypatch.setattr(claims_table, "ORDER", ("made",))
    assert claims_table.main([]) == 0
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    # differences 0.25, 0.5, 0, 0.25; t_3 = 3.182, s / sqrt(4) = 0.102; GRPO's mean is that of seeds 3 to 6
    easy = ["made, easy", "4", "0.400", "+0.000", "no variance"]
    assert rows[2] == [*easy, "0.500", "+0.250 [-0.075, +0.575]", "within ±0.9"]
    assert rows[3][0] == "made, hard (hard)" and rows[3][5:] == ["0.750", "-0.500", "too few pairs"]
    assert len(rows) == 4


def test_between_the_marks_alone(tmp_path, capsys):
    first, last = claims_table.MARKS
    assert page_tables.inserted(f"a\n{first}old\n{last}b\n", "new\n", (first, last)) == f"a\n{first}new\n{last}b\n"
    with pytest.raises(UserError, match="does not hold the lines"):
        page_tables.inserted(f"a\n{last}{first}", "new\n", (first, last))
    (tmp_path / "page.md").write_text("nothing\n")
    assert claims_table.main(["--write", str(tmp_path / "page.md")]) == 2
    assert capsys.readouterr().err.startswith("claims_table: the file does not hold")
    assert (tmp_path / "page.md").read_text() == "nothing\n"
    assert claims_table.main(["--write", str(tmp_path / "none.md")]) == 2
