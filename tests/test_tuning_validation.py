"""Validation of trainings whose answers are texts: what `evaluate` says of the weights; the best epoch is kept."""

import json
import os
from contextlib import contextmanager

import pytest
import torch

from runtime.errors import UserError
from tests.golden_data import family_folder
from tests.golden_family import checkpoint
from tests.golden_finetune import refused, run, tokenizer_flags
from tests.parallel_helper import run_ranks
from tests.test_evaluation_report import Page
from tests.tiny_training import log_of, tiny_glm, training_flags
from tuning.__main__ import main
from tuning.data.sample import Kind, Row, Sample
from tuning.loop import Progress
from tuning.validation import Validation, mean_loss, validated

ROWS = [("The bell is cast in a pit", "a bell of bronze hangs in the tower"),
        ("A river runs through the town", "the river of the town runs to the sea"),
        ("She sang all day long", "all day long she sang of the sea"),
        ("Rain fell for a week", "for a week the rain fell on the roof")]
DECODED = ["--num-beams", "2", "--select-topk", "--no-repeat-ngram-size", "2", "--min-tgt-length", "6"]
STEPS = ["--epochs", "2", "--batch-size", "2", "--lr", "2e-2", "--warmup", "0"]


@pytest.fixture(scope="module")
def titles(tmp_path_factory):
    """A data set of pairs, and a model."""
    folder = tmp_path_factory.mktemp("titles")
    for split, rows in (("train", ROWS), ("val", ROWS[:3])):
        for place, name in enumerate(("source", "target")):
            (folder / f"{split}.{name}").write_text("".join(row[place] + "\n" for row in rows), encoding="utf-8")
    return folder, tiny_glm(folder / "glm")


def flags_of(titles, task="customization"):
    return ["--task", task, "--data-dir", str(titles[0]), "--src-seq-length", "16", "--tgt-seq-length", "12",
            *tokenizer_flags("bpe"), *DECODED]


@pytest.fixture(scope="module")
def trained(titles, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", *flags_of(titles), "--load", str(titles[1]), "--save", str(folder), *STEPS]) == 0
    return folder


def ends_of(folder):
    return [line for line in log_of(folder) if "epoch" in line]


def test_an_epoch_is_scored_as_evaluate_scores_it(titles, trained, capsys):
    """By the task's own decoding: rows, ROUGE and loss are those of the saved weights."""
    last = ends_of(trained)[-1]
    (found,) = run("evaluate", *flags_of(titles), "--load", trained, "--losses", "cross_entropy", "--eval-batch-size",
                   "3", capsys=capsys)
    assert list(last["validation"]) == ["rouge-1", "rouge-2", "rouge-l", "loss"]
    assert {name: last["validation"][name] for name in found["metrics"]} == pytest.approx(found["metrics"])
    assert last["validation"]["loss"] == pytest.approx(found["losses"]["cross_entropy"][0], rel=1e-4)
    kept = json.loads((trained / "validation" / "epoch-1.json").read_text(encoding="utf-8"))
    assert [row["prediction"] for row in kept["rows"]] == [row["prediction"] for row in found["rows"]]


def on_rank(commands):
    """`evaluate` of each -> how many rows this rank has written, or scored in a forward pass."""
    from tuning import evaluate, evaluate_texts

    os.environ["RANK"] = str(torch.distributed.get_rank())  # as a launcher says it: the first one writes
    done, written, scores_of = [], evaluate_texts.written, evaluate.scores_of

    def counting_rows(model, rows, *rest, **more):
        done.append(len(rows))
        return written(model, rows, *rest, **more)

    def counting_samples(tuned, batch, *rest):
        done.append(len(batch.samples))
        return scores_of(tuned, batch, *rest)

    evaluate_texts.written, evaluate.scores_of = counting_rows, counting_samples
    assert all(main(["evaluate", *command]) == 0 for command in commands)
    return sum(done)


def test_ranks_share_the_rows(titles, tmp_path):
    """Two data-parallel ranks find what one finds, each with a share of the work."""
    texts = [*flags_of(titles), "--load", str(titles[1]), "--losses", "cross_entropy", "--eval-batch-size", "2"]
    choices = [*training_flags(titles[1])[:-10], "--split", "train", "--losses", "cross_entropy,mix",
               "--eval-batch-size", "3"]
    for name, command in (("texts", texts), ("choices", choices)):
        files = [tmp_path / f"{name}-{number}.json" for number in range(2)]
        (tmp_path / name).mkdir()
        counts = run_ranks(on_rank, 2, tmp_path / name, [[*command, "--output", str(files[0])]])
        assert main(["evaluate", *command, "--output", str(files[1])]) == 0
        shared, alone = (json.loads(file.read_text(encoding="utf-8")) for file in files)
        assert shared == alone and sum(counts) == len(alone["rows"]) and all(counts)


def fails_on_the_second(items):
    from runtime import parallel
    from tuning.evaluate import shared

    parallel.start(1)

    def work(own):
        if parallel.data_parallel_rank():
            raise UserError("it is broken")
        return own

    with pytest.raises(UserError, match="it is broken"):
        shared(items, work)
    return shared(items, lambda own: [each * 10 for each in own]), shared([], list)


def test_an_error_of_one_rank_is_one_of_all(tmp_path):
    assert run_ranks(fails_on_the_second, 2, tmp_path, [1, 2, 3]) == [([10, 20, 30], [])] * 2


def test_all_weights_are_gathered_for_epochs_that_are_scored_alone():
    gathered = []

    @contextmanager
    def whole():
        gathered.append(progress.step)
        yield

    validation, progress = Validation(lambda epoch: {"accuracy": 1.0}, every=3), Progress()
    for progress.step in range(6):
        validated(validation, progress.step, progress, whole)
    assert gathered == [2, 5]


def test_a_metric_that_there_is_not_is_said_before_the_first_step(titles, tmp_path, capsys):
    folder = tmp_path / "run"
    assert "--validation-metric rouge-9: the task has rouge-1, rouge-2" in refused(
        "train", *flags_of(titles), "--load", titles[1], "--save", folder, *STEPS, "--validation-metric", "rouge-9",
        capsys=capsys)
    assert not (folder / "log.jsonl").exists()


def test_rows_without_labels_validate_nothing(titles, tmp_path, capsys):
    (tmp_path / "task.yaml").write_text(
        "files: {train: train.jsonl, dev: dev.jsonl}\ntext_a: '{text}'\nlabels: ['a', 'b']\n"
        "verbalizers: {a: A, b: B}\npatterns:\n- a: ['~{text_a}', _]\n", encoding="utf-8")
    (tmp_path / "train.jsonl").write_text('{"text": "one", "label": "a"}\n', encoding="utf-8")
    (tmp_path / "dev.jsonl").write_text('{"text": "two"}\n', encoding="utf-8")
    assert main(["train", "--task", str(tmp_path / "task.yaml"), "--cloze-eval", *tokenizer_flags("bpe"), "--load",
                 str(titles[1]), "--seq-length", "16", "--save", str(tmp_path / "run"), "--epochs", "1"]) in (0, 2)
    assert "no validation: 1 of the 1 rows of its split have no label" in capsys.readouterr().err


def test_the_best_epoch_by_the_first_metric_is_kept(titles, trained, capsys):
    values = [line["validation"]["rouge-1"] for line in ends_of(trained)]
    (found,) = run("evaluate", *flags_of(titles), "--load", trained / "best", capsys=capsys)
    assert max(values) > 0 and found["metrics"]["rouge-1"] == pytest.approx(max(values))


def test_the_report_shows_intervals_and_what_was_written(trained):
    text = " ".join(Page((trained / "report.html").read_text(encoding="utf-8")).text.split())
    assert "rouge-l" in text and text.count("]") >= 6 and "kept" in text  # three figures of two epochs
    assert "The bell is cast in a pit" in text and "a bell of bronze hangs in the tower" in text


def test_validation_takes_part_in_no_draw_of_the_training(titles, trained, tmp_path):
    """The same curve without it."""
    assert main(["train", *flags_of(titles), "--load", str(titles[1]), "--save", str(tmp_path / "run"), *STEPS,
                 "--eval-epoch", "0"]) == 0
    assert [line["loss"] for line in log_of(tmp_path / "run")] == [line["loss"] for line in log_of(trained)]


def test_some_rows_and_the_least_loss(titles, tmp_path):
    assert main(["train", *flags_of(titles), "--load", str(titles[1]), "--save", str(tmp_path / "run"), *STEPS,
                 "--validation-rows", "2", "--validation-metric", "loss", "--no-decode"]) == 0
    lines = ends_of(tmp_path / "run")
    assert [list(line["validation"]) for line in lines] == [["loss"]] * 2
    least = min(line["validation"]["loss"] for line in lines)
    assert [line["is_best"] for line in lines] == [True, lines[1]["validation"]["loss"] == least]


def test_only_a_lower_loss_is_better():
    kept, values, progress = [], iter([2.0, 2.5, 1.5]), Progress()
    validation = Validation(lambda epoch: {"rouge-1": 0.0, "loss": next(values)}, metric="loss", keep=kept.append)
    for progress.step in range(3):
        validated(validation, progress.step, progress)
    assert kept == [0, 2]


def test_the_loss_is_the_mean_of_all_tokens():
    samples = [Sample(str(count), Kind.SEQ2SEQ, (Row((), (), (), 0, (), (1,) * count),)) for count in (3, 1, 4)]
    assert mean_loss([1.0, 2.0], [samples[:2], samples[2:]]) == pytest.approx((1.0 * 4 + 2.0 * 4) / 8)


def test_blanks_have_a_loss_alone(titles, tmp_path):
    folder = tmp_path / "blank"
    folder.mkdir()
    for split in ("train", "valid"):
        (folder / f"{split}.txt").write_text("".join(f"{source}\n" for source, _ in ROWS), encoding="utf-8")
    glm = tiny_glm(tmp_path / "glm")
    flags = ["--task", "blank", "--data-dir", str(folder), "--src-seq-length", "16", "--tgt-seq-length", "8",
             "--blank-maskratio", "0.3", *tokenizer_flags("wordpiece"), "--load", str(glm)]
    assert main(["train", *flags, "--save", str(tmp_path / "run"), *STEPS]) == 0
    assert [list(line["validation"]) for line in ends_of(tmp_path / "run")] == [["loss"]] * 2


def test_replies_of_chatglm_are_scored_by_bleu(tmp_path, capsys):
    words = family_folder("chatglm", tmp_path)
    rows = [{"prompt": text, "response": f"{text}!"} for text in ("你好", "an old house", "再见")]
    (tmp_path / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    base = str(checkpoint("chatglm", "hf_chatglm_untied"))
    flags = ["--task", "chat", "--validation-file", str(tmp_path / "rows.json"), "--max-source-length", "16",
             "--max-target-length", "5", "--load", base, "--tokenizer-path", str(words)]
    saved = tmp_path / "run"
    assert main(["train", *flags, "--train-file", str(tmp_path / "rows.json"), "--save", str(saved), "--pre-seq-len",
                 "3", "--epochs", "1", "--batch-size", "2", "--lr", "1e-2"]) == 0
    (line,) = ends_of(saved)
    assert list(line["validation"]) == ["bleu-4", "rouge-1", "rouge-2", "rouge-l", "loss"] and line["is_best"]
    (found,) = run("evaluate", *flags, "--pre-seq-len", "3", "--prefix-encoder", saved / "best", capsys=capsys)
    kept = json.loads((saved / "validation" / "epoch-0.json").read_text(encoding="utf-8"))
    assert [row["prediction"] for row in found["rows"]] == [row["prediction"] for row in kept["rows"]]
    assert found["metrics"] == pytest.approx({name: line["validation"][name] for name in found["metrics"]})
    text = Page((saved / "report.html").read_text(encoding="utf-8")).text
    assert "an old house" in text and "of 3 rows lost the end of their target: they are too long" in text
