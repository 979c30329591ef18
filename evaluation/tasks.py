"""A task: from the rows of its files to requests, and from the model's answers to items and their metrics.

To evaluate something new, subclass one of the three tasks, override what differs, and name the class with `module:` in
the task file (docs/evaluate-your-own-tasks.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from evaluation import fewshot
from evaluation.config import LONGEST, TaskConfig, TaskType
from evaluation.contexts import Context, Contexts
from evaluation.data import Example, line_of, read_rows, read_text, to_example
from evaluation.metrics import Metric
from evaluation.names import called, find_metric, import_dotted, returned
from evaluation.requests import GenerateRequest, Request, ScoreRequest
from generation.conversation import FORMATS
from generation.params import BeamParams, SamplingParams
from generation.texts import cut
from runtime.errors import UserError


class Task:
    """What all tasks share. A subclass gives `request` and `item`."""

    default_metrics: tuple[str, ...] | None = None  # where the task file names none; None: those of its type
    extra_metrics: Mapping[str, Metric] = {}  # known to this class beside evaluation.metrics.METRICS

    def __init__(self, config: TaskConfig, tokenizer):
        self.config, self.tokenizer = config, tokenizer

    @cached_property
    def contexts(self) -> Contexts:
        """How a text is put to the model."""
        return Contexts(self.config, self.tokenizer)

    @property
    def mask(self) -> int:
        return self.contexts.mask

    @property
    def sop(self) -> int:
        return self.contexts.sop

    @property
    def end_tokens(self) -> tuple[int, ...]:
        return self.contexts.ends

    @classmethod
    def without_model(cls, config: TaskConfig) -> Task:
        """A task that measures what was answered once (metrics, groups). Its constructor, which may want a tokenizer,
        is not called."""
        task = cls.__new__(cls)
        task.config, task.tokenizer = config, None
        return task

    @classmethod
    def check(cls, config: TaskConfig, path: Path) -> int:
        """How many rows a data file has, all checked before there is a model; UserError for one at fault, or none."""
        if getattr(config, "num_fewshot", 0):
            fewshot.pool(config, path)
        return len(read_rows(path, config, cls.fault))

    @classmethod
    def fault(cls, row: dict) -> str | None:
        """What is wrong with a row beside what all tasks of the type check: "field <name>: must be ...", or None."""
        return None

    def examples(self, path: Path, limit: int | None = None) -> list[Example]:
        """The first `limit` rows of a data file, tokenised."""
        rows = read_rows(path, self.config)[:limit]
        pool = fewshot.pool(self.config, path) if getattr(self.config, "num_fewshot", 0) else None
        return [self._example(path, row, index, pool) for index, row in enumerate(rows)]

    def _example(self, path: Path, row: dict, index: int, pool: fewshot.Pool | None) -> Example:
        try:
            example = to_example(row, index, self.tokenizer, self.contexts.encode)
        except UserError as error:
            raise UserError(f"{path}:{line_of(path, index)}: {error}") from None
        return example if pool is None else self._behind_examples(example, pool)

    def _behind_examples(self, example: Example, pool: fewshot.Pool) -> Example:
        """The same with as many examples in front as there is room for, those nearest to it."""
        text = example.row["inputs_pretokenized"]
        examples, room = pool.examples(example.index, text), self.room(example)
        while examples and len(ids := self.contexts.encode("".join([*examples, text]))) > room:
            examples.pop(0)
        return replace(example, inputs=ids if examples else example.inputs, num_examples=len(examples))

    def room(self, example: Example) -> int:
        """How many tokens of text there is room for."""
        raise NotImplementedError

    def unit(self, example: Example) -> int | str:
        """What is drawn as a whole where --limit draws a sample: the row, or what several rows have in common."""
        return example.index

    def request(self, example: Example) -> Request:
        raise NotImplementedError

    def item(self, example: Example, request: Request, answer: dict) -> dict:
        """A line of samples/: what was answered, what would be right, and whatever the metrics need."""
        raise NotImplementedError

    def items(self, examples: Sequence[Example], requests: Sequence[Request], answers: Sequence[dict]) -> list[dict]:
        """The items of one file, in order."""
        return [called(self.config, f"item {example.index}", "a dictionary, the line of samples/",
                       lambda item: isinstance(item, dict), self.item, example, request, answer)
                for example, request, answer in zip(examples, requests, answers, strict=True)]

    def metrics(self, items: Sequence[dict]) -> dict[str, Metric]:
        """The metrics of one file, by the name they are printed with."""
        config = self.config
        return {name: find_metric(name, config.source.parent, self.extra_metrics, config.type.value, str(config.source))
                for name in config.metrics}

    def groups(self, files: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Which files (relative paths) each group reports: those that the task file says."""
        return {group: list(paths) for group, paths in files.items()}

    def _facts(self, example: Example, request: Request) -> dict:
        facts = {"index": example.index, "input_length": request.input_length, "truncated": request.truncated,
                 "overlong": request.overlong}
        return facts if example.num_examples is None else facts | {"num_examples": example.num_examples}


class MultiChoiceTask(Task):
    """Which choice is the most likely one to fill the blank."""

    def request(self, example: Example) -> ScoreRequest:
        text, truncated = fit_context(example.inputs, self.room(example), self.config.max_seq_length)
        return score_request(self.contexts.of_text(text), tuple(map(tuple, example.choices)), truncated=truncated,
                             input_length=len(text))

    def room(self, example: Example) -> int:
        """Beside the longest choice, and beside all choices in what is read as one sequence."""
        config = self.config
        lengths = [1] if all(len(choice) == 1 for choice in example.choices) else [*map(len, example.choices)]
        around = self.contexts.around + 2  # mask and sop
        packed = LONGEST if config.form.marks_tasks else config.packed_length or config.max_seq_length
        return min(packed - sum(lengths), config.max_seq_length - max(lengths)) - around

    def item(self, example: Example, request: ScoreRequest, answer: dict) -> dict:
        log_probs = answer["log_probs"]
        best = max(range(len(log_probs)), key=log_probs.__getitem__)  # the first of equals, as argmax
        return self._facts(example, request) | {
            "prediction": best, "label": example.label, "log_probs": log_probs,
            "choice_lengths": [len(choice) for choice in example.choices]} | _text_lengths(example.row)


class GenerationTask(Task):
    """What the model writes into the blank."""

    def request(self, example: Example) -> GenerateRequest:
        config = self.config
        text, truncated = fit_context(example.inputs, self.room(example), config.max_seq_length)
        context = self.contexts.of_text(text)
        params = self.params()
        if isinstance(params, BeamParams) and params.ranking is None:
            params = replace(params, ranking=config.form.beam_ranking)
        return GenerateRequest(
            context.ids, params, config.max_gen_length, self.end_tokens, context.shared_position,
            context.causal, context.opened, (*self.invalid_ids(), *self.contexts.never), self.forbidden_starts(),
            tuple(config.stop), truncated=truncated, input_length=len(text))

    def room(self, example: Example) -> int:
        """Beside an answer of full length."""
        return self.config.max_seq_length - self.config.max_gen_length - self.contexts.around - 2

    def params(self) -> SamplingParams | BeamParams:
        """Greedy, or the beam search of the task file."""
        config = self.config
        if config.sampling_strategy == "BaseStrategy":
            return SamplingParams(top_k=1, min_gen_length=config.min_gen_length)
        return BeamParams(num_beams=config.num_beams, length_penalty=float(config.length_penalty),
                          no_repeat_ngram_size=config.no_repeat_ngram_size, min_gen_length=config.min_gen_length)

    def invalid_ids(self) -> tuple[int, ...]:
        """Ids that are never generated."""
        return ()

    def forbidden_starts(self) -> tuple[tuple[int, ...], ...]:
        """Ids that no answer begins with."""
        return ()

    def predicted_ids(self, beams: Sequence[Sequence[int]]) -> list[int]:
        """The answer that counts, of all beams, best first."""
        return list(beams[0])

    def text_of(self, ids: Sequence[int]) -> str:
        """An answer's text, up to the first of the task's stop texts."""
        if self.config.chat_format is None:
            return cut(self.tokenizer.decode(ids), self.config.stop)
        return FORMATS[self.config.chat_format].reply(cut(self.tokenizer.detokenize(ids), self.config.stop))

    def item(self, example: Example, request: GenerateRequest, answer: dict) -> dict:
        ids = self.predicted_ids(answer["beams"])
        returned(ids, isinstance(ids, list) and set(map(type, ids)) <= {int}, self.predicted_ids, "a list of token ids",
                 f"item {example.index}")
        return self._facts(example, request) | {
            "prediction": self.text_of(ids), "ids": ids,
            "targets": [self.tokenizer.decode(target) for target in example.targets], "beams": answer["beams"]}


def moving_windows(ids: Sequence[int], width: int, step: int, first: int,
                   later: int) -> list[tuple[Sequence[int], Sequence[int]]]:
    """(what is read, what is scored) of windows of a text; so many ids of the first and of later ones are only read."""
    windows = []
    for start in range(0, max(len(ids) - width, 0) + step, step):
        window, begin = ids[start:start + width], later if start else first
        windows.append((window[:begin], window[begin:]))
    return windows


class LanguageModelTask(Task):
    """How well the model foresees a text: losses of windows that move over it."""

    @classmethod
    def check(cls, config: TaskConfig, path: Path) -> int:
        text = read_text(path).lstrip()
        if config.module is None and path.suffix in (".json", ".jsonl") and text.startswith(("{", "[")):
            raise UserError(f"{path}: holds JSON, and an lm task scores raw text; name the texts with file_pattern in "
                            f"{config.source}")
        return 1

    def examples(self, path: Path, limit: int | None = None) -> list[Example]:
        """The first `limit` windows of a text; each has its share of the words and of the UTF-8 bytes."""
        text = read_text(path)
        windows = self.windows(self.tokenizer.encode(text))
        facts = self.shares(text, windows)
        return [Example(index, prompt, [], [scored], None, facts[index])
                for index, (prompt, scored) in enumerate(windows[:limit])]

    @staticmethod
    def shares(text: str, windows: Sequence[tuple]) -> list[dict]:
        """How many of a text's words and UTF-8 bytes each of its windows stands for: as many as of its scored tokens.

        Windows score unequal numbers of tokens; with equal shares, loss per word would differ between windows for no
        other reason, and intervals would be far too wide.
        """
        words, size, total = len(text.strip().split(" ")), len(text.encode()), sum(len(scored) for _, scored in windows)
        return [{"words": words * len(scored) / total, "bytes": size * len(scored) / total} for _, scored in windows]

    def windows(self, ids: Sequence[int]) -> list[tuple[list[int], list[int]]]:
        """(prompt, scored part) of windows that move over a text's ids by generation_length."""
        width, step = self.config.max_seq_length - 1 - self.contexts.begun, self.config.generation_length
        return moving_windows(ids, width, step, 0, 0 if self.config.unidirectional else width - step)

    def request(self, example: Example) -> ScoreRequest:
        (scored,) = example.targets
        return score_request(self.contexts.of_beginning(example.inputs), (tuple(scored),),
                             input_length=len(example.inputs) + len(scored))

    def item(self, example: Example, request: ScoreRequest, answer: dict) -> dict:
        return self._facts(example, request) | {
            "loss": -answer["log_probs"][0], "tokens": len(request.continuations[0])} | example.row


TASKS = {
    TaskType.MULTICHOICE: MultiChoiceTask,
    TaskType.GENERATION: GenerationTask,
    TaskType.LANGUAGE_MODEL: LanguageModelTask,
}


def task_class(config: TaskConfig) -> type[Task]:
    """The class of a task: that of its `module`, or its type's."""
    if config.module is None:
        return TASKS[config.type]
    found = import_dotted(config.module, config.source.parent, f"{config.source}: module")
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise UserError(f"{config.source}: module {config.module!r} must name a subclass of evaluation.tasks.Task")
    return found


def _text_lengths(row: Mapping) -> dict[str, list[int]]:
    """Of the choices as texts, where the row has them."""
    texts = row.get("choices_pretokenized")
    return {} if texts is None else {"choice_characters": [len(text) for text in texts],
                                     "choice_bytes": [len(text.encode()) for text in texts]}


def score_request(context: Context, continuations: tuple[tuple[int, ...], ...], **facts) -> ScoreRequest:
    """Log-probabilities of these behind a context."""
    return ScoreRequest(context.ids[:-1], continuations, context.ids[-1], context.first, context.advance,
                        context.causal, context.opened, **facts)


def fit_context(ids: Sequence[int], room: int, limit: int) -> tuple[list[int], bool]:
    """The last `room` tokens of a text, and whether any were cut off. limit: max_seq_length, for the message."""
    if len(ids) <= room:
        return list(ids), False
    if room < 1:
        raise UserError(f"max_seq_length {limit} leaves no room for the text beside {limit - room} tokens of choices "
                        "or answer; raise max_seq_length")
    return list(ids[len(ids) - room:]), True
