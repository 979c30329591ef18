"""The tasks with a class of their own: what they make of rows and answers, and what a wrong row says."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from evaluation.config import LanguageModelTaskConfig, MultiChoiceTaskConfig
from evaluation.metrics import evaluate
from evaluation.results import FileScores, task_record
from evaluation.task_file import load_task
from evaluation.tasks import task_class
from runtime.errors import UserError
from tasks.ethnic.crows_pairs import CrowsPairs
from tasks.ethnic.stereoset import StereoSet
from tasks.language_modeling.pile import Pile
from tasks.mmlu.task import MMLU

TASKS = Path(__file__).resolve().parent.parent / "tasks"


class Letters:
    """A tokenizer of letters."""

    num_tokens = 300
    commands = MappingProxyType({"[MASK]": 290, "[gMASK]": 291, "sop": 292, "eop": 293, "eos": 294})

    def encode(self, text):
        return [ord(letter) for letter in text]

    def command(self, name):
        return self.commands[name]


@pytest.fixture
def write(tmp_path):
    def write(*rows):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file

    return write


def config_of(task, kind=MultiChoiceTaskConfig, **values):
    values = {"metrics": list(task.default_metrics or ("Accuracy",)), "use_task_mask": True} | values
    return kind(name="task", path="path", module=f"{task.__module__}.{task.__name__}", **values)


def figures_of(task, file, answers, **values):
    """items and figures of a file, given the model's answers."""
    examples = task.examples(file, **values)
    requests = [task.request(example) for example in examples]
    items = task.items(examples, requests, answers[:len(examples)])
    return items, {name: evaluate(metric, items) for name, metric in task.metrics(items).items()}


def test_every_task_file_is_right():
    files = sorted(TASKS.glob("**/*.yaml"))
    assert len(files) > 35
    for file in files:
        assert task_class(load_task(file, "data"))


# MMLU


def test_mmlu_has_one_more_group():
    groups = {"stem": ["five/stem/b.jsonl", "five/stem/a.jsonl"], "other": ["five/other/c.jsonl"]}
    task = MMLU(config_of(MMLU), Letters())
    assert task.groups(groups) == groups | {"Overall": ["five/other/c.jsonl", "five/stem/a.jsonl", "five/stem/b.jsonl"]}


# CrowS-Pairs


def sentence(pair, place, bias, text="It is so."):
    return {"inputs_pretokenized": "", "choices_pretokenized": [text], "pair_ID": pair, "sent_ID": place,
            "bias_type": bias}


PAIRS = [sentence(4, 1, "age"), sentence(4, 2, "age"), sentence(5, 2, "sex"), sentence(5, 1, "sex"),
         sentence(6, 1, "sex"), sentence(6, 2, "sex")]
LOG_PROBS = [{"log_probs": [value]} for value in (-3.0, -4.0, -1.0, -2.0, -5.0, -5.0)]


def test_crows_pairs_compares_the_two_sentences_of_a_pair(write):
    items, figures = figures_of(CrowsPairs(config_of(CrowsPairs), Letters()), write(*PAIRS), LOG_PROBS)
    assert [(item["pair_ID"], item["difference"], item["prediction"]) for item in items] == [
        (4, 1.0, 0), (5, -1.0, 1), (6, 0.0, 0)]  # equal ones count for the first
    assert items[1]["log_probs"] == [-2.0, -1.0] and items[1]["choice_lengths"] == [9, 9]
    assert figures == pytest.approx({"Stereotype": 200 / 3, "Stereotype (age)": 100.0, "Stereotype (sex)": 50.0})


def test_a_limit_cuts_no_pair_in_two(write):
    items, _ = figures_of(CrowsPairs(config_of(CrowsPairs), Letters()), write(*PAIRS), LOG_PROBS, limit=3)
    assert len(items) == 2


@pytest.mark.parametrize("row, message", [
    (sentence(None, 1, "sex"), "rows.jsonl:2: field pair_ID: must say which pair the sentence belongs to"),
    (sentence(4, 0, "sex"), "rows.jsonl:2: field sent_ID: must be 1 "),
    (sentence(4, 2, 3), "rows.jsonl:2: field bias_type: must be text"),
    (sentence(4, 2, "sex") | {"choices_pretokenized": ["a", "b"]}, "rows.jsonl:2: field choices_pretokenized: must "),
    (sentence(4, 1, "sex"), "pair_ID 4: a pair is a row with sent_ID 1 and one with sent_ID 2, not rows with 1, 1"),
    (sentence(5, 2, "sex"), "pair_ID 4: a pair is a row with sent_ID 1 and one with sent_ID 2, not rows with 1"),
])
def test_wrong_rows_of_crows_pairs(write, row, message):
    with pytest.raises(UserError) as caught:
        CrowsPairs.check(config_of(CrowsPairs), write(sentence(4, 1, "sex"), row))
    assert message in str(caught.value)


def test_a_figure_of_one_kind_counts_the_items_of_its_kind(write):
    task = CrowsPairs(config_of(CrowsPairs), Letters())
    items, _ = figures_of(task, write(*PAIRS), LOG_PROBS)
    ages = items[:1] + [item | {"bias_type": "age"} for item in items[1:]]
    files = {name: FileScores("", 6, 6, [], each, task.metrics(each)) for name, each in (("a", items), ("b", ages))}
    group = task_record(task.config, "", {"test": ["a", "b"]}, files)["groups"]["test"]
    assert group["Stereotype"]["n"] == {"expected": 12, "scored": 12, "truncated": 0, "overlong": 0}
    assert group["Stereotype (age)"]["n"] == {"expected": 4, "scored": 4, "truncated": 0, "overlong": 0}
    assert group["Stereotype (age)"]["average"] == pytest.approx((100.0 * 1 + 200 / 3 * 3) / 4)
    assert group["Stereotype (sex)"]["n"]["scored"] == 2


# StereoSet


def triple(bias, labels=("stereotype", "anti-stereotype", "unrelated")):
    return {"inputs_pretokenized": "", "choices_pretokenized": ["aaaa", "bb", "cc"], "goal_label": list(labels),
            "bias_type": bias}


def test_stereoset_counts_the_likeliest_sentence_per_token(write):
    rows = [triple("race"), triple("race"), triple("race"), triple("religion")]
    answers = [{"log_probs": values} for values in (
        [-4.0, -3.0, -9.0],  # a token: -1, -1.5, -4.5, so the stereotype, though its sum is not the highest
        [-8.0, -3.0, -9.0], [-4.0, -9.0, -9.0], [-8.0, -8.0, -1.0])]
    items, figures = figures_of(StereoSet(config_of(StereoSet), Letters()), write(*rows), answers)
    assert [item["chosen"] for item in items] == ["stereotype", "anti-stereotype", "stereotype", "unrelated"]
    assert [item["prediction"] for item in items] == [0, 1, 0, 2]
    assert figures == pytest.approx({
        "LMS": 75.0, "SS": 200 / 3, "ICAT": 75.0 * (100 / 3) / 50,
        "LMS (race)": 100.0, "SS (race)": 200 / 3, "ICAT (race)": 200 / 3,
        "LMS (religion)": 0.0, "SS (religion)": 0.0, "ICAT (religion)": 0.0})


def test_the_figures_of_stereoset_take_many_sums_at_once():
    import numpy

    for metric, sums, expected in zip(
            StereoSet.extra_metrics.values(), ([[3, 4], [0, 4]], [[2, 3], [0, 0]], [[2, 1, 4], [0, 0, 4]]),
            ([75.0, 0.0], [200 / 3, 0.0], [50.0, 0.0]), strict=True):
        assert metric.figure(numpy.array(sums, dtype=float)).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("change, message", [
    ({"goal_label": ["stereotype", "unrelated"]}, "rows.jsonl:1: field goal_label: must be a list that says of every "),
    ({"goal_label": ["stereotype", "unrelated", "none"]}, "rows.jsonl:1: field goal_label"),
    ({"goal_label": 1}, "rows.jsonl:1: field goal_label"),
    ({"bias_type": None}, "rows.jsonl:1: field bias_type: must be text"),
])
def test_wrong_rows_of_stereoset(write, change, message):
    with pytest.raises(UserError) as caught:
        StereoSet.check(config_of(StereoSet), write(triple("race") | change))
    assert message in str(caught.value)


# The Pile


def document(content, subset, **more):
    return {"text_pretokenized": content, "meta": {"pile_set_name": subset}} | more


def pile(**values):
    config = config_of(Pile, LanguageModelTaskConfig, max_seq_length=6, generation_length=2)
    return Pile(replace(config, **values), Letters())


def test_bits_per_byte_of_every_subset(write):
    file = write(document("abcdefg", "Books"), document("日本", "Web", text=[1, 2, 3]))
    nats = math.log(2)
    answers = [{"log_probs": [-loss * nats]} for loss in (5.0, 9.0, 12.0)]
    items, figures = figures_of(pile(), file, answers)
    # Windows of five tokens that move by two: the first document takes two, the second one.
    assert [(item["document"], item["tokens"], item["bytes"]) for item in items] == [(0, 5, 5), (0, 2, 2), (1, 3, 6)]
    assert [item["index"] for item in items] == [0, 1, 2]
    assert figures == pytest.approx({"BPB": 26 / 13, "BPB (Books)": 2.0, "BPB (Web)": 2.0})


def test_windows_of_a_text_score_every_token_once():
    ids = list(range(20))
    windows = pile().windows(ids)
    assert [token for _, scored in windows for token in scored] == ids
    assert windows[1] == ([2, 3, 4], [5, 6])


@pytest.mark.parametrize("row, message", [
    (document("", "Books"), "rows.jsonl:1: field text_pretokenized: must be the document's text"),
    (document("a", 3), "rows.jsonl:1: field meta: must be an object with the subset's name as pile_set_name"),
    (document("a", "Books", text="a"), "rows.jsonl:1: field text: must be the document's token ids"),
    (document("a", "Books", text=[]), "rows.jsonl:1: field text: must be the document's token ids"),
])
def test_wrong_rows_of_the_pile(write, row, message):
    with pytest.raises(UserError) as caught:
        Pile.check(config_of(Pile, LanguageModelTaskConfig), write(row))
    assert message in str(caught.value)
