"""Any bytes where rows of data are expected, and any values in a row."""

import json
from pathlib import Path

import pytest
from hypothesis import strategies as st

from evaluation.config import TaskType
from evaluation.data import fault_of_row, read_rows, to_example
from evaluation.task_file import load_task
from evaluation.tasks import TASKS, task_class
from runtime.errors import UserError
from tests.fuzzing import changed_json, disguises, fuzz, hostile_json, json_values, mutated, only_user_errors, texts
from tools.preparing import raw

ROOT = Path(__file__).resolve().parent.parent
GOOD = {
    "mul": "name: a\ntype: mul\npath: data\n", "gen": "name: a\ntype: gen\npath: data\nmax_gen_length: 5\n",
    "lm": "name: a\ntype: lm\npath: data\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


ROW = {
    "mul": {
        "inputs_pretokenized": "a", "choices_pretokenized": ["b", "c"], "label": 1, "inputs": [20010],
        "choices": [[20010], [20011]],
    },
    "gen": {"inputs_pretokenized": "a", "targets_pretokenized": ["b"], "targets": [[20010]]},
}


@pytest.mark.parametrize("kind", ROW)
def test_any_row_is_tokenised_or_refused(folder, tokenizer, kind):
    path = folder / "row.yaml"
    path.write_text(GOOD[kind], encoding="utf-8")
    task = TASKS[TaskType(kind)](load_task(path, folder), tokenizer)

    @fuzz(150, data=st.data())
    def run(data):
        row = changed_json(ROW[kind], data.draw)
        with only_user_errors("rows"):
            if fault := fault_of_row(row, TaskType(kind), False):
                raise UserError(fault)
            task.request(to_example(row, 0, tokenizer))

    run()


LINES = [json.dumps(row) for row in ROW.values()] + [
    "", "[]", "{}", "null", "1e400", "NaN",
    "[" * 5000,
    '{"a":' * 5000, "1" * 5000, '{"a": 1, "a": 2}', "\ufeff{}", '{"inputs_pretokenized": "\\ud800"}',
    "[{}",
    ",",
    "]",
    "[{},]", "\x00", "\u2028", "\x1c",
]


@fuzz(
    150,
    lines=st.lists(st.one_of(st.sampled_from(LINES), texts, hostile_json, json_values.map(json.dumps)), max_size=5),
    kind=st.sampled_from(["mul", "gen", "lm"]),
    end=st.sampled_from(["\n", "\r\n", ",", ""]),
    change=st.booleans(),
    data=st.data(),
)
def test_any_file_of_rows_is_read_or_refused(folder, lines, kind, end, change, data):
    task, path = folder / "rows.yaml", folder / "rows.jsonl"
    task.write_text(GOOD[kind], encoding="utf-8")
    content = data.draw(st.just(b"") | disguises) + end.join(lines).encode("utf-8", "surrogatepass")
    path.write_bytes(data.draw(mutated(content)) if change else content)
    with only_user_errors("files of rows"):
        assert read_rows(path, load_task(task, folder))

OWN = {  # task file: good rows of its class
    "ethnic/crows_pairs.yaml": [
        {"choices_pretokenized": ["a"], "pair_ID": 1, "sent_ID": 1, "bias_type": "x", "inputs_pretokenized": ""},
        {"choices_pretokenized": ["b"], "pair_ID": 1, "sent_ID": 2, "bias_type": "x", "inputs_pretokenized": ""},
    ],
    "ethnic/stereoset.yaml": [
        {
            "choices_pretokenized": ["a", "b", "c"],
            "goal_label": ["stereotype", "anti-stereotype", "unrelated"],
            "bias_type": "x",
            "inputs_pretokenized": "",
        }
    ],
    "language_modeling/pile.yaml": [{"text_pretokenized": "a b", "meta": {"pile_set_name": "x"}, "text": [20010]}],
    "lambada/lambada.yaml": [{"inputs_pretokenized": "a b", "targets_pretokenized": ["c"]}],
    "mmlu/mmlu.yaml": [{"inputs_pretokenized": "a", "choices_pretokenized": ["b", "c"], "label": 0}],
}


@pytest.mark.parametrize("name", OWN)
def test_any_row_of_a_task_with_a_class_of_its_own(folder, tokenizer, name):
    config = load_task(ROOT / "tasks" / name, folder)
    kind, path = task_class(config), folder / "own.jsonl"

    @fuzz(50, data=st.data(), damage=st.booleans())
    def run(data, damage):
        rows = changed_json(OWN[name], data.draw) if damage else OWN[name]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        with only_user_errors("rows of tasks with a class of their own") as messages:
            assert kind.check(config, path)
            task = kind(config, tokenizer)
            for example in task.examples(path):
                task.request(example)
        assert damage or not messages

    run()


@fuzz(
    100,
    text=st.lists(st.one_of(texts, hostile_json, st.text('",\t\n\r')), max_size=4).map("\n".join),
    reader=st.sampled_from([raw.read_json, raw.read_jsonl, raw.read_tsv, raw.read_csv, raw.read_text]),
    encoding=st.sampled_from(["utf-8", "utf-8", "utf-16", "latin-1"]),
)
def test_any_raw_file_of_a_published_set(folder, text, reader, encoding):
    path = folder / "raw"
    path.write_bytes(text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode(encoding, "replace"))
    with only_user_errors("raw files of published sets"):
        reader(path)
