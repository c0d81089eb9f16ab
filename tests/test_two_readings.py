"""What the two readings of the Gaussian kernel leave of rare tokens: the docs hold what the script says."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import two_readings

ROOT = Path(__file__).resolve().parents[1]


def test_the_docs_hold_the_table():
    assert "\n".join(two_readings.table()) + "\n" in (ROOT / "docs" / "methods.md").read_text()


def test_the_groups_are_those_of_the_heading():
    logps, advantages, mask, ids = two_readings.groups(3)
    assert logps.shape == mask.shape == (1200, 200) and mask.all() and logps.max() <= 0
    assert ids.bincount().tolist() == [12] * 100 and advantages.view(100, 12).gt(0).sum(dim=1).eq(3).all()
    assert 0.05 < (logps < two_readings.RARE).double().mean() < 0.15
