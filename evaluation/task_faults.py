"""What is wrong with a task file as a whole: another program's, without its type, or naming a class that is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from evaluation.metrics import Metric
from evaluation.registry import nearest
from runtime.errors import UserError, shown

# keys of lm-evaluation-harness that no task file here has
OF_HARNESS = ("task", "output_type", "dataset_path", "dataset_name", "doc_to_text", "doc_to_target", "doc_to_choice",
              "metric_list", "test_split", "validation_split", "num_fewshot", "generation_kwargs")
LONG_NAMES = {"multiple_choice": "mul", "multichoice": "mul", "generation": "gen", "generate_until": "gen",
              "language_model": "lm", "language_modeling": "lm", "perplexity": "lm"}


def check_origin(keys: Iterable[str], where: str) -> None:
    """Raises UserError for a file of another program, whose every key would be a fault."""
    foreign = [key for key in keys if key in OF_HARNESS]
    if len(foreign) > 1:
        raise UserError(f"{where}: a task file of lm-evaluation-harness ({', '.join(foreign[:3])}), which is not read; "
                        "docs/evaluate-your-own-tasks.md says what one of this toolkit has: name, type, path")


def fault_of_type(written: Mapping[str, Any], allowed: list[str], where: str) -> str | None:
    """What is wrong with a file's `type`, or None."""
    known = ", ".join(allowed)
    if "type" not in written:
        like = next((key for key in written if key.lower() == "type"), None)
        return f"{where}: type is missing{f' (it stands there as {like!r})' if like else ''}; allowed: {known}"
    value = written["type"]
    if isinstance(value, str) and value in allowed:
        return None
    hint = ""
    if isinstance(value, str):
        long_name = LONG_NAMES.get(value.lower().replace("-", "_"))
        hint = f", did you mean {long_name!r}?" if long_name else nearest(value, allowed)
    return f"{where}: type: {shown(value)} is none{hint}; allowed: {known}"


def check_class(task: type, where: str) -> None:
    """Of a class of one's own, what is read before anything of it is called."""
    names, more = getattr(task, "default_metrics", None), getattr(task, "extra_metrics", {})
    if names is not None and not (isinstance(names, list | tuple) and all(isinstance(each, str) for each in names)):
        raise UserError(f"{where}: default_metrics: must be a tuple such as ('Accuracy',), is {shown(names)}")
    if not (isinstance(more, Mapping) and all(isinstance(each, Metric) for each in more.values())):
        raise UserError(f"{where}: extra_metrics: must map names to evaluation.metrics.Metric, is {shown(more)}")
