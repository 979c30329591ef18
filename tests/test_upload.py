"""Weights on their way to a GPU, on a double of CUDA's streams and events that does everything as late as it may."""

from collections import ChainMap
from pathlib import Path

import pytest
import torch

from glm import spec, weights
from glm.config import ModelConfig
from glm.shard import Shard
from glm.upload import Upload
from quantization.functional import Scheme
from tests.test_fetch import Event, cuda

__all__ = ["cuda"]  # a fixture
GPU = torch.device("cuda")


class Place:
    """A tensor on the device: what is copied to it belongs to the stream."""

    def __init__(self, stream, tensor):
        self.stream, self.tensor, self.dtype = stream, tensor, tensor.dtype

    def split(self, size):
        return [Place(self.stream, part) for part in self.tensor.split(size)]

    def __getitem__(self, index):
        return Place(self.stream, self.tensor[index])

    def copy_(self, source, non_blocking=False):
        self.stream.work.append(lambda: self.tensor.copy_(source))
        if not non_blocking:
            self.stream.run_to(len(self.stream.work))


def upload_of(size=64, pieces=3, device=GPU, event=Event):
    buffers = [torch.full((size,), 255, dtype=torch.uint8) for _ in range(pieces)]
    return Upload(device, buffers, [event() for _ in range(pieces)])


@pytest.mark.parametrize("shape", [(40, 3), (7,), (100,), (), (0, 4), (5, 20)], ids=str)
def test_every_piece_arrives(cuda, shape):
    """More pieces than buffers; rows that are longer than a buffer go at once."""
    source, tensor = torch.randn(shape), torch.zeros(shape)
    wanted = source.clone()
    upload_of().copy(source, Place(cuda.computing, tensor))
    source.fill_(7.0)  # it may go
    cuda.computing.run_to(len(cuda.computing.work))
    assert torch.equal(tensor, wanted)


def test_the_host_waits_only_for_a_buffer_that_it_needs(cuda):
    tensor = torch.zeros(5, 16)
    upload_of().copy(torch.ones(5, 16), Place(cuda.computing, tensor))
    assert len(cuda.computing.work) == 5 and cuda.computing.done == 2
    assert tensor.sum(dim=1).tolist() == [16, 16, 0, 0, 0]


def test_the_double_notices_a_buffer_that_is_filled_too_early(cuda):
    class Hasty(Event):
        def synchronize(self):
            pass

    source, tensor = torch.randn(5, 16), torch.zeros(5, 16)
    upload_of(event=Hasty).copy(source, Place(cuda.computing, tensor))
    cuda.computing.run_to(5)
    assert not torch.equal(tensor, source)


def test_columns_of_a_larger_matrix_and_another_precision(cuda):
    """As a tensor-parallel part that is cut from a file of another degree."""
    source, tensor = torch.randn(40, 9).half()[:, 2:5], torch.zeros(40, 6)
    upload_of(device=torch.device("cpu")).copy(source, Place(cuda.computing, tensor[:, 3:]))
    cuda.computing.run_to(len(cuda.computing.work))
    assert torch.equal(tensor, torch.cat((torch.zeros(40, 3), source.float()), dim=1))


def test_only_gpus_have_one():
    assert Upload.to(torch.device("cpu")) is None and Upload.to(torch.device("meta")) is None


@pytest.mark.parametrize("scheme", [None, Scheme(4, 8)], ids=str)
def test_a_shard_is_the_same_either_way(cuda, monkeypatch, scheme):
    """Plain in another precision, and quantised on the device."""
    config = ModelConfig(num_layers=1, hidden_size=16, num_attention_heads=2, inner_hidden_size=16, vocab_size=32,
                         max_sequence_length=8)
    expected, cpu = spec.expected(config), torch.device("cpu")
    shard = Shard(Path("file.pt"), {name: torch.randn(part.shape).half() for name, part in expected.items()})
    schemes = {name: scheme for name, part in expected.items() if part.packs and scheme}
    wanted = weights.convert_shard(shard, expected, torch.float32, cpu, schemes)
    upload = upload_of(256, device=cpu)
    monkeypatch.setattr(weights.Upload, "to", lambda device: upload)
    found = weights.convert_shard(shard, expected, torch.float32, cpu, schemes)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in ChainMap(found, wanted))
    assert upload._ring[0][1].stream is cuda.computing
