"""A task file, read strictly: YAML -> TaskConfig.

An unknown key, a value of another type or out of range, a metric or module that is not there stops with the file, the
key, what is allowed and the nearest right name, before any model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from evaluation.config import (
    CONFIGS,
    FOUND_OUT,
    LONGEST,
    ORDERS,
    STRATEGIES,
    GenerationTaskConfig,
    LanguageModelTaskConfig,
    MultiChoiceTaskConfig,
    OtherTaskConfig,
    TaskConfig,
    TaskType,
)
from evaluation.names import check_class, find_metric, import_dotted, nearest
from generation.params import LARGEST_PENALTY, LONGEST_NGRAM, least_above_most
from runtime.errors import Faults, UserError, shown
from runtime.strict_yaml import check_plain, read_mapping

LARGEST = 2**31 - 1
REQUIRED = ("name", "type", "path")
# keys of lm-evaluation-harness that no task file here has
OF_HARNESS = ("task", "output_type", "dataset_path", "dataset_name", "doc_to_text", "doc_to_target", "doc_to_choice",
              "metric_list", "test_split", "validation_split", "generation_kwargs")
LONG_NAMES = {"multiple_choice": "mul", "multichoice": "mul", "generation": "gen", "generate_until": "gen",
              "language_model": "lm", "language_modeling": "lm", "perplexity": "lm"}


def load_task(path: str | Path, data_path: str | Path, longest: int = LONGEST) -> TaskConfig:
    """The task that a YAML file describes.

    longest: tokens that the model takes (max_sequence_length): max_seq_length where the file says none, if it is less
    than the original's 2048. One that the file says is kept, longer or not.
    The file's `path` is taken below data_path, or, if it begins with "./", below the folder of the YAML file itself.
    Raises UserError naming the file, the key and what is allowed, with a line for every key at fault.
    """
    source = Path(path)
    written = read_mapping(source)
    check_origin(written, str(source))
    faults, values, kind = Faults(), {}, None
    names = [key.replace("-", "_") for key in written]
    with faults.noted():
        kind = _kind(written, str(source))
    for name, (key, value) in zip(names, written.items(), strict=True):
        if name == "type" or (kind is None and name.lower() == "type"):
            continue
        with faults.noted():
            _check_key(key, name, kind, source)
            if name in values:
                raise UserError(f"{source}: {name} stands there twice, in two spellings; keep one of them")
            values[name] = CHECKS[name](value, f"{source}: {key}")
    faults += [f"{source}: {name} is missing; every task file has {', '.join(REQUIRED)}"
               for name in REQUIRED if name not in names and name != "type"]
    if kind is not None and ("module" in values or "module" not in names):
        with faults.noted():
            _look_up(values, kind, source)
    faults.tell()
    for name in ("path", "fewshot_file"):
        if values.get(name) is not None:
            folder = source.parent if values[name].startswith("./") else Path(data_path)
            values[name] = str(folder / values[name])
    values["type"] = kind.type
    config = kind(**{"max_seq_length": min(LONGEST, longest)} | values, source=source,
                  packed_length=None if "max_seq_length" in values else LONGEST)
    whence = "all that the model takes" if "max_seq_length" not in values and longest < LONGEST else ""
    if whence and isinstance(config, LanguageModelTaskConfig):  # windows overlap by half, as the Pile's do
        config = replace(config, generation_length=min(config.generation_length, max(1, longest // 2)))
    Faults(_faults_together(config, whence)).tell()
    return config


def check_origin(keys: Iterable[str], where: str) -> None:
    """Raises UserError for a file of another program, whose every key would be a fault."""
    foreign = [key for key in keys if key in OF_HARNESS]
    if len(foreign) > 1:
        raise UserError(f"{where}: a task file of lm-evaluation-harness ({', '.join(foreign[:3])}), which is not read; "
                        "docs/evaluate-your-own-tasks.md says what one of this toolkit has: name, type, path")


def _kind(written: Mapping[str, Any], where: str) -> type[TaskConfig]:
    """What a file's `type` says. Raises UserError where it is none."""
    allowed = [each.value for each in TaskType]
    known = ", ".join(allowed)
    if "type" not in written:
        like = next((key for key in written if key.lower() == "type"), None)
        hint = f" (it stands there as {like!r})" if like else ""
        raise UserError(f"{where}: type is missing{hint}; allowed: {known}")
    value = written["type"]
    if isinstance(value, str) and value in allowed:
        return CONFIGS[TaskType(value)]
    hint = ""
    if isinstance(value, str):
        long_name = LONG_NAMES.get(value.lower().replace("-", "_"))
        hint = f", did you mean {long_name!r}?" if long_name else nearest(value, allowed)
    raise UserError(f"{where}: type: {shown(value)} is none{hint}; allowed: {known}")


def _keys(kind: type[TaskConfig]) -> list[str]:
    return [each.name for each in fields(kind) if each.name not in FOUND_OUT]


def _check_key(key: str, name: str, kind: type[TaskConfig] | None, source: Path) -> None:
    """kind: None: any, where the file's type is none."""
    known = list(dict.fromkeys(key for each in (CONFIGS.values() if kind is None else [kind]) for key in _keys(each)))
    if name in known:
        return
    for task_type, other in CONFIGS.items():
        if name in _keys(other):
            raise UserError(f"{source}: {key} is a key of {task_type.value} tasks; this is a {kind.type.value} task")
    raise UserError(f"{source}: unknown key {shown(key)}{nearest(name, known)} (known: {', '.join(known)})")


# Checks: (value, where) -> the value, made sure to be what its key needs. where: file and key, for messages.


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        hint = "" if value is None or isinstance(value, (list, dict)) else "; quotes make it text"
        raise UserError(f"{where}: must be text, is {shown(value)}{hint}")
    if not value.strip() or not value.isprintable():
        raise UserError(f"{where}: must be one line of text, is {shown(value)}")
    return value


def _name(value: Any, where: str) -> str:
    text = _text(value, where)
    if text.startswith(".") or any(mark in text for mark in "/\\") or len(text.encode()) > 200:
        raise UserError(f"{where}: {shown(text)}: the results are kept in a folder of this name, so it must not hold "
                        "/ or \\, begin with a dot or be longer than 200 bytes")
    return text


def _one_of(*known: str) -> Callable[[Any, str], str]:
    def check(value: Any, where: str) -> str:
        text = _text(value, where)
        if text not in known:
            raise UserError(f"{where}: {shown(text)} is none{nearest(text, known)}; allowed: {', '.join(known)}")
        return text

    return check


def _separator(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f'{where}: must be text, such as "\\n\\n", is {shown(value)}')
    return value


def _stops(value: Any, where: str) -> list[str]:
    if not (isinstance(value, list) and value and all(isinstance(text, str) and text for text in value)):
        raise UserError(f'{where}: must be a list of texts, such as ["\\n"], is {shown(value)}')
    return value


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{where}: must be true or false, is {shown(value)}")
    return value


def _whole(smallest: int, largest: int = LARGEST) -> Callable[[Any, str], int]:
    def check(value: Any, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"{where}: must be a whole number, is {shown(value)}")
        if not smallest <= value <= largest:
            raise UserError(f"{where}: must be from {smallest} to {largest}, is {shown(value)}")
        return value

    return check


def _penalty(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST_PENALTY:
        raise UserError(f"{where}: must be a number, such as 1.0, is {shown(value)} (from -{LARGEST_PENALTY:g} to "
                        f"{LARGEST_PENALTY:g} is allowed)")
    return float(value)


def _patterns(value: Any, where: str) -> str | dict[str, str]:
    if isinstance(value, list):
        raise UserError(f"{where}: must be one glob, or `group: glob` lines, is a list")
    if not isinstance(value, dict):
        return _pattern(value, where)
    if not value:
        raise UserError(f"{where}: names no group; write `group: glob` lines, or one glob")
    return {_text(group, f"{where}: a group's name"): _pattern(pattern, f"{where}: {group}")
            for group, pattern in value.items()}


def _pattern(value: Any, where: str) -> str:
    pattern = _text(value, where)
    if pattern.startswith(("/", "\\", "~")) or ".." in pattern.replace("\\", "/").split("/"):
        raise UserError(f"{where}: {shown(pattern)} leaves the task's data folder; globs are below `path`")
    return pattern


def _metrics(value: Any, where: str) -> list[str]:
    if value == []:
        raise UserError(f"{where}: must name at least one, such as [Accuracy]; without the key it is the type's own")
    if not isinstance(value, list):
        raise UserError(f"{where}: must be a list such as [Accuracy], is {shown(value)}")
    names = [_text(name, where) for name in value]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{where}: {twice} is listed twice")
    return names


def _options(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: must be a mapping of `key: value`, is {shown(value)}")
    check_plain(value, where)
    return value


CHECKS: dict[str, Callable[[Any, str], Any]] = {
    "name": _name, "path": _text, "metrics": _metrics, "file_pattern": _patterns,
    "module": lambda value, where: None if value is None else _text(value, where), "options": _options,
    "use_task_mask": _flag, "use_multitask_encoding": _flag, "unidirectional": _flag,
    "max_seq_length": _whole(1), "micro_batch_size": _whole(1), "generation_length": _whole(1),
    "sampling_strategy": _one_of(*STRATEGIES), "stop": _stops,
    "num_fewshot": _whole(0), "fewshot_file": lambda value, where: None if value is None else _text(value, where),
    "fewshot_separator": _separator, "fewshot_answer_separator": _separator,
    "fewshot_seed": _whole(0), "fewshot_order": _one_of(*ORDERS),
    "num_beams": _whole(1), "length_penalty": _penalty,
    "no_repeat_ngram_size": _whole(0, LONGEST_NGRAM), "min_gen_length": _whole(0), "max_gen_length": _whole(1),
}  # fmt: skip


def _look_up(values: dict[str, Any], kind: type[TaskConfig], source: Path) -> None:
    """Makes sure that module and metrics are there; adds those that the module's class measures by itself."""
    task = None
    if values.get("module") is not None:
        task = import_dotted(values["module"], source.parent, f"{source}: module")
        if not isinstance(task, type):
            raise UserError(f"{source}: module: {values['module']} is no class; it must be a subclass of "
                            "evaluation.tasks.Task")
        check_class(task, f"{source}: module: {values['module']}")
        if "metrics" not in values and getattr(task, "default_metrics", None):
            values["metrics"] = list(task.default_metrics)
    elif kind is OtherTaskConfig:
        raise UserError(f"{source}: module is missing; a task of type other is what its class makes of it")
    elif values.get("options"):
        raise UserError(f"{source}: options are read by the class that `module` names, and there is no module")
    faults = Faults()
    for name in values.get("metrics", ()):
        with faults.noted():
            find_metric(name, source.parent, getattr(task, "extra_metrics", {}), kind.type.value, f"{source}: metrics")
    faults.tell()


def _faults_together(config: TaskConfig, whence: str) -> Iterator[str]:
    """What no key alone can get wrong. whence: where max_seq_length comes from, if not from file or default."""
    where, limit = config.source, config.max_seq_length
    told = f"{limit}: {whence}" if whence else str(limit)
    if config.unidirectional and not config.use_task_mask:
        yield f"{where}: unidirectional: needs `use_task_mask: true` (only [gMASK] is filled from left to right)"
    if isinstance(config, LanguageModelTaskConfig) and config.generation_length >= limit:
        yield (f"{where}: generation_length: must be less than max_seq_length ({told}), is "
               f"{config.generation_length}")
    if isinstance(config, MultiChoiceTaskConfig) and limit < 4:
        yield f"{where}: max_seq_length: must be at least 4 (text, mask, sop and choice), is {told}"
    if isinstance(config, GenerationTaskConfig):
        if config.max_gen_length + 2 >= limit:
            yield (f"{where}: max_gen_length: leaves no room for the text; must be at most max_seq_length - 3 "
                   f"({limit - 3}{whence and f'; max_seq_length is {told}'}), is {config.max_gen_length}")
        if fault := least_above_most(config.min_gen_length, config.max_gen_length):
            yield f"{where}: {fault}"


def without_effect(config: TaskConfig) -> list[str]:
    """Keys that stand in a task's file and change nothing, unless a class of the task's own makes use of them."""
    if not isinstance(config, GenerationTaskConfig) or config.sampling_strategy != STRATEGIES[0] or config.module:
        return []
    written = [key.replace("-", "_") for key in read_mapping(config.source)]
    return [name for name in written if name in ("num_beams", "length_penalty", "no_repeat_ngram_size")]
