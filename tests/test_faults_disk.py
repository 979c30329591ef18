"""Disks that are full or read-only, two runs on one folder, data that change between runs."""

import contextlib
import json
import shutil

import pytest

import commands.evaluate as evaluation
import commands.generate as generation
from commands import convert as convert_tp
from glm.shard import read_shard, save_shard
from runtime.files import Lock
from tests.faults import Disk, ended, errors_of, generation_arguments, prompts_of, said, size_of, started
from tests.golden_data import TP1, split_state
from tests.test_faults_killed import answered, corpus, files_of, scored, written  # noqa: F401 (fixtures)
from tests.test_pretrain import VOCABULARY, losses
from tests.test_pretrain import arguments as training_arguments
from tests.tiny_checkpoints import assert_same, tensors_of, tiny_checkpoint, tiny_state
from tests.tiny_tasks import arguments
from tools import export_checkpoint, pretrain
from tools.converting import convert as conversion

FULL = {"disk": "No space left on device", "limit": "File too large"}


@contextlib.contextmanager
def little_room(way, folder, kilobytes):
    """(folder to write to, environment of the process, how to make room): a small disk, or a limit on a file's size."""
    if way == "disk":
        with Disk(folder, kilobytes) as disk:
            yield folder, {}, lambda: disk.change("size=100m")
    else:
        folder.mkdir()
        yield folder, {"FILE_LIMIT": str(kilobytes * 1024)}, lambda: None


def one_line(log, *words):
    message = errors_of(log)
    assert message.startswith("error: ") and message.count("\n") == 1, message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("way", FULL)
def test_generation_on_a_full_disk(answered, tmp_path, way):  # noqa: F811
    with little_room(way, tmp_path / "out", 64 if way == "disk" else 2) as (output, environment, make_room):
        argv = generation_arguments(answered, "--resume", output=output)
        assert ended(started("commands.generate", argv, tmp_path / "log", **environment)) == 2
        one_line(tmp_path / "log", FULL[way], "what is answered is kept: mend it and go on with --resume")
        kept = (output / "results.jsonl").read_text()
        assert kept.endswith("\n") and len([json.loads(line) for line in kept.splitlines()]) >= 1
        make_room()
        assert generation.main(argv) == 0
        assert files_of(output) == files_of(answered / "out")


@pytest.mark.parametrize("way", FULL)
def test_evaluation_on_a_full_disk(scored, tmp_path, way):  # noqa: F811
    with little_room(way, tmp_path / "out", 16 if way == "disk" else 5) as (output, environment, make_room):
        argv = arguments(scored, output=output)
        assert ended(started("commands.evaluate", argv, tmp_path / "log", **environment)) == 2
        one_line(tmp_path / "log", FULL[way], "mend it, and the same command goes on from here")
        assert size_of(output / "journal.jsonl") > 0 and not (output / "results.json").exists()
        make_room()
        assert evaluation.main(argv) == 0
        assert written(output) == written(scored / "out")


@pytest.mark.parametrize("way", FULL)
def test_converting_on_a_full_disk(tmp_path, way, monkeypatch, capsys):
    """Too little room is said beforehand; here somebody else takes it while the shards are written."""
    source = tiny_checkpoint(tmp_path / "in", 2)
    with little_room(way, tmp_path / "disk", 64 if way == "disk" else 16) as (disk, environment, make_room):
        argv = ["--input-folder", str(source), "--output-folder", str(disk / "out"), "--target-tp", "3"]
        if way == "disk":
            assert convert_tp.main(argv) == 2
            assert "GB are needed, 0.000 GB are free" in said(capsys.readouterr().err) and not (disk / "out").exists()
            monkeypatch.setattr(conversion, "_check_space", lambda *_: None)
            assert convert_tp.main(argv) == 2
            message = said(capsys.readouterr().err)
        else:
            assert ended(started("commands.convert", argv, tmp_path / "log", **environment)) == 2
            message = errors_of(tmp_path / "log")
        assert message.startswith("error: the disk of ") and message.count("\n") == 1
        assert "is full" in message and "give the same command again" in message and FULL[way] in message
        assert not (disk / "out" / "latest").exists()
        make_room()
        assert convert_tp.main(argv) == 0
        assert_same(tensors_of(disk / "out"), split_state(tiny_state(), 3))


def test_training_on_a_full_disk(corpus, tmp_path, capsys):  # noqa: F811
    def argv(output):
        return training_arguments(corpus, output, "--stop-at", "14")

    pretrain.main(argv(tmp_path / "whole"))
    kilobytes = size_of(tmp_path / "whole" / "state.pt") // 1024
    with Disk(tmp_path / "out", kilobytes * 3 // 2) as disk:  # the first state has room, the second beside it has not
        with pytest.raises(SystemExit) as end:
            pretrain.main(argv(disk.folder))
        assert end.value.code == 2
        message = said(capsys.readouterr().err)
        assert message.startswith(f"error: {disk.folder / 'state.pt'}: No space left on device; the same command goes")
        assert message.count("\n") == 1 and sorted(path.name for path in disk.folder.iterdir()) == [
            ".lock", "data.json", "log.jsonl", "model_config.json", "state.pt"]
        disk.change("size=100m")
        pretrain.main(argv(disk.folder))
        assert losses(disk.folder) == losses(tmp_path / "whole")
    with Disk(tmp_path / "checkpoint", VOCABULARY.stat().st_size // 1024 + 64) as disk:
        export = ["--run", str(tmp_path / "whole"), "--vocabulary", str(VOCABULARY), "--output", str(disk.folder)]
        with pytest.raises(SystemExit) as end:
            export_checkpoint.main(export)
        message = said(capsys.readouterr().err)
        assert end.value.code == 2 and message.count("\n") == 1 and not (disk.folder / "latest").exists()
        assert "mp_rank_00_model_states.pt: No space left on device; the checkpoint that was there before" in message
        disk.change("size=100m")
        export_checkpoint.main(export)
        assert (disk.folder / "latest").exists()


PROGRAMS = ["generation", "evaluation", "converting", "training"]


@pytest.fixture
def run_into(answered, scored, corpus, tmp_path, capsys):  # noqa: F811
    """run_into(program, output): its exit code and what it says."""
    source = tiny_checkpoint(tmp_path / "source", 2)

    def run(program, output):
        capsys.readouterr()
        try:
            code = {
                "generation": lambda: generation.main(generation_arguments(answered, output=output)),
                "evaluation": lambda: evaluation.main(arguments(scored, output=output)),
                "converting": lambda: convert_tp.main(
                    ["--input-folder", str(source), "--output-folder", str(output), "--target-tp", "3"]),
                "training": lambda: pretrain.main(training_arguments(corpus, output, "--stop-at", "1")),
            }[program]()
        except SystemExit as end:
            code = end.code
        return code or 0, said(capsys.readouterr().err)

    return run


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_read_only_folder(run_into, tmp_path, program):
    with Disk(tmp_path / "disk", 100) as disk:
        disk.change("ro")
        for output in (disk.folder, disk.folder / "new"):
            code, message = run_into(program, output)
            assert code == 2 and message.count("\n") == 1 and message.startswith("error: --output")
            assert f"{output}: Read-only file system; name a folder that can be written to" in message


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_second_run_on_the_same_folder(run_into, tmp_path, program):
    output = tmp_path / "out"
    name = ".converting/lock" if program == "converting" else ".lock"
    with Lock(output, "--output", name):
        before = sorted(output.rglob("*"))
        if program == "converting":
            (output / ".converting" / "journal.json").write_text("{}")
        code, message = run_into(program, output)
        if program == "converting":  # what the first one does is its own
            assert "journal.json is damaged" in message
            (output / ".converting" / "journal.json").unlink()
            code, message = run_into(program, output)
        assert code == 2 and message.count("\n") == 1
        assert f" {output}: another run is writing there; wait for its end, or name another --output" in message
        assert sorted(output.rglob("*")) == before
    assert run_into(program, output)[0] == 0


# Data that change between runs


def test_prompts_that_changed_are_named_and_answered_anew(answered, tmp_path, capsys):  # noqa: F811
    shutil.copy(answered / "prompts.txt", tmp_path)
    shutil.copytree(answered / "out", tmp_path / "out")
    lines = prompts_of(24).splitlines(keepends=True)
    (tmp_path / "prompts.txt").write_text("".join(["new\tA new one\n", *lines[1:7], lines[9], lines[8]]))
    assert generation.main(generation_arguments(tmp_path, "--resume")) == 0
    said = capsys.readouterr()
    assert f"note: {tmp_path / 'prompts.txt'} has changed: 17 of the earlier answers belong to other " in said.err
    assert "2 of 9 prompts answered, 7 there already" in said.out
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["new", *(f"id{n}" for n in range(1, 7)), "id9", "id8"]


def test_other_weights_are_named_when_generation_is_resumed(answered, tmp_path, capsys):  # noqa: F811
    shutil.copytree(answered, tmp_path / "run")
    shutil.copytree(TP1, tmp_path / "checkpoint")
    (shard,) = (tmp_path / "checkpoint").glob("*/*.pt")
    tensors = {name: tensor.clone() for name, tensor in read_shard(shard).tensors.items()}
    save_shard(shard, tensors)
    argv = generation_arguments(tmp_path / "run", "--resume", load=tmp_path / "checkpoint")
    assert generation.main(argv) == 0  # the same numbers in a file that was written anew
    next(iter(tensors.values())).view(-1)[0] += 1
    save_shard(shard, tensors)
    capsys.readouterr()
    assert generation.main(argv) == 2
    assert "settings.json: the earlier run had checkpoint_checksums" in said(capsys.readouterr().err)


def test_answers_without_settings_are_not_resumed(answered, tmp_path, capsys):  # noqa: F811
    shutil.copytree(answered, tmp_path / "run")
    (tmp_path / "run" / "out" / "settings.json").unlink()
    assert generation.main(generation_arguments(tmp_path / "run", "--resume")) == 2
    assert "has answers, but there is no" in said(capsys.readouterr().err)


def test_another_corpus_is_named_when_training_goes_on(corpus, tmp_path, capsys):  # noqa: F811
    shutil.copytree(corpus, tmp_path / "corpus")
    argv = training_arguments(tmp_path / "corpus", tmp_path / "out")
    pretrain.main([*argv, "--stop-at", "1"])
    path = tmp_path / "corpus" / "zh_toy.npy"
    data = bytearray(path.read_bytes())
    data[-4:-2] = data[-8:-6]
    path.write_bytes(data)
    with pytest.raises(SystemExit) as end:
        pretrain.main([*argv, "--stop-at", "2"])
    message = said(capsys.readouterr().err)
    assert end.value.code == 2 and message.count("\n") == 1
    assert message.startswith(f"error: zh_toy: not what the run in {tmp_path / 'out'} began with; put the old data ")
    (tmp_path / "out" / "data.json").unlink()
    pretrain.main([*argv, "--stop-at", "2"])


def test_an_input_that_changes_under_the_conversion(tmp_path, capsys, monkeypatch):
    source, write = tiny_checkpoint(tmp_path / "in", 2), conversion._write_shard
    whole = tiny_checkpoint(tmp_path / "copy", 2)
    shards = [sorted(folder.rglob("*.pt")) for folder in (source, whole)]
    shutil.copystat(shards[0][1], shards[1][1])

    def changing(path, *rest):
        facts = write(path, *rest)
        if "01" in path.name:
            with shards[0][1].open("r+b") as file:
                file.seek(4000)
                file.write(b"\0" * 64)
        return facts

    argv = ["--input-folder", str(source), "--output-folder", str(tmp_path / "out"), "--target-tp", "3"]
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_write_shard", changing)
        assert convert_tp.main(argv) == 2
    message = said(capsys.readouterr().err)
    assert message.startswith(f"error: {source}: {shards[0][1].name} was written to while it was converted; put the ")
    assert message.count("\n") == 1 and not (tmp_path / "out" / "latest").exists()
    assert convert_tp.main(argv) == 2
    assert "another input (files of another size or date" in said(capsys.readouterr().err)
    shutil.copy2(shards[1][1], shards[0][1])
    assert convert_tp.main(argv) == 0
    assert "(1 of them finished before)" in capsys.readouterr().out
    assert_same(tensors_of(tmp_path / "out"), split_state(tiny_state(), 3))
