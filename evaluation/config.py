"""A task: its settings, under the names and with the defaults that they have in the original's task files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

STRATEGIES = ("BaseStrategy", "BeamSearchStrategy")
DEFAULT_PATTERN = "**/*.json*"  # as the original spells it; of what it matches, names in .json and .jsonl are taken
LONGEST = 2048  # max_seq_length where neither the task file nor the model says less


class TaskType(Enum):
    MULTICHOICE = "mul"
    GENERATION = "gen"
    LANGUAGE_MODEL = "lm"
    OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What all types of task share. Its repr is the line of settings in the report, so fields keep their order.

    path: the folder of the task's data files. module: dotted path of a subclass of evaluation.tasks.Task.
    file_pattern: glob below path, or name of a group -> glob. max_seq_length: tokens, with the choices or the answer.
    packed_length: tokens of a text with all its choices, which are read as one sequence, where that is not
    max_seq_length but the model's: each choice goes on from the text, so only the longest one must fit the model.
    use_task_mask: the blank is a [gMASK], not a [MASK]. micro_batch_size: what the original batched by; batches are
    formed by their tokens here. source: the YAML file. options: free settings for the class that `module` names.
    """

    name: str
    type: TaskType
    path: str
    module: str | None = None
    metrics: list[str] = field(default_factory=list)
    use_task_mask: bool = False
    use_multitask_encoding: bool = False
    unidirectional: bool = False
    max_seq_length: int = LONGEST
    file_pattern: str | dict[str, str] = DEFAULT_PATTERN
    micro_batch_size: int = 1
    source: Path = field(default=Path(), repr=False)
    packed_length: int | None = field(default=None, repr=False)
    options: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class MultiChoiceTaskConfig(TaskConfig):
    type: TaskType = TaskType.MULTICHOICE
    metrics: list[str] = field(default_factory=lambda: ["Accuracy"])


@dataclass(frozen=True, kw_only=True)
class GenerationTaskConfig(TaskConfig):
    """sampling_strategy: BaseStrategy is greedy. min_gen_length, max_gen_length: tokens of the answer."""

    type: TaskType = TaskType.GENERATION
    metrics: list[str] = field(default_factory=lambda: ["EM", "F1"])
    sampling_strategy: str = "BaseStrategy"
    num_beams: int = 4
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 3
    min_gen_length: int = 0
    max_gen_length: int = 128


@dataclass(frozen=True, kw_only=True)
class LanguageModelTaskConfig(TaskConfig):
    """generation_length: tokens by which the window moves, and which are scored in every window but the first."""

    type: TaskType = TaskType.LANGUAGE_MODEL
    metrics: list[str] = field(default_factory=lambda: ["PPL"])
    generation_length: int = 256


@dataclass(frozen=True, kw_only=True)
class OtherTaskConfig(TaskConfig):
    """A task that its `module` defines altogether."""

    type: TaskType = TaskType.OTHER


FOUND_OUT = ("source", "packed_length")  # fields that are no keys of a task file
CONFIGS = {
    TaskType.MULTICHOICE: MultiChoiceTaskConfig,
    TaskType.GENERATION: GenerationTaskConfig,
    TaskType.LANGUAGE_MODEL: LanguageModelTaskConfig,
    TaskType.OTHER: OtherTaskConfig,
}


def as_record(config: TaskConfig) -> dict:
    """A task's settings as results.json has them."""
    values = {each.name: getattr(config, each.name) for each in fields(config) if each.name not in FOUND_OUT}
    if not values["options"]:
        del values["options"]
    return values | {"type": config.type.value}


def of_record(values: Mapping[str, Any], source: Path) -> TaskConfig:
    """The settings that results.json has: of a run of this version of the toolkit or of another one, whose keys that
    are unknown here are left out. source: the task file."""
    kind = CONFIGS[TaskType(values["type"])]
    known = {each.name for each in fields(kind)} - {"type", *FOUND_OUT}
    return kind(**{name: value for name, value in values.items() if name in known}, source=source)
