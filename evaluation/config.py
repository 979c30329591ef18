"""A task: its settings, under the names and with the defaults that they have in the original's task files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

from glm.prompt_form import DEFAULT, PromptForm

STRATEGIES = ("BaseStrategy", "BeamSearchStrategy")
ORDERS = ("drawn", "first")  # how the rows of examples are chosen
DEFAULT_PATTERN = "**/*.json*"  # as the original spells it; of what it matches, names in .json and .jsonl are taken
LONGEST = 2048  # max_seq_length where neither the task file nor the model says less


class TaskType(Enum):
    MULTICHOICE = "mul"
    GENERATION = "gen"
    LANGUAGE_MODEL = "lm"
    OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What all types of task share. Its repr is a line of a run's output, so fields keep their order."""

    name: str
    type: TaskType
    path: str  # folder of the data files
    module: str | None = None  # dotted path of a subclass of evaluation.tasks.Task
    metrics: list[str] = field(default_factory=list)
    use_task_mask: bool = False  # the blank is a [gMASK], not a [MASK]
    use_multitask_encoding: bool = False  # mul: positions count on after the [MASK]
    unidirectional: bool = False
    max_seq_length: int = LONGEST  # tokens, with the choices or the answer
    file_pattern: str | dict[str, str] = DEFAULT_PATTERN  # glob below path, or name of a group -> glob
    micro_batch_size: int = 1  # what the original batched by; batches are formed by their tokens here
    source: Path = field(default=Path(), repr=False)  # the YAML file
    # Tokens of a text with all its choices, which are read as one sequence, where that is not max_seq_length but the
    # model's: each choice goes on from the text, so only the longest one must fit the model.
    packed_length: int | None = field(default=None, repr=False)
    options: dict[str, Any] = field(default_factory=dict, repr=False)  # free settings for the class of `module`
    form: PromptForm = field(default=DEFAULT, repr=False)  # what the model's family puts around a text
    chat_format: str | None = field(default=None, repr=False)  # name of a conversation.FORMATS: texts are questions


@dataclass(frozen=True, kw_only=True)
class ExampledTaskConfig(TaskConfig):
    """A task whose questions may follow examples."""

    num_fewshot: int = field(default=0, repr=False)  # examples in front of each question
    fewshot_file: str | None = field(default=None, repr=False)  # their rows; None: the data file's own but for the one
    fewshot_separator: str = field(default="\n\n", repr=False)  # behind each example
    fewshot_answer_separator: str = field(default=" ", repr=False)  # between an example's text and its answer
    fewshot_seed: int = field(default=0, repr=False)  # of the draw
    fewshot_order: str = field(default=ORDERS[0], repr=False)


@dataclass(frozen=True, kw_only=True)
class MultiChoiceTaskConfig(ExampledTaskConfig):
    type: TaskType = TaskType.MULTICHOICE
    metrics: list[str] = field(default_factory=lambda: ["Accuracy"])


@dataclass(frozen=True, kw_only=True)
class GenerationTaskConfig(ExampledTaskConfig):
    type: TaskType = TaskType.GENERATION
    metrics: list[str] = field(default_factory=lambda: ["EM", "F1"])
    sampling_strategy: str = "BaseStrategy"  # which is greedy
    num_beams: int = 4
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 3
    min_gen_length: int = 0  # tokens of the answer
    max_gen_length: int = 128
    stop: list[str] = field(default_factory=list, repr=False)  # texts of which the first to come ends an answer


@dataclass(frozen=True, kw_only=True)
class LanguageModelTaskConfig(TaskConfig):
    type: TaskType = TaskType.LANGUAGE_MODEL
    metrics: list[str] = field(default_factory=lambda: ["PPL"])
    generation_length: int = 256  # tokens by which the window moves, scored in every window but the first


@dataclass(frozen=True, kw_only=True)
class OtherTaskConfig(TaskConfig):
    """A task that its `module` defines altogether."""

    type: TaskType = TaskType.OTHER


FOUND_OUT = ("source", "packed_length", "form", "chat_format")  # fields that are no keys of a task file
CONFIGS = {
    TaskType.MULTICHOICE: MultiChoiceTaskConfig,
    TaskType.GENERATION: GenerationTaskConfig,
    TaskType.LANGUAGE_MODEL: LanguageModelTaskConfig,
    TaskType.OTHER: OtherTaskConfig,
}


def as_record(config: TaskConfig) -> dict:
    """A task's settings as results.json has them."""
    values = {each.name: getattr(config, each.name) for each in fields(config) if each.name not in FOUND_OUT}
    unsaid = [name for name in ("options", "stop") if not values.get(name)]
    if not values.get("num_fewshot"):
        unsaid += [name for name in values if "fewshot" in name]
    values = {name: value for name, value in values.items() if name not in unsaid}
    return values | {"type": config.type.value}


def of_record(values: Mapping[str, Any], source: Path) -> TaskConfig:
    """The settings that results.json has: of a run of this version of the toolkit or of another one, whose keys that
    are unknown here are left out. source: the task file."""
    kind = CONFIGS[TaskType(values["type"])]
    known = {each.name for each in fields(kind)} - {"type", *FOUND_OUT}
    return kind(**{name: value for name, value in values.items() if name in known}, source=source)
