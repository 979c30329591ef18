"""ChatGLM's rows from files of people's own: JSON, JSON lines, CSV; columns by name; mistakes in one line."""

import json

import pytest

from runtime.errors import UserError
from tuning.data.chat_files import prompts, rows
from tuning.options import ChatOptions, DataOptions, Settings

ROWS = [{"content": "Name a bird.", "summary": "A heron.", "before": []},
        {"content": "And another?", "summary": "A rook.", "before": [["Name a bird.", "A heron."]]},
        {"content": "", "summary": "left out", "before": []}]


def settings(path, split="train", **chat):
    flag = {"train": "train_file", "dev": "validation_file", "test": "test_file"}[split]
    names = {"prompt_column": "content", "response_column": "summary", **chat}
    return Settings(data=DataOptions(task="chat", split=split), chat=ChatOptions(**{flag: path}, **names))


@pytest.mark.parametrize("form", ["list", "lines"])
def test_rows_of_json(tmp_path, form):
    path = tmp_path / "train.json"
    path.write_text(json.dumps(ROWS) if form == "list" else "\n".join(map(json.dumps, ROWS)))
    found = rows(settings(path, history_column="before"))
    assert [row["prompt"] for row in found] == ["Name a bird.", "And another?"]
    assert found[1] == {"prompt": "And another?", "response": "A rook.", "history": [["Name a bird.", "A heron."]]}


def test_rows_of_csv(tmp_path):
    path = tmp_path / "dev.csv"
    path.write_text('content,summary\n"Name a bird, please.",A heron.\n')
    assert rows(settings(path, "dev")) == [{"prompt": "Name a bird, please.", "response": "A heron."}]


def test_csv_of_long_cells_and_of_other_line_ends(tmp_path):
    path = tmp_path / "dev.csv"
    long = "long " * 40_000
    path.write_bytes(f"content,summary\r{long},A heron.\r".encode())
    assert rows(settings(path, "dev")) == [{"prompt": long, "response": "A heron."}]


def test_prompts_of_an_evaluation(tmp_path):
    path = tmp_path / "test.json"
    path.write_text(json.dumps(ROWS))
    asked, answers = prompts(settings(path, "test", history_column="before", source_prefix="Q: "))
    assert asked[0] == "Q: Name a bird." and answers == ["A heron.", "A rook."]
    assert asked[1] == "Q: [Round 0]\n问：Name a bird.\n答：A heron.\n[Round 1]\n问：And another?\n答："


@pytest.mark.parametrize("text, chat, message", [
    ('[{"content": "a"}]', {}, "row 1 has no summary; it has content"),
    ('[{"content": 5, "summary": "b"}]', {}, "row 1: content is 5; it should be a text"),
    ('[{"content": "a", "summary": "b", "h": "c"}]', {"history_column": "h"}, "it should be a list of"),
    ('[3]', {}, "row 1 is 3; it should be an object"),
    ('[{"content": "", "summary": ""}]', {}, "no row has both content and summary"),
    ('{"content": "a", ', {}, "train.json"),
])
def test_mistakes(tmp_path, text, chat, message):
    path = tmp_path / "train.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        rows(settings(path, **chat))


def test_no_file():
    with pytest.raises(UserError, match="needs --validation-file FILE, or --tokenized FILE"):
        rows(Settings(data=DataOptions(task="chat", split="dev")))
