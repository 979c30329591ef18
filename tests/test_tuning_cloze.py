"""Classification and multiple-choice tasks of tuning: what is read, and what a model is given."""

from itertools import groupby

import pytest

from tests import golden_finetune as golden
from tests.golden_finetune import KIT, lines
from tuning.api import (
    answer_em,
    answer_f1,
    classification_metrics,
    multirc_metrics,
    normalise_answer,
    record_metrics,
)

FOLDERS = {"boolq": "BoolQ", "cb": "CB", "copa": "COPA", "multirc": "MultiRC", "record": "ReCoRD", "rte": "RTE",
           "wic": "WiC", "wsc": "WSC", "agnews": "Agnews", "yahoo": "Yahoo", "yelp-full": "yelp_review_full_csv",
           "yelp-polarity": "yelp_review_polarity_csv", "cola": "CoLA", "xstance": "xstance", "cluewsc": "CLUEWSC",
           "sst2": "SST-2", "qqp": "QQP", "tnews": "TNews", "mrpc": "MRPC", "mnli": "MNLI", "afqmc": "AFQMC",
           "race": "RACE", "qnli": "QNLI", "ax-b": "AX-b", "ax-g": "AX-g"}


def folder_of(task):
    name = FOLDERS[task]
    return next((each for each in (KIT / "data/superglue" / name, KIT / "data/others" / name) if each.exists()), None)


def cases(name, *keys, **same):
    """Rows of a file of the kit that differ in nothing of this, together."""
    def key(row):
        return tuple((key, row.get(key)) for key in keys)

    rows = [same | row for row in lines(f"expected/{name}.jsonl")]
    return [pytest.param(dict(about), list(found), id="-".join([name.split("/")[1], *(str(each) for _, each in about)]))
            for about, found in groupby(sorted(rows, key=lambda row: str(key(row))), key)
            if folder_of(dict(about)["task"])]


def superglue(kind, *keys):
    found = []
    for task, name in FOLDERS.items():
        for variant, more in ((name, {}), (f"{name}-negative", {"wsc_negative": True}),
                              (f"{name}.segment_length_3", {"segment_length": 3})):
            found += cases(f"superglue/{variant}.{kind}", *keys, "wsc_negative", "segment_length", task=task, **more)
    return found


def flags(about):
    task = about["task"]
    folder = folder_of(task)
    if about.get("wsc_negative"):
        folder = folder.with_name("WSC-negative")
    more = ["--for-train"] if about.get("for_train") else []
    more += ["--wsc-negative"] if about.get("wsc_negative") else []
    for name in ("segment_length", "prompt_func", "num_prompt_tokens", "prefix_prompt", "seq_length"):
        more += [f"--{name.replace('_', '-')}", about[name]] if about.get(name) else []
    more += ["--continuous-prompt"] if about.get("prompt_func") else []
    more += ["--cloze-eval", "--pattern-id", about["pattern"]] if about.get("pattern") is not None else []
    return ["--task", task, "--data-dir", folder, "--split", about["split"], *more,
            *golden.tokenizer_flags(about.get("tokenizer") or "bpe")]


@pytest.mark.parametrize(("about", "rows"), [*superglue("examples", "task", "split", "for_train"),
                                             *cases("others/examples", "task", "split")])
def test_examples_are_what_the_original_reads(about, rows, capsys):
    found = golden.run("inspect", *flags(about), "--cloze-eval", "--examples", capsys=capsys)
    expected = [{name: row[name] for name in ("guid", "text_a", "text_b", "label")} for row in rows]
    assert found == expected


@pytest.mark.parametrize(("about", "rows"), [
    *superglue("samples", "task", "split", "pattern", "seq_length"),
    *cases("others/samples", "task", "split", "pattern", "seq_length", "tokenizer"),
    *cases("superglue/head.samples", "task", "split", "for_train", "seq_length"),
    *cases("superglue/prompt.samples", "task", "split", "pattern", "seq_length", "prompt_func", "num_prompt_tokens",
           "prefix_prompt")])
def test_samples_are_the_original_s(about, rows, capsys):
    found = golden.run("inspect", *flags(about), capsys=capsys)
    if "prompt_func" in about or not golden.is_whole():
        found = [sample for sample in found if sample["guid"] in {row["guid"] for row in rows}]
    assert [sample["guid"] for sample in found] == [row["guid"] for row in rows]
    for sample, row in zip(by_answer(found), by_answer(rows), strict=True):
        if "error" in row:
            assert "too many" in sample["error"]
            continue
        if row["split"] != "test":
            assert sample["label"] == row["label"]
        assert sample.get("verbalizer_ids") == row.get("verbalizer_ids")
        assert sample.get("segment_id") == row.get("segment_id")
        assert ("choices" in sample) == ("choices" in row)
        expected = row.get("choices", [row])
        found_rows = sample.get("choices", [sample])
        assert len(found_rows) == len(expected)
        for number, (each, wanted) in enumerate(zip(found_rows, expected, strict=True)):
            check_row(each, row | wanted)
            prompt = row.get("prompt_pos")
            assert each.get("prompt_positions") == (prompt[number] if prompt and "choices" in row else prompt)


def by_answer(rows):
    """ReCoRD's rows with several right answers come in any order from the original."""
    if not any(str(row["guid"]).endswith("-a1") and "-q" in row["guid"] for row in rows) or "choices" not in rows[0]:
        return rows
    return sorted(rows, key=lambda row: (row["guid"].partition("-a")[0], str(
        [each.get("target", [])[-each.get("loss_mask", []).count(1):] or each for each in row["choices"]])))


def check_row(found, row):
    """A sequence against the kit's: the context, and what stands behind it."""
    context = row["context"]
    answer = row.get("answer", [])
    assert found["sep"] == len(context)
    assert found["input_ids"] == context + answer
    behind = row.get("position", []), row.get("block", [])
    assert found["position_ids"] == [list(range(len(context))) + behind[0], [0] * len(context) + behind[1]]
    assert found.get("loss_mask", [])[len(context):] == row.get("loss_mask", [])
    assert not any(found.get("loss_mask", [])[:len(context)])
    if "target" in row:
        assert found["target"][len(context):] == row["target"]


@pytest.mark.parametrize("row", lines("expected/superglue/metrics.jsonl"))
def test_metrics_of_given_predictions(row):
    predictions, labels = row["predictions"], row.get("labels")
    if row["kind"] == "classification":
        found = classification_metrics(predictions, labels)
        expected = {"accuracy": row["accuracy"], "f1-macro": row["f1_macro"]}
        expected |= {"f1": row["f1"]} if row["f1"] is not None else {}
    elif row["kind"] == "multirc":
        found = multirc_metrics(predictions, labels, row["question_idx"])
        expected = {name: row[name] for name in ("f1a", "em", "acc")}
    else:
        found = record_metrics(predictions, row["candidates"], row["answers"])
        expected = {"EM": row["em"], "F1": row["f1"]}
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("row", lines("expected/superglue/qa_metrics.jsonl"))
def test_answers_are_compared_after_normalising(row):
    pair = row["prediction"], row["truth"]
    assert normalise_answer(row["prediction"]) == row["normalised"]
    assert answer_em(*pair) == row["em"] and answer_f1(*pair) == pytest.approx(row["f1"])
