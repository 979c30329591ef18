"""glm export-hf and glm import-hf: every layout to Hugging Face's and back, tensor for tensor."""

import json
import shutil
import struct

import pytest
import torch

from commands.convert import verify
from commands.main import main as glm
from glm.checkpoint import open_checkpoint, read_config
from glm.checkpoint.safetensors import read as read_safetensors
from glm.tokenizers.opening import FILES as TOKENIZER_FILES
from glm.tokenizers.opening import open_tokenizer
from runtime.errors import UserError
from tests.faults import said
from tests.golden_data import split_state, write_checkpoint
from tests.golden_family import KIT, checkpoint
from tests.test_convert_families import HEADS, MEGATRON, PUBLISHED, logits, most, name_of, own_tensors, parts_of
from tests.tiny_checkpoints import TINY, assert_same, run, tiny_checkpoint, tiny_state
from tools.converting import convert as conversion
from tools.converting.convert import convert
from tools.converting.plan import Wish
from tools.converting.safetensors_file import planned_bytes, write_safetensors
from tools.converting.torchfile import Block, HashedFile, Planned

TOKENIZERS = KIT / "tokenizers"


def exported(source, output, shard_bytes=5 * 10**9, **shapes):
    convert(source, output, Wish(1, format="huggingface"), shapes, None, shard_bytes=shard_bytes)
    return output


def config_of(folder):
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


# Round trips


@pytest.mark.parametrize("source", PUBLISHED, ids=name_of)
def test_published_folders_come_back_by_their_own_names(source, tmp_path):
    """Imported, divided, exported: names, tensors and config.json are the original's."""
    assert glm(["import-hf", str(source), str(tmp_path / "own")]) == 0
    run(tmp_path / "own", tmp_path / "divided", most(source))
    assert glm(["export-hf", str(tmp_path / "divided"), str(tmp_path / "back")]) == 0
    assert_same(parts_of(tmp_path / "back"), parts_of(source))
    assert config_of(tmp_path / "back") == config_of(source)
    assert torch.equal(logits(tmp_path / "back"), logits(source))
    assert verify([str(tmp_path / "back")]) == 0


@pytest.mark.parametrize("source", PUBLISHED, ids=name_of)
def test_a_config_json_made_anew(source, tmp_path):
    """Of a checkpoint whose original one is lost: the load reads the same model in it."""
    run(source, tmp_path / "own", 1)
    (tmp_path / "own" / "config.json").unlink()
    exported(tmp_path / "own", tmp_path / "out")
    assert read_config(tmp_path / "out") == read_config(source)
    assert_same(own_tensors(tmp_path / "out"), own_tensors(source))


@pytest.mark.parametrize("source", MEGATRON, ids=name_of)
def test_megatron_s_parts_and_back(source, tmp_path):
    """config.json keeps the GELU, for which the published folders have no key."""
    exported(source, tmp_path / "hf", **HEADS)
    assert config_of(tmp_path / "hf")["gelu"] == "tanh"
    assert read_config(tmp_path / "hf") == read_config(source, **HEADS)
    assert torch.equal(logits(tmp_path / "hf"), logits(source, **HEADS))
    convert(tmp_path / "hf", tmp_path / "back", Wish(open_checkpoint(source).parts, format="megatron"), {}, None)
    assert_same(parts_of(tmp_path / "back"), parts_of(source))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("degree", [1, 4])
def test_models_of_glm_130b_s_family(tmp_path, dtype, degree):
    tiny_checkpoint(tmp_path / "in", degree, dtype=dtype)
    exported(tmp_path / "in", tmp_path / "hf")
    config = config_of(tmp_path / "hf")
    assert config["model_type"] == "glm-130b" and config["torch_dtype"] == str(dtype).removeprefix("torch.")
    assert read_config(tmp_path / "hf") == TINY
    assert_same(parts_of(tmp_path / "hf"), [tiny_state(dtype)])
    assert torch.equal(logits(tmp_path / "hf"), logits(tmp_path / "in"))
    run(tmp_path / "hf", tmp_path / "back", degree)
    assert_same(parts_of(tmp_path / "back"), parts_of(tmp_path / "in"))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("degree", [1, 4])
def test_quantised_weights_and_their_scales(tmp_path, bits, degree):
    tiny_checkpoint(tmp_path / "in", degree, bits=bits)
    exported(tmp_path / "in", tmp_path / "hf")
    assert config_of(tmp_path / "hf")["quantization_bit"] == bits
    assert f"quantised to INT{bits}" in (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    (found,) = parts_of(tmp_path / "hf")
    assert sum(name.endswith(".weight_scale") for name in found) == 4 * TINY.num_layers
    assert {str(found[name].dtype) for name in found if name + "_scale" in found} == {"torch.int8"}
    assert torch.equal(logits(tmp_path / "hf"), logits(tmp_path / "in"))
    run(tmp_path / "hf", tmp_path / "back", degree)
    assert_same(parts_of(tmp_path / "back"), parts_of(tmp_path / "in"))


def test_bits_that_were_chosen_after_the_import(tmp_path):
    """config.json says what the tensors are, and nothing of what they were."""
    source = checkpoint("chatglm", "hf_chatglm_untied")
    run(source, tmp_path / "8", 1, bits=8, group_size=32)
    exported(tmp_path / "8", tmp_path / "hf")
    config = config_of(tmp_path / "hf")
    assert config == config_of(source) | {"quantization_bit": 8, "quantization_group_size": 32}
    assert_same(own_tensors(tmp_path / "hf"), parts_of(tmp_path / "8"))


# The folder


def test_shards_with_their_index(tmp_path):
    source, limit = checkpoint("chatglm2", "hf_chatglm2"), 100_000
    exported(source, tmp_path / "out", limit)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    (tensors,) = parts_of(source)
    assert list(index["weight_map"]) == list(tensors)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [path.name for path in files] == sorted(set(index["weight_map"].values()))
    for path in files:
        held = read_safetensors(path).content
        assert len(held) == 1 or sum(entry.bytes for entry in held.values()) <= limit
    assert_same(parts_of(tmp_path / "out"), [tensors])


def test_what_lies_beside_the_weights(tmp_path):
    source = shutil.copytree(checkpoint("glm", "hf_gpt2"), tmp_path / "in")
    (source / "modeling_glm.py").write_text("raise SystemExit('this was run')")
    (source / "vocab.json").write_text("{}")
    exported(source, tmp_path / "out")
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"README.md", "config.json", "manifest.json", "model.safetensors", "vocab.json"} <= found
    assert "modeling_glm.py" not in found
    readme = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "family glm" in readme and "| layers | 2 |" in readme and "names the original's Python files" in readme


def test_a_tokenizer_of_another_folder(tmp_path):
    """It alone counts: no file of the checkpoint's tokenizer comes along. Another one is another export."""
    source = shutil.copytree(checkpoint("chatglm2", "hf_chatglm2"), tmp_path / "in")
    for name in ("tokenizer_config.json", "added_tokens.json"):
        (source / name).write_text('{"tokenizer_class": "GLMBertTokenizer"}')
    folder, output = TOKENIZERS / "chatglm2", tmp_path / "out"
    command = ["export-hf", str(source), str(output), "--tokenizer-path"]
    assert glm([*command, str(folder)]) == 0
    names = {path.name for path in output.iterdir()} & set(TOKENIZER_FILES)
    assert names == {path.name for path in folder.iterdir()} & set(TOKENIZER_FILES)
    assert all((output / name).read_bytes() == (folder / name).read_bytes() for name in names)
    assert open_tokenizer(output).encode("a house") == open_tokenizer(folder).encode("a house")
    assert verify([str(output)]) == 0
    assert glm([*command, str(folder / "tokenizer.model")]) == 0  # the same files: finished before
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "tokenizer_config.json").write_text("{}")
    assert glm([*command, str(other)]) == 2


def test_an_interrupted_export_looks_unfinished_and_goes_on(tmp_path, monkeypatch):
    source, output, write = checkpoint("chatglm2", "hf_chatglm2"), tmp_path / "out", conversion._write_shard

    def stop_at_the_second(path, *rest):
        if "00002" in path.name:
            raise KeyboardInterrupt
        return write(path, *rest)

    for stop in (lambda: monkeypatch.setattr(conversion, "_write_shard", stop_at_the_second),
                 lambda: monkeypatch.setattr(conversion, "write_manifest", interrupted),
                 lambda: monkeypatch.setattr(conversion.Journal, "publish", interrupted)):
        stop()
        with pytest.raises(KeyboardInterrupt):
            exported(source, output, 100_000)
        monkeypatch.undo()
        assert not list(output.glob("*.safetensors"))
        with pytest.raises(UserError, match="is an unfinished conversion: give the same command once more, it goes on"):
            open_checkpoint(output)
    exported(source, output, 100_000)
    assert not (output / ".converting").exists()
    assert_same(parts_of(output), parts_of(source))


def interrupted(*_):
    raise KeyboardInterrupt


# The files


def test_safetensors_files_that_are_written_as_a_stream(tmp_path):
    """Numbers of more bytes first, each at a multiple of its size; blocks follow one another; empty tensors, too."""
    made = {"a": torch.arange(7, dtype=torch.int8), "b": torch.randn(3, 5).half(), "c": torch.randn(2, 2).double(),
            "none": torch.empty(0, 4), "one": torch.tensor(2.5).bfloat16(), "f8": torch.ones(3).to(torch.float8_e5m2)}
    planned = {name: Planned(tensor.dtype, tuple(tensor.shape), lambda tensor=tensor: map(Block, tensor.split(2))
                             if tensor.dim() and tensor.numel() else [Block(tensor)]) for name, tensor in made.items()}
    file = HashedFile(tmp_path / "file", "xxh3_128", lambda count: None)
    written = write_safetensors(file, planned)
    file.close()
    data = (tmp_path / "file").read_bytes()
    assert len(data) == planned_bytes(planned)
    (size,) = struct.unpack("<Q", data[:8])
    table = json.loads(data[8:8 + size])
    assert table.pop("__metadata__") == {"format": "pt"} and list(table) == list(made) and (8 + size) % 64 == 0
    for name, tensor in made.items():
        begin, end = (8 + size + place for place in table[name]["data_offsets"])
        assert begin % tensor.itemsize == 0
        found = torch.frombuffer(bytearray(data[begin:end]), dtype=tensor.dtype) if begin < end else tensor.flatten()
        assert torch.equal(found.view(tensor.shape).double(), tensor.double())
    assert [(region.name, region.start, region.bytes) for region in written.regions if region.bytes] == [
        (region.name, region.start, region.bytes) for region in read_safetensors(tmp_path / "file").regions
        if region.bytes]


def test_a_dtype_that_safetensors_cannot_hold(tmp_path, capsys):
    state = tiny_state() | {"more": torch.ones(2, dtype=torch.complex128)}
    write_checkpoint(tmp_path / "in", split_state(state, 1))
    TINY.save(tmp_path / "in" / "model_config.json")
    assert "more has the dtype complex128, which safetensors files cannot hold" in refused(
        capsys, "export-hf", tmp_path / "in", tmp_path / "out")


# Mistakes


def refused(capsys, *words):
    capsys.readouterr()
    assert glm(list(map(str, words))) == 2
    message = said(capsys.readouterr().err)
    assert message.startswith("error: ") and message.count("\n") == 1
    return message


def test_mistakes_in_the_folders(tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    source = checkpoint("glm", "hf_gpt2")
    assert "CHECKPOINT nowhere: no such folder" in refused(capsys, "export-hf", "nowhere", tmp_path / "out")
    assert "FOLDER nowhere: no such folder" in refused(capsys, "import-hf", "nowhere", tmp_path / "out")
    for command in ("export-hf", "import-hf"):
        assert f"OUT {tmp_path / 'full'} holds file already; name a folder that does not exist yet" in refused(
            capsys, command, source, tmp_path / "full")
    assert "is no checkpoint of Hugging Face's: it has a file for each tensor-parallel rank; tools/conv" in refused(
        capsys, "import-hf", checkpoint("glm", "megatron_chinese_MP2"), tmp_path / "out")
    assert "num_attention_heads not given" in refused(
        capsys, "export-hf", checkpoint("glm", "megatron_chinese_MP2"), tmp_path / "out")
    for named, message in (("nowhere", "--tokenizer-path nowhere: no such folder"),
                           (TOKENIZERS / "chatglm2", "tokenizer.model with num_image_tokens 0 has ids up to"),
                           (tmp_path / "full", "no vocabulary in")):
        assert message in refused(capsys, "export-hf", source, tmp_path / "out", "--tokenizer-path", named)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("family", "name", "fields", "message"), [
    ("glm", "hf_gpt2", {"layernorm_epsilon": 1e-6}, "layernorm_epsilon is 1e-06, but a config.json of the family glm"),
    ("chatglm", "hf_chatglm_untied", {"rotary_table": "exact"}, "rotary_table is 'exact', but a config.json of the"),
])
def test_a_model_that_no_config_json_of_its_family_describes(tmp_path, capsys, family, name, fields, message):
    run(checkpoint(family, name), tmp_path / "own", 1)
    file = tmp_path / "own" / "model_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    found = refused(capsys, "export-hf", tmp_path / "own", tmp_path / "out")
    assert message in found and "keep this model in the toolkit's own layout" in found


def test_a_config_json_of_ours_with_an_unknown_key(tmp_path, capsys):
    exported(tiny_checkpoint(tmp_path / "in", 1), tmp_path / "hf")
    file = tmp_path / "hf" / "config.json"
    file.write_text(json.dumps(config_of(tmp_path / "hf") | {"num_layer": 3}))
    assert "config.json: unknown key 'num_layer' (did you mean 'num_layers'?)" in refused(
        capsys, "import-hf", tmp_path / "hf", tmp_path / "out")
