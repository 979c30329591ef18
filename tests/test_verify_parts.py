"""tools/verify_checkpoint.py on the parts of a split archive, before they are joined."""

import subprocess
import tarfile

import pytest

from commands.convert import verify as main
from tests.test_verify_checkpoint import flip, found
from tests.tiny_checkpoints import tiny_checkpoint


@pytest.fixture
def parts(tmp_path):
    """Makes glm-130b-sat.tar.part_* of a checkpoint, as `split` names them."""

    def make(*flags):
        folder = tmp_path / "parts"
        folder.mkdir()
        with tarfile.open(tmp_path / "glm.tar", "w") as archive:
            archive.add(tiny_checkpoint(tmp_path / "plain", 2), "glm-130b-sat")
        subprocess.run(["split", "-b", "9000", *flags, tmp_path / "glm.tar", folder / "glm-130b-sat.tar.part_"],
                       check=True)
        assert len(list(folder.iterdir())) > 8
        return folder

    return make


@pytest.mark.parametrize("flags", [("-d",), (), ("--numeric-suffixes=1",), ("-a", "3")])
def test_parts_that_are_all_there(parts, flags, capsys):
    folder = parts(*flags)
    code, (line,) = found(capsys, folder)
    assert code == 0 and f"whole: {len(list(folder.iterdir()))} parts" in line
    assert found(capsys, *folder.iterdir())[0] == 0


def test_parts_that_are_missing_or_of_an_odd_size(parts, capsys):
    folder = parts("-d")
    (folder / "glm-130b-sat.tar.part_03").unlink()
    with (folder / "glm-130b-sat.tar.part_05").open("r+b") as file:
        file.truncate(1234)
    (folder / "glm-130b-sat.tar.part_06.aria2").touch()
    assert found(capsys, folder) == (1, [
        "glm-130b-sat.tar.part_03 is missing",
        "glm-130b-sat.tar.part_05 has 1234 bytes, the other parts have 9000: cut off; download it again",
        "glm-130b-sat.tar.part_06.aria2: a download of glm-130b-sat.tar.part_06 that has not ended"])


def test_first_and_last_part_missing_or_empty(parts, capsys):
    folder = parts("-d")
    (folder / "glm-130b-sat.tar.part_00").unlink()
    code, (line,) = found(capsys, folder)
    assert code == 1 and "part_01 does not begin a tar archive" in line
    assert line.endswith(": glm-130b-sat.tar.part_00 is missing, or it is damaged; download it again")
    path = sorted(folder.iterdir())[-1]
    path.write_bytes(b"")
    assert found(capsys, folder) == (1, [f"{path.name} is empty; download it again"])


@pytest.mark.parametrize("lost", [2, 3, 5])
def test_parts_that_are_missing_at_the_end(parts, capsys, lost):
    """The numbers cannot tell, the archive's own headers do."""
    folder = parts()
    for path in sorted(folder.iterdir())[-lost:]:
        path.unlink()
    code, (line,) = found(capsys, folder)
    assert code == 1 and line.startswith("the archive ") and sorted(folder.iterdir())[-1].name in line


def test_letters_are_counted_like_numbers(parts, capsys):
    folder = parts()
    (folder / "glm-130b-sat.tar.part_ab").unlink()
    assert found(capsys, folder)[1] == ["glm-130b-sat.tar.part_ab is missing"]


def test_parts_against_hashes(parts, capsys, tmp_path):
    folder = parts("-d")
    assert found(capsys, folder, "--write-manifest")[0] == 0
    sums = subprocess.run("sha256sum glm*", shell=True, cwd=folder, capture_output=True, text=True, check=True).stdout
    (tmp_path / "SHA256SUMS").write_text(sums)
    for against in (folder / "manifest.json", tmp_path / "SHA256SUMS"):
        assert found(capsys, folder, "--against", against)[0] == 0
    (folder / "glm-130b-sat.tar.part_03").rename(tmp_path / "away")
    assert found(capsys, folder, "--against", tmp_path / "SHA256SUMS") == (1, ["glm-130b-sat.tar.part_03 is missing"])
    (tmp_path / "away").rename(folder / "glm-130b-sat.tar.part_03")
    flip(folder / "glm-130b-sat.tar.part_04", 5000)
    for against in (folder / "manifest.json", tmp_path / "SHA256SUMS"):
        code, lines = found(capsys, folder, "--against", against)
        assert code == 1 and lines == ["glm-130b-sat.tar.part_04 is changed: download it again"]


def test_mistakes_of_the_command(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "x.tar.part_00").write_text("hello")
    (tmp_path / "sums").write_text("hello world\n")
    (tmp_path / "empty").mkdir()
    for arguments, message in (((tmp_path / "nowhere",), "no such file or folder"),
                               ((tmp_path / "empty",), "neither a checkpoint folder (with the file 'latest') nor"),
                               ((tmp_path / "notes.txt",), "neither a checkpoint folder (with"),
                               ((tmp_path, "--against", tmp_path / "sums"), "line 1: not a line of")):
        assert main(list(map(str, arguments))) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
