"""The evaluation against the original's results: every prediction, log-probability, loss and figure of every task."""

import json
from pathlib import Path

import pytest
from golden_data import SHAPE, TOKENIZER, whole_state, write_checkpoint

import glm
from evaluation import requests as batching
from evaluation.discovery import data_files
from evaluation.metrics import evaluate
from evaluation.scorer import Scorer
from evaluation.task_file import load_task
from evaluation.tasks import task_class

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "evaluation"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden evaluation data (third-party) is not here")
TASKS = sorted(path.stem for path in GOLDEN.glob("tasks/*.yaml"))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("golden") / "tp1", [whole_state()])
    return glm.load(folder, tokenizer_path=TOKENIZER / "ice_text.model", **SHAPE)


def expected_metrics(name):
    values = json.loads((GOLDEN / "expected" / f"{name}.metrics.json").read_text(encoding="utf-8"))
    return {file["file"]: file for file in values["files"]}


def expected_items(name):
    lines = (GOLDEN / "expected" / f"{name}.predictions.jsonl").read_text(encoding="utf-8").splitlines()
    items = {}
    for line in map(json.loads, lines):
        items.setdefault(line["file"], []).append(line)
    return items


def run(name, loaded, max_items=None):
    """{relative path: (items, {metric: figure})} of a golden task."""
    model, tokenizer = loaded
    config = load_task(GOLDEN / "tasks" / f"{name}.yaml", GOLDEN / "data")
    task, scorer, found = task_class(config)(config, tokenizer), Scorer(model), {}
    for path in sorted({path for paths in data_files(config).values() for path in paths}):
        examples = task.examples(path)
        requests = [task.request(example) for example in examples]
        answers = [None] * len(requests)
        for batch in batching.batches_of(requests, batching.default_max_tokens(model, requests), max_items):
            for index, answer in zip(batch, scorer.answer([requests[i] for i in batch], max_items), strict=True):
                answers[index] = answer
        items = task.items(examples, requests, answers)
        figures = {name: evaluate(metric, items) for name, metric in task.metrics(items).items()}
        found[str(path.relative_to(config.path))] = items, figures
    return found


@pytest.fixture(scope="module")
def results(loaded):
    return {name: run(name, loaded) for name in TASKS}


@pytest.mark.parametrize("name", TASKS)
def test_every_item_is_the_original_s(results, name):
    for file, expected in expected_items(name).items():
        items, _ = results[name][file]
        assert len(items) == len(expected)
        for item, line in zip(items, expected, strict=True):
            assert item["index"] == line["index"]
            if "loss" in line:
                assert item["loss"] == pytest.approx(line["loss"], rel=1e-6)
                continue
            assert item["input_length"] == line["input_length"]
            if "log_probs" in line:
                assert (item["prediction"], item["label"]) == (line["prediction"], line["label"])
                assert item["log_probs"] == pytest.approx(line["log_probs"], abs=1e-4)
            else:
                assert (item["ids"], item["prediction"]) == (line["prediction"], line["prediction_text"])
                assert item["targets"] == line["targets_text"]
                assert item["beams"] == line.get("all_beams", item["beams"])


@pytest.mark.parametrize("name", TASKS)
def test_every_figure_is_the_original_s(results, name):
    expected = expected_metrics(name)
    assert results[name].keys() == expected.keys()
    for file, values in expected.items():
        items, figures = results[name][file]
        assert len(items) == values["length"]
        assert figures.keys() == values["metrics"].keys()
        for metric, value in values["metrics"].items():
            tolerance = 1e-5 if metric == "PPL" else 1e-12
            assert figures[metric] == pytest.approx(value, rel=tolerance)


@pytest.mark.parametrize("name", TASKS)
def test_an_item_s_score_does_not_depend_on_its_batch(results, loaded, name):
    """One at a time against automatic batches: below 1e-5 in log-probabilities, never in a prediction."""
    for file, (alone, _) in run(name, loaded, max_items=1).items():
        for one, item in zip(alone, results[name][file][0], strict=True):
            assert one.keys() == item.keys()
            for key, value in one.items():
                if key == "log_probs":
                    assert value == pytest.approx(item[key], abs=1e-5)
                elif key == "loss":
                    assert value == pytest.approx(item[key], rel=1e-7)
                else:
                    assert value == item[key]
