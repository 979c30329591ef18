"""A mistake is one line, whatever names it quotes."""

import pickle

from runtime.errors import UserError, printable, unsteering


def test_a_name_cannot_break_the_line_or_steer_the_terminal():
    message = str(UserError("a\nb\x1b[31m\u202e\r.yaml: bad \ud800, 名字 is fine"))
    assert message == r"a\nb\x1b[31m\u202e\r.yaml: bad \ud800, 名字 is fine"


def test_several_faults_have_a_line_each():
    error = UserError("\nerror: ".join(["one", "two"]))
    assert str(error) == "one\nerror: two"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_of_what_is_too_long_the_middle_is_left_out():
    assert str(UserError("a" + "x" * 10**6 + "b\nerror: y")) == "a" + "x" * 2499 + "..." + "x" * 2499 + "b\nerror: y"


def test_a_line_that_is_printed_stays_one():
    assert printable("a\nerror: b\x1b[31m\x07\u202e\r, 名字") == r"a\nerror: b\x1b[31m\x07\u202e\r, 名字"


def test_an_answer_on_a_terminal_keeps_its_lines_and_colours_and_steers_nothing():
    assert unsteering("a\n\tb\x1b[0;32mc\x1b[0m 名字\u200f") == "a\n\tb\x1b[0;32mc\x1b[0m 名字\u200f"
    assert unsteering("\x1b]0;x\x07\x1b[2J\x1b[6n\r\x9b\x1b") == r"\x1b]0;x\x07\x1b[2J\x1b[6n\r\x9b\x1b"
