"""Samples for models of other families than the GLM repository's: what stands around a text, and where answers go."""

import json
from pathlib import Path

import pytest

from evaluation.config import MultiChoiceTaskConfig
from evaluation.contexts import Contexts
from evaluation.scorer import Scorer
from evaluation.tasks import score_request
from glm.checkpoint import read_config
from glm.config import ModelConfig
from glm.inputs import row_positions
from glm.loading import load
from glm.options import ModelOptions
from glm.prompt_form import MASKS
from runtime.errors import UserError
from tests.golden_finetune import refused, run
from tuning.__main__ import main
from tuning.data.form import GLM_REPOSITORY, form_of
from tuning.options import TokenizerOptions
from tuning.tokenizers import open_tokenizer

SMALL = Path(__file__).resolve().parent.parent / "checkpoints" / "glm-small"
TASK = """\
text_a: "{text}"
labels: ["0", "1"]
verbalizers: {"0": "the house", "1": "a river of gold"}
patterns:
- a: ["{text_a}", _]
- a: ["{text_a}", _, "."]
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.yaml").write_text(TASK, encoding="utf-8")
    (tmp_path / "short.yaml").write_text(
        TASK.replace("the house", "No").replace("a river of gold", "Yes"), encoding="utf-8")
    row = {"text": "The old man looked at the sea and saw", "label": "1"}
    (tmp_path / "val.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (tmp_path / "val.source").write_text(row["text"] + "\n", encoding="utf-8")
    (tmp_path / "val.target").write_text("a river of gold\n", encoding="utf-8")
    return tmp_path


def inspected(folder, task, capsys, *more):
    return run("inspect", "--task", task, "--data-dir", folder, "--load", SMALL, *more, capsys=capsys)


def evaluators_context(text, use_task_mask=False):
    config = read_config(SMALL)
    tokenizer = open_tokenizer(TokenizerOptions(), SMALL)
    task = MultiChoiceTaskConfig(name="t", path="", use_task_mask=use_task_mask, form=config.prompt_form)
    return tokenizer, Contexts(task, tokenizer).of_text(tokenizer.encode(text))


def test_cloze_rows_of_glm_130b_are_the_evaluators(folder, capsys):
    tokenizer, context = evaluators_context("The old man looked at the sea and saw")
    (sample,) = inspected(folder, str(folder / "mine.yaml"), capsys, "--cloze-eval", "--multi-token")
    for choice, text in zip(sample["choices"], ("the house", "a river of gold"), strict=True):
        ids = tokenizer.encode(text)  # without an end, as the evaluator scores it
        assert choice["input_ids"] == [*context.ids, *ids[:-1]]
        places, blocks = row_positions(len(context.ids) - 1, [(context.first, context.advance, len(ids))])
        assert choice["position_ids"] == [places, blocks]
        assert choice["sep"] == len(context.ids) - 1
        assert choice["target"][choice["sep"]:] == ids


def test_scores_are_the_evaluators(folder, capsys):
    """Of the same context and choices: sums of log-probabilities, and of single tokens logits, which differ as much."""
    flags = ["evaluate", "--data-dir", folder, "--load", SMALL, "--cloze-eval", "--dtype", "float32"]
    tokenizer, context = evaluators_context("The old man looked at the sea and saw")
    model, _ = load(ModelOptions(path=SMALL, device="cpu", dtype="float32"))
    words = [("the house", "a river of gold"), ("No", "Yes")]
    tasks = ["--task", folder / "mine.yaml", "--multi-token"], ["--task", folder / "short.yaml"]
    for texts, more in zip(words, tasks, strict=True):
        request = score_request(context, tuple(tuple(tokenizer.encode(text)) for text in texts))
        (expected,) = Scorer(model).choice_log_probs([request])
        (result,) = run(*flags, *more, capsys=capsys)
        scores = result["rows"][0]["scores"]
        if len(request.continuations[0]) == 1:
            assert scores[0] - scores[1] == pytest.approx(expected[0] - expected[1], abs=1e-4)
        else:
            assert scores == pytest.approx(expected, abs=1e-4)


def test_eos_stands_behind_a_text_whose_mask_is_not_last(folder, capsys):
    tokenizer = open_tokenizer(TokenizerOptions(), SMALL)
    (sample,) = inspected(folder, str(folder / "mine.yaml"), capsys, "--cloze-eval", "--multi-token", "--pattern-id", 1)
    first = sample["choices"][0]
    end = tokenizer.command("eos")
    assert first["input_ids"][first["sep"] - 1] == end
    assert first["input_ids"].count(end) == 1


def test_texts_are_written_at_gmask_without_padding(folder, capsys):
    tokenizer, context = evaluators_context("The old man looked at the sea and saw", use_task_mask=True)
    (sample,) = inspected(folder, "customization", capsys, "--task-mask")
    wanted = [*tokenizer.encode(" a river of gold"), tokenizer.command("eop")]
    assert sample["input_ids"] == [*context.ids, *wanted[:-1]]
    assert sample["target"][sample["sep"]:] == wanted and sample["loss_mask"] == [0] * sample["sep"] + [1] * len(wanted)
    places, _ = row_positions(len(context.ids) - 1, [(context.first, context.advance, len(wanted))])
    assert sample["position_ids"][0] == places and len(set(places)) == len(places)


def test_forms_of_the_families():
    assert form_of(ModelConfig.from_name("glm-base")) == GLM_REPOSITORY
    chat = form_of(ModelConfig.from_name("chatglm-6b"))
    assert (chat.begin, chat.masks, chat.advancing) == ((), ("[gMASK]", "[gMASK]"), ())
    assert chat.positions("[gMASK]", 7, 8, 3) == (7, 7, 7)
    assert form_of(read_config(SMALL)).no_end_after == MASKS
    with pytest.raises(UserError, match="fills no masks"):
        form_of(ModelConfig.from_name("chatglm2-6b"))




@pytest.mark.parametrize(("task", "message"), [("blank", "several blanks"), ("lambda", "python -m evaluation")])
def test_tasks_that_only_glms_models_have_are_refused(folder, task, message, capsys):
    assert message in refused("inspect", "--task", task, "--data-dir", folder, "--load", SMALL, capsys=capsys)


def test_a_step_on_the_embedded_model_leaves_a_checkpoint_that_is_used_as_it_lies(folder, capsys):
    """With its vocabulary, a report, and the rows of its validation, which evaluate finds again."""
    (folder / "train.jsonl").write_bytes((folder / "val.jsonl").read_bytes())
    task = ["--task", str(folder / "mine.yaml"), "--cloze-eval", "--multi-token"]
    saved = folder / "run"
    assert main(["train", *task, "--load", str(SMALL), "--save", str(saved), "--epochs", "1", "--lr", "1e-3",
                 "--warmup", "0", "--hidden-dropout", "0", "--attention-dropout", "0"]) == 0, capsys.readouterr().err
    assert "accuracy" in (saved / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()
    (before,), (after,) = (run("evaluate", *task, "--load", load, capsys=capsys) for load in (SMALL, saved))
    assert after["rows"][0]["scores"] != before["rows"][0]["scores"]
    kept = json.loads((saved / "validation" / "epoch-0.json").read_text(encoding="utf-8"))
    assert kept["rows"][0]["scores"] == pytest.approx(after["rows"][0]["scores"], abs=1e-3)
