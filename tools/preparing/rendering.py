"""A row of raw data put into words: from its fields and a prompt's templates to a row of the evaluator."""

from __future__ import annotations

from runtime.errors import UserError
from tools.preparing.recipes import Prompt, fields_of


def render(prompt: Prompt, row: dict, what: str) -> dict:
    """One row as it is written. `what` names recipe, prompt and row in the message of a UserError."""
    known = dict(row)
    if prompt.example is not None:
        known["examples"] = "".join(_text(prompt.example, example, what) for example in _value(row, "examples", what))
    prepared: dict = {}
    if prompt.inputs is not None:
        prepared["inputs_pretokenized"] = _text(prompt.inputs, known, what)
    if prompt.choices is not None:
        prepared["choices_pretokenized"] = _texts(prompt.choices, known, f"{what}: choices")
    if prompt.targets is not None:
        prepared["targets_pretokenized"] = _texts(prompt.targets, known, f"{what}: targets")
    if prompt.label is not None:
        prepared["label"] = _label(row, prompt, len(prepared["choices_pretokenized"]), what)
    return prepared | {name: _value(row, name, what) for name in prompt.keep}


def _label(row: dict, prompt: Prompt, choices: int, what: str) -> int:
    label = _value(row, prompt.label, what)
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < choices:
        raise UserError(f"{what}: {prompt.label}: {label!r} is not the place of one of {choices} choices")
    return label


def _texts(templates: str | tuple[str, ...], row: dict, what: str) -> list[str]:
    """A list of texts: the field's own if the template is nothing but one field that holds a list."""
    if isinstance(templates, str):
        names = fields_of(templates, what)
        if len(names) == 1 and templates == "{" + names[0] + "}":
            value = _value(row, names[0], what)
            if isinstance(value, list):
                if not value or not all(isinstance(entry, str) for entry in value):
                    raise UserError(f"{what}: {names[0]}: expected a list of texts, found {value!r}")
                return list(value)
        templates = (templates,)
    return [_text(template, row, what) for template in templates]


def _text(template: str, row: dict, what: str) -> str:
    values = {}
    for name in fields_of(template, what):
        value = _value(row, name, what)
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise UserError(f"{what}: {name}: {value!r} is not a text")
        values[name] = value
    return template.format(**values)


def _value(row: dict, name: str, what: str):
    if name not in row:
        raise UserError(f"{what}: there is no field {name!r}; the row has {', '.join(map(str, row))}")
    return row[name]
