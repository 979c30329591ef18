"""The Pile: bits per byte of every subset (Gao et al. 2020).

A row is a document: text_pretokenized, its text; meta.pile_set_name, the subset; optionally text, its token ids, as in
files that were tokenised before. Documents are scored one by one.
"""

from collections.abc import Sequence
from pathlib import Path

from evaluation.config import TaskConfig
from evaluation.data import Example, is_ids, is_text, read_rows
from evaluation.metrics import Metric, by_kind
from evaluation.tasks import LanguageModelTask


class Pile(LanguageModelTask):
    """Windows over each document; bits per byte of all, and of every subset."""

    default_metrics = ("BPB",)

    @classmethod
    def fault(cls, row: dict) -> str | None:
        text, meta = row.get("text_pretokenized"), row.get("meta")
        if not is_text(text) or not text:
            return "field text_pretokenized: must be the document's text"
        if not isinstance(meta, dict) or not isinstance(meta.get("pile_set_name"), str):
            return "field meta: must be an object with the subset's name as pile_set_name"
        if "text" in row and not (is_ids(row["text"]) and row["text"]):
            return "field text: must be the document's token ids; the text itself belongs into text_pretokenized"
        return None

    @classmethod
    def check(cls, config: TaskConfig, path: Path) -> int:
        return len(read_rows(path, config, cls.fault))

    def examples(self, path: Path, limit: int | None = None) -> list[Example]:
        """The windows of the first `limit` documents, each with its share of the document's words and bytes."""
        examples = []
        for number, row in enumerate(read_rows(path, self.config, self.fault)[:limit]):
            text = row["text_pretokenized"]
            ids = row["text"] if "text" in row else self.tokenizer.encode(text) or [self.tokenizer.command("eop")]
            windows = self.windows(ids)
            about = {"document": number, "subset": row["meta"]["pile_set_name"]}
            for (prompt, scored), share in zip(windows, self.shares(text, windows), strict=True):
                examples.append(Example(len(examples), prompt, [], [scored], None, share | about))
        return examples

    def metrics(self, items: Sequence[dict]) -> dict[str, Metric]:
        return by_kind(super().metrics(items), "subset", items)
