"""Checkpoints that are damaged or lie: bytes, zip archive, pickle, tensors, names, index, vocabulary, manifest."""

import collections
import io
import json
import os
import pickle
import shutil
import zipfile

import pytest
import torch
from hypothesis import strategies as st

from glm import parallel
from glm.checkpoint import find_shards, read_shard, shard_name
from glm.errors import UserError
from glm.loading import load_model
from glm.tokenizer import Tokenizer
from tests.fuzzing import CANARY, changed_json, files_below, fuzz, hostile_json, json_values, mutated, names, only_user_errors, texts
from tests.golden_data import TOKENIZER
from tests.tiny_checkpoints import TINY, tiny_checkpoint, tiny_state
from tools.converting import journal, manifest, parts, verify
from tools.converting.convert import convert
from tools.converting.plan import Wish

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
    for attempt in (lambda: read_shard(path), lambda: verify.make_manifest(folder, "xxh3_128"),
                    lambda: convert(folder, folder.parent / "converted", Wish(2, 8), {}, None),
                    lambda: load_model(folder, TINY, torch.device("cpu"), torch.float16)):
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

    @fuzz(30, data=st.one_of(mutated(begin).map(lambda new: new + original[3000:]),
                             mutated(end).map(lambda new: original[:-3000] + new), mutated(original)))
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


sizes = st.lists(st.one_of(st.integers(0, 50), st.sampled_from([-1, 2**31, 2**62, 2**63, 10**30])), max_size=3).map(tuple)
places = st.one_of(st.integers(-4, 60), st.sampled_from([2**31, 2**62, 2**63 - 1, -2**63, 10**30]))


@fuzz(60, name=st.sampled_from(NAMES), offset=places, shape=st.one_of(st.none(), sizes), stride=sizes, count=places,
      kind=st.sampled_from(["HalfStorage", "FloatStorage", "CharStorage", "ComplexFloatStorage", "BoolStorage",
                            "QInt8Storage", "UntypedStorage", "DoubleStorage"]),
      key=st.sampled_from(["0", "1", "../version", "9", "/etc/passwd", ""]), size=st.sampled_from([0, 2, 96, 4608, 10**5]),
      rebuild=st.sampled_from(["_rebuild_tensor_v2", "_rebuild_tensor_v2", "_rebuild_tensor", "_rebuild_parameter"]))
def test_tensors_that_lie_about_where_they_are(bad, name, offset, shape, stride, count, kind, key, size, rebuild):
    """Offset, shape, stride, dtype, size and record of one tensor; nothing outside its own data is ever read."""
    state = dict(tiny_state())
    real = state[name]
    arguments = (Storage(getattr(torch, kind), key, count), offset, tuple(real.shape) if shape is None else shape, stride)
    more = (False, collections.OrderedDict()) if rebuild != "_rebuild_tensor" else ()
    lie = Tensor(getattr(torch._utils, rebuild), *arguments, *more)
    zipped(emptied(bad), {"module": {name: lie}}, [("archive/data/0", b"\0" * size), ("archive/data/1", b"\1" * 96)])
    with only_user_errors("checkpoints: lying tensors"):
        found = read_shard(shard(bad))
        for tensor in found.tensors.values():
            needed = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1 if tensor.numel() else 0
            held = tensor.untyped_storage().nbytes()
            assert (tensor.storage_offset() + needed) * tensor.element_size() <= held <= shard(bad).stat().st_size
        use(bad)


def strange(tensor):
    """Other things than a dense tensor of numbers, of the right shape."""
    yield from (tensor.to(torch.complex64), tensor.bool(), tensor.to(torch.float8_e4m3fn), tensor.double(), tensor[..., :0])
    yield from (tensor.to("meta"), tensor.float().to_sparse(), torch.nn.Parameter(tensor), tensor[None], tensor.flatten())
    yield torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8)
    yield from (tensor.to(torch.complex64).conj(), tensor.new_zeros(()).expand(tensor.shape), tensor.T, tensor.flip(0).T)
    yield from (torch.full_like(tensor, float("nan")), torch._neg_view(tensor), torch.nested.nested_tensor([tensor.float()]))
    yield from (1, None, "x", [tensor], {"a": tensor}, collections.OrderedDict(a=tensor), torch.Size([1]), torch.float16)
    if tensor.dim() == 2:
        yield tensor.float().to_sparse_csr()


@fuzz(50, name=st.sampled_from(NAMES), data=st.data(), beside=st.dictionaries(texts, json_values, max_size=2),
      key=st.one_of(st.none(), st.sampled_from([1, None, b"x", (1, 2), 2.5, True, "", "../../x", "a\nb", "module"]), names,
                    st.sampled_from([f"{name}_scale" for name in NAMES])))
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


CODE = (Runs(exec, f"import os; os.environ[{CANARY!r}] = '1'"), Runs(os.putenv, CANARY, "1"), Runs(eval, "1"),
        Runs(bytearray, 10**12), Runs(bytearray, 10**9), Runs(torch.Tensor, 10**12), Runs(torch.load, "/etc/passwd"),
        Runs(getattr, "os", "system"), Runs(torch.hub.load, "x", "y"), Runs(collections.Counter, 1), Runs(print, "x"))


@fuzz(60, data=st.data(), code=st.sampled_from(CODE), protocol=st.sampled_from([2, 4]), compress=st.booleans(),
      top=st.sampled_from(["module", "value", "file"]))
def test_pickles_that_would_run_code(bad, data, code, protocol, compress, top):
    content = {"file": code, "module": {"module": code}, "value": {"module": {"a": code}}}[top]
    text = pickle.dumps(content, protocol=protocol)
    if data.draw(st.booleans()):
        text = data.draw(mutated(text))
    zipped(emptied(bad), text, compression=zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED)
    with only_user_errors("checkpoints: pickles that would run code"):
        use(bad)


@fuzz(40, text=st.one_of(st.binary(max_size=80), st.lists(st.sampled_from(
    [bytes([code]) for code in b"().0123456789FGIJKLMNPQRSTUVX]abcdeghijlopqrstu}\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b"] +
    [b"\x80\x02", b"cos\nsystem\n", b"X\x06\x00\x00\x00module", b"}q\x00", b"\x8b\xff\xff\xff\x7f", b"J\xff\xff\xff\x7f"]),
    max_size=30).map(b"".join)))
def test_any_bytes_as_a_pickle(bad, text):
    zipped(emptied(bad), text)
    with only_user_errors("checkpoints: any bytes as a pickle"):
        use(bad)


@pytest.mark.parametrize("size", [10**5, 3 * 10**9])
def test_a_small_file_that_unpacks_to_a_large_one(bad, size):
    with zipfile.ZipFile(emptied(bad), "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, \
            archive.open("archive/data.pkl", "w", force_zip64=True) as file:
        for _ in range(size // 10**5):
            file.write(b"N" * 10**5)
    with only_user_errors("checkpoints: zip bombs") as messages:
        use(bad)
    assert messages


@fuzz(40, latest=st.one_of(names, texts, st.sampled_from(["49300", "49300\n", " 49300 ", "49301", "4930", "x" * 10**6])),
      files=st.lists(st.sampled_from(["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt", "mp_rank_1_model_states.pt",
                                      "mp_rank_٠٠_model_states.pt", "mp_rank_" + "9" * 200 + "_model_states.pt"]), unique=True))
def test_any_index(good, tmp_path_factory, latest, files):
    folder = tmp_path_factory.mktemp("index", numbered=True)
    (folder / "49300").mkdir()
    for name in files:
        os.symlink(shard(good), folder / "49300" / name)
    shutil.copyfile(good / "model_config.json", folder / "model_config.json")
    (folder / "latest").write_bytes(latest.encode("utf-8", "surrogatepass"))
    with only_user_errors("checkpoints: index"):
        for path in find_shards(folder):
            assert path.parent.parent == folder
        verify.alone(folder)
    shutil.rmtree(folder)


VOCABULARY = (TOKENIZER / "ice_text.model").read_bytes()


@fuzz(60, data=st.one_of(mutated(VOCABULARY), mutated(VOCABULARY[:400]).map(lambda new: new + VOCABULARY[400:]),
                         mutated(VOCABULARY[-2000:]).map(lambda new: VOCABULARY[:-2000] + new), st.binary(max_size=200)),
      text=texts)
def test_any_bytes_as_a_vocabulary(tmp_path_factory, data, text):
    path = tmp_path_factory.getbasetemp() / "ice_text.model"
    path.write_bytes(data)
    with only_user_errors("vocabulary files"):
        tokenizer = Tokenizer(path)
        text = text.encode("utf-8", "ignore").decode() + " a 好 [MASK]\n"
        ids = tokenizer.encode(text) + tokenizer.encode(text, special_tokens=True)
        assert all(tokenizer.num_image_tokens <= token < tokenizer.num_tokens for token in ids)
        tokenizer.detokenize(ids)
        tokenizer.decode(ids)
