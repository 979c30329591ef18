"""What a checkpoint's pickle may ask for is what a file of tensors needs; costly calls are refused before they run."""

import _codecs
import collections
import io
import pickle

import pytest
import torch

from glm.checkpoint.pickles import Refused, check_pickle
from glm.shard import read_shard
from runtime.errors import UserError
from tests.test_bad_input import archive


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class WithState(Call):
    def __reduce__(self):
        return (*self.call, (1,))


def pickled(value, protocol=2):
    return pickle.dumps(value, protocol=protocol)


LISTS = [0] * 100
for _ in range(4):
    LISTS = [LISTS] * 100

COSTLY = {
    "a codec that takes the square": Call(_codecs.encode, "ü" * 20_000, "punycode"),
    "another name of it": Call(_codecs.encode, "ü", "PunyCode"),
    "any other codec": Call(_codecs.encode, "ü", "idna"),
    "the same in a call of bytearray": Call(bytearray, "ü" * 20_000, "punycode"),
    "memory for the asking": Call(bytearray, 10**9),
    "what is iterated over": Call(bytearray, Call(torch.Size, (1,))),
    "a tensor of lists of lists": Call(torch.Tensor, LISTS),
    "a tensor of any size": Call(torch.Tensor, 10**6, 10**6),
    "an expanded tensor written out": Call(torch._utils._rebuild_device_tensor_from_cpu_tensor, 1, 2, "cpu", False),
    "a call inside of a call": Call(torch._tensor._rebuild_from_type_v2, bytearray, torch.Tensor, (10**9,), {}),
    "a state for a tensor": WithState(torch._utils._rebuild_tensor, 1, 2),
    "keys that are tuples": {(-1, -2): 1},
    "keys of one hash": {2**61 - 1 << 61: 1},
    "keys that are called for": {Call(complex, 1.0, 2.0): 1},
    "a set of tuples": Call(set, [(-1,), (-2,)]),
    "a set of a generator's kind": Call(set, "text"),
    "counted": Call(collections.Counter, [1, 2]),
    "a dictionary of pairs": Call(collections.OrderedDict, [[1, 2]]),
}


@pytest.mark.parametrize("value", COSTLY.values(), ids=COSTLY)
def test_costly_calls(tmp_path, value):
    text = pickled({"module": {}, "beside": value})
    with pytest.raises(Refused):
        check_pickle(io.BytesIO(text))
    with pytest.raises(UserError, match=r"holds more than tensors \(.*\): refused, none of it was run"):
        read_shard(archive(tmp_path / "a.pt", text))


HARMLESS = {
    "bytes, as protocol 2 writes them": b"\x00\xff",
    "bytearray": bytearray(b"ab\xff"),
    "sets": {"set": {1, "a"}, "empty": set()},
    "numbers": {1: 2.5, 2**64 - 1: True, None: 1 + 2j, -1: 10**30},
    "ordered": collections.OrderedDict(a=1, b=(1, (2, 3))),
    "counted": collections.Counter("abca"),
    "tensors": {"half": torch.ones(2).half(), "view": torch.ones(4, 4)[:, 1], "none": torch.ones(0)},
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "size, type, device": [torch.Size([1, 2]), torch.float16, torch.device("cpu")],
    "many kinds of tensors": [torch.ones(1).to(dtype) for dtype in (torch.int8, torch.bfloat16, torch.bool)],
}


@pytest.mark.parametrize("form", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("value", HARMLESS.values(), ids=HARMLESS)
def test_what_checkpoints_hold(tmp_path, value, form):
    torch.save({"module": {"w": torch.ones(2)}, "beside": value}, tmp_path / "a.pt",
               _use_new_zipfile_serialization=form)
    shard = read_shard(tmp_path / "a.pt")
    if not isinstance(value, (dict, list, torch.Tensor)):
        assert shard.others["beside"] == value


def test_of_a_tensor_with_attributes_the_numbers_count(tmp_path):
    tensor = torch.full((2,), 3.0)
    tensor.note = "x"
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.tensor_model_parallel = True
    torch.save({"module": {"a": tensor, "b": parameter}}, tmp_path / "a.pt")
    found = read_shard(tmp_path / "a.pt").tensors
    assert found["a"].tolist() == [3, 3] and found["b"].tolist() == [1, 1] and type(found["b"]) is torch.Tensor


def test_a_state_of_deepspeeds_shape(tmp_path):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save({"module": model.state_dict(), "optimizer": optimizer.state_dict(), "sparse_tensor_module_names": set(),
                "lr_scheduler": None, "skipped_steps": 0, "random": torch.get_rng_state()}, tmp_path / "a.pt")
    assert set(read_shard(tmp_path / "a.pt").tensors) == {"weight", "bias"}
