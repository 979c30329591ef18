"""The recipes of tools/prepare_data.py: from a task's public raw files to the evaluator's layout, read strictly.

One data file per task, ``tools/preparing/<output with / as _>.yaml``:

    output: CLUE/ocnli            # folder below DATA_PATH; the `path` of the task file
    title: OCNLI
    source: https://...           # where the raw files are published
    licence: CC BY-NC 2.0
    note: ...                     # optional: what a reader of the score should know about the data
    where: ...                    # how to get the raw files; needed where there is no reader
    reader: chinese.ocnli         # function of tools/preparing/chinese.py; left out: we cannot prepare this task
    prompts:                      # one folder of files for each
      plain:
        inputs: "{sentence1} ... {sentence2}"      # -> inputs_pretokenized
        choices: ["yes", "no"]                     # -> choices_pretokenized; or "{choices}", the row's own list
        label: label                               # -> label: the field that holds the index of the right choice
        targets: "{answers}"                       # -> targets_pretokenized: a template or the row's own list
        example: "{sentence1} ... {answer}\n\n"    # see below
        keep: [genre]                              # fields that are written as they are

Templates are str.format over the fields of a row, plain names only; literal braces are doubled. A template that is
nothing but one field gives that field's value, a list included. If a row has the field ``examples`` (a list of rows)
and the prompt an ``example`` template, then ``{examples}`` in ``inputs`` is all of them rendered and joined. All keys
of a prompt are optional. A language modelling task has ``text`` in place of ``prompts``: file name -> split of the
reader.

A reader is a function ``(raw: Path) -> {split: [row, ...]}``, for ``text`` ``{split: str}``; ``raw`` is the folder
given with --raw. A split may hold slashes ("stem/anatomy"). tools/preparing/raw.py reads the usual formats and raises
MissingRawFile naming the file that is not there. Every row of the raw file is returned: one that cannot be evaluated
(no gold label) carries ``left_out``: the reason; it is not written, but counted and printed.

Written: ``DATA_PATH/<output>/<prompt>/<split>.jsonl``, or ``DATA_PATH/<output>/<file name>``, and ``SOURCE.txt`` with
source, licence and counts.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from string import Formatter

from runtime.errors import UserError, shown
from runtime.show import nearest
from runtime.strict_yaml import read_mapping

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Prompt:
    """Templates that put one row into words."""

    inputs: str | None = None
    choices: str | tuple[str, ...] | None = None
    label: str | None = None  # the field with the index of the right choice
    targets: str | tuple[str, ...] | None = None
    example: str | None = None  # of a row of `examples`
    keep: tuple[str, ...] = ()  # fields that are written as they are

    def templates(self) -> list[str]:
        """Everything in which fields are filled in."""
        found: list[str] = []
        for value in (self.inputs, self.choices, self.targets, self.example):
            found += [value] if isinstance(value, str) else list(value or ())
        return found


@dataclass(frozen=True)
class Recipe:
    """One task's data file."""

    file: Path
    output: str  # folder below DATA_PATH
    title: str
    source: str
    licence: str
    note: str = ""
    where: str = ""  # how to get the raw files
    reader: str | None = None  # "module.function"
    prompts: Mapping[str, Prompt] = field(default_factory=dict)
    text: Mapping[str, str] = field(default_factory=dict)  # split by file name, of a language modelling task

    def read(self, raw: Path) -> dict:
        """The reader's rows (or texts) of every split."""
        return reader_of(self)(raw)


def load_recipes(folder: Path = FOLDER) -> dict[str, Recipe]:
    """All recipes of the folder by their output, sorted."""
    recipes: dict[str, Recipe] = {}
    for path in sorted(folder.glob("*.yaml")):
        recipe = load_recipe(path)
        recipes[recipe.output] = recipe
    return dict(sorted(recipes.items()))


def load_recipe(path: Path) -> Recipe:
    """One data file. Raises UserError naming file and key."""
    content = read_mapping(path)
    known = [entry.name for entry in fields(Recipe) if entry.name != "file"]
    _check_keys(content, known, str(path))
    for key in ("output", "title", "source", "licence"):
        if not isinstance(content.get(key), str) or not content[key].strip():
            raise UserError(f"{path}: {key}: missing; a text is needed")
    if path.stem != content["output"].replace("/", "_"):
        raise UserError(f"{path}: output {content['output']!r} belongs into {content['output'].replace('/', '_')}.yaml")
    for key in ("note", "where"):
        content[key] = " ".join(str(content.get(key) or "").split())
    _check_reader(content, path)
    if not isinstance(content.get("text", {}), dict):
        raise UserError(f"{path}: text: expected file name: split")
    prompts = content.get("prompts", {})
    if not isinstance(prompts, dict):
        raise UserError(f"{path}: prompts: expected a name and its templates for each")
    content["prompts"] = {name: _prompt(value, f"{path}: prompts: {name}") for name, value in prompts.items()}
    return Recipe(file=path, **content)


def _check_reader(content: dict, path: Path) -> None:
    reader, has_output = content.get("reader"), bool(content.get("prompts")) != bool(content.get("text"))
    if reader is None:
        if not content["where"]:
            raise UserError(f"{path}: without a reader the key where must say how the data is to be had")
        return
    if not isinstance(reader, str) or reader.count(".") != 1:
        raise UserError(f"{path}: reader: {reader!r} is not module.function, as in english_texts.cola")
    if not has_output:
        raise UserError(f"{path}: either prompts or text is needed beside reader")


def _prompt(value: object, what: str) -> Prompt:
    if not isinstance(value, dict):
        raise UserError(f"{what}: expected templates: inputs, choices, label, targets, ...")
    _check_keys(value, [entry.name for entry in fields(Prompt)], what)
    for key in ("inputs", "example", "label"):
        if value.get(key) is not None and not isinstance(value[key], str):
            raise UserError(f"{what}: {key}: expected a text, found {value[key]!r}")
    checked = dict(value)
    for key in ("choices", "targets", "keep"):
        given = value.get(key)
        if isinstance(given, list) and all(isinstance(entry, str) for entry in given):
            checked[key] = tuple(given)
        elif given is not None and not (isinstance(given, str) and key != "keep"):
            raise UserError(f"{what}: {key}: expected a list of texts (numbers in quotes), found {shown(given)}")
    prompt = Prompt(**checked)
    for template in prompt.templates():
        fields_of(template, what)
    if (prompt.label is not None) and prompt.choices is None:
        raise UserError(f"{what}: label: there are no choices")
    return prompt


def fields_of(template: str, what: str) -> list[str]:
    """Names of the fields that a template fills in. Raises UserError for all that is not {name}."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"{what}: {template!r}: {error} (literal braces are doubled)") from error
    names = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
    for name, spec, conversion in names:
        if not name.isidentifier() or spec or conversion:
            raise UserError(f"{what}: {template!r}: only {{name}} is filled in (literal braces are doubled)")
    return [name for name, _, _ in names]


def reader_of(recipe: Recipe) -> Callable[[Path], dict]:
    """The function that a recipe names. Raises UserError where there is none."""
    if recipe.reader is None:
        raise UserError(f"{recipe.output} cannot be prepared from raw files: {recipe.where}")
    module_name, function_name = recipe.reader.split(".")
    try:
        module = importlib.import_module(f"tools.preparing.{module_name}")
    except ModuleNotFoundError as error:
        if error.name != f"tools.preparing.{module_name}":
            raise
        raise UserError(f"{recipe.file}: reader: there is no tools/preparing/{module_name}.py") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"{recipe.file}: reader: tools/preparing/{module_name}.py has no function {function_name}")
    return function


def choose(recipes: Mapping[str, Recipe], names: list[str]) -> list[Recipe]:
    """Recipes by output ("CLUE/ocnli"), data file ("CLUE_ocnli") or title, in any case.

    Raises UserError naming the nearest for an unknown name.
    """
    table: dict[str, str] = {}
    for output, recipe in recipes.items():
        for name in (output, recipe.file.stem, recipe.title):
            table[name.lower()] = output
    chosen = []
    for name in names:
        key = name.lower().strip("/")
        if key not in table:
            close = nearest(key, table, 0.4)
            hint = f"did you mean {table[close]}? " if close else ""
            raise UserError(f"unknown task {name!r}; {hint}--list shows all {len(recipes)}")
        chosen.append(recipes[table[key]])
    return list({recipe.output: recipe for recipe in chosen}.values())


def _check_keys(found: dict, known: list[str], what: str) -> None:
    for key in found:
        if key not in known:
            close = nearest(str(key), known)
            hint = f"; did you mean {close}?" if close else f"; known are {', '.join(known)}"
            raise UserError(f"{what}: unknown key {key!r}{hint}")
