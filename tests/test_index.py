"""Where tensors lie in files, read without torch: every format and layout, and whatever is wrong with them."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st

from glm.checkpoint import identity_of, open_checkpoint, read_file, tensors_of
from glm.checkpoint.safetensors import DTYPES
from glm.shard import MappedTensors
from runtime.errors import UserError
from tests.fuzzing import changed_json, fuzz, hostile_json, mutated, only_user_errors

BASE = torch.arange(24.0).view(4, 6)
TENSORS = {
    "matrix": BASE.half(), "transposed": BASE.clone().t(), "column": BASE[:, 2], "some rows": BASE[1:3],
    "number": torch.tensor(3.0), "empty": torch.zeros(0, 5), "bytes": torch.arange(7, dtype=torch.uint8),
    "bfloat16": torch.ones(3).bfloat16(), "truth": torch.tensor([True, False]), "complex": torch.ones(2) * 1j,
    "wide": torch.arange(3, dtype=torch.int64), "uint16": torch.arange(3).to(torch.uint16),
    "parameter": torch.nn.Parameter(torch.ones(2)), "float8": torch.ones(5).to(torch.float8_e4m3fn),
}
NAMES = {f"torch.{name}": short for short, name in DTYPES.items()}


def to_safetensors(tensors, metadata=None, padding=0):
    """The bytes of a safetensors file."""
    table, data = {} if metadata is None else {"__metadata__": metadata}, b""
    for name, tensor in tensors.items():
        numbers = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        table[name] = {"dtype": NAMES[str(tensor.dtype)], "shape": list(tensor.shape),
                       "data_offsets": [len(data), len(data) + len(numbers)]}
        data += numbers
    text = json.dumps(table).encode() + b" " * padding
    return struct.pack("<Q", len(text)) + text + data


def save(path, tensors):
    """In the format that the name's end says."""
    if path.suffix == ".safetensors":
        path.write_bytes(to_safetensors(tensors, {"format": "pt"}))
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=path.suffix != ".old")
    return path


def same(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        mine = found[name]
        assert (mine.dtype, mine.shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(mine.contiguous().reshape(-1).view(torch.uint8),
                           tensor.detach().contiguous().reshape(-1).view(torch.uint8)), name


def refused(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_it_needs_no_torch():
    program = ("import sys, glm.checkpoint\nassert not {'torch', 'numpy'} & set(sys.modules)\n"
               "index = glm.checkpoint.open_checkpoint('checkpoints/glm-small').index\n"
               "assert len(index.parts[0]) == 63 and 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600, cwd=Path(__file__).parent.parent)


@pytest.mark.parametrize("suffix", [".pt", ".old", ".safetensors"])
def test_every_tensor_is_found_where_it_lies(tmp_path, suffix):
    tensors = {name: tensor for name, tensor in TENSORS.items()
               if suffix != ".safetensors" or str(tensor.dtype) in NAMES}
    entries = tensors_of(read_file(save(tmp_path / f"a{suffix}", tensors)))
    same(MappedTensors(entries), tensors)
    content = (tmp_path / f"a{suffix}").read_bytes()
    for name, entry in entries.items():
        if entry.stride is None:
            mine = tensors[name].detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            assert content[entry.offset:entry.offset + entry.bytes] == mine and entry.span == entry.bytes
    assert entries["matrix"].stride is None
    assert suffix == ".safetensors" or entries["transposed"].stride == (1, 6)


def test_checksums_are_told_where_they_are_of_one_tensor_alone(tmp_path):
    entries = tensors_of(read_file(save(tmp_path / "a.pt", TENSORS)))
    assert {name for name, entry in entries.items() if entry.crc32 is None} >= {"column", "some rows", "transposed"}
    assert entries["matrix"].crc32 and entries["wide"].crc32


@pytest.mark.parametrize("suffix", [".pt", ".old", ".safetensors"])
def test_files_of_other_weights_have_another_identity(tmp_path, suffix):
    found = [identity_of(read_file(save(tmp_path / f"{number}{suffix}", {"a": torch.full((9000,), value)})))
             for number, value in enumerate((1.0, 1.0, 2.0))]
    assert found[0] == found[1] != found[2]


def test_numbers_that_begin_anywhere(tmp_path):
    """Old writers of safetensors did not fill the table up to a multiple of eight."""
    for padding in range(8):
        path = tmp_path / f"{padding}.safetensors"
        path.write_bytes(to_safetensors({"byte": torch.ones(1, dtype=torch.int8), "a": BASE, "b": BASE.double()},
                                        padding=padding))
        same(MappedTensors(tensors_of(read_file(path))), {"byte": torch.ones(1, dtype=torch.int8), "a": BASE,
                                                          "b": BASE.double()})


# folders


def write_index(folder, files, weight_map=None):
    """files: name -> tensors."""
    folder.mkdir(exist_ok=True)
    for name, tensors in files.items():
        save(folder / name, tensors)
    names = {name: file for file, tensors in files.items() for name in tensors}
    form = "model.safetensors" if next(iter(files)).endswith(".safetensors") else "pytorch_model.bin"
    (folder / f"{form}.index.json").write_text(json.dumps({"weight_map": names if weight_map is None else weight_map}))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_a_checkpoint_of_hugging_face_in_several_files(tmp_path, suffix):
    one, other = {"glm.a": BASE, "glm.b": BASE[1]}, {"glm.c": BASE.half()}
    found = open_checkpoint(write_index(tmp_path, {f"model-00001-of-00002.{suffix}": one,
                                                   f"model-00002-of-00002.{suffix}": other}))
    assert found.kind == "huggingface" and found.config_path == tmp_path / "config.json"
    (part,) = found.index.parts
    same(MappedTensors(part), one | other)
    assert {entry.file.name for entry in part.values()} == {path.name for path in found.paths}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_checkpoint_of_hugging_face_in_one_file(tmp_path, name):
    save(tmp_path / name, {"a": BASE})
    found = open_checkpoint(tmp_path)
    assert found.kind == "huggingface" and found.config_path is None and list(found.index.parts[0]) == ["a"]


@pytest.mark.parametrize("latest", ["latest", "latest_checkpointed_iteration.txt", None])
@pytest.mark.parametrize("prefix, kind", [("", "megatron"), ("transformer.", "sat")])
def test_a_file_for_every_rank(tmp_path, latest, prefix, kind):
    inner = tmp_path if latest is None else tmp_path / "12000"
    inner.mkdir(exist_ok=True)
    parts = [{f"{prefix}word_embeddings.weight": BASE * rank} for rank in range(2)]
    for rank, part in enumerate(parts):
        torch.save({"iteration": 12000, "lr_scheduler": {"step": 1, "x": torch.ones(3)}, "optimizer": None,
                    "module": part}, inner / f"mp_rank_0{rank}_model_states.pt")
    if latest is not None:
        (tmp_path / latest).write_text("12000\n")
    found = open_checkpoint(tmp_path)
    assert found.kind == kind and len(found.index.parts) == 2
    for mine, part in zip(found.index.parts, parts, strict=True):
        same(MappedTensors(mine), part)


def test_what_a_folder_may_lack(tmp_path):
    assert "no checkpoint folder" in refused(open_checkpoint, tmp_path / "nowhere")
    assert "no readable file" in refused(open_checkpoint, tmp_path)
    write_index(tmp_path, {"a.bin": {"a": BASE}}, {"a": "a.bin", "b": "b.bin"})
    assert f"missing shard {tmp_path / 'b.bin'}" in refused(lambda: open_checkpoint(tmp_path).index)
    write_index(tmp_path, {"a.bin": {"a": BASE}}, {"a": "a.bin", "b": "a.bin"})
    assert "a.bin lacks b, which the index says" in refused(lambda: open_checkpoint(tmp_path).index)


@pytest.mark.parametrize("weight_map", [{"a": "../a.bin"}, {"a": "/etc/passwd"}, {"a": ".."}, {"a": ""}, {"a": 1}, {},
                                        [], "a"])
def test_an_index_leads_nowhere_else(tmp_path, weight_map):
    folder = write_index(tmp_path, {"a.bin": {"a": BASE}}, weight_map)
    assert f"{folder / 'pytorch_model.bin.index.json'}: " in refused(open_checkpoint, folder)


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "is a pointer of git-lfs" in refused(lambda: open_checkpoint(tmp_path).index)


FAMILIES = os.environ.get("GLM_FAMILY_CHECKPOINTS")  # a folder with folders of published models' kinds


@pytest.mark.skipif(FAMILIES is None, reason="GLM_FAMILY_CHECKPOINTS names no folder with such checkpoints")
def test_checkpoints_of_other_programs():
    folders = [path for path in Path(FAMILIES).glob("**/checkpoints/*") if path.is_dir()]
    kinds = {folder.name: open_checkpoint(folder).kind for folder in folders}
    assert folders and set(kinds.values()) <= {"huggingface", "megatron"}
    for folder in folders:
        assert kinds[folder.name] == ("megatron" if folder.name.startswith("megatron") else "huggingface")
        index = open_checkpoint(folder).index
        for file in index.files:
            if file.path.suffix != ".safetensors":
                content = torch.load(file.path, weights_only=True)
                same(MappedTensors(tensors_of(file, "module" if "module" in content else None)),
                     content.get("module", content))


# safetensors that are damaged or lie


GOOD = to_safetensors({"a": BASE.half(), "b": BASE[0]})
SIZE = struct.unpack("<Q", GOOD[:8])[0]
TABLE = json.loads(GOOD[8:8 + SIZE])


def with_table(table, data=GOOD[8 + SIZE:]):
    text = table if isinstance(table, str) else json.dumps(table)
    text = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("table", [
    TABLE | {"b": TABLE["b"] | {"data_offsets": [0, 24]}},  # on the place of another
    TABLE | {"b": TABLE["b"] | {"shape": [7]}},
    TABLE | {"b": TABLE["b"] | {"shape": [-1, -6]}},
    TABLE | {"b": TABLE["b"] | {"shape": [True, 6]}},
    TABLE | {"b": TABLE["b"] | {"data_offsets": [48, 10**30]}},
    {"b": TABLE["b"]}, {"a": TABLE["a"]}, {"a": 1}, {"a": {}}, [], {},
], ids=str)
def test_tables_that_do_not_describe_the_file(tmp_path, table):
    path = tmp_path / "a.safetensors"
    path.write_bytes(with_table(table))
    if path.read_bytes()[8:9] == b"{":
        assert "is truncated or damaged" in refused(read_file, path)
    else:
        assert "is no checkpoint" in refused(read_file, path)


def test_a_dtype_that_is_not_read_is_named(tmp_path):
    (tmp_path / "a").write_bytes(with_table(TABLE | {"b": TABLE["b"] | {"dtype": "F4"}}))
    assert "b has the dtype F4; allowed: BOOL, " in refused(read_file, tmp_path / "a")


@fuzz(150, data=st.data())
def test_any_safetensors(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.unlink(missing_ok=True)  # what an earlier input has mapped must not be written over
    kind = data.draw(st.sampled_from(["bytes", "values", "text"]))
    if kind == "bytes":
        path.write_bytes(data.draw(mutated(GOOD)))
    else:
        path.write_bytes(with_table(changed_json(TABLE, data.draw) if kind == "values" else data.draw(hostile_json)))
    with only_user_errors("checkpoints: safetensors"):
        tensors = MappedTensors(tensors_of(read_file(path)))
        for name, tensor in tensors.items():
            assert tensor.nbytes == tensors.entries[name].bytes <= path.stat().st_size
            tensor.sum()


@fuzz(60, data=st.one_of(hostile_json, st.builds(json.dumps, st.just({"weight_map": {"a": "a.bin"}}).flatmap(
    lambda value: st.composite(lambda draw: changed_json(value, draw))()))))
def test_any_index(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "any index"
    write_index(folder, {"a.bin": {"a": BASE}})
    (folder / "pytorch_model.bin.index.json").write_text(data, encoding="utf-8", errors="surrogatepass")
    with only_user_errors("checkpoints: index.json"):
        found = open_checkpoint(folder).index
        assert all(entry.file.parent == folder for part in found.parts for entry in part.values())
