"""torch's file format written front to back: torch and zipfile read it, whatever the tensors are."""

import contextlib
import io
import sys
import zipfile

import pytest
import torch

from glm.checkpoint import read_file
from glm.checkpoint.archive import records
from glm.shard import read_shard
from runtime.hashing import hash_bytes, hash_file
from runtime.show import Progress
from tools.converting.torchfile import ALIGNMENT, Block, HashedFile, Planned, planned_bytes, write_torch_file

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.uint8, torch.int16,
          torch.int32, torch.int64, torch.bool, torch.complex64, torch.complex128, torch.uint16, torch.float8_e4m3fn)
TENSORS = {str(dtype): torch.arange(-3, 9).abs().to(dtype).view(3, 4) for dtype in DTYPES} | {
    "empty": torch.zeros(0, 5), "number": torch.tensor(3.0), "四": torch.ones(1, 1, 1)}


class Memory(io.BytesIO):
    def behind(self, data):
        return contextlib.nullcontext()

    def drain(self):
        pass


def entry(tensor):
    blocks = tensor.split(2) if tensor.dim() else (tensor,)
    return Planned(tensor.dtype, tuple(tensor.shape), lambda: (Block(block) for block in blocks))


CONTENT = {"module": {name: entry(tensor) for name, tensor in TENSORS.items()}, "step": 3,
           "rest": {"x": entry(torch.ones(2))}}


@pytest.fixture(params=[zipfile.ZIP64_LIMIT, 20], ids=["usual", "records of 64-bit sizes"])
def written(request, tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", request.param)
    memory = Memory()
    result = write_torch_file(memory, CONTENT)
    (tmp_path / "file.pt").write_bytes(memory.getvalue())
    return tmp_path / "file.pt", result


def test_torch_gives_back_what_was_written(written):
    for mapped in (True, False):
        content = torch.load(written[0], mmap=mapped, weights_only=True)
        assert content["step"] == 3 and torch.equal(content["rest"]["x"], torch.ones(2))
        for name, tensor in TENSORS.items():
            found = content["module"][name]
            assert found.dtype == tensor.dtype and found.shape == tensor.shape and found.is_contiguous()
            assert found.reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8)), name
    assert list(read_shard(written[0]).tensors) == list(TENSORS)


def test_the_archive_is_whole_and_aligned(written):
    with zipfile.ZipFile(written[0]) as archive:
        assert archive.testzip() is None
    assert all(record.start % ALIGNMENT == 0 for record in records(written[0]))
    assert list(read_file(written[0]).regions) == written[1].regions
    assert [region.name for region in written[1].regions] == [*TENSORS, "rest.x"]


def test_same_tensors_same_bytes():
    one, other = Memory(), Memory()
    write_torch_file(one, CONTENT)
    write_torch_file(other, CONTENT)
    assert one.getvalue() == other.getvalue()
    assert len(one.getvalue()) <= planned_bytes(CONTENT) < len(one.getvalue()) + 16384


def test_blocks_that_are_not_the_tensor_are_refused():
    wrong = Planned(torch.float32, (4,), lambda: (Block(torch.ones(3)),))
    with pytest.raises(RuntimeError, match="a: 12 bytes at .* 16 planned"):
        write_torch_file(Memory(), {"module": {"a": wrong}})


@pytest.mark.parametrize("kind", ["xxh3_128", "sha256"])
def test_hash_while_writing_is_that_of_the_file(tmp_path, kind):
    counted = []
    path, released = tmp_path / "file.pt", []

    def blocks():
        return (Block(torch.full((1000,), float(i)), lambda i=i: released.append(i)) for i in range(5))

    file = HashedFile(path, kind, counted.append)
    write_torch_file(file, {"module": {"a": Planned(torch.float32, (5000,), blocks)}})
    assert file.close() == hash_file(path, kind) == hash_bytes(path.read_bytes(), kind)
    assert sum(counted) == file.bytes == path.stat().st_size
    assert released == list(range(5))  # each once, when it had been written
    expected = torch.arange(5.0).repeat_interleave(1000)
    assert torch.equal(torch.load(path, weights_only=True)["module"]["a"], expected)


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    now = [0.0]
    with Progress(4_000_000_000, clock=lambda: now[0], unit="B", title="Converting") as progress:
        for _ in range(4):
            now[0] += 6.0
            progress.advance(500_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["Converting: 1.0 of 4.0 GB, 0.08 GB/s, 36 s left",
                     "Converting: 2.0 of 4.0 GB, 0.08 GB/s, 24 s left"]
