"""Flags are made from the fields of dataclasses, and read back into them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path

import pytest

from commands.main import COMMANDS
from commands.model import add_model_arguments
from glm.options import ModelOptions
from runtime.arguments import CommandParser, chosen, flag_name, flags, option, positive
from runtime.errors import UserError


@dataclass(frozen=True)
class Shape:
    width: int = option(8, "how wide")
    is_round: bool = option(False, "round it is")


@dataclass(frozen=True)
class Wishes:
    folder: Path = option(Path("here"), "where", flag="output_folder", metavar="DIR")
    count: int | None = option(None, "how many", none="all")
    share: float = option(0.5, "how much", aliases=("part",), read=positive("a share above 0, at most 1", most=1))
    kind: str = option("red", "which", choices=("red", "blue"))
    size: str | None = option(None, "is CHOICE", choices=("small", "large"), is_switches=True)
    loud: bool = option(False, "")
    shape: Mapping | None = option(None, "", overrides=Shape)
    secret: int = 3


def read(*words: str) -> Wishes:
    parser = CommandParser()
    flags(parser.add_argument_group("wishes"), Wishes)
    return chosen(Wishes, parser.parse_args(words), secret=4)


def test_what_is_not_said_is_at_its_default():
    assert read() == Wishes(shape={}, secret=4)


def test_what_is_said_arrives():
    said = read("--output_folder", "there", "--count=2", "--part", "0.25", "--kind", "blue", "--large", "--loud",
                "--width", "9")
    assert said == Wishes(Path("there"), 2, 0.25, "blue", "large", True, {"width": 9}, 4)


@pytest.mark.parametrize("words, message", [
    (["--share", "1.5"], "argument --share/--part: '1.5' is not a share above 0, at most 1"),
    (["--share", "nan"], "is not a share above 0"), (["--kind", "green"], "invalid choice: 'green'"),
    (["--small", "--large"], "not allowed with argument --small"), (["--secret", "1"], "unknown argument '--secret'"),
])
def test_what_is_wrong_is_one_line(capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        read(*words)
    line = capsys.readouterr().err
    assert ended.value.code == 2 and message in line and line.count("\n") == 1


def test_help_says_what_fields_say(capsys):
    with pytest.raises(SystemExit):
        read("--help")
    shown = " ".join(capsys.readouterr().out.split())
    for part in ("--output-folder DIR where (default: here)", "--count N how many (default: all)",
                 "--share X, --part X how much (default: 0.5)", "--large is large", "--is-round round it is"):
        assert part in shown
    assert "--loud" not in shown and "--secret" not in shown


def test_defaults_of_a_value_and_fields_in_common():
    @dataclass(frozen=True)
    class More:
        count: int | None = option(None, "how many")
        further: int = option(1, "more")

    parser = CommandParser()
    flags(parser, Wishes(count=7), More())
    assert parser.parse_args([]).count == 7 and parser.parse_args(["--further", "2"]).further == 2


def test_one_place_lists_what_decides_which_model_runs():
    parser = CommandParser()
    add_model_arguments(parser)
    assert {flag_name(field) for field in fields(ModelOptions)} - {"shape"} <= vars(parser.parse_args([])).keys()
    made = chosen(ModelOptions, parser.parse_args(["--hidden-size", "64", "--bf16", "--load", "x"]))
    assert (made.path, made.dtype, made.shape) == (Path("x"), "bf16", {"hidden_size": 64})
    assert ModelOptions.of(path="x", hidden_size=64, bits=8) == ModelOptions("x", shape={"hidden_size": 64}, bits=8)
    with pytest.raises(UserError, match="glm.load has no argument 'bit' .did you mean 'bits'"):
        ModelOptions.of(bit=8)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_is_there(name):
    target, _, what = COMMANDS[name]
    module, function = target.split(":")
    assert callable(getattr(import_module(module), function)) and what
