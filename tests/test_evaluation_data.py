"""Rows of data files: what is read, and what every mistake in one says."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.config import GenerationTaskConfig, LanguageModelTaskConfig, MultiChoiceTaskConfig, OtherTaskConfig
from evaluation.data import line_of, read_rows, read_text, to_example
from runtime.errors import UserError

MUL = MultiChoiceTaskConfig(name="quiz", path="quiz")
GEN = GenerationTaskConfig(name="answers", path="answers")
LM = LanguageModelTaskConfig(name="text", path="text")
OWN = MultiChoiceTaskConfig(name="quiz", path="quiz", module="own.Class")
GOOD = {"inputs_pretokenized": "One and one is", "choices_pretokenized": ["two", "three"], "label": 0}


@pytest.fixture
def read(tmp_path):
    def read(text, config=MUL, name="rows.jsonl"):
        file = tmp_path / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        return read_rows(file, config)

    return read


@pytest.fixture
def fault(read, tmp_path):
    def fault(text, config=MUL):
        with pytest.raises(UserError) as caught:
            read(text if isinstance(text, (str, bytes)) else json.dumps(text), config)
        return str(caught.value).replace(f"{tmp_path}/", "")

    return fault


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


# What is read


def test_json_lines_blank_ones_skipped(read):
    other = GOOD | {"label": 1, "note": "kept"}
    assert read("\n" + lines(GOOD) + "  \n\r\n" + lines(other) + "\n") == [GOOD, other]


def test_a_json_list(read):
    text = json.dumps([GOOD, GOOD], indent=1)
    assert read(text, name="rows.json") == [GOOD, GOOD] == read(lines(GOOD, GOOD), name="rows.json")


def test_line_separators_inside_a_text_do_not_end_a_row(read):
    row = GOOD | {"inputs_pretokenized": "one\u2028two\x85three"}
    assert read(json.dumps(row, ensure_ascii=False)) == [row]


def test_a_byte_order_mark_is_no_text(read):
    assert read(b"\xef\xbb\xbf" + lines(GOOD).encode()) == [GOOD]


def test_ids_instead_of_texts(read):
    row = {"inputs": [], "choices": [[1], [2, 3]], "label": 1}
    assert read(lines(row)) == [row]
    assert read(lines({"inputs": [1], "targets": [[2]]}), GEN)


def test_a_class_of_ones_own_may_do_without_label(read):
    row = {"inputs_pretokenized": "", "choices_pretokenized": ["A sentence."], "pair": 3}
    assert read(lines(row), OWN) == [row]
    assert read(lines({"anything": 1}), OtherTaskConfig(name="a", path="b", module="own.Class"))


def test_text_of_a_language_model_is_one_row(read):
    assert read(" one \n two \n", LM) == [{"text": " one \n two \n"}]


# What every mistake says


@pytest.mark.parametrize("change, message", [
    ({"label": 2}, "field label: must be the index of a choice, 0 to 1, is 2"),
    ({"label": -1}, "field label: must be the index of a choice, 0 to 1, is -1"),
    ({"label": True}, "field label: must be the index of a choice, 0 to 1, is true"),
    ({"label": "two"}, "field label: must be the index of a choice, 0 to 1, is 'two'"),
    ({"label": None}, "field label: must be the index of a choice, 0 to 1, is null"),
    ({"choices_pretokenized": "two"}, "field choices_pretokenized: must be a list of texts, is 'two'"),
    ({"choices_pretokenized": ["two"]}, "field choices_pretokenized: must hold at least 2, holds 1"),
    ({"choices_pretokenized": ["two", 3]}, "field choices_pretokenized: must be a list of texts, its element 1 is 3"),
    ({"choices": [[1], 2]}, "field choices: must be a list of lists of token ids, its element 1 is 2"),
    ({"choices": [[1], [2], [3]]}, "field choices: has 3 elements, choices_pretokenized has 2"),
    ({"inputs": "text"}, "field inputs: must be a list of token ids, is 'text'"),
    ({"inputs": [1, -2]}, "field inputs: must be a list of token ids, is a list with something else"),
    ({"inputs": [1, True]}, "field inputs: must be a list of token ids, is a list with something else"),
    ({"inputs_pretokenized": ["text"]}, "field inputs_pretokenized: must be text, is a list"),
    ({"inputs_pretokenized": "half \ud800"}, "field inputs_pretokenized: must be text, is 'half \\ud800'"),
])
def test_wrong_fields(fault, change, message):
    assert fault(lines(GOOD, GOOD | change)) == f"rows.jsonl:2: {message}"


@pytest.mark.parametrize("row, config, message", [
    ({"text": "x"}, MUL, "field inputs_pretokenized (text) or inputs (token ids) is missing; the row has 'text'"),
    ({}, MUL, "field inputs_pretokenized (text) or inputs (token ids) is missing; the row has no fields"),
    ({"inputs": [1]}, MUL, "field choices_pretokenized (list of texts) or choices (list of lists of token ids) is "
                           "missing; the row has 'inputs'"),
    ({"inputs": [1], "choices": [[1], [2]]}, MUL, "field label is missing (index of the right choice, from 0)"),
    ({"inputs": [1]}, GEN, "field targets_pretokenized (list of texts) or targets (list of lists of token ids)"),
    ({"inputs": [1], "targets_pretokenized": []}, GEN, "field targets_pretokenized: must hold at least 1, holds 0"),
    ({"inputs": [1], "targets_pretokenized": "an answer"}, GEN, "field targets_pretokenized: must be a list of "
                                                                        "texts, is 'an answer'"),
    ([1], MUL, "a row must be a JSON object {...}, is 1"),
    ("text", MUL, "a row must be a JSON object {...}, is 'text'"),
])
def test_wrong_rows(fault, row, config, message):
    assert f"rows.jsonl:1: {message}" in fault(json.dumps(row), config)


@pytest.mark.parametrize("text, message", [
    ("", "rows.jsonl: holds no rows"),
    ("\n \n", "rows.jsonl: holds no rows"),
    ("[ ]", "rows.jsonl: holds no rows"),
    ("\n{oops}", "rows.jsonl:2: not valid JSON: Expecting property name enclosed in double quotes at column 2"),
    (lines(GOOD) + '{"a": 1} {"b": 2}', "rows.jsonl:2: not valid JSON: Extra data"),
    ("{" * 100000, "not valid JSON"),
    ("[" * 100000, "not valid JSON"),
    ('{"a": ' + "1" * 5000 + "}", "not valid JSON: Exceeds the limit"),
    (f"[\n{json.dumps(GOOD)},\n\n 3]", "rows.jsonl:4: a row must be a JSON object {...}, is 3"),
    (f"[\n{json.dumps(GOOD)}\n{json.dumps(GOOD)}]", "rows.jsonl:3: not valid JSON: a list's rows are separated"),
    (f"[\n{json.dumps(GOOD)},\n]", "rows.jsonl:3: not valid JSON"),
    (f"[\n{json.dumps(GOOD)}\n", "rows.jsonl:3: not valid JSON"),
    (f"[{json.dumps(GOOD)}]\n{{}}", "rows.jsonl:2: not valid JSON: something follows the end of the list"),
    ('[\n{"a":\n oops}]', "rows.jsonl:3: not valid JSON"),
    (lines(GOOD).encode() + b"\xff\n", "rows.jsonl:2: not valid UTF-8"),
])
def test_files_that_are_no_rows(fault, text, message):
    assert message in fault(text)


def test_texts_that_are_none(tmp_path):
    (tmp_path / "blank.txt").write_text(" \n")
    with pytest.raises(UserError, match="blank.txt: holds no text"):
        read_text(tmp_path / "blank.txt")
    with pytest.raises(UserError, match="none.txt: No such file or directory"):
        read_text(tmp_path / "none.txt")


# Examples


class Letters:
    """A tokenizer of letters; blanks make no token."""

    num_tokens = 200

    def encode(self, text):
        return [ord(letter) for letter in text if letter != " "]

    def command(self, name):
        return {"eop": 199}[name]


def test_text_becomes_ids():
    row = {"inputs_pretokenized": "a b", "choices_pretokenized": ["c", " "], "label": 1, "more": 2}
    example = to_example(row, 5, Letters())
    assert (example.index, example.inputs, example.label) == (5, [97, 98], 1)
    assert example.choices == [[99], [199]]  # a choice of no token at all is the end of the text
    assert example.targets == [] and example.row == row


def test_ids_win_over_text():
    row = {"inputs": [1], "inputs_pretokenized": "a", "targets": [[2, 3]], "targets_pretokenized": ["b"]}
    example = to_example(row, 0, Letters())
    assert (example.inputs, example.targets, example.label) == ([1], [[2, 3]], None)


def test_an_id_beyond_the_vocabulary():
    with pytest.raises(UserError, match="^field choices: the vocabulary has no id 200, its ids are 0 to 199"):
        to_example({"inputs": [1], "choices": [[1], [200]], "label": 0}, 3, Letters())


def test_the_line_of_a_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert [line_of(path, 0), line_of(path, 1)] == [1, 3]
    path.write_text('[{"a": 1},\n\n {"a":\n 2}, {"a": 3}]')
    assert [line_of(path, index) for index in range(3)] == [1, 3, 4]


# Whatever a file holds


ANYTHING = st.recursive(st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=4),
                        lambda inner: st.lists(inner, max_size=3), max_leaves=6)
FIELDS = ["inputs", "choices", "targets", "label", "inputs_pretokenized", "choices_pretokenized",
          "targets_pretokenized"]
QUICK = settings(max_examples=200)


@QUICK
@given(change=st.dictionaries(st.sampled_from(FIELDS), ANYTHING), config=st.sampled_from([MUL, GEN, OWN]))
def test_a_row_is_an_example_or_a_fault(read, change, config):
    try:
        (row,) = read(lines(GOOD | {"targets_pretokenized": ["two"]} | change), config)
        example = to_example(row, 0, Letters())
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(example.choices) and isinstance(example.inputs, list)


@QUICK
@given(text=st.text() | st.text(alphabet='[]{},:"\\ \n1aeu'))
def test_no_text_gives_a_traceback(read, text):
    try:
        read(text)
    except UserError as error:
        assert str(error)
