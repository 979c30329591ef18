"""The cache of compiled kernels is code that will be run: only what is the user's own and whole is taken from it."""

import ctypes
import os
import stat

import pytest

from kernels import cache, cpu
from kernels.cache import BuildError
from kernels.cpu import build


@pytest.fixture
def folder(tmp_path, monkeypatch):
    path = tmp_path / "cache"
    monkeypatch.setenv("GLM_KERNEL_CACHE", str(path))
    return path


@pytest.fixture
def as_stranger(monkeypatch):
    """Files of this user then look like another's, who is not root."""
    monkeypatch.setattr(cache, "_not_own", lambda status, check=cache._not_own: check(
        os.stat_result((*status[:4], 12345, *status[5:]))))


def test_what_is_kept_comes_back(folder, capsys):
    assert cache.kept("a") is None
    assert cache.keep("a", b"code") == folder / "a"
    assert cache.kept("a") == b"code"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and os.listdir(folder) == ["a"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("mode", [0o777, 0o702, 0o1777])
def test_a_folder_into_which_others_may_write_is_refused(folder, mode):
    cache.keep("a", b"code")
    folder.chmod(mode)
    for attempt in (lambda: cache.kept("a"), lambda: cache.keep("b", b"")):
        with pytest.raises(BuildError, match=rf"can be written to by others \(mode {mode:o}\).*GLM_KERNEL_CACHE"):
            attempt()


def test_a_group_that_is_the_users_alone_may_write(folder, monkeypatch):
    cache.keep("a", b"code")
    folder.chmod(0o770)
    monkeypatch.setattr(cache, "_is_private", lambda group: True)
    assert cache.kept("a") == b"code"
    monkeypatch.setattr(cache, "_is_private", lambda group: False)
    with pytest.raises(BuildError, match="can be written to by others"):
        cache.kept("a")


def test_a_folder_of_another_user_is_refused(folder, as_stranger):
    folder.mkdir()
    with pytest.raises(BuildError, match=r"belongs to another user \(number 12345\)"):
        cache.kept("a")


def test_a_file_into_which_others_may_write_is_made_anew(folder, capsys):
    cache.keep("a", b"code").chmod(0o666)
    assert cache.kept("a") is None
    assert "a can be written to by others (mode 666); it is compiled anew" in capsys.readouterr().err
    cache.keep("a", b"code")
    assert cache.kept("a") == b"code"


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_only_a_file_is_read(folder, tmp_path, kind, capsys):
    elsewhere = cache.keep("a", b"code").rename(tmp_path / "elsewhere")
    {"link": lambda path: path.symlink_to(elsewhere), "folder": os.mkdir, "pipe": os.mkfifo}[kind](folder / "a")
    assert cache.kept("a") is None and "it is compiled anew" in capsys.readouterr().err


@pytest.mark.parametrize("change", [
    lambda data: data[:-1], lambda data: b"", lambda data: data[:10], lambda data: data + b"\0",
    lambda data: b"x" + data[1:], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_what_is_damaged_is_named_and_made_anew(folder, capsys, change):
    path = cache.keep("a", b"code of some length")
    path.write_bytes(change(path.read_bytes()))
    assert cache.kept("a") is None
    assert capsys.readouterr().err == f"kernels: {path} is damaged; it is compiled anew\n"


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A short source instead of ours, and how often it was compiled."""
    try:
        found = build.find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "one.cpp").write_text(
        'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n')
    monkeypatch.setattr(build, "SOURCES", tmp_path / "sources")
    runs = []
    monkeypatch.setattr(build, "execute", lambda command, run=build.execute: runs.append(command) or run(command))
    return found, runs


def test_a_damaged_library_is_compiled_once_more(folder, compiler, capsys):
    found, runs = compiler
    path = build.compiled(found, ("-O0",))
    path.write_bytes(path.read_bytes()[:100])  # loading it would end the process, not raise
    count = len(runs)
    assert build.compiled(found, ("-O0",)) == path and len(runs) > count
    assert ctypes.CDLL(str(path)).answer() == 42
    assert "is damaged; it is compiled anew" in capsys.readouterr().err
    count = len(runs)
    build.compiled(found, ("-O0",))
    assert len(runs) == count


def test_a_library_of_something_else_is_one_line(folder, compiler, monkeypatch):
    cpu.operators.cache_clear()
    monkeypatch.setattr(cpu, "keep_freed_memory", lambda: None)
    try:
        with pytest.raises(BuildError, match=r"^the compiled library is of something else: [^\n]*glm_linear[^\n]*$"):
            cpu.operators()
    finally:
        cpu.operators.cache_clear()
