"""Metrics: each by examples whose figure is known by hand, and by golden's own items."""

import json
import math
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.config import GenerationTaskConfig
from evaluation.data import to_example
from evaluation.metrics import METRICS, Metric, evaluate, normalized, overlap_f1, percentage, statistics_of
from evaluation.names import find_metric
from evaluation.tasks import GenerationTask
from glm.tokenizers.icetk import IcetkTokenizer
from runtime.errors import UserError
from tests.golden_data import TOKENIZER

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "evaluation" / "expected"


def choice(prediction, label):
    return {"index": 0, "prediction": prediction, "label": label}


def answer(prediction, *targets):
    return {"index": 0, "prediction": prediction, "targets": list(targets)}


def figure(name, *items):
    return evaluate(METRICS[name], items)


def test_accuracy_of_choices():
    assert figure("Accuracy", choice(0, 0), choice(1, 0), choice(2, 2), choice(1, 1)) == 75.0


def test_accuracy_of_texts_takes_them_as_they_are():
    assert figure("Accuracy", answer(" signs", "signs "), answer("Signs", "signs"), answer("b", "a", "b"),
                  answer("the signs", "signs")) == 50.0


@pytest.mark.parametrize("name", ["F1_mul", "Precision", "Recall"])
def test_micro_averages_of_single_labels_are_the_accuracy(name):
    sklearn = pytest.importorskip("sklearn.metrics")
    labels, predictions = [0, 1, 2, 2, 1, 0, 3], [0, 2, 2, 1, 1, 3, 3]
    items = [choice(*pair) for pair in zip(predictions, labels, strict=True)]
    measure = {"F1_mul": "f1_score", "Precision": "precision_score", "Recall": "recall_score"}[name]
    assert figure(name, *items) == pytest.approx(100 * getattr(sklearn, measure)(labels, predictions, average="micro"))


@pytest.mark.parametrize("text, expected", [
    ("The  cat, a dog!", "cat dog"),
    ("An apple-pie", "applepie"),
    ("theory of a", "theory of"),
    ("  \n", ""),
    ("《战国无双3》", "《战国无双3》"),  # punctuation means ASCII punctuation, as in the original
])
def test_normalisation(text, expected):
    assert normalized(text) == expected


def test_exact_match_and_f1_take_the_best_target():
    item = answer("the red cat", "blue dog", "A Red Cat.", "red")
    assert figure("EM", item) == 100.0 and figure("F1", item) == 100.0
    assert figure("EM", answer("red cat sat", "red cat")) == 0.0
    assert figure("F1", answer("red cat sat", "red cat")) == pytest.approx(80.0)  # precision 2/3, recall 1
    assert figure("F1", answer("cat cat", "cat dog")) == pytest.approx(50.0)  # a word counts as often as it is there


def test_nothing_against_nothing_is_right():
    for name in ("EM", "F1", "F1_char"):
        assert figure(name, answer("", "")) == 100.0
        assert figure(name, answer("the", "an!")) == (100.0 if name != "F1_char" else 0.0)
        assert figure(name, answer("", "word")) == 0.0 == figure(name, answer("word", ""))


@pytest.mark.parametrize(("prediction", "target"), [
    ("《红楼梦》。", "红楼梦"), ("日本四国(地区)联赛球队", "日本四国（地区）联赛球队"), ("Rex!", "ｒｅｘ"), ("", "。")])
def test_punctuation_of_any_script_and_width_do_not_count_where_texts_are_normalized(prediction, target):
    item = answer(prediction, "另一个", target)
    assert figure("EM_normalized", item) == figure("F1_normalized", item) == 100.0
    assert figure("EM", item) == 0.0
    assert figure("EM_normalized", answer("红楼", target)) == 0.0


def test_characters_are_the_words_of_chinese():
    item = answer("由光荣开发。", "光荣和ω-force")
    assert figure("F1", item) == 0.0
    assert figure("F1_char", item) == pytest.approx(100 * 2 * 2 / (5 + 9))  # 光 and 荣
    assert figure("F1_char", answer("《光荣》 ", "光 荣")) == 100.0


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abc")))
def test_overlap_is_symmetric_and_a_share(one, other):
    assert overlap_f1(one, other) == overlap_f1(other, one)
    assert 0.0 <= overlap_f1(one, other) <= 1.0
    assert (overlap_f1(one, other) == 1.0) == (sorted(one) == sorted(other))


def test_perplexity_per_word():
    windows = [{"index": 0, "loss": 6.0, "words": 2.0}, {"index": 1, "loss": 2.0, "words": 2.0}]
    assert figure("PPL", *windows) == pytest.approx(math.exp(2.0))
    assert figure("PPL", {"index": 0, "loss": 1e6, "words": 2.0}) == pytest.approx(math.exp(20.0))


def test_bits_per_byte():
    assert figure("BPB", {"index": 0, "loss": 8 * math.log(2), "bytes": 4}) == pytest.approx(2.0)


def test_figures_take_many_sums_at_once():
    sums = numpy.array([[[3.0, 4.0], [1.0, 2.0]]])
    for metric in METRICS.values():
        figures = metric.figure(sums)
        assert figures.shape == (1, 2)
        assert figures[0, 1] == pytest.approx(float(metric.figure(sums[0, 1])))


def test_a_function_of_ones_own_gives_the_mean(tmp_path):
    (tmp_path / "length.py").write_text("def letters(item):\n    return len(item['prediction'])\n")
    metric = find_metric("length.letters", tmp_path, {}, "gen", "task.yaml: metrics")
    assert evaluate(metric, [answer("abc", "x"), answer("a", "x")]) == 2.0


def test_no_items_have_no_score():
    with pytest.raises(UserError, match="metric EM: there are no items to measure"):
        figure("EM")


@pytest.mark.parametrize("function, message", [
    (lambda item: (item["absent"], 1.0), "metric own: item 7: KeyError: 'absent'"),
    (lambda item: (math.nan, 1.0), "metric own: item 7: nan where a finite number is needed"),
    (lambda item: ("text", 1.0), "metric own: item 7: 'text' where a finite number is needed"),
    (lambda item: (None, 1.0), "metric own: item 7: nothing where a finite number is needed"),
    (lambda item: ([1.0], 1.0), r"metric own: item 7: \[1.0\] where a finite number is needed"),
])
def test_a_metric_that_fails_names_the_item(function, message):
    with pytest.raises(UserError, match=message):
        statistics_of(Metric("own", function, percentage), [{"index": 7}])


def test_a_row_without_label_has_no_accuracy():
    with pytest.raises(UserError, match="metric Accuracy: item 0: ValueError: the row has no label"):
        figure("Accuracy", choice(0, None))


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden evaluation data is not beside the repository")
def test_golden_metrics_from_golden_predictions():
    cases = sorted(GOLDEN.glob("*.metrics.json"))
    assert cases
    for case in cases:
        expected = json.loads(case.read_text(encoding="utf-8"))
        lines = (GOLDEN / f"{expected['task']}.predictions.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        for file in expected["files"]:
            own = [row for row in rows if row["file"] == file["file"]]
            words = expected.get("num_original_tokens", 0) / len(own)
            items = [row | {"prediction": row.get("prediction_text", row.get("prediction")), "words": words,
                            "targets": row.get("targets_text")} for row in own]
            assert {name: figure(name, *items) for name in file["metrics"]} == pytest.approx(file["metrics"], rel=1e-9)


def test_a_perfect_answer_gets_all_whatever_the_vocabulary_writes_otherwise():
    """It is what the vocabulary makes of a target, which it may write in half width, say."""
    tokenizer = IcetkTokenizer(TOKENIZER / "ice_text.model")
    task = GenerationTask(GenerationTaskConfig(name="x", path="x"), tokenizer)
    items = []
    for target in ("日本四国（地区）联赛球队", "《红楼梦》，①ＡＢ：１", "he said “no” ﬁrst…"):
        row = {"inputs_pretokenized": "a", "targets_pretokenized": ["else", target]}
        example = to_example(row, 0, tokenizer)
        items.append(task.item(example, task.request(example), {"beams": [tokenizer.encode(target)]}))
    assert tokenizer.decode(tokenizer.encode("（１）")) != "（１）"
    for name in ("Accuracy", "EM", "F1", "EM_normalized", "F1_normalized", "F1_char"):
        assert figure(name, *items) == 100.0, name
