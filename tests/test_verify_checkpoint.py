"""tools/verify_checkpoint.py on checkpoints: what is missing, cut off, added or changed is named, with its tensor."""

import errno
import os
import random
import re
import shutil
import subprocess

import pytest
import torch

from commands import convert as convert_tp
from commands.convert import verify as main
from glm.checkpoint import read_file
from glm.checkpoint.archive import records
from glm.shard import read_shard
from runtime.errors import UserError
from tests.faults import said
from tests.golden_data import split_state, write_checkpoint
from tests.tiny_checkpoints import run, tiny_checkpoint, tiny_state
from tools.converting import verify
from tools.converting.manifest import Manifest, read_manifest, write_manifest
from tools.converting.verify import checksums

QKV = "transformer.layers.0.attention.query_key_value.weight"
FIRST, SECOND = "49300/mp_rank_00_model_states.pt", "49300/mp_rank_01_model_states.pt"
STRUCTURE = "structure (all that is no tensor: names, shapes, places)"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    tiny_checkpoint(folder / "in", 4)
    run(folder / "in", folder / "out", 2, bits=8)
    return folder / "out"


@pytest.fixture
def folder(converted, tmp_path):
    return shutil.copytree(converted, tmp_path / "model")


def found(capsys, *arguments):
    """(exit code, lines on standard output)"""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert code != 2, captured.err
    return code, captured.out.splitlines()


def place_of(path, name=QKV):
    return next(region.start for region in read_file(path).regions if region.name == name)


def flip(path, place, generator=random):
    content = bytearray(path.read_bytes())
    content[place] ^= generator.randrange(1, 256)
    path.write_bytes(content)


def test_whole(folder, capsys):
    code, (line,) = found(capsys, folder)
    assert code == 0 and re.fullmatch(rf"{folder}: whole: 4 files as in manifest.json, 0.00 GB", line)
    assert convert_tp.main(["--verify", str(folder)]) == 0


def test_a_hundred_changed_bytes_are_all_located(folder, capsys):
    """Single bytes anywhere in the checkpoint: the file is named, and in a shard the tensor that holds the byte."""
    generator, located = random.Random(0), {"tensor": 0, "structure": 0, "other": 0}
    manifest = read_manifest(folder / "manifest.json")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for _ in range(100):
        path = generator.choices(paths, weights=[path.stat().st_size ** 0.5 for path in paths])[0]
        place, good = generator.randrange(path.stat().st_size), path.read_bytes()
        flip(path, place, generator)
        code, (line,) = found(capsys, folder)
        path.write_bytes(good)
        name = path.relative_to(folder).as_posix()
        assert code == 1 and name in line
        if name.endswith(".pt"):
            regions = manifest.files[name].regions
            hit = [region.name for region in regions if region.start <= place < region.start + region.bytes]
            assert line == f"{name} is changed: {hit[0] if hit else STRUCTURE}"
            located["tensor" if hit else "structure"] += 1
        else:
            located["other"] += 1
    assert min(located.values()) > 5 and found(capsys, folder)[0] == 0


def test_missing_truncated_and_added_files(folder, capsys):
    size = (folder / SECOND).stat().st_size
    with (folder / SECOND).open("r+b") as file:
        file.truncate(place_of(folder / SECOND) + 1)
    (folder / FIRST).unlink()
    (folder / "49300" / "mp_rank_02_model_states.pt").touch()
    code, lines = found(capsys, folder)
    assert code == 1 and len(lines) == 3
    assert re.fullmatch(rf"{FIRST} is missing, with \d+ tensors", lines[0])
    assert lines[1].startswith(f"{SECOND} is truncated: ") and f"of {size} bytes: {QKV} is cut off, " in lines[1]
    assert "and 2" in lines[1] and lines[1].endswith(" more missing")
    assert lines[2] == "49300/mp_rank_02_model_states.pt was added: it is not in the manifest"


@pytest.mark.parametrize("size", [0, 1, 100])
def test_a_shard_that_ends_before_its_first_tensor(folder, capsys, size):
    os.truncate(folder / SECOND, size)
    code, (line,) = found(capsys, folder)
    assert code == 1 and line.startswith(f"{SECOND} is truncated: {size} of ") and line.endswith(" more missing")
    assert "cut off" not in line


def test_bytes_behind_the_end_and_a_changed_tensor(folder, capsys):
    region = read_file(folder / FIRST).regions[3]
    flip(folder / FIRST, region.start)
    with (folder / FIRST).open("ab") as file:
        file.write(b"more")
    size = (folder / FIRST).stat().st_size
    code, lines = found(capsys, folder)
    assert code == 1
    assert lines == [f"{FIRST} has {size} bytes, 4 more than the {size - 4} it had",
                     f"{FIRST} is changed: {region.name}"]


def test_vocabulary_that_was_put_beside(folder, capsys):
    (folder / "ice_text.model").write_bytes(b"pieces")
    (folder / "notes.txt").write_text("does not matter")
    assert found(capsys, folder)[1] == ["ice_text.model was added: it is not in the manifest"]


def test_against_a_manifest_elsewhere(folder, tmp_path, capsys):
    (folder / "manifest.json").rename(tmp_path / "good.json")
    flip(folder / SECOND, read_file(folder / SECOND).regions[0].start)
    assert found(capsys, folder, "--against", tmp_path / "good.json")[0] == 1
    assert main([str(folder), "--against", str(tmp_path / "bad.json")]) == 2
    assert "error: no manifest" in capsys.readouterr().err


# Without a manifest


@pytest.fixture
def plain(tmp_path):
    return tiny_checkpoint(tmp_path / "plain", 2)


def test_a_checkpoint_by_itself(plain, capsys):
    code, (line,) = found(capsys, plain)
    assert code == 0 and "2 shards, by themselves (no manifest.json to compare with)" in line


def test_the_archive_s_own_checksums_locate_changes(plain, capsys):
    flip(plain / FIRST, place_of(plain / FIRST) + 5)
    assert found(capsys, plain) == (1, [f"{FIRST} is changed: {QKV}"])


def test_a_shard_that_is_not_there_is_missed(plain, capsys):
    (plain / SECOND).unlink()
    code, (line,) = found(capsys, plain)
    assert code == 1 and "missing shard" in line and "(2 belong together)" in line


def test_a_shard_that_was_copied_to_another_name(plain, capsys):
    shutil.copyfile(plain / FIRST, plain / SECOND)
    code, (line,) = found(capsys, plain)
    assert code == 1 and line.startswith(f"{SECOND[6:]} is a copy of {FIRST[6:]}: ")


def test_numbers_that_are_not_finite(tmp_path, capsys):
    parts = split_state(tiny_state(), 2)
    parts[1][QKV][3, 4] = torch.nan
    write_checkpoint(tmp_path / "in", parts)
    assert found(capsys, tmp_path / "in") == (1, [f"{SECOND} holds NaN or infinity: {QKV}"])


def test_copies_that_differ(tmp_path, capsys):
    parts = split_state(tiny_state(), 2)
    parts[1]["transformer.final_layernorm.bias"] += 1
    write_checkpoint(tmp_path / "in", parts)
    code, lines = found(capsys, tmp_path / "in")
    assert code == 1 and lines == ["transformer.final_layernorm.bias is not the same in all shards, but should be"]


@pytest.mark.parametrize("kind", ["xxh3_128", "sha256"])
def test_a_manifest_is_made_of_any_checkpoint(plain, capsys, kind):
    assert found(capsys, plain, "--write-manifest", "--hash", kind)[0] == 0
    code, (line,) = found(capsys, plain)
    assert code == 0 and "4 files as in manifest.json" in line
    flip(plain / SECOND, read_file(plain / SECOND).regions[7].start)
    assert found(capsys, plain)[1] == [f"{SECOND} is changed: {read_file(plain / SECOND).regions[7].name}"]


def test_no_manifest_is_made_of_what_is_damaged(plain, capsys):
    flip(plain / FIRST, place_of(plain / FIRST))
    assert found(capsys, plain, "--write-manifest")[0] == 1
    assert not (plain / "manifest.json").exists()


def test_no_manifest_is_replaced(folder, capsys):
    assert main([str(folder), "--write-manifest"]) == 2
    assert "exists already; delete it" in capsys.readouterr().err


def test_a_manifest_is_written_of_what_is_as_another_says(folder, tmp_path, capsys):
    (folder / "manifest.json").rename(tmp_path / "good.json")
    place = place_of(folder / FIRST)
    flip(folder / FIRST, place, random.Random(0))
    assert found(capsys, folder, "--against", tmp_path / "good.json", "--write-manifest") == (
        1, [f"{FIRST} is changed: {QKV}"])
    flip(folder / FIRST, place, random.Random(0))
    assert found(capsys, folder, "--against", tmp_path / "good.json", "--write-manifest")[0] == 0
    assert (folder / "manifest.json").exists()


def test_a_manifest_that_cannot_be_written(plain, capsys, monkeypatch):
    def fail(path, manifest):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("tools.converting.manifest.write_manifest", fail)
    assert main([str(plain), "--write-manifest"]) == 2
    assert said(capsys.readouterr().err) == f"error: {plain / 'manifest.json'}: Read-only file system\n"


def test_a_file_that_cannot_be_read(folder, capsys, monkeypatch):
    def fail(path, *_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(verify, "hash_file", fail)
    code, lines = found(capsys, folder)
    assert code == 1 and len(lines) == 4 and f"{SECOND} cannot be read: Input/output error" in lines


def test_sha256_is_what_sha256sum_prints(plain, capsys):
    assert found(capsys, plain, "--write-manifest", "--hash", "sha256")[0] == 0
    digest = subprocess.run(["sha256sum", plain / FIRST], capture_output=True, text=True, check=True).stdout.split()[0]
    assert read_manifest(plain / "manifest.json").files[FIRST].hash == f"sha256:{digest}"


# The manifest, and the places of tensors


def test_manifest_is_read_as_it_was_written(folder, tmp_path):
    manifest = read_manifest(folder / "manifest.json")
    write_manifest(tmp_path / "again.json", manifest)
    assert (tmp_path / "again.json").read_bytes() == (folder / "manifest.json").read_bytes()
    assert isinstance(manifest, Manifest) and manifest.made_by["target_tp"] == 2


@pytest.mark.parametrize("change", [lambda text: text[:-20], lambda text: text.replace('"bytes": ', '"bytes":  ', 1),
                                    lambda text: text.replace("49300", "49301", 1), lambda text: "[]"])
def test_a_manifest_that_was_changed_is_refused(folder, change, capsys):
    path = folder / "manifest.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=r"manifest.json is (not as it was written|damaged or no m\w+): copy it again"):
        read_manifest(path)
    assert found(capsys, folder)[0] == 1


def test_places_and_checksums_are_those_of_the_tensors(folder):
    shard, content = read_shard(folder / FIRST), (folder / FIRST).read_bytes()
    regions = read_file(folder / FIRST).regions
    assert [region.name for region in regions] == list(shard.tensors)
    for region in regions:
        tensor = shard.tensors[region.name].contiguous().reshape(-1).view(torch.uint8)
        assert content[region.start : region.start + region.bytes] == tensor.numpy().tobytes()
    assert checksums(folder / FIRST, regions)[1] == [region.crc32 for region in regions]
    assert all(record.start % 64 == 0 for record in records(folder / FIRST))


# Whatever is in the files


class MakesFolder:
    """A pickle that would run code: it makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_no_code_in_a_file_is_run(plain, tmp_path, capsys):
    torch.save({"module": {"a": MakesFolder(tmp_path / "made")}}, plain / SECOND)
    code, (line,) = found(capsys, plain)
    assert code == 1 and "holds more than tensors" in line
    arguments = ["--input-folder", str(plain), "--output-folder", str(tmp_path / "out"), "--target-tp", "1"]
    assert convert_tp.main(arguments) == 2 and "holds more than tensors" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_random_damage_without_a_manifest_never_ends_in_a_traceback(plain, capsys):
    """Nearly every byte is covered by the archive's checksums or by what must be readable."""
    generator, noticed, good = random.Random(1), 0, (plain / FIRST).read_bytes()
    for _ in range(60):
        flip(plain / FIRST, generator.randrange(len(good)), generator)
        noticed += found(capsys, plain)[0]
        (plain / FIRST).write_bytes(good)
    assert noticed > 30
