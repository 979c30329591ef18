"""Classification and multiple-choice tasks of tuning: what is read, and what a model is given."""

import json
from dataclasses import replace
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
from tuning.data import cloze
from tuning.data.nlu_tasks import FOLDER, load_task
from tuning.data.sample import built
from tuning.options import ClozeOptions, DataOptions, Settings, TokenizerOptions
from tuning.tokenizers import open_for

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


def of_dev(task, **more):
    """Settings, samples."""
    kind, folder, _ = golden.TOKENIZERS["bpe"]
    settings = Settings(tokenizer=TokenizerOptions(kind, KIT / folder), cloze=ClozeOptions(cloze_eval=True, **more),
                        data=DataOptions(task=task, data_dir=folder_of(task)))
    return settings, built(cloze.samples(settings, open_for(settings)))


def test_predictions_of_multirc_lie_within_their_passages():
    settings, samples = of_dev("multirc")
    predictions = [number % 2 for number in range(len(samples))]
    passages = cloze.prediction_lines(settings, samples, predictions)
    rows = [json.loads(line) for line in (folder_of("multirc") / "val.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [{"idx": row["idx"], "passage": {"questions": [
        {"idx": question["idx"], "answers": [{"idx": answer["idx"], "label": None} for answer in question["answers"]]}
        for question in row["passage"]["questions"]]}} for row in rows] == json.loads(
            json.dumps(passages).replace('"label": 0', '"label": null').replace('"label": 1', '"label": null'))
    said = [answer["label"] for passage in passages for question in passage["passage"]["questions"]
            for answer in question["answers"]]
    assert said == predictions
    assert set(cloze.metrics(settings, samples, predictions)) == {"f1a", "em", "acc"}


def test_predictions_of_record_are_texts_and_of_others_labels():
    settings, samples = of_dev("record")
    first = cloze.prediction_lines(settings, samples, [2] * len(samples))[0]
    assert first == {"idx": 7, "label": "Julia Brandt"}
    settings, samples = of_dev("rte")
    lines = cloze.prediction_lines(settings, samples[::-1], [1] * len(samples))
    assert lines == [{"idx": number, "label": "not_entailment"} for number in range(8)]


def test_of_wsc_s_candidates_the_first_one_means_true():
    settings, samples = of_dev("wsc")
    assert [cloze.seen(sample, 1) for sample in samples] == [1] * 6  # generated as a whole, or not
    settings = replace(settings, data=replace(settings.data, data_dir=folder_of("wsc").with_name("WSC-negative")),
                       cloze=replace(settings.cloze, wsc_negative=True))
    samples = built(cloze.samples(settings, open_for(settings)))
    assert [cloze.seen(sample, choice) for sample, choice in zip(samples, (0, 1, 2), strict=False)] == [1, 0, 0]
    predictions = [cloze.seen(sample, 0) for sample in samples]
    assert cloze.metrics(settings, samples, predictions) == {"accuracy": pytest.approx(100 / 3)}
    assert cloze.prediction_lines(settings, samples, predictions)[0] == {"idx": 0, "label": "True"}


def test_few_superglue_validates_on_its_own_rows(tmp_path, capsys):
    rows = (folder_of("rte") / "val.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "val.jsonl").write_text("".join(rows), encoding="utf-8")
    (tmp_path / "dev32.jsonl").write_text(rows[3], encoding="utf-8")
    flags = ["--task", "rte", "--data-dir", tmp_path, "--examples"]
    assert [row["guid"] for row in golden.run("inspect", *flags, capsys=capsys)] == ["dev-3"]
    assert len(golden.run("inspect", *flags, "--split", "test", capsys=capsys)) == len(rows)


def test_a_question_of_squad_is_answered_as_a_whole(tmp_path, capsys):
    question = {"id": "q", "question": "Who?", "answers": [{"text": "Ana", "answer_start": 0}, {"text": "Otto"}]}
    nobody = {"id": "n", "question": "Why?", "answers": [], "is_impossible": True}
    (tmp_path / "dev-v2.0.json").write_text(json.dumps({"data": [{"paragraphs": [
        {"context": "Ana walked.", "qas": [question, nobody]}]}]}), encoding="utf-8")
    found = golden.run("inspect", "--task", "squad-cloze", "--data-dir", tmp_path, "--cloze-eval",
                       *golden.tokenizer_flags("bpe"), capsys=capsys)
    assert [row["text"].partition("<|startofpiece|>")[2] for row in found] == [" Ana", " N/A"]
    assert "Ana walked. Who?[MASK]." in found[0]["text"] and "choices" not in found[0]


@pytest.mark.parametrize(("words", "place", "expected"), [
    ("he left", 0, "*he* left"), ("so he left", 2, "so *he* left"), ("so he left", 0, "so *he* left"),
    ("so he, left", 1, "so *he* , left"),
    ("then left him, he.", 3, "then left him, *he* ."), ("it was he", 3, "it was *he*")])
def test_the_pronoun_of_a_schema_is_looked_for_beside_its_place(words, place, expected, tmp_path, capsys):
    row = {"text": words, "target": {"span1_text": "Sam", "span1_index": 0, "span2_text": "he", "span2_index": place}}
    (tmp_path / "val.jsonl").write_text(json.dumps(row), encoding="utf-8")
    found, = golden.run("inspect", "--task", "wsc", "--data-dir", tmp_path, *golden.tokenizer_flags("bpe"),
                        capsys=capsys)
    assert found["text"].startswith(f"[CLS]{expected}[SEP]Sam")


@pytest.mark.parametrize(("task", "row", "told"), [
    ("wsc", {"text": "she left", "target": {"span1_text": "Sam", "span2_text": "he", "span2_index": 1}}, "is not 'he'"),
    ("wsc", {"text": "he left", "target": "he"}, "target is 'he'; it must be an object"),
    ("copa", {"premise": "a", "choice1": "b", "choice2": "c", "question": "why", "label": 0}, "one of cause, effect"),
    ("copa", {"premise": "a", "choice1": "b", "question": "cause", "label": 0}, "needs 'choice2'"),
    ("multirc", {"idx": 0, "passage": {"text": "a", "questions": {}}}, "'questions' is an empty mapping; it must be a"),
    ("record", {"idx": 0, "passage": {"text": "a", "entities": []}, "qas": [{"query": "Who?", "idx": 1}]},
     "@placeholder once, and has it 0 times")])
def test_mistakes_in_rows_of_superglue_are_one_line(task, row, told, tmp_path, capsys):
    (tmp_path / "val.jsonl").write_text(json.dumps(row), encoding="utf-8")
    assert told in golden.refused("inspect", "--task", task, "--data-dir", tmp_path, "--cloze-eval",
                                  *golden.tokenizer_flags("bpe"), capsys=capsys)


def test_every_task_has_a_file():
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(cloze.TASKS)
    assert all(load_task(name).patterns for name in cloze.TASKS)
