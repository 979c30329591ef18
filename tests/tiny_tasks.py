"""Task files and data for the evaluator's tests: a few rows of every kind, and a run on the golden checkpoint."""

import json
from pathlib import Path

from tests.golden_data import SHAPE, TOKENIZER, TP1

MODEL = ["--load", str(TP1), "--tokenizer-path", str(TOKENIZER / "ice_text.model"), "--fp32", "--device", "cpu",
         *(f"--{name}={value}" for name, value in SHAPE.items())]
PLACES = ["the house", "the garden", "a river", "the old town", "a field of wheat", "her room", "这里", "山上"]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_tasks(folder: Path, rows: int = 8) -> Path:
    """folder/tasks: choices.yaml (two prompts), writing.yaml, text.yaml; their data is folder/data. Returns folder."""
    for prompt, template in (("plain", "They walked to {}"), ("said", "Word {1}: they said that {0} was")):
        write_rows(folder / "data" / "choices" / prompt / "test.jsonl", [
            {"inputs_pretokenized": template.format(PLACES[number % 8], number),
             "choices_pretokenized": ["and", "today", "a new song", "门"][:2 + number % 3], "label": number % 2}
            for number in range(rows)])
    write_rows(folder / "data" / "writing" / "dev.jsonl", [
        {"inputs_pretokenized": f"Number {number}, {PLACES[number % 8]}", "targets_pretokenized": ["and", "t t t"]}
        for number in range(rows)])
    text = folder / "data" / "text" / "test.txt"
    text.parent.mkdir(parents=True)
    text.write_text(" ".join(f"{place} was {number}." for number in range(rows) for place in PLACES), encoding="utf-8")
    for name, lines in {
        "choices": ["type: mul", "file-pattern: {test: '**/test.jsonl'}", "metrics: [Accuracy, F1_mul]"],
        "writing": ["type: gen", "max_gen_length: 4", "max_seq_length: 64"],
        "text": ["type: lm", "file_pattern: '*.txt'", "max_seq_length: 64", "generation_length: 32"],
    }.items():
        file = folder / "tasks" / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join([f"name: {name}", f"path: {name}", *lines]) + "\n", encoding="utf-8")
    return folder


def arguments(folder: Path, *more: str, output: str = "out") -> list[str]:
    """The command line of a run over folder/tasks; small batches, so that there are many."""
    return [*MODEL, "--data-path", str(folder / "data"), "--output", str(folder / output), "--max-batch-tokens", "96",
            str(folder / "tasks"), *more]


def results(folder: Path, output: str = "out") -> dict:
    return json.loads((folder / output / "results.json").read_text(encoding="utf-8"))


def samples(folder: Path, output: str = "out") -> dict[str, list[dict]]:
    """The items of every samples file, by its path below samples/."""
    root = folder / output / "samples"
    return {path.relative_to(root).as_posix(): [json.loads(line) for line in path.read_text().splitlines()]
            for path in sorted(root.rglob("*.jsonl"))}
