"""Studies: many runs of one comparison, their kept records, and what they add up to."""

from covgrpo.studies.records import Record, read_records
from covgrpo.studies.spec import RunSpec, Study
from covgrpo.studies.study_file import read_study

__all__ = ["Record", "RunSpec", "Study", "read_records", "read_study"]
