"""--summary-dir: TensorBoard's events say what the log says, each step once, killed or not."""

import json
import struct
import sys

import pytest

from runtime.errors import UserError
from tests.golden_finetune import refused
from tests.tiny_training import log_of, tiny_glm, training_flags
from tuning.__main__ import main
from tuning.summaries import Summaries, scalars


def events_of(folder):
    """(tag, step, value) of every event in the folder, as TensorBoard reads them: lengths and checksums around each."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            length, = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12:place + 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            place += 16 + length
    return found


def written_to(run, *lines):
    with (run / "log.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def line_of(step, **more):
    return {"step": step, "loss": 2.0 - step, "learning_rate": 0.5, "gradient_norm": None, **more}


def test_a_training_shows_its_log(tmp_path):
    glm = tiny_glm(tmp_path / "glm")
    flags = training_flags(glm, "--save", tmp_path / "run", "--summary-dir", tmp_path / "events", steps=4)
    assert main(["train", *flags, "--eval-epoch", "1", "--batch-size", "6"]) == 0
    log, events = log_of(tmp_path / "run"), events_of(tmp_path / "events" / "run")
    for name, tag in (("loss", "train_loss"), ("learning_rate", "lr"), ("gradient_norm", "gradient_norm")):
        values = [value for each, _, value in events if each == f"Train/{tag}"]
        assert values == pytest.approx([line[name] for line in log], rel=1e-6)
    assert [(step, value) for tag, step, value in events if tag == "Train/valid_accuracy"] == [
        (line["step"], pytest.approx(line["validation"]["accuracy"])) for line in log if "validation" in line]
    assert any("validation" in line for line in log)


def test_a_run_that_goes_on_shows_no_step_twice(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    written_to(run, line_of(0), line_of(1), line_of(2))
    first = Summaries(tmp_path / "events", run)
    first.add(line_of(2))
    first.close()  # then it is killed, goes on from step 1, and comes to other values
    (run / "log.jsonl").unlink()
    written_to(run, line_of(0), line_of(1, loss=7.0))
    again = Summaries(tmp_path / "events", run)
    again.add(line_of(1, loss=7.0))
    written_to(run, line_of(2))
    again.add(line_of(2))
    again.close()
    assert [(step, value) for tag, step, value in events_of(tmp_path / "events" / "run")
            if tag == "Train/train_loss"] == [(0, 2.0), (1, 7.0), (2, 0.0)]


def test_what_is_no_number_is_no_event():
    line = line_of(3, loss=None, validation={"loss": float("nan"), "accuracy": 50.0})
    assert list(scalars(line)) == [("Train/lr", 0.5), ("Train/valid_accuracy", 50.0)]


def test_two_runs_of_one_name_are_not_mixed(tmp_path, capsys):
    for parent in ("one", "two"):
        (tmp_path / parent / "run").mkdir(parents=True)
        written_to(tmp_path / parent / "run", line_of(0))
    first = Summaries(tmp_path / "events", tmp_path / "one" / "run")
    first.begin()
    first.close()
    with pytest.raises(UserError, match="TensorBoard would show both as one"):
        Summaries(tmp_path / "events", tmp_path / "two" / "run")


def test_a_folder_that_cannot_be_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    flags = training_flags(tiny_glm(tmp_path / "glm"), "--save", tmp_path / "run", "--summary-dir", tmp_path / "file")
    assert "--summary-dir" in refused("train", *flags, capsys=capsys)


def test_without_the_package_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match="pip install tensorboardX"):
        Summaries(tmp_path, tmp_path / "run")
