"""An archive that one reader takes for this and another for that is refused before torch reads it."""

import io
import struct
import zipfile

import pytest
import torch
from hypothesis import strategies as st

from glm.checkpoint.archive import read_pickle, records
from glm.shard import read_shard
from runtime.errors import UserError
from tests.fuzzing import fuzz, only_user_errors

PLAIN = b"N."  # a pickle of nothing
END, LOCATOR, END_64 = 22, 20, 56  # bytes of the records behind the directory


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mp_rank_00_model_states.pt"


def saved(content=None):
    stream = io.BytesIO()
    torch.save({"module": {"w": torch.arange(4.0)}} if content is None else content, stream)
    return stream.getvalue()


def end_of(data):
    """(entries, bytes of the directory, where it begins) as the last record says, and that record."""
    return struct.unpack("<4s4H2LH", data[-END:])[4:7]


def packed(*files):
    """An archive without compression that Python has written."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, text in files:
            archive.writestr(name, text)
    return stream.getvalue()


def test_what_torch_writes_is_read_as_python_reads_it(path):
    path.write_bytes(saved())
    found = records(path)
    with zipfile.ZipFile(path) as archive:
        infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
        assert [(each.name, each.bytes, each.crc32) for each in found] == [
            (info.filename.partition("/")[2], info.file_size, info.CRC) for info in infos]
        assert read_pickle(path, found) == archive.read(infos[0])
    (weights,) = (each for each in found if each.name == "data/0")
    assert path.read_bytes()[weights.start:weights.start + weights.bytes] == torch.arange(4.0).numpy().tobytes()
    assert torch.equal(read_shard(path).tensors["w"], torch.arange(4.0))


def test_what_python_writes_to_a_pipe_is_read(path):
    """Sizes stand behind the data then, and 64-bit numbers in an extra field."""
    class Pipe(io.RawIOBase):
        def write(self, data):
            self.data = getattr(self, "data", b"") + bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as archive, archive.open("a/data.pkl", "w", force_zip64=True) as file:
        file.write(b"N.")
    path.write_bytes(pipe.data)
    (record,) = records(path)
    assert (record.name, record.bytes) == ("data.pkl", 2) and read_pickle(path, [record]) == b"N."


def other_directory(data):
    """The last record names a directory in front of the real one: Python looks before the record, torch there."""
    _, size, begin = end_of(data)
    inner = data[begin:begin + size]
    at = len(data) - END - LOCATOR - END_64
    return data[:begin] + inner + data[begin:at] + data[-END:]


CHANGES = {
    "a second directory": other_directory,
    "bytes behind the end": lambda data: data + b"\0",
    "a remark": lambda data: data[:-2] + b"\1\0x",
    "bytes before the start": lambda data: b"PK\3\4" + data,
    "a gap before the end": lambda data: data[:-END] + b"\0" * 8 + data[-END:],
    "another number of entries": lambda data: data[:-14] + b"\1\0\1\0" + data[-10:],
    "a 64-bit record elsewhere": lambda data: data[:-END - LOCATOR + 8] + struct.pack("<Q", 0) + data[-END - 4:],
    "two sizes": lambda data: data[:-10] + struct.pack("<L", 1) + data[-6:],
    "cut off": lambda data: data[:-1],
    "nothing": lambda data: b"PK\3\4",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_directories_that_can_be_read_in_two_ways(path, change):
    path.write_bytes(change(saved()))
    with pytest.raises(ValueError, match="archive|entry|directory|record"):
        records(path)
    with pytest.raises(UserError, match="is truncated or damaged"):
        read_shard(path)


@pytest.mark.parametrize("files", [
    [("a/data.pkl", b"N."), ("a/DATA.PKL", b"(.")],  # torch takes the one or the other
    [("a/data.pkl", b"N."), ("b/data.pkl", b"(.")],
    [("a/data.pkl", b"N."), ("A/version", b"3")],
    [("a/DATA.PKL", b"N.")],
    [("a/version", b"3")],
], ids=str)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_can_be_read_in_two_ways(path, files):
    path.write_bytes(packed(*files))
    with pytest.raises(UserError, match="is truncated or damaged"):
        read_shard(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_records_of_one_name(path):
    path.write_bytes(packed(("a/data.pkl", b"N."), ("a/data.pkl", b"(.")))
    with pytest.raises(ValueError, match="two records of one name"):
        records(path)


def test_two_records_on_one_place(path):
    data = packed(("a/data.pkl", b"N."), ("a/version", b"3"))
    _, _, begin = end_of(data)
    second = data.index(b"PK\1\2", begin + 1)
    path.write_bytes(data[:second + 42] + struct.pack("<L", 0) + data[second + 46:])
    with pytest.raises(ValueError, match="not alone there"):
        records(path)


@fuzz(
    100,
    names=st.lists(st.sampled_from(["a/data.pkl", "a/DATA.PKL", "b/data.pkl", "data.pkl"]), max_size=2),
    place=st.integers(-END, -1),
    value=st.integers(0, 255),
    change=st.sampled_from([lambda data: data, other_directory]),
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_is_accepted_holds_what_was_saved(tmp_path_factory, names, place, value, change):
    path = tmp_path_factory.getbasetemp() / "changed.pt"
    data = bytearray(change(saved() if not names else packed(*((name, PLAIN) for name in names))))
    data[place] = value
    path.unlink(missing_ok=True)  # what an earlier input has mapped must not be written over
    path.write_bytes(data)
    with only_user_errors("checkpoints: archives that can be read in two ways") as messages:
        assert set(read_shard(path).tensors) == {"w"}
    assert messages or (not names and path.read_bytes() == saved())
