"""Files as people save and download them: read all the same, or said to be what they are."""

import gzip
import io
import json
import os
import socket
import zipfile

import pytest

from evaluation.config import GenerationTaskConfig, LanguageModelTaskConfig
from evaluation.data import read_objects, read_rows, read_text
from evaluation.recorded import RecordedRun
from evaluation.task_file import load_task
from generation.prompt_file import read_prompts
from generation.records import Results
from glm.config import read_config_file
from glm.tokenizers.icetk import IcetkTokenizer
from runtime import reading
from runtime.errors import UserError
from runtime.hosts import read_hostfile
from tools.converting.manifest import read_manifest
from tools.preparing.raw import read_csv, read_jsonl
from tuning.data.corpus import read_index

ROW = b'{"inputs_pretokenized": "a", "targets_pretokenized": ["b"]}\n'


def resumed(path):
    (path.parent / "results.jsonl").touch()  # of the run whose settings these are
    with Results(path.parent, [], resume=True) as results:
        results.earlier_settings()


# name of the file, what reads it, what it may hold
READERS = {
    "prompts": ("prompts.txt", read_prompts, b"a\nb\n"),
    "rows": ("rows.jsonl", lambda path: read_rows(path, GenerationTaskConfig(name="a", path="a")), ROW),
    "text": ("text.txt", read_text, b"some\ntext\n"),
    "task": ("task.yaml", lambda path: load_task(path, "data"), b"name: a\ntype: gen\npath: a\n"),
    "shapes": ("model_config.json", read_config_file, b'{"num_layers": 1}'),
    "hosts": ("hostfile", read_hostfile, b"worker-1 slots=8\nworker-2 slots=8\n"),
    "raw": ("raw.jsonl", read_jsonl, b'{"a": 1}\n{"a": 2}\n'),
    "raw table": ("raw.csv", read_csv, b"a,b\n1,2\n"),
    "corpus": ("corpus.json", lambda path: read_index(path.parent), b'{"a": 1}'),
    "settings": ("settings.json", resumed, b'{"facts": {}}'),
}
OTHERS = READERS | {
    "vocabulary": ("ice_text.model", IcetkTokenizer, None),
    "manifest": ("manifest.json", read_manifest, None),
    "results": ("results.json", lambda path: RecordedRun(path.parent), None),
}
NO_PROSE = [name for name in OTHERS if name not in ("prompts", "text")]


def archive():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as inner:
        inner.writestr("rows.jsonl", ROW)
    return file.getvalue()


KINDS = {
    "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
    "compressed by gzip": gzip.compress(ROW),
    "a zip archive": archive(),
    "a Parquet file": b"PAR1\x15\x04",
    "a picture (PNG)": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "a PDF; save its text as UTF-8": b"%PDF-1.7\n",
    "text in UTF-16": '{"a": "b"}'.encode("utf-16"),
    "text in UTF-16,": '{"a": "b"}'.encode("utf-16-be"),  # without a mark
}


@pytest.fixture
def read(tmp_path):
    def read(name, content):
        file, reader, _ = OTHERS[name]
        (tmp_path / file).write_bytes(content)
        return reader(tmp_path / file)

    return read


def fault(read, *arguments):
    with pytest.raises(UserError) as caught:
        read(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", READERS)
def test_a_byte_order_mark_and_line_ends_of_windows_change_nothing(read, name):
    content = READERS[name][2]
    assert read(name, b"\xef\xbb\xbf" + content) == read(name, content)
    assert read(name, content.replace(b"\n", b"\r\n")) == read(name, content)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OTHERS)
def test_what_a_file_is_instead(read, name, kind):
    message = fault(read, name, KINDS[kind])
    assert f"is {kind}" in message and OTHERS[name][0] in message


@pytest.mark.parametrize("name", NO_PROSE)
def test_a_page_in_place_of_a_download(read, name):
    assert "is a web page, not the file itself" in fault(read, name, b"\n<!doctype HTML>\n<html>")


def test_a_page_is_text_like_any_other(read):
    assert read("text", b"<!doctype html>\n") == "<!doctype html>\n"
    assert read("prompts", b"<html>\n")[0].text == "<html>"


@pytest.mark.parametrize("name", OTHERS)
def test_what_never_ends_or_is_no_file(tmp_path, name):
    file, reader, _ = OTHERS[name]
    path = tmp_path / file
    os.mkfifo(path)
    assert "is a pipe, not a file" in fault(reader, path)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert "is a device, not a file" in fault(reader, path)
    path.unlink()
    path.mkdir()
    assert "is a folder, not a file" in fault(reader, path)


def test_a_socket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # its name may have 100 characters only
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("latest")
        assert fault(reading.read_text, "latest") == "latest: is no file"


@pytest.mark.parametrize("name", ["task", "shapes", "hosts", "corpus", "settings"])
def test_small_files_are_small(tmp_path, name):
    file, reader, _ = READERS[name]
    with (tmp_path / file).open("wb") as sparse:
        sparse.truncate(1 << 30)
    assert "is larger than 1000000 bytes" in fault(reader, tmp_path / file)


def test_more_than_there_is_memory_for(tmp_path, monkeypatch):
    class TooLarge(io.FileIO):
        def read(self, *_):
            raise MemoryError

    monkeypatch.setattr(reading, "open_file", lambda path, *_: TooLarge(path))
    (tmp_path / "rows.jsonl").write_bytes(ROW)
    assert fault(lambda path: list(read_objects(path)), tmp_path / "rows.jsonl").endswith(
        f"rows.jsonl: has {len(ROW)} bytes, and there is no memory for them")


@pytest.mark.parametrize("name, content, place", [
    ("rows", ROW + b'{"inputs_pretokenized": "a", "targets_pretokenized": ["b"], "x": 1, "x": 2}', "rows.jsonl:2"),
    ("rows", b'[{"inputs_pretokenized": "a",\n"targets_pretokenized": ["b"], "x": 1, "x": 2}]', "rows.jsonl:1"),
    ("rows", b"[\n" + ROW + b',\n{"x": 1,\n"x": 2}]', "rows.jsonl:4"),
    ("rows", ROW + b'{"inputs_pretokenized": "a", "y": {"x": 1, "x": 1}}', "rows.jsonl:2"),
    ("shapes", b'{"x": 1, "x": 2}', "model_config.json:1"),
    ("raw", b'{"x": 1, "x": 2}', "raw.jsonl:1"),
    ("settings", b'{"x": 1, "x": 2}', "settings.json:1"),
    ("results", b'{"x": 1, "x": 2}', "results.json:1"),
])
def test_a_key_that_stands_twice(read, name, content, place):
    assert f"{place}: the key 'x' stands twice in one object; keep one of them" in fault(read, name, content)


def test_rows_that_are_json_but_no_lines(read):
    pretty = json.dumps({"a": 1}, indent=2).encode()
    assert "rows.jsonl:2: one JSON object over several lines; a row is one line" in fault(read, "rows", ROW + pretty)
    held = json.dumps({"version": 1, "data": [{"a": 1}]}, indent=2).encode()
    assert fault(read, "rows", held).endswith("its rows seem to stand under 'data': keep that list alone")
    assert "rows seem to stand under 'data': keep that list alone" in fault(read, "rows", b'{"data": [{"a": 1}]}')


def test_a_tokenizer_of_hugging_face(read):
    assert "it is JSON, as Hugging Face's tokenizers are" in fault(read, "vocabulary", b'{"version": "1.0"}')


def test_a_text_saved_on_windows_is_scored_as_any_other(tmp_path):
    (tmp_path / "text.txt").write_bytes(b"one\r\ntwo\r\n")
    config = LanguageModelTaskConfig(name="a", path="a")
    assert read_rows(tmp_path / "text.txt", config) == [{"text": "one\ntwo\n"}]
