"""Tasks of one's own in YAML as docs/tuning.md shows them, and what mistakes in tasks and rows are told."""

import json
import re
from pathlib import Path

import pytest

from tests import golden_finetune as golden
from tuning.data.patterns import spread

DOCS = Path(__file__).resolve().parent.parent / "docs/tuning.md"
SECTION = re.search(r"## Your own task\n(.*?)\n## ", DOCS.read_text(encoding="utf-8") + "\n## ", re.S)[1]
(REVIEWS, QUIZ), (REVIEW_ROWS, QUIZ_ROWS) = (re.findall(rf"```{kind}\n(.*?)```", SECTION, re.S)
                                             for kind in ("yaml", "json"))
TOKENIZER = golden.tokenizer_flags("bpe")


@pytest.fixture
def inspect(tmp_path, capsys):
    """What is shown of a task and its rows; with is_refused the one line of error."""
    def run(task, rows, *more, name="dev.jsonl", is_refused=False):
        (tmp_path / "task.yaml").write_text(task, encoding="utf-8")
        (tmp_path / name).write_bytes(rows if isinstance(rows, bytes) else rows.encode())
        call = golden.refused if is_refused else golden.run
        return call("inspect", "--task", tmp_path / "task.yaml", "--seq-length", 64, *more, *TOKENIZER, capsys=capsys)

    return run


def test_the_task_of_the_document(inspect):
    bad, good = inspect(REVIEWS, REVIEW_ROWS, "--cloze-eval")
    assert "It leaked from the first day. It was[MASK]." in bad["text"]
    assert [bad["guid"], bad["label"], good["label"]] == ["dev-0", 0, 1]
    assert len(bad["verbalizer_ids"]) == 2 and sum(bad["loss_mask"]) == 1
    other, _ = inspect(REVIEWS, REVIEW_ROWS, "--cloze-eval", "--pattern-id", 1)
    assert "A kettle:[MASK]! It leaked from the first day." in other["text"]
    assert other["verbalizer_ids"] != bad["verbalizer_ids"]
    head, _ = inspect(REVIEWS, REVIEW_ROWS)
    assert "It leaked from the first day." in head["text"] and "loss_mask" not in head


def test_the_quiz_of_the_document(inspect):
    row, = inspect(QUIZ, QUIZ_ROWS, "--cloze-eval", name="quiz.jsonl")
    assert row["label"] == 1 and len(row["choices"]) == 3
    assert row["text"].endswith("Question: What melts in the sun? Answer:[MASK].<|endoftext|><|startofpiece|> stone")


def test_a_long_text_loses_its_end_and_is_counted(inspect, tmp_path):
    from tuning.data import cloze
    from tuning.options import ClozeOptions, DataOptions, Settings
    from tuning.tokenizers import open_for

    rows = json.dumps({"product": "x", "review": "good " * 200, "opinion": "good"}) + "\n"
    rows += json.dumps({"product": "x", "review": " ", "opinion": None})
    long, empty = inspect(REVIEWS, rows, "--cloze-eval")
    assert len(long["input_ids"]) == 64 and "It was[MASK]." in long["text"]
    assert empty["label"] is None
    kind, folder, _ = golden.TOKENIZERS["bpe"]
    from tuning.options import TokenizerOptions
    settings = Settings(tokenizer=TokenizerOptions(kind, golden.KIT / folder),
                        data=DataOptions(task=str(tmp_path / "task.yaml"), seq_length=64),
                        cloze=ClozeOptions(cloze_eval=True))
    facts = cloze.facts(settings, cloze.samples(settings, open_for(settings)))
    assert facts["rows"] == 2 and facts["shortened"] == facts["shortened_a"] == 1 and facts["shortened_b"] == 0
    assert facts["tokens_cut"] == facts["most_tokens_cut"] > 100 and facts["empty_text_a"] == facts["unlabelled"] == 1
    assert facts["verbalizers"] == {"bad": " terrible", "good": " great"}


def test_a_row_with_nothing_to_shorten_is_listed(inspect):
    rows = json.dumps({"product": "word " * 90, "review": "", "opinion": "bad"})
    row, = inspect(REVIEWS, rows, "--cloze-eval", "--pattern-id", 1)
    assert row["guid"] == "dev-0" and "too many" in row["error"]


@pytest.mark.parametrize(("old", "new", "told"), [
    ('text_a: "{review}"\n', "", "text_a is missing"),
    ("labels: [bad, good]\n", "", "labels is missing"),
    ("labels: [bad, good]", "labels: [1, 2]", "1 must be text"),
    ("labels:", "lables:", "unknown key 'lables'"),
    ('good: " great"', 'gut: " great"', "verbalizers are wanted for bad, good"),
    ('" It was", _', '" It was"', "has 0 blanks"),
    ('"~{text_a}", " It was"', '"~{text_a", " It was"', "has a brace without its partner"),
    ("~{text_a}", "~{clean(text_a)}", "there is no function 'clean'"),
    ("~{text_a}", "~{text_c}", "needs 'text_c'"),
    ('" great"', '" great and glorious"', "has 8 tokens"),
    ("files:", "like: rto\nfiles:", "there is no task 'rto'"),
    ("files:", "reader: sql\nfiles:", "'sql' is none of rows, copa"),
    ("- a:", "- c:", "unknown key 'c'"),
    ("dev: dev.jsonl", "dev: [no.jsonl, none.jsonl]", "is read from no.jsonl or none.jsonl"),
    ("patterns:", "metrics: [bleu]\npatterns:", "'bleu' is none of accuracy"),
    ("[bad, good]", "[bad, good", "not valid YAML"),
])
def test_mistakes_in_a_task_are_one_line(inspect, old, new, told):
    assert old in REVIEWS
    assert told in inspect(REVIEWS.replace(old, new), REVIEW_ROWS, "--cloze-eval", is_refused=True)


@pytest.mark.parametrize(("rows", "told"), [
    (b"", "has no rows"),
    (b"\n\n", "has no rows"),
    (b'{"review": "a", "opinion": "bad"', "dev.jsonl:1: not valid JSON"),
    (b'{"review": "a", "opinion": "bad"}\n[1]', "dev.jsonl:2: a row is an object"),
    (b'{"review": "\xff"}', "dev.jsonl:1: not valid UTF-8"),
    (b'{"text": "a", "opinion": "bad"}', "dev.jsonl:1: no 'review' in this row, which has 'text', 'opinion'"),
    (b'{"review": 5.5, "opinion": ["bad"]}', "'opinion' is a list; labels are bad, good"),
    (b'{"review": null, "opinion": "bad"}', "'review' is null; it must be text"),
    (b'{"review": "a", "opinion": "fine"}', "'opinion' is 'fine'; labels are bad, good"),
    (b"PK\x03\x04", "a zip archive"),
])
def test_mistakes_in_rows_are_one_line(inspect, rows, told):
    assert told in inspect(REVIEWS, rows, "--cloze-eval", is_refused=True)


@pytest.mark.parametrize(("more", "told"), [
    (("--pattern-id", 2), "task has the patterns 0 to 1"),
    (("--split", "test"), "is read from test.jsonl, and this folder has"),
    (("--data-dir", "nowhere"), "is not there"),
    (("--continuous-prompt", "--num-prompt-tokens", 3), "has no places for prompt tokens"),
])
def test_mistakes_in_flags_are_one_line(inspect, more, told):
    assert told in inspect(REVIEWS, REVIEW_ROWS, "--cloze-eval", *more, is_refused=True)


@pytest.mark.parametrize(("task", "rows", "told"), [
    (QUIZ, QUIZ_ROWS.replace('["stone", "ice", "glass"]', '"ice"'), "'options' is 'ice'; it must be a list of texts"),
    (QUIZ, QUIZ_ROWS.replace('"right": 1', '"right": 3'), "'right' is 3; labels are 0, 1, 2"),
    (QUIZ, QUIZ_ROWS.replace('["stone", "ice", "glass"]', '["ice"]'), "label is choice 1 (from 0), and there are 1"),
    (QUIZ.replace('labels: ["0", "1", "2"]', ""), QUIZ_ROWS.replace('"right": 1', '"right": "ice"'),
     "'right' is 'ice'; where a task names no labels it is the number of a choice")])
def test_mistakes_in_choices_are_one_line(inspect, task, rows, told):
    assert told in inspect(task, rows, "--cloze-eval", name="quiz.jsonl", is_refused=True)


def test_a_task_that_there_is_not_has_a_near_name(capsys):
    assert "did you mean multirc?" in golden.refused("inspect", "--task", "multrc", *TOKENIZER, capsys=capsys)
    assert "no-such.yaml" in golden.refused("inspect", "--task", "no-such.yaml", *TOKENIZER, capsys=capsys)


@pytest.mark.parametrize(("tokens", "places", "expected"), [(3, 3, [1, 1, 1]), (5, 3, [2, 2, 1]), (4, 3, [2, 2, 0]),
                                                            (2, 4, [1, 1, 0, 0]), (0, 2, [0, 0]), (3, 0, [])])
def test_prompt_tokens_are_spread_over_the_places(tokens, places, expected):
    assert spread(tokens, places) == expected
