"""A whole run on golden's checkpoint: what it writes, that it may be killed anywhere, and on how many processes."""

import contextlib
import io
import json
import os
import random
import re
import shutil
import time
from pathlib import Path

import pytest

import commands.evaluate as command
from tests.golden_data import TP1, split_state, whole_state, write_checkpoint
from tests.parallel_helper import run_ranks, start
from tests.tiny_tasks import arguments, results, samples, write_tasks


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with tasks and one uninterrupted run of them in out/."""
    folder = write_tasks(tmp_path_factory.mktemp("whole"))
    assert command.main(arguments(folder)) == 0
    return folder


def run_again(whole: Path, output: str, *more: str) -> int:
    return command.main(arguments(whole, *more, output=output))


def written(folder: Path, output: str) -> bytes:
    """results.json, but for the code's hash: somebody may edit a file while the tests run."""
    return re.sub(rb'"code": {[^}]*}', b"", (folder / output / "results.json").read_bytes())


def close(one: object, other: object, tolerance: float = 1e-5) -> bool:
    """Equal but for floats, which may differ by the tolerance."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key], tolerance) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(close(*pair, tolerance) for pair in zip(one, other, strict=True))
    return one == pytest.approx(other, abs=tolerance) if isinstance(one, float) else one == other


# What a run leaves behind


def test_every_row_is_scored_once_and_figures_follow_from_the_samples(whole):
    tasks, items = results(whole)["tasks"], samples(whole)
    assert list(items) == ["choices/plain/test.jsonl", "choices/said/test.jsonl", "text/test.txt.jsonl",
                           "writing/dev.jsonl"]
    assert [item["index"] for item in items["choices/said/test.jsonl"]] == list(range(8))
    for name, task in tasks.items():
        for path, file in task["files"].items():
            scored = items[f"{name}/{path.removesuffix('.jsonl')}.jsonl"]
            assert file["n"] == file["scored"] == file["expected"] == len(scored)
    plain = items["choices/plain/test.jsonl"]
    right = sum(item["prediction"] == item["label"] for item in plain)
    assert tasks["choices"]["files"]["plain/test.jsonl"]["metrics"]["Accuracy"] == 100 * right / 8
    for item in plain:
        assert item["prediction"] == item["log_probs"].index(max(item["log_probs"]))
    assert tasks["text"]["counts"]["scored"] == len(items["text/test.txt.jsonl"]) > 4


def test_the_same_command_again_computes_nothing_and_writes_the_same(whole):
    before, journal = written(whole, "out"), (whole / "out" / "journal.jsonl").read_bytes()
    assert run_again(whole, "out") == 0
    assert written(whole, "out") == before and (whole / "out" / "journal.jsonl").read_bytes() == journal
    timings = json.loads((whole / "out" / "timings.json").read_text())
    assert [task["computed"] for task in timings["tasks"].values()] == [0, 0, 0]


def test_batches_do_not_change_the_figures(whole):
    assert command.main([*arguments(whole, output="single"), "--micro-batch-size", "1"]) == 0
    assert close(samples(whole), samples(whole, "single"))
    assert close(results(whole)["tasks"], results(whole, "single")["tasks"])


# Killed and resumed


def _child(folder: str, argv: list[str]) -> None:
    import torch

    os.chdir(folder)
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    command.main(argv)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))])
def test_killed_anywhere_and_resumed_the_results_are_the_same_bytes(whole, seed):
    chance, output = random.Random(seed), f"killed-{seed}"
    journal = whole / output / "journal.jsonl"
    largest = (whole / "out" / "journal.jsonl").stat().st_size
    kills = 0
    for _ in range(3):
        process = start(_child, str(whole), arguments(whole, output=output))
        enough = chance.uniform(0, largest)
        while process.is_alive() and not (journal.exists() and journal.stat().st_size > enough):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.02))
        process.kill()
        process.join()
        kills += process.exitcode == -9
    assert kills
    assert run_again(whole, output) == 0
    assert written(whole, output) == written(whole, "out")
    assert close(samples(whole), samples(whole, output))


def test_a_line_torn_by_the_kill_is_computed_again(whole):
    shutil.copytree(whole / "out", whole / "torn")
    journal = whole / "torn" / "journal.jsonl"
    whole_journal = journal.read_bytes()
    journal.write_bytes(whole_journal[:len(whole_journal) // 2])
    (whole / "torn" / "results.json").unlink()
    assert run_again(whole, "torn") == 0
    assert written(whole, "torn") == written(whole, "out")
    assert samples(whole, "torn") == samples(whole)


# Other weights


def test_one_changed_byte_of_the_weights_finds_no_kept_answer(whole, tmp_path, capsys):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(TP1, checkpoint)
    argv = ["--load", str(checkpoint), *arguments(whole, output="weights")[2:]]
    assert command.main(argv) == 0
    assert written(whole, "weights") != b""
    before = samples(whole, "weights")
    (shard,) = checkpoint.glob("*/mp_rank_00_model_states.pt")
    change_a_byte(shard)
    assert command.main(argv) == 2
    assert "holds the results of another run (checkpoint: " in capsys.readouterr().err
    assert command.main([*argv, "--overwrite"]) == 0
    timings = json.loads((whole / "weights" / "timings.json").read_text())
    assert all(task["computed"] == task["items"] for task in timings["tasks"].values())
    assert samples(whole, "weights") != before


def change_a_byte(shard: Path) -> None:
    """Flips the highest exponent bit but one of a word embedding that every row uses."""
    import torch

    from glm.shard import read_shard

    data = bytearray(shard.read_bytes())
    with torch.inference_mode():
        tensors = read_shard(shard).tensors
        bias = next(tensor for name, tensor in tensors.items() if name.endswith("final_layernorm.bias"))
        place = bytes(data).index(bias.numpy().tobytes())
    data[place + 1] ^= 0x08
    shard.write_bytes(bytes(data))


def test_changed_data_is_named_before_results_are_replaced(whole, capsys):
    shutil.copytree(whole / "out", whole / "newer")
    file = sorted((whole / "data" / "choices").rglob("*.jsonl"))[0]
    rows = file.read_text()
    file.write_text(rows + rows.splitlines()[0] + "\n")
    try:
        assert run_again(whole, "newer") == 2
    finally:
        file.write_text(rows)
    assert "holds the results of another run (data of task " in capsys.readouterr().err
    assert written(whole, "newer") == written(whole, "out")


def test_other_settings_are_refused_and_replaced_only_when_asked(whole, capsys):
    shutil.copytree(whole / "out", whole / "other")
    assert run_again(whole, "other", "--limit", "3") == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: --output {whole / 'other'} holds the results of another run (limit: none, "
                              "now 3)")
    assert "--overwrite" in message and message.count("\n") == 1
    assert written(whole, "other") == written(whole, "out")
    file = str(whole / "tasks" / "choices.yaml")
    argv = arguments(whole, output="other")
    assert command.main([file if word == str(whole / "tasks") else word for word in argv]) == 2
    assert re.search(r"\(task text: \w{12}\.\.\., now none; task writing: ", capsys.readouterr().err)
    assert run_again(whole, "other", "--limit", "3", "--overwrite") == 0
    task = results(whole, "other")["tasks"]["choices"]
    assert task["counts"] == {"expected": 16, "scored": 6, "truncated": 0, "overlong": 0}
    assert results(whole, "other")["settings"]["limit"] == 3


@pytest.mark.parametrize("content", ["{", "[]", '{"facts": {}, "seed": 1}'])
def test_settings_that_are_not_of_an_evaluation(whole, capsys, content):
    """Damaged, or generation's: no list of all that an evaluation would have said."""
    folder = whole / f"foreign{len(content)}"
    folder.mkdir()
    (folder / "settings.json").write_text(content)
    assert run_again(whole, folder.name) == 2
    assert capsys.readouterr().err == (f"error: --output {folder}: the settings.json there is damaged, or not of an "
                                       "evaluation; name another --output, or let it be replaced with --overwrite\n")
    assert (folder / "settings.json").read_text() == content


def test_settings_of_a_version_with_fewer_or_more_options(whole):
    """What is at its default may stand there or not."""
    shutil.copytree(whole / "out", whole / "versions")
    path = whole / "versions" / "settings.json"
    facts = json.loads(path.read_text())
    assert "model's rotary_table" in facts and "model's layernorm_epsilon" not in facts
    path.write_text(json.dumps(facts | {"model's layernorm_epsilon": 1e-5}))
    assert run_again(whole, "versions") == 0
    path.write_text(json.dumps(facts | {"model's layernorm_epsilon": 1e-3}))
    assert run_again(whole, "versions") == 2


# Several processes


def _ranks(folder: str, argv: list[str], degree: int) -> int:
    os.environ["RANK"] = str(_rank())
    os.environ.setdefault("LOCAL_RANK", str(_rank()))
    os.environ["WORLD_SIZE"] = str(_world())
    return command.main(["--model-parallel-size", str(degree), *argv])


def _rank() -> int:
    import torch

    return torch.distributed.get_rank()


def _world() -> int:
    import torch

    return torch.distributed.get_world_size()


def test_two_processes_give_the_identical_file(whole, tmp_path):
    argv = arguments(whole, output="two")
    assert run_ranks(_ranks, 2, tmp_path, str(whole), argv, 1) == [0, 0]
    assert written(whole, "two") == written(whole, "out")
    assert close(samples(whole), samples(whole, "two"))


def test_two_groups_of_two_tensor_parallel_processes(whole, tmp_path):
    folder = write_checkpoint(tmp_path / "tp2", split_state(whole_state(), 2))
    argv = [*arguments(whole, output="four"), "--load", str(folder)]
    assert run_ranks(_ranks, 4, tmp_path, str(whole), argv, 2) == [0] * 4
    assert close(results(whole, "four")["tasks"], results(whole)["tasks"])
    assert close(samples(whole, "four"), samples(whole), 1e-4)


def _heard(folder: str, argv: list[str], other: list[str], fault: str = "") -> tuple[int, str]:
    """Exit code and standard error of a rank; the second one is given other arguments, or a model with a fault."""
    from evaluation.scorer import Scorer
    from runtime.errors import UserError

    def fail(*_):
        raise UserError(fault)

    if _rank() == 1 and fault:
        Scorer.answer = fail
    os.environ["LOCAL_RANK"] = "0"  # each is the first process of a host of its own
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        code = _ranks(folder, [*argv, *other] if _rank() == 1 else argv, 1)
    return code, err.getvalue()


def test_an_error_on_one_process_is_heard_by_all(whole, tmp_path):
    argv = arguments(whole, output="failing")
    found = run_ranks(_heard, 2, tmp_path, str(whole), argv, [], "layer 3 gave nan")
    assert found == [(2, "error: rank 1 failed: layer 3 gave nan\n"), (2, "")]
    assert not (whole / "failing" / "results.json").exists()


def test_a_host_without_the_data_is_heard_of(whole, tmp_path):
    argv, other = arguments(whole, output="hosts"), ["--data-path", str(tmp_path / "none")]
    (code, message), second = run_ranks(_heard, 2, tmp_path, str(whole), argv, other)
    assert code == 2 and second == (2, "")
    assert message.startswith(f"error: rank 1 failed: {whole / 'tasks' / 'choices.yaml'}: path: there is no folder")


def test_a_host_with_other_data_or_weights_is_heard_of(whole, tmp_path):
    shutil.copytree(whole / "data", tmp_path / "data")
    path = tmp_path / "data" / "writing" / "dev.jsonl"
    path.write_text(path.read_text().replace("Number 3", "Number 4"))
    argv, other = arguments(whole, output="hosts"), ["--data-path", str(tmp_path / "data")]
    (code, message), second = run_ranks(_heard, 2, tmp_path, str(whole), argv, other)
    assert code == 2 and second == (2, "")
    assert message.startswith("error: ") and "the task writing (task file or data) on host " in message

    shutil.copytree(TP1, tmp_path / "checkpoint")
    (shard,) = (tmp_path / "checkpoint").glob("*/mp_rank_00_model_states.pt")
    change_a_byte(shard)
    (tmp_path / "rendezvous").unlink(missing_ok=True)
    other = ["--load", str(tmp_path / "checkpoint")]
    (code, message), _ = run_ranks(_heard, 2, tmp_path, str(whole), argv, other)
    assert code == 2 and "the checkpoint on host " in message
