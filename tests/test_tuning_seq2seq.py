"""Seq2seq tasks of tuning: what is read, what a model is given, what it writes and how that is scored."""

import json

import pytest

from tests import golden_finetune as golden
from tests.golden_finetune import KIT, lines
from tuning.api import clean_text, fix_text
from tuning.data import seq2seq
from tuning.options import DataOptions, Settings, TokenizerOptions
from tuning.tokenizers import open_for

FOLDER = "expected/seq2seq"
CASES = json.loads((KIT / FOLDER / "cases.json").read_text(encoding="utf-8"))
BY_CASE = [pytest.param(case, id=f"{case['case']}-{case['task']}") for case in CASES
           if golden.has_tokenizer(case["tokenizer"])]


def flags(case):
    """Of the kit's case: task, files, tokenizer and lengths."""
    kind, folder, _ = golden.TOKENIZERS[case["tokenizer"]]
    more = ["--fix-command-token"] if case["tokenizer"] == "sp" else []
    return ["--task", case["task"], "--data-dir", str(KIT / "data/seq2seq" / case["folder"]), "--tokenizer-type", kind,
            "--tokenizer-path", str(KIT / folder), "--src-seq-length", case["src_seq_length"], "--tgt-seq-length",
            case["tgt_seq_length"], *case["flags"], *more]


def of(case, name):
    return [row for row in lines(f"{FOLDER}/{name}.jsonl") if row["case"] == case["case"]]


@pytest.mark.parametrize("case", BY_CASE)
def test_examples_are_what_the_original_reads(case, capsys):
    expected = of(case, "examples")
    for split in sorted({row["split"] for row in expected}):
        found = golden.run("inspect", *flags(case), "--split", split, "--examples", capsys=capsys)
        wanted = [row for row in expected if row["split"] == split]
        assert found == [{"guid": row["guid"], "text_a": row["text_a"], "text_b": row["text_b"],
                          "ref": row["meta"]["ref"]} for row in wanted]


@pytest.mark.parametrize("case", BY_CASE)
def test_samples_are_the_original_s(case, capsys):
    expected = of(case, "samples")
    for split in sorted({row["split"] for row in expected}):
        found = {sample["guid"]: sample
                 for sample in golden.run("inspect", *flags(case), "--split", split, capsys=capsys)}
        for row in [row for row in expected if row["split"] == split]:
            sample = found[row["guid"]]
            assert sample["input_ids"] == row["text"]
            assert sample["position_ids"] == [row["position"], row["block"]]
            if "visible" in row:
                assert sample["visible"] == ["".join(map(str, queries)) for queries in row["visible"]]
            else:
                assert sample["sep"] == row["sep"]
            assert sample.get("target") == row.get("target")
            assert sample.get("loss_mask") == row.get("loss_mask")


@pytest.mark.parametrize("row", lines(f"{FOLDER}/text_rules.jsonl"))
def test_rules_for_texts(row):
    if "text" in row:
        for rules in ("cnn_dm", "gigaword", "blank", "squad"):
            assert fix_text(row["text"], rules) == row[rules]
    else:
        for rules in ("gigaword", "cnn_dm_source", "cnn_dm_target", "blank", "standard"):
            assert clean_text(row["source"], rules) == row.get(rules, row.get(f"{rules}_source"))


BPE = ["--tokenizer-type", "GPT2BPETokenizer", "--tokenizer-path", str(KIT / "tokenizer_bpe"), "--task-mask"]


@pytest.fixture
def questions(tmp_path):
    """A folder in SQuAD's form: an article of 40 words, whose second question has no answer."""
    context = " ".join(["We walked on."] * 12 + ["The lamp was lit by Ana Petrova."])
    asked = [{"question": "Who lit the lamp?", "answers": [{"text": "Ana Petrova", "answer_start": 0}]},
             {"question": "Who put it out?", "answers": []}]
    content = {"data": [{"paragraphs": [{"context": context, "qas": asked}]}]}
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("task, split", [("squad", "train"), ("squad_v1", "train"), ("squad_v1", "test")])
def test_an_article_is_read_in_windows_and_most_do_not_hold_the_answer(questions, task, split, capsys):
    found = golden.run("inspect", "--task", task, "--data-dir", questions, "--split", split, "--src-seq-length", 32,
                       "--tgt-seq-length", 8, *BPE, capsys=capsys)
    assert [sample["guid"] for sample in found] == [f"{split}-{place}" for place in range(len(found))]
    windows = [sample["text"] for sample in found]
    assert all(text.startswith("[CLS] Who") and "[sMASK]." in text for text in windows)
    if split == "test":
        assert len(windows) > 4
        return
    answered = ["Ana" in text.partition("<|startofpiece|>")[2] for text in windows]
    assert sum(answered) == 1
    assert (len(windows) == 1) if task == "squad_v1" else all(
        "N/A" in text for text, is_answered in zip(windows, answered, strict=True) if not is_answered)


def test_a_question_is_answered_by_its_first_window_that_has_an_answer(questions):
    settings = Settings(TokenizerOptions("GPT2BPETokenizer", KIT / "tokenizer_bpe", task_mask=True),
                        DataOptions("squad", questions, "dev", src_seq_length=32, tgt_seq_length=8))
    samples = seq2seq.samples(settings, open_for(settings))
    first = [sample.meta["number"] == 0 for sample in samples]
    assert 2 < sum(first) < len(first)
    answers = ["n / a"] + ["the Petrova" if is_first else "N/A" for is_first in first[1:]]
    assert seq2seq.metrics(settings, samples, answers) == pytest.approx({"EM": 50, "F1": (2 / 3 + 1) * 50})
    assert seq2seq.metrics(settings, samples, ["Ana"] * len(samples)) == pytest.approx({"EM": 0, "F1": 100 / 3})


def test_what_a_row_lost_is_said(tmp_path, capsys):
    from tuning.__main__ import main

    (tmp_path / "val.source").write_text("one two three four five six seven eight nine ten eleven twelve\na\n")
    (tmp_path / "val.target").write_text("six seven eight nine ten eleven\n\n")
    flags = ["--data-dir", tmp_path, *BPE, "--src-seq-length", 12, "--tgt-seq-length", 4]
    for task, end in (("gigaword", "their end"), ("customization", "their beginning")):
        assert main(["inspect", "--task", task, *map(str, flags)]) == 0
        assert f"sources_lose {end}" in capsys.readouterr().err
    settings = Settings(TokenizerOptions("GPT2BPETokenizer", KIT / "tokenizer_bpe", task_mask=True),
                        DataOptions("gigaword", tmp_path, "dev", src_seq_length=12, tgt_seq_length=4))
    found = seq2seq.facts(settings, seq2seq.samples(settings, open_for(settings)))
    assert (found["shortened_sources"], found["shortened_targets"], found["empty_targets"]) == (1, 1, 1)
    assert found["tokens_cut"] == found["most_tokens_cut"] > 4


@pytest.mark.parametrize("files, message", [
    ({}, "val.source: No such file"),
    ({"val.source": "a\nb\n", "val.target": "c\n"}, "val.source has 2 lines, val.target 1"),
    ({"val.source": "", "val.target": ""}, "val.source: is empty"),
    ({"val.source": b"\xff\xfa\x00", "val.target": "c\n"}, "val.source"),
])
def test_files_that_are_no_pairs_are_one_line(files, message, tmp_path, capsys):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in golden.refused("inspect", "--task", "gigaword", "--data-dir", tmp_path, *BPE, capsys=capsys)


@pytest.mark.parametrize("content", ["{", "[1]", '{"data": [{"paragraphs": [{"context": "a", "qas": [{}]}]}]}',
                                     '{"data": [{"paragraphs": [{"context": 1, "qas": [{"question": "q"}]}]}]}'])
def test_questions_of_another_form_are_one_line(content, tmp_path, capsys):
    (tmp_path / "dev.json").write_text(content)
    assert "dev.json" in golden.refused("inspect", "--task", "cmrc", "--data-dir", tmp_path, *BPE, capsys=capsys)


def test_rows_that_cannot_be_built_are_lines_and_counted(tmp_path, capsys):
    (tmp_path / "test.source").write_text("a [MASK] b\nno blank\n")
    (tmp_path / "test.target").write_text("x\ny\n")
    (first, second) = golden.run("inspect", "--task", "extraction", "--data-dir", tmp_path, "--split", "test", *BPE,
                                 capsys=capsys)
    assert "input_ids" in first and "no blank" in second["error"] and second["guid"] == "test-1"


CHECKPOINT = KIT / "checkpoints/glm-tiny"
needs_model = pytest.mark.skipif(not CHECKPOINT.exists(), reason="the tests' part of the kit has no model")


def evaluated(case, *more, capsys):
    (found,) = golden.run("evaluate", *flags(case), "--load", CHECKPOINT, "--device", "cpu", "--dtype", "float32",
                          "--eval-batch-size", case.get("batches_of", 3), *more, capsys=capsys)
    return found


@needs_model
@pytest.mark.parametrize("case", BY_CASE)
def test_losses_of_batches_are_the_original_s(case, capsys):
    for row in of(case, "losses"):
        found = evaluated(case, "--split", "train", "--losses", "cross_entropy", "--no-decode", "--label-smoothing",
                          row["label_smoothing"], capsys=capsys)
        assert found["losses"]["cross_entropy"] == pytest.approx(row["losses"], rel=1e-4) and found["rows"] == []


@needs_model
@pytest.mark.parametrize("row", [
    pytest.param(row, id=f"{row['case']}-{row['task']}-{row['num_beams']}-{row['no_repeat_ngram_size']}")
    for row in lines(f"{FOLDER}/generation.jsonl") if golden.has_tokenizer(row["tokenizer"])])
def test_what_is_written_is_what_the_original_writes(row, capsys):
    found = evaluated(row, "--split", "test", "--num-beams", row["num_beams"], "--length-penalty",
                      row["length_penalty"], "--no-repeat-ngram-size", row["no_repeat_ngram_size"],
                      "--min-tgt-length", row["min_tgt_length"], *["--select-topk"] * row["select_topk"],
                      capsys=capsys)
    assert {each["guid"]: each["prediction_ids"] for each in found["rows"]} == row["prediction_ids"]
    assert {each["guid"]: each["prediction"] for each in found["rows"]} == row["predictions"]
    assert found["metrics"] == pytest.approx(row["metrics"], abs=1e-6)


@needs_model
def test_texts_for_the_leaderboard_s_script_stand_in_two_files(tmp_path, capsys):
    (case,) = [case for case in CASES if case["case"] == 11]
    found = evaluated(case, "--split", "train", "--hyps", tmp_path / "train.hyps", capsys=capsys)
    for name, key in (("hyps", "prediction"), ("refs", "ref")):
        written = (tmp_path / f"train.{name}").read_text(encoding="utf-8").splitlines()
        assert written == [" ".join(row[key].split()) for row in found["rows"]]
    short = next(row for row in found["rows"] if row["ref"] == "no .")  # nothing of it was drawn
    assert short["prediction"] == "no ."
    assert "--losses" in golden.refused("evaluate", *flags(case), "--load", CHECKPOINT, "--split", "test", "--losses",
                                        "cross_entropy", capsys=capsys)


@pytest.mark.parametrize("rules", ["none", "gigaword", "cnn_dm"])
def test_rouge_is_counted_as_the_original_counts_it(rules, tmp_path, capsys):
    rows = lines(f"{FOLDER}/rouge.jsonl")
    pairs = [row for row in rows if "ref" in row]
    key = {"none": "cnn_dm_org"}.get(rules, rules)
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"prediction": row["prediction"], "reference": row["ref"]}) + "\n"
                            for row in pairs), encoding="utf-8")
    (found,) = golden.run("score-text", "--pairs", file, "--rules", rules, capsys=capsys)
    assert found["rows"] == [pytest.approx(row[key], abs=1e-6) for row in pairs]
    (mean,) = [row for row in rows if row.get("all") == key]
    assert found["mean"] == pytest.approx({name: mean[name] for name in found["mean"]}, abs=1e-6)


def test_chatglm_s_figures(tmp_path, capsys):
    rows = lines("expected/chatglm/metrics.jsonl")
    pairs = [row for row in rows if "prediction" in row]
    (mean,) = [row for row in rows if "all" in row]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"prediction": row["prediction"], "reference": row.get("label", "是")}) + "\n"
                            for row in pairs), encoding="utf-8")
    (found,) = golden.run("score-text", "--pairs", file, "--rules", "chatglm", capsys=capsys)
    for score, row in zip(found["rows"], pairs, strict=True):
        assert ("error" in score) if "error" in row else score == {name: row[name] for name in score}
    assert found["mean"] == pytest.approx({name: mean[name] for name in found["mean"]})


def test_chinese_under_an_english_rouge_is_said(tmp_path, capsys):
    from tuning.__main__ import main

    (tmp_path / "hyps").write_text("a b c d e\n是\n", encoding="utf-8")
    (tmp_path / "refs").write_text("a b c d e\n小镇灯塔\n", encoding="utf-8")
    assert main(["score-text", "--predictions", str(tmp_path / "hyps"), "--references", str(tmp_path / "refs")]) == 0
    told = capsys.readouterr()
    assert "1 of 2 references have Chinese characters" in told.err
    assert json.loads(told.out)["rows"][1] == {"rouge-1": 0.0, "rouge-2": 0.0, "rouge-l": 0.0}


@pytest.mark.parametrize("content, message", [
    ("", "holds no texts"), ("{", "pairs.jsonl:1: not valid JSON"), ('{"prediction": "a"}\n', "reference is missing"),
    ('{"prediction": "a", "reference": 1}\n', "pairs.jsonl:1: must be an object"), ("[1]\n", "pairs.jsonl:1"),
])
def test_pairs_of_another_form_are_one_line(content, message, tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_text(content)
    assert message in golden.refused("score-text", "--pairs", tmp_path / "pairs.jsonl", capsys=capsys)


def test_texts_that_do_not_belong_together_are_refused(tmp_path, capsys):
    (tmp_path / "a").write_text("x\ny\n")
    (tmp_path / "b").write_text("x\n")
    a, b = tmp_path / "a", tmp_path / "b"
    assert "has 2 lines" in golden.refused("score-text", "--predictions", a, "--references", b, capsys=capsys)
    assert "leave" in golden.refused("score-text", "--pairs", a, "--references", b, capsys=capsys)
    assert "no texts" in golden.refused("score-text", "--predictions", a, capsys=capsys)
