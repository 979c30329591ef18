"""Examples in front of questions, answers that a stop text ends, shares of rows: rules, and a run with all of them."""

import json
from dataclasses import replace

import pytest

import commands.evaluate as command
from evaluation import fewshot
from evaluation.config import GenerationTaskConfig, MultiChoiceTaskConfig
from evaluation.metrics import METRICS, evaluate
from evaluation.plan import Limit
from evaluation.report import write_report
from evaluation.task_file import load_task
from evaluation.tasks import GenerationTask, MultiChoiceTask
from runtime.errors import UserError
from tests.test_tasks import Letters
from tests.tiny_tasks import arguments, results, samples, write_rows, write_tasks

QUESTIONS = [{"inputs_pretokenized": f"Q{number}", "choices_pretokenized": ["no", "yes"], "label": number % 2}
             for number in range(9)]


@pytest.fixture
def file(tmp_path):
    return write_rows(tmp_path / "data" / "test.jsonl", QUESTIONS)


def config_of(file, kind=MultiChoiceTaskConfig, **settings):
    return kind(name="quiz", path=str(file.parent), **{"num_fewshot": 2} | settings)


def drawn(file, **settings):
    """The examples of every question."""
    pool = fewshot.pool(config_of(file, **settings), file)
    return [pool.examples(index, row["inputs_pretokenized"]) for index, row in enumerate(QUESTIONS)]


def test_an_example_is_a_text_and_its_answer(file):
    assert drawn(file, fewshot_order="first")[5] == ["Q0 no\n\n", "Q1 yes\n\n"]
    separators = {"fewshot_answer_separator": ": ", "fewshot_separator": "\n"}
    assert drawn(file, fewshot_order="first", **separators)[0] == ["Q1: yes\n", "Q2: no\n"]
    assert fewshot.answer_of({"targets_pretokenized": ["a", "b"]}) == "a"


def test_examples_are_drawn_without_repetition_and_never_the_question(file):
    found = drawn(file, num_fewshot=8)
    everything = {f"Q{number} {'yes' if number % 2 else 'no'}\n\n" for number in range(9)}
    for number, examples in enumerate(found):
        assert set(examples) == {text for text in everything if not text.startswith(f"Q{number} ")}
        assert len(examples) == 8
    assert len({tuple(examples) for examples in found}) == 9  # of each question its own
    assert drawn(file, num_fewshot=3) == [examples[:3] for examples in found]
    assert drawn(file, fewshot_seed=1) != drawn(file)


def test_rows_of_the_same_text_are_no_examples_and_another_file_has_all(file, tmp_path):
    same = write_rows(tmp_path / "dev.jsonl", [QUESTIONS[4], QUESTIONS[6], QUESTIONS[4]])
    pool = fewshot.pool(config_of(file, fewshot_file=str(same)), file)
    assert pool.examples(4, "Q4") == ["Q6 no\n\n"]
    assert len(pool.examples(0, "Q0")) == 2


def test_whole_examples_are_left_out_from_the_front(file):
    letters = Letters()
    task = MultiChoiceTask(config_of(file, fewshot_order="first", max_seq_length=23), letters)
    first, *_ = task.examples(file, 1)
    assert task.room(first) < len("Q1 yes\n\nQ2 no\n\nQ0")
    assert first.inputs == letters.encode("Q2 no\n\nQ0") and first.num_examples == 1
    item = task.item(first, task.request(first), {"log_probs": [-1.0, -2.0]})
    assert item["num_examples"] == 1 and not item["truncated"]
    none, *_ = MultiChoiceTask(replace(task.config, max_seq_length=9), letters).examples(file, 1)
    assert (none.inputs, none.num_examples) == (letters.encode("Q0"), 0)


@pytest.mark.parametrize(("rows", "settings", "message"), [
    (QUESTIONS[:2], {}, "num_fewshot 2: "),
    ([{**QUESTIONS[0], "inputs": [1]}, *QUESTIONS[1:]], {}, ":1: field inputs_pretokenized: num_fewshot needs rows of"),
    ([*QUESTIONS, {"inputs_pretokenized": "Q", "choices": [[1], [2]], "label": 0}], {}, ":10: num_fewshot needs rows "),
])
def test_rows_that_cannot_be_examples(tmp_path, rows, settings, message):
    file = write_rows(tmp_path / "test.jsonl", rows)
    with pytest.raises(UserError) as caught:
        MultiChoiceTask.check(config_of(file, **settings), file)
    assert message in str(caught.value)


def test_keys_of_a_task_file(tmp_path):
    path = tmp_path / "quiz.yaml"
    path.write_text("name: quiz\ntype: gen\npath: ./data\nnum-fewshot: 3\nfewshot_file: ./dev.jsonl\n"
                    'fewshot_separator: "\\n"\nstop: ["\\n", "Q:"]\n', encoding="utf-8")
    config = load_task(path, "data")
    assert (config.num_fewshot, config.fewshot_file) == (3, str(tmp_path / "dev.jsonl"))
    assert (config.fewshot_separator, config.stop) == ("\n", ["\n", "Q:"])
    for line, message in (("fewshot_order: last", "'last' is none"), ("stop: end", 'must be a list of texts, such as'),
                          ("num_fewshot: -1", "must be from 0")):
        path.write_text(f"name: quiz\ntype: gen\npath: ./data\n{line}\n", encoding="utf-8")
        with pytest.raises(UserError, match=message):
            load_task(path, "data")
    path.write_text("name: quiz\ntype: lm\npath: ./data\nnum_fewshot: 3\n", encoding="utf-8")
    with pytest.raises(UserError, match="num_fewshot is a key of mul tasks; this is a lm task"):
        load_task(path, "data")


def test_an_answer_ends_in_front_of_the_first_stop_text():
    class Spelling(Letters):
        def decode(self, ids):
            return "".join(map(chr, ids))

    task = GenerationTask(GenerationTaskConfig(name="quiz", path="data", stop=["\n", "Q:"]), Spelling())
    assert [task.text_of(list(map(ord, text))) for text in ("yes\nQ: no", "yes Q:", "yes")] == ["yes", "yes ", "yes"]


def test_a_share_of_the_rows_is_one_at_least():
    assert [Limit(0.1).of(rows) for rows in (1, 10, 11, 100)] == [1, 1, 2, 10]
    assert Limit(0.3, 7).drawn(range(100)) == Limit(30, 7).drawn(range(100))


def test_accuracy_by_length():
    item = {"index": 0, "label": 1, "prediction": 0, "log_probs": [-2.0, -3.0], "choice_lengths": [1, 1],
            "choice_characters": [2, 2], "choice_bytes": [2, 6]}
    found = {name: evaluate(METRICS[name], [item]) for name in METRICS if name.startswith("Accuracy")}
    assert found == {"Accuracy": 0, "Accuracy_per_token": 0, "Accuracy_per_character": 0, "Accuracy_per_byte": 100}


def test_a_run_with_examples_and_a_stop_text(tmp_path, capsys):
    folder = write_tasks(tmp_path)
    (folder / "tasks" / "text.yaml").unlink()
    (folder / "tasks" / "choices.yaml").unlink()
    with (folder / "tasks" / "writing.yaml").open("a") as task:
        task.write('stop: ["t"]\n')
    assert command.main(arguments(folder, "--limit", "0.5", "--num-fewshot", "2")) == 0
    assert "only the first 50% of the rows of every file were taken" in capsys.readouterr().out
    found, items = results(folder), samples(folder)["writing/dev.jsonl"]
    assert (found["settings"]["limit"], found["settings"]["num_fewshot"]) == (0.5, 2)
    assert found["settings"]["chat_format"] is None
    assert found["tasks"]["writing"]["config"]["num_fewshot"] == 2
    assert found["tasks"]["writing"]["counts"] == {"expected": 8, "scored": 4, "truncated": 0, "overlong": 0,
                                                   "fewer_examples": 0}
    assert [item["num_examples"] for item in items] == [2] * 4
    assert not any("t" in item["prediction"] for item in items)
    written = (folder / "out" / "results.json").read_bytes()
    journal = folder / "out" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])  # as after a kill
    assert command.main(arguments(folder, "--limit", "0.5", "--num-fewshot", "2")) == 0
    assert (folder / "out" / "results.json").read_bytes() == written
    assert command.main(arguments(folder, "--limit", "0.5", "--num-fewshot", "1")) == 2
    assert "num_fewshot: 2, now 1" in capsys.readouterr().err
    keys = [json.loads(line)["key"] for line in journal.read_text().splitlines()]
    assert command.main(arguments(folder, "--limit", "0.5", "--num-fewshot", "1", "--overwrite")) == 0
    assert len(journal.read_text().splitlines()) == 2 * len(keys)  # other questions have other answers


def test_examples_of_a_file_that_has_changed_are_another_run(tmp_path, capsys):
    """And what had no room stands in the table and in the report."""
    folder = write_tasks(tmp_path)
    for name in ("text", "choices"):
        (folder / "tasks" / f"{name}.yaml").unlink()
    rows = [{"inputs_pretokenized": f"{word} " * 40, "targets_pretokenized": ["t"]} for word in "abc"]
    examples = write_rows(folder / "examples.jsonl", rows)
    with (folder / "tasks" / "writing.yaml").open("a") as task:
        task.write(f"num_fewshot: 3\nfewshot_file: {examples}\n")
    assert command.main(arguments(folder)) == 0
    count = results(folder)["tasks"]["writing"]["counts"]["fewer_examples"]
    line = f"{count} items have fewer than 3 examples, for want of room"
    assert count > 1 and f"writing: {line}" in capsys.readouterr().out
    assert f"{line}." in (write_report(folder / "out")).read_text(encoding="utf-8")
    write_rows(examples, [*rows[:2], rows[0]])
    assert command.main(arguments(folder)) == 2
    assert "examples of task writing: " in capsys.readouterr().err
    write_rows(examples, rows)
    assert command.main(arguments(folder)) == 0


def test_what_cannot_have_examples_or_a_share(tmp_path, capsys):
    folder = write_tasks(tmp_path)
    assert command.main(arguments(folder, "--num-fewshot", "2")) == 2
    assert "text.yaml: a lm task takes no examples" in capsys.readouterr().err
    assert command.main(arguments(folder, "--limit", "0")) == 2
    assert "--limit 0: must be at least 1 row, or a share between 0 and 1" in capsys.readouterr().err
    assert command.main(arguments(folder, "--chat-format", "--limit", "1")) == 2
    assert "a model of the family glm-130b has no chat format" in capsys.readouterr().err
