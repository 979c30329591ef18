"""What programs show people: times, numbers, names and tables; progress is in test_evaluation_progress.py."""

import pytest

from planning.table import numerous
from runtime.show import counted, duration, nearest, table


@pytest.mark.parametrize(("seconds", "said"), [
    (0.0042, "0.004 s"), (0.31, "0.3 s"), (8.244, "8.2 s"), (43.4, "43 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"),
    (11220, "3 h 07 min")])
def test_durations(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize(("count", "said"), [
    (129_300_000_000, "129 billion"), (15_204_352, "15.2 million"), (999_900_000, "1 billion"), (61_440, "61,440")])
def test_numbers_of_weights(count, said):
    assert numerous(count) == said


def test_counted_nouns():
    assert [counted(number, "file") for number in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
    assert counted(2, "process", "es") == "2 processes"


def test_the_nearest_name_is_near_and_keeps_its_capitals():
    assert nearest("ocnil", ["CMNLI", "OCNLI"]) == "OCNLI"
    assert nearest("squad", ["CMNLI", "OCNLI"]) is None
    assert nearest("ocnil", ["OCNLI"], least=0.9) is None


def test_columns_of_a_table_are_as_wide_as_their_widest_cell():
    lines = table(("linear", "ms"), [("qkv", "12.5"), ("attention", "")], title="Products").splitlines()
    assert lines == ["Products",
                     "linear       ms",
                     "---------  ----",
                     "qkv        12.5",
                     "attention"]
    assert table(("a", "b"), [("xx", "yy")], left=2).splitlines()[0] == "a   b"
    assert table(("a", "b"), []).splitlines() == ["a  b", "-  -"]
