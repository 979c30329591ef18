"""What a user should know of samples before figures are made of them, a counted line each: nothing is silent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runtime.show import counted
from tuning.data import chat_files
from tuning.data.sample import Kind, Sample, Unbuildable, built
from tuning.options import Settings
from tuning.tasks import CHAT, PRETRAIN, module_of

_LOST = {"shortened_a": "the end of their first text", "shortened_b": "the end of their second text",
         "shortened_sources": None, "shortened_targets": "the end of their target"}  # None: as facts say
_EMPTY = {"empty_text_a": "an empty first text", "empty_text_b": "an empty second text",
          "empty_sources": "an empty source", "empty_targets": "an empty target"}


def notes_on(settings: Settings, samples: Sequence[Sample | Unbuildable]) -> list[str]:
    """Lines; none where there is nothing to say."""
    if settings.data.task == CHAT:
        facts = chat_files.facts(samples)
    else:
        module = None if settings.data.task == PRETRAIN else module_of(settings.data.task)
        facts = module.facts(settings, samples) if hasattr(module, "facts") else {}
    return [*_unbuildable(samples), *_counted(facts, settings.data.split == "test"), *_verbalizers(facts, samples)]


def _unbuildable(samples: Sequence[Sample | Unbuildable]) -> Iterator[str]:
    lacking = [each for each in samples if isinstance(each, Unbuildable)]
    if lacking:
        yield (f"{len(lacking)} of {counted(len(samples), 'row')} cannot be built, and are left out; the first is "
               f"{lacking[0].guid}: {lacking[0].error}")


def _counted(facts: Mapping[str, Any], is_test: bool) -> Iterator[str]:
    """facts: of the task's module. is_test: labels are not expected."""
    of_rows = f"of {counted(facts.get('rows', 0), 'row')}"
    for name, what in _LOST.items():
        if facts.get(name):
            yield f"{facts[name]} {of_rows} lost {what or facts['sources_lose'] + ' (source)'}: they are too long"
    if facts.get("shortened"):
        yield f"{facts['tokens_cut']} tokens were cut in all, {facts['most_tokens_cut']} of one row at most"
    for name, what in _EMPTY.items():
        if facts.get(name):
            yield f"{facts[name]} {of_rows} have {what}"
    if facts.get("unlabelled") and not is_test:
        yield f"{facts['unlabelled']} {of_rows} have no label"
    if facts.get("chinese_references"):
        yield (f"{facts['chinese_references']} {of_rows} have Chinese references, in which the English ROUGE sees no "
               "words: score-text --rules chatglm does")


def _verbalizers(facts: Mapping[str, Any], samples: Sequence[Sample | Unbuildable]) -> Iterator[str]:
    first = next((sample for sample in built(samples) if sample.kind is Kind.CHOICES), None)
    if first is None or not facts.get("verbalizers"):
        return
    lengths = [sum(row.loss_mask) for row in first.rows]
    if len(set(lengths)) > 1:
        told = ", ".join(f"{text.strip()} {length}" for text, length in zip(
            facts["verbalizers"].values(), lengths, strict=False))
        yield (f"verbalizers have different numbers of tokens, ends included ({told}), whose log-probabilities are "
               "added: --length-penalty 1 takes their mean")
