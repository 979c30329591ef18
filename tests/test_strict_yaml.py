"""YAML as people write it: what is read, what is refused because it can be read in two ways, and where it stands."""

import pytest
import yaml

from runtime.errors import UserError
from runtime.strict_yaml import parse_mapping


def value(text):
    return parse_mapping(f"a: {text}", "file.yaml")["a"]


def fault(text):
    with pytest.raises(UserError) as caught:
        parse_mapping(text, "file.yaml")
    return str(caught.value)


@pytest.mark.parametrize("text, meaning", [
    ("512", 512), ("-3", -3), ("+3", 3), ("0", 0), ("2.5", 2.5), ("-.5", -0.5), (".5e3", 500.0), ("1e-5", 1e-5),
    ("1.", 1.0), ("1e5", 1e5), (".inf", float("inf")), ("true", True), ("False", False), ("", None), ("~", None),
    ("null", None), ("text", "text"), ("two words", "two words"), ("'0512'", "0512"), ('"no"', "no"), ("y", "y"),
    ("!!str 0512", "0512"), ("1 000", "1 000"), ("v1_2", "v1_2"), ("a:30", "a:30"), ("1.2.3", "1.2.3"),
    ("[1, [b, {c: d}]]", [1, ["b", {"c": "d"}]]), ("|\n  one\n  two\n", "one\ntwo\n"),
    (">\n  one\n  two\n", "one two\n"),
])
def test_values(text, meaning):
    assert value(text) == meaning and type(value(text)) is type(meaning)


@pytest.mark.parametrize("text", ["0512", "-07", "0x1F", "0o17", "0b11", "1_000", "1_0.5", "1:30", "190:20:30.15",
                                  "yes", "No", "ON", "off", "2001-01-01", "2001-12-14t21:59:43.10-05:00"])
@pytest.mark.parametrize("form", ["{}", "[a, {}]", "{{b: {}}}"])
def test_what_the_versions_of_yaml_read_differently_is_refused(text, form):
    line = f"a: {form.format(text)}"
    assert fault(f"x: y\n{line}").startswith(
        f"file.yaml:2:{line.index(text) + 1}: '{text}' means one thing in YAML 1.1 and another in 1.2; ")
    assert value(form.format(f"'{text}'"))  # in quotes it is text


def test_every_value_at_fault_is_told():
    faults = fault("a: 010\nb: yes\na: 1\nc: [d\n").split("\nerror: ")
    assert [each.split(": ")[0] for each in faults] == ["file.yaml:1:4", "file.yaml:2:4", "file.yaml:3:1",
                                                        "file.yaml:5:1"]


@pytest.mark.parametrize("text, message", [
    ("a: **/*.jsonl", "file.yaml:1:5: not valid YAML: expected alphabetic or numeric character, but found '*' (text "
                      "that begins with * needs quotes)"),
    ("a: *.jsonl", "(text that begins with * needs quotes)"),
    ("a: *all", "file.yaml:1:4: not valid YAML: *all names nothing that stands before it (text that begins with * "),
    ("a: &b [*b]", "*b names nothing that stands before it"),
    ("a: b: c", "(text with a colon in it needs quotes)"),
    ("a:\n\tb: c", "(lines are indented by blanks, not by tabs)"),
    ("a: @b", "(text that begins with it needs quotes)"),
    ("a: b\n---\nc: d", "file.yaml:2:1: a second document begins here; a file holds one"),
    ("a: b\nc:\n  d: 1\n  d: 2", "file.yaml:4:3: not valid YAML: the key 'd' stands in line 3 too"),
    ("a: {1: b}", "file.yaml:1:5: key 1: must be text; quotes make it text"),
    ("? [a]\n: b", "key a list: must be text"),
    ("a: !!int 3", "file.yaml:1:4: not valid YAML: the tag 'tag:yaml.org,2002:int' is not read"),
    ("a: !!set {b, c}", "the tag 'tag:yaml.org,2002:set' is not read"),
    ("a: " + "9" * 401, "file.yaml:1:4: a number of more than 400 digits"),
    ("a: " + "[" * 60, "more than 50 values within one another"),
    ("<<: 3", "`<<` takes mappings, not 3"),
])
def test_faults(text, message):
    assert message in fault(text)


MERGED = """\
first: &first {a: 1, b: 1}
second: &second {b: 2, c: 2}
one: {<<: *first, b: 0}
both: {<<: [*first, *second]}
"""


def test_merged_mappings():
    read = parse_mapping(MERGED, "file.yaml")
    assert read["one"] == {"a": 1, "b": 0} and read["both"] == {"a": 1, "b": 1, "c": 2}
    assert read == yaml.safe_load(MERGED)


def test_the_library_s_own_way_of_making_values_plays_no_part(monkeypatch):
    """It has changed between releases, and any of them may be installed."""
    for inner in ("construct_document", "construct_object", "construct_mapping", "flatten_mapping", "compose_node",
                  "resolve"):
        monkeypatch.setattr(yaml.SafeLoader, inner, None)
    assert parse_mapping(MERGED, "file.yaml")["one"] == {"a": 1, "b": 0}
    assert fault("a: 1\na: 2") == "file.yaml:2:1: not valid YAML: the key 'a' stands in line 1 too"
