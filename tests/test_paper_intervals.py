"""The intervals of the paper's own differences, and the docs' table of them."""

import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import paper_intervals  # noqa: E402


def test_the_docs_hold_the_scripts_table():
    assert "\n".join(paper_intervals.table()) in (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")


def test_hand_made_differences():
    # 0.25 and 0.75 of 48: each of variance 3/16 / 48 = 1/256, so half-width 1.96 sqrt(2) / 16
    value, half = paper_intervals.difference(0.25, 0.75, 48)
    assert (value, half) == (0.5, pytest.approx(1.96 * math.sqrt(2) / 16))
    value, half = paper_intervals.average_difference((0.5,) * 5, (0.6,) * 5)
    total = sum((0.25 + 0.24) / n for n in (30, 500, 40, 272, 675))
    assert (value, half) == (pytest.approx(0.1), pytest.approx(1.96 * math.sqrt(total) / 5))
