"""Checkpoints that are damaged or lie: bytes, zip archive, pickle, tensors, names, index, vocabulary, manifest."""

import _codecs
import collections
import io
import os
import pickle
import shutil
import zipfile

import pytest
import torch
from hypothesis import strategies as st

from glm.checkpoint import find_shards, shard_name
from glm.loading import load_model
from glm.options import ModelOptions
from glm.shard import read_shard
from runtime import parallel
from runtime.errors import UserError
from tests.fuzzing import CANARY, files_below, fuzz, json_values, mutated, names, only_user_errors, texts
from tests.tiny_checkpoints import TINY, tiny_checkpoint, tiny_state
from tools.converting import verify
from tools.converting.convert import convert
from tools.converting.plan import Wish

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, about what it is given
NAMES = sorted(tiny_state())


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    if not parallel.is_started():
        parallel.start(1)
    return tiny_checkpoint(tmp_path_factory.mktemp("good") / "tiny", 1)


@pytest.fixture(scope="module")
def bad(good, tmp_path_factory):
    """A copy to be damaged, always in the same shard."""
    folder = tmp_path_factory.mktemp("bad") / "tiny"
    shutil.copytree(good, folder)
    return folder


def use(folder) -> None:
    """Everything that looks at a checkpoint: checking, hashing, converting, loading; what is accepted is computed."""
    (path, *_) = find_shards(folder)
    before = files_below(folder.parent)
    verify.alone(folder)
    for attempt in (
        lambda: read_shard(path),
        lambda: verify.make_manifest(folder, "xxh3_128"),
        lambda: convert(folder, folder.parent / "converted", Wish(2, 8), {}, None),
        lambda: load_model(ModelOptions(folder, device=torch.device("cpu"), dtype=torch.float16), TINY),
    ):
        try:
            found = attempt()
        except UserError:
            continue
        if isinstance(found, torch.nn.Module):
            logits = found.head(found.hidden_states(torch.tensor([[1, 2]]), torch.tensor([[0, 1]])))
            assert logits.shape == (1, 2, TINY.vocab_size)
    shutil.rmtree(folder.parent / "converted", ignore_errors=True)
    assert files_below(folder.parent) == before
    read_shard(path)


def shard(folder):
    return folder / "49300" / shard_name(0)


def emptied(folder):
    """The shard's place, free: what an earlier input has mapped must not be written over."""
    shard(folder).unlink(missing_ok=True)
    return shard(folder)


def test_an_undamaged_checkpoint_is_accepted_by_everything(good):
    use(good)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_damaged_bytes(good, bad, form):
    if form == "zip":
        original = shard(good).read_bytes()
    else:
        buffer = io.BytesIO()
        torch.save({"module": tiny_state()}, buffer, _use_new_zipfile_serialization=False)
        original = buffer.getvalue()
    begin, end = original[:3000], original[-3000:]

    @fuzz(
        30,
        data=st.one_of(
            mutated(begin).map(lambda new: new + original[3000:]),
            mutated(end).map(lambda new: original[:-3000] + new),
            mutated(original),
        ),
    )
    def run(data):
        emptied(bad).write_bytes(data)
        with only_user_errors(f"checkpoints: bytes of a {form} file"):
            use(bad)

    run()


class Storage:
    """A storage as a pickle names it, true or not."""

    def __init__(self, kind, key, count):
        self.identifier = ("storage", kind, key, "cpu", count)


class Tensor:
    """A tensor as a pickle rebuilds it, true or not."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Lying(pickle.Pickler):
    def persistent_id(self, value):
        return value.identifier if isinstance(value, Storage) else None


def zipped(path, content, records=(), compression=zipfile.ZIP_STORED, name="archive/data.pkl"):
    text = content
    if not isinstance(content, bytes):
        stream = io.BytesIO()
        Lying(stream, protocol=2).dump(content)
        text = stream.getvalue()
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(name, text)
        archive.writestr("archive/byteorder", b"little")
        for record, data in records:
            archive.writestr(record, data)
        archive.writestr("archive/version", b"3\n")


wild = st.sampled_from([-1, 2**31, 2**62, 2**63 - 1, 2**63, -(2**63), 10**30])
sizes = st.lists(st.one_of(st.integers(0, 50), wild), max_size=3).map(tuple)
places = st.one_of(st.integers(-4, 60), wild)
STORAGES = ("Half", "Half", "Float", "Char", "ComplexFloat", "Bool", "QInt8", "Untyped", "Double", "BFloat16")


@fuzz(
    60,
    name=st.sampled_from(NAMES),
    offset=st.one_of(st.just(0), places),
    shape=st.one_of(st.none(), sizes),
    stride=st.one_of(st.none(), sizes),
    count=st.one_of(st.none(), places),
    kind=st.sampled_from(STORAGES),
    key=st.sampled_from(["own", "own", "0", "../version", "9999", "/etc/passwd", ""]),
    cut=st.sampled_from([None, None, 0, 2, 96, 10**5]),
    rebuild=st.sampled_from(["_rebuild_tensor_v2", "_rebuild_tensor_v2", "_rebuild_tensor", "_rebuild_parameter"]),
)
def test_tensors_that_lie_about_where_they_are(bad, name, offset, shape, stride, count, kind, key, cut, rebuild):
    """Offset, shape, stride, dtype, size and record of one tensor; nothing outside its own data is ever read."""
    module, records = {}, []
    for number, (each, real) in enumerate(tiny_state().items()):
        data = real.numpy().tobytes()
        truth = Storage(torch.HalfStorage, str(number), real.numel()), 0, tuple(real.shape), real.stride()
        module[each] = Tensor(torch._utils._rebuild_tensor_v2, *truth, False, collections.OrderedDict())
        if each == name:
            own = str(number) if key == "own" else key
            lie = Storage(getattr(torch, f"{kind}Storage"), own, real.numel() if count is None else count)
            lies = lie, offset, truth[2] if shape is None else shape, truth[3] if stride is None else stride
            more = (False, collections.OrderedDict()) if rebuild != "_rebuild_tensor" else ()
            module[each] = Tensor(getattr(torch._utils, rebuild), *lies, *more)
            data = data if cut is None else data[:cut].ljust(cut, b"\0")
        records.append((f"archive/data/{number}", data))
    zipped(emptied(bad), {"module": module}, records)
    with only_user_errors("checkpoints: lying tensors"):
        for tensor in read_shard(shard(bad)).tensors.values():
            steps = [(n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)]
            last = sum(steps) if tensor.numel() else -1
            held = tensor.untyped_storage().nbytes()
            assert (tensor.storage_offset() + last + 1) * tensor.element_size() <= held <= shard(bad).stat().st_size
        use(bad)


def strange(tensor):
    """Other things than a dense tensor of numbers, of the right shape."""
    yield from (tensor.to(torch.complex64), tensor.bool(), tensor.to(torch.float8_e4m3fn), tensor.double())
    yield from (tensor[..., :0], tensor.to("meta"), tensor.float().to_sparse(), torch.nn.Parameter(tensor))
    yield from (tensor[None], tensor.flatten(), torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8))
    yield from (tensor.to(torch.complex64).conj(), tensor.new_zeros(()).expand(tensor.shape), tensor.T)
    yield from (torch.full_like(tensor, float("nan")), torch._neg_view(tensor), torch.Size([1]), torch.float16)
    yield from (torch.nested.nested_tensor([tensor.float()]), {"a": tensor}, collections.OrderedDict(a=tensor))
    yield from (1, None, "x", [tensor])
    if tensor.dim() == 2:
        yield tensor.float().to_sparse_csr()


@fuzz(
    30,
    name=st.sampled_from(NAMES),
    data=st.data(),
    beside=st.dictionaries(texts, json_values, max_size=2),
    key=st.one_of(
        st.none(), st.sampled_from([1, None, b"x", (1, 2), 2.5, True, "", "../../x", "a\nb", "module"]),
        names,
        st.sampled_from([f"{name}_scale" for name in NAMES]),
    ),
)
def test_tensors_of_other_kinds_and_names(bad, name, data, key, beside):
    state = dict(tiny_state())
    value = data.draw(st.sampled_from([*strange(state[name]), state[name]]))
    state[name if key is None else key] = value
    torch.save(beside | {"module": state}, emptied(bad))
    with only_user_errors("checkpoints: tensors of other kinds"):
        use(bad)


class Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


CODE = (
    Runs(exec, f"import os; os.environ[{CANARY!r}] = '1'"), Runs(os.putenv, CANARY, "1"), Runs(eval, "1"),
    Runs(bytearray, 10**12), Runs(bytearray, 10**9), Runs(torch.Tensor, 10**12), Runs(torch.load, "/etc/passwd"),
    Runs(getattr, "os", "system"), Runs(torch.hub.load, "x", "y"), Runs(collections.Counter, 1), Runs(print, "x"),
    Runs(_codecs.encode, "ü" * 20_000, "punycode"), Runs(bytearray, "ü" * 20_000, "punycode"),
    Runs(torch.Tensor, [[[0] * 1000] * 1000] * 1000),
)


@fuzz(
    60,
    data=st.data(),
    code=st.sampled_from(CODE),
    protocol=st.sampled_from([2, 4]),
    compress=st.booleans(),
    top=st.sampled_from(["module", "value", "file"]),
)
def test_pickles_that_would_run_code(bad, data, code, protocol, compress, top):
    content = {"file": code, "module": {"module": code}, "value": {"module": {"a": code}}}[top]
    text = pickle.dumps(content, protocol=protocol)
    if data.draw(st.booleans()):
        text = data.draw(mutated(text))
    zipped(emptied(bad), text, compression=zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED)
    with only_user_errors("checkpoints: pickles that would run code"):
        use(bad)


@fuzz(
    40,
    text=st.one_of(
        st.binary(max_size=80),
        st.lists(
            st.sampled_from(
                [
                    bytes([code])
                    for code in b"().01234FGIJKLMNPQRSTUVX]abcdeghijlopqrstu}\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b"
                ]
                + [
                    b"\x80\x02", b"cos\nsystem\n", b"X\x06\x00\x00\x00module", b"}q\x00", b"\x8b\xff\xff\xff\x7f",
                    b"J\xff\xff\xff\x7f",
                ]
            ),
            max_size=30,
        ).map(b"".join),
    ),
)
def test_any_bytes_as_a_pickle(bad, text):
    zipped(emptied(bad), text)
    with only_user_errors("checkpoints: any bytes as a pickle"):
        use(bad)


def test_a_small_file_that_unpacks_to_a_large_one(bad):
    with (
        zipfile.ZipFile(emptied(bad), "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("archive/data.pkl", "w", force_zip64=True) as file,
    ):
        for _ in range(3000):
            file.write(b"N" * 10**5)
    with only_user_errors("checkpoints: zip bombs") as messages:
        use(bad)
    assert messages
