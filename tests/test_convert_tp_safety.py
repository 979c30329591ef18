"""tools/convert_tp.py is killed, runs out of disk, is started twice: nothing half done loads, nothing is redone."""

import errno
import json
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from commands.convert import main
from glm.checkpoint import find_shards, iteration_folder
from runtime.errors import UserError
from tests.faults import said
from tests.golden_data import split_state
from tests.parallel_helper import start
from tests.tiny_checkpoints import assert_same, run, tensors_of, tiny_checkpoint, tiny_state
from tools.converting import convert as conversion
from tools.converting import manifest as journals
from tools.converting.manifest import read_manifest
from tools.converting.torchfile import HashedFile
from tools.converting.verify import against_manifest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def source(tmp_path):
    return tiny_checkpoint(tmp_path / "in", 2)


def command(source, output, degree=3, *flags):
    return ["--input-folder", str(source), "--output-folder", str(output), "--target-tp", str(degree), *flags]


def assert_whole(output, degree=3):
    assert_same(tensors_of(output), split_state(tiny_state(), degree))
    assert not against_manifest(output, read_manifest(output / "manifest.json")).problems
    assert sorted(path.name for path in output.iterdir()) == ["49300", "latest", "manifest.json", "model_config.json"]
    assert len(list((output / "49300").iterdir())) == degree


def changes_of(count):
    """After so many changes of the disk the process kills itself with signal 9."""

    def counted(function):
        def call(*arguments, **options):
            nonlocal count
            count -= 1
            if count < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    return counted


def convert_and_die(source, output, count):
    counted = changes_of(count)
    for name in ("replace", "rename", "mkdir", "unlink", "rmdir", "fsync"):
        setattr(os, name, counted(getattr(os, name)))
    put = HashedFile._put
    HashedFile._put = lambda file, data: counted(put)(file, data)
    os._exit(main(command(source, output)))


def test_kill_at_every_step_leaves_nothing_that_loads_or_all_of_it(tmp_path, source):
    """A real process is killed (kill -9) before its first, second, ... change of the disk; the same command goes on."""
    count, kills, finished = 0, 0, set()
    while True:
        output = tmp_path / f"out{count}"
        process = start(convert_and_die, source, output, count)
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        if (output / "latest").exists():
            assert_same(tensors_of(output), split_state(tiny_state(), 3))
        elif output.exists():
            with pytest.raises(UserError):
                iteration_folder(output)
        journal = output / journals.CONVERTING / "journal.json"
        if journal.is_file():
            finished.add(len(json.loads(journal.read_text())["finished"]))
        assert main(command(source, output)) == 0
        assert_whole(output)
        count += 1 + count // 12  # every one of the first, then fewer
    assert kills > 20 and finished == {0, 1, 2, 3}
    assert_whole(output)


def convert_slowly(source, output):
    put = HashedFile._put
    HashedFile._put = lambda file, data: (time.sleep(0.01), put(file, data))  # time for a kill
    os._exit(main(command(source, output)))


def test_a_running_command_is_killed_at_random_moments(tmp_path, source):
    output, generator = tmp_path / "out", random.Random(0)
    for _ in range(4):
        process = start(convert_slowly, source, output)
        while process.exitcode is None and not (output / journals.CONVERTING / "journal.json").exists():
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.8))
        process.kill()
        process.join()
        if (output / "latest").exists():
            break
        with pytest.raises(UserError, match="is an unfinished conversion: give the same command"):
            find_shards(output)
    assert main(command(source, output)) == 0
    assert_whole(output)


def test_finished_shards_are_not_made_again(tmp_path, source, capsys, monkeypatch):
    class Stop(Exception):
        pass

    written, write = [], conversion._write_shard

    def stop_at_the_third(path, *rest):
        if len(written) == 2:
            raise Stop
        written.append(path.name)
        return write(path, *rest)

    monkeypatch.setattr(conversion, "_write_shard", stop_at_the_third)
    with pytest.raises(Stop):
        run(source, tmp_path / "out", 3)
    monkeypatch.setattr(conversion, "_write_shard", write)
    assert main(command(source, tmp_path / "out")) == 0
    assert "3 shards (2 of them finished before)" in capsys.readouterr().out
    assert_whole(tmp_path / "out")


def test_the_same_command_again_has_nothing_to_do(tmp_path, source, capsys):
    for words in ("in ", "finished before"):
        assert main(command(source, tmp_path / "out")) == 0
        assert words in capsys.readouterr().out
    before = (tmp_path / "out" / "latest").stat().st_mtime_ns
    assert main(command(source, tmp_path / "out")) == 0
    assert (tmp_path / "out" / "latest").stat().st_mtime_ns == before


def refused(capsys, *arguments):
    capsys.readouterr()
    assert main(command(*arguments)) == 2
    message = said(capsys.readouterr().err)
    assert message.startswith("error: ") and message.count("\n") == 1
    return message


def test_other_command_into_a_folder_that_is_in_use(tmp_path, source, capsys):
    run(source, tmp_path / "out", 3)
    assert "holds 49300, latest, manifest.json ... already" in refused(capsys, source, tmp_path / "out", 4)
    assert "holds 49300" in refused(capsys, source, source, 4)
    (tmp_path / "file").touch()
    assert "is a file; name a folder" in refused(capsys, source, tmp_path / "file")


def test_an_unfinished_folder_that_is_a_link_is_left_alone(tmp_path, source, capsys):
    """Shards would be written, and at the end all of it deleted, where somebody else's files are."""
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".converting").symlink_to(tmp_path / "foreign")
    assert ".converting is a link, through which nothing is written" in refused(capsys, source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["notes.txt"]


@pytest.fixture
def unfinished(tmp_path, source, monkeypatch):
    """A conversion of which one shard is there."""
    with monkeypatch.context() as patch:
        write = conversion._write_shard
        patch.setattr(conversion, "_write_shard", lambda path, *rest: (
            write(path, *rest) if "00" in path.name else os.kill(os.getpid(), signal.SIGINT)))
        assert main(command(source, tmp_path / "out")) == 130
    return tmp_path / "out"


def test_other_command_into_an_unfinished_folder(source, unfinished, capsys):
    message = refused(capsys, source, unfinished, 4)
    assert "holds an unfinished conversion with another target_tp (3, now 4)" in message
    assert "another quantization_bit_width (None, now 8)" in refused(capsys, source, unfinished, 3,
                                                                     "--quantization-bit-width", "8")
    os.utime(find_shards(source)[1], ns=(1, 1))
    assert "another input (files of another size or date" in refused(capsys, source, unfinished)


def test_damaged_journal(source, unfinished, capsys):
    (unfinished / journals.CONVERTING / "journal.json").write_text("{")
    assert "journal.json is damaged: delete the folder" in refused(capsys, source, unfinished)


def test_two_at_once(tmp_path, source, unfinished, capsys):
    value = json.loads((unfinished / journals.CONVERTING / "journal.json").read_text())
    with journals.opened(unfinished, value["conversion"], "49300"):
        assert "another run is writing there" in refused(capsys, source, unfinished)


def test_too_little_space_is_said_before_anything_is_written(tmp_path, source, capsys, monkeypatch):
    usage = conversion.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda path: usage._replace(free=16_800_000))
    message = refused(capsys, source, tmp_path / "out")
    needed, free = map(float, re.search(r": (\S+) GB are needed, (\S+) GB are free on its disk", message).groups())
    assert needed > free == 0.016
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_disk_that_is_full_in_the_middle(tmp_path, source, capsys, monkeypatch, code):
    put, files = HashedFile._put, []

    def fail(file, data):
        if file not in files:
            files.append(file)
        if len(files) > 1 and file.bytes > 5000:
            raise OSError(code, os.strerror(code))
        put(file, data)

    monkeypatch.setattr(HashedFile, "_put", fail)
    message = refused(capsys, source, tmp_path / "out")
    assert os.strerror(code) in message and ("is full" in message) == (code != errno.EACCES)
    monkeypatch.setattr(HashedFile, "_put", put)
    assert main(command(source, tmp_path / "out")) == 0
    assert "of them finished before" in capsys.readouterr().out
    assert_whole(tmp_path / "out")


# Memory


def convert_and_watch(source, output, degree, bits, form):
    """The largest growth of anonymous and of all resident memory (bytes) while converting."""
    import threading

    from tools.converting.plan import Wish

    def resident():
        with open("/proc/self/status") as file:
            found = dict(re.findall(r"(RssAnon|RssFile):\s+(\d+) kB", file.read()))
        return int(found["RssAnon"]) * 1024, sum(map(int, found.values())) * 1024

    wish = Wish(degree, bits, format=form)
    conversion.convert(source, output.with_name("warm"), wish, {}, None)  # what is imported on the way
    before, peak, end = resident(), [0, 0], threading.Event()

    def watch():
        while not end.wait(0.002):
            for index, (now, then) in enumerate(zip(resident(), before, strict=True)):
                peak[index] = max(peak[index], now - then)

    watcher = threading.Thread(target=watch)
    watcher.start()
    conversion.convert(source, output, wish, {}, None)
    end.set()
    watcher.join()
    return peak


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("degree", "bits", "form"), [
    pytest.param(2, None, "sat", marks=pytest.mark.slow), (1, 8, "sat"),
    pytest.param(1, None, "huggingface", marks=pytest.mark.slow)])
def test_memory_stays_far_below_one_shard(tmp_path, degree, bits, form):
    """280 MB: blocks of 2 MB are all that is in memory, never a whole tensor, whichever way it is cut."""
    from glm.config import ModelConfig
    from glm.shard import save_checkpoint
    from tests.parallel_helper import run_ranks

    config = ModelConfig(4, 1536, 12, 4096, 16384, 8)
    state = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes_of(config).items()}
    save_checkpoint(tmp_path / "in", 1, state, config)
    size = find_shards(tmp_path / "in")[0].stat().st_size
    assert size > 250e6
    del state
    arguments = (tmp_path / "in", tmp_path / "out", degree, bits, form)
    ((anonymous, everything),) = run_ranks(convert_and_watch, 1, tmp_path, *arguments)
    assert anonymous < 48e6 and everything < 64e6, (anonymous, everything)


def shapes_of(config):
    return {name: tensor.shape for name, tensor in tiny_state(config=config).items()}
