"""Copies to a GPU beside its work, on a double of CUDA's streams and events that keeps their order."""

import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from glm import fetch as fetching
from glm.checkpoint import Entry
from glm.fetch import (
    Extent,
    Fetch,
    LayerFiles,
    Layout,
    Placed,
    ReadAndUploaded,
    Uploaded,
    aligned_bytes,
    file_layout,
    views,
)
from runtime.errors import UserError


class Event:
    """Done when the work before its latest record is done; one that was never recorded keeps nobody waiting."""

    def __init__(self):
        self.stream, self.place = None, 0

    def record(self, stream):
        self.stream, self.place = stream, len(stream.work)

    def synchronize(self):
        if self.stream is not None:
            self.stream.run_to(self.place)


class Work:
    """A CUDA stream: what it was given is done in order, as late as somebody's waiting allows."""

    def __init__(self):
        self.work, self.done = [], 0

    def wait_event(self, event):
        stream, place = event.stream, event.place  # as recorded now
        self.work.append(lambda: stream and stream.run_to(place))

    def wait_stream(self, _):
        pass

    def run_to(self, place):
        while self.done < place:
            self.done += 1
            self.work[self.done - 1]()


class Slot:
    """A buffer on the device: copies into it belong to the stream of the moment."""

    def __init__(self, cuda):
        self.cuda, self.content = cuda, None

    def __getitem__(self, _):
        return self

    def copy_(self, source, non_blocking):
        assert non_blocking
        self.cuda.current.work.append(lambda: setattr(self, "content", source.clone()))


@pytest.fixture
def cuda(monkeypatch):
    """The double; .computing is the stream of the model's work."""
    class Cuda:
        computing = current = Work()

    double = Cuda()

    @contextmanager
    def using(stream):
        double.current = stream
        yield
        double.current = double.computing

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: Work())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", using)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _=None: double.computing)
    return double


def use(fetch, cuda, order, slots, passes=3):
    """What Stream does -> the contents that the model's work finds, in the order of their use."""
    found, layers = [], order * passes
    waiting = [fetch.start(layer, slot) for slot, layer in enumerate(layers[:2])]
    for place in range(len(layers)):
        slot = place % 2
        waiting[place]()
        cuda.computing.work.append(lambda slot=slot: found.append(int(slots[slot].content[0])))
        fetch.release(slot)
        if place + 2 < len(layers):
            waiting.append(fetch.start(layers[place + 2], slot))
    cuda.computing.run_to(len(cuda.computing.work))
    return found, layers


def layouts(layers):
    return {layer: Layout({"weight": Placed(0, (4,), torch.uint8)}, 4) for layer in layers}


def test_work_finds_its_layer_whoever_is_late(cuda):
    order, slots = [1, 3, 4], [Slot(cuda), Slot(cuda)]
    host = {layer: torch.full((4,), layer, dtype=torch.uint8) for layer in order}
    found, layers = use(Uploaded(layouts(order), slots, host, torch.device("cuda")), cuda, order, slots)
    assert found == layers


def test_the_double_notices_what_is_missing(cuda, monkeypatch):
    """Without waiting for the copies, or for the slot's last use, the work finds another layer."""
    order, slots = [1, 3, 4], [Slot(cuda), Slot(cuda)]
    host = {layer: torch.full((4,), layer, dtype=torch.uint8) for layer in order}
    fetch = Uploaded(layouts(order), slots, host, torch.device("cuda"))
    monkeypatch.setattr(fetch, "release", lambda slot: None)
    waits = Work.run_to

    def hasty(stream, place):  # the copies run ahead of everything
        waits(fetch._copies, len(fetch._copies.work))
        waits(stream, place)

    monkeypatch.setattr(Work, "run_to", hasty)
    found, layers = use(fetch, cuda, order, slots)
    assert found != layers


def test_read_from_the_file_on_the_way_to_the_gpu(cuda):
    """The only pinned buffer is not overwritten before its copy is done."""
    order, slots, room = [0, 1, 2], [Slot(cuda), Slot(cuda)], torch.zeros(4, dtype=torch.uint8)

    class Near(Fetch):
        def start(self, layer, slot):
            return lambda: room.fill_(layer)

    found, layers = use(ReadAndUploaded(Near(layouts(order), [room]), slots, torch.device("cuda")), cuda, order, slots)
    assert found == layers


def test_a_failing_read_is_heard_of_by_whoever_waits(cuda):
    class Near(Fetch):
        def start(self, layer, slot):
            raise UserError("the disk")

    fetch = ReadAndUploaded(Near(layouts([0]), [torch.zeros(4)]), [Slot(cuda)], torch.device("cuda"))
    with pytest.raises(UserError, match="the disk"):
        fetch.start(0, 0)()


# reading


def at(file, offset, size, dtype="uint8"):
    return Entry(file, offset, dtype, (size,))


def test_what_is_read_for_some_tensors():
    byte, one, other = torch.uint8, Path("one"), Path("other")
    found = file_layout({"b": at(one, 9000, 300), "a": at(one, 5000, 100, "float16"), "far": at(one, 20000, 5000),
                         "else": at(other, 9100, 1)})
    assert found.extents == (Extent(one, 4096, 8192, 0), Extent(one, 16384, 12288, 8192),
                             Extent(other, 8192, 4096, 20480)) and found.size == 24576
    assert found.tensors == {"a": Placed(904, (100,), torch.float16), "b": Placed(4904, (300,), byte),
                             "far": Placed(8192 + 3616, (5000,), byte), "else": Placed(20480 + 908, (1,), byte)}


@pytest.mark.parametrize("is_direct", [True, False])
def test_the_bytes_of_the_files_come(tmp_path, monkeypatch, is_direct):
    """Whether the file system can be read past its cache or not; in pieces smaller than a layer."""
    monkeypatch.setattr(fetching, "PIECE_BYTES", 8192)
    contents = {tmp_path / name: torch.randint(256, (100_001,), dtype=torch.uint8) for name in ("one", "other")}
    for path, content in contents.items():
        content.numpy().tofile(path)
    if not is_direct:
        opened = os.open
        monkeypatch.setattr(os, "open", lambda name, flags: _no_direct(opened, name, flags))
    files = LayerFiles({path: path.stat().st_ino for path in contents})
    assert is_direct or not any(direct for _, direct in files._files.values())  # some file systems cannot
    layout = file_layout({f"{path.name}{begin}": at(path, begin, size) for path in contents
                          for begin, size in ((333, 5000), (70_001, 30_000))})
    buffer = aligned_bytes(layout.size)
    files.start(layout, buffer)()
    found = views(buffer, layout.tensors)
    for path, content in contents.items():
        assert torch.equal(found[f"{path.name}333"], content[333:5333])
        assert torch.equal(found[f"{path.name}70001"], content[70_001:])


def test_a_file_that_took_the_place_of_another_is_not_read(tmp_path):
    (tmp_path / "file").write_bytes(bytes(5000))
    with pytest.raises(UserError, match="was written to while it was in use"):
        LayerFiles({tmp_path / "file": (tmp_path / "file").stat().st_ino + 1})


def _no_direct(opened, name, flags):
    if flags & os.O_DIRECT:
        raise OSError(22, "Invalid argument")
    return opened(name, flags)
