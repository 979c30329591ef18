"""tools/convert_tp.py on every layout and family: published folders, Megatron's parts, any degree and back."""

import json
import shutil

import pytest
import torch

import glm
from commands.convert import main, verify
from glm.checkpoint import open_checkpoint, read_config
from glm.families import FAMILIES
from glm.shard import MappedTensors
from glm.spec import allowed_degrees
from glm.weights import read_checked
from quantization.functional import quantize
from tests.faults import said
from tests.golden_family import KIT, checkpoint, load
from tests.tiny_checkpoints import assert_same, run, tiny_checkpoint
from tools.converting.convert import convert
from tools.converting.plan import Wish
from tools.converting.source import open_source

PUBLISHED = sorted(KIT.glob("*/checkpoints/hf_*"), key=str)
MEGATRON = sorted(KIT.glob("glm/checkpoints/megatron_chinese*"), key=str)
HEADS = {"num_attention_heads": 4}  # of Megatron's files, which do not say it
IDS = [[3, 5, 8, 2, 13]]


def parts_of(folder):
    """Name -> tensor of each part, by the names of the files."""
    return [MappedTensors(part) for part in open_checkpoint(folder).index.parts]


def own_tensors(folder):
    """The same by the toolkit's names."""
    checkpoint, own_name = open_checkpoint(folder), FAMILIES[read_config(folder).family].own_name
    return [{own_name(name): tensor for name, tensor in MappedTensors(part).items()}
            for part in checkpoint.index.parts]


def logits(folder, **fields):
    model, tokens = load(folder, **fields), torch.tensor(IDS)
    s = tokens.shape[1]
    positions = torch.arange(s).expand(1, s)
    if model.config.position_encoding_2d:
        positions = torch.stack((positions, torch.zeros_like(positions)), dim=1)
    return model.logits(tokens, positions, torch.ones(s, s).triu(1).bool().expand(1, s, s))


def most(folder):
    """The largest degree that divides a model, and leaves no byte of two weights cut."""
    config = read_config(folder)
    bits = open_source(folder, vars(config)).bits
    return allowed_degrees(config)[-1] if bits != 4 else 2


def name_of(folder):
    return folder.name


# Published folders


@pytest.mark.parametrize("source", PUBLISHED, ids=name_of)
def test_a_published_folder_in_the_toolkit_s_own_layout(source, tmp_path):
    run(source, tmp_path / "out", 1)
    assert_same(parts_of(tmp_path / "out"), own_tensors(source))
    assert read_config(tmp_path / "out") == read_config(source)
    assert torch.equal(logits(tmp_path / "out"), logits(source))
    assert verify([str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("source", PUBLISHED, ids=name_of)
def test_to_the_largest_degree_and_back(source, tmp_path):
    """Divided as the load divides them; together again they are what they were."""
    degree, config = most(source), read_config(source)
    run(source, tmp_path / "divided", degree)
    assert len(read_checked(open_checkpoint(tmp_path / "divided"), config, range(degree))) == degree
    assert torch.equal(logits(tmp_path / "divided"), logits(source))
    run(tmp_path / "divided", tmp_path / "whole", 1)
    assert_same(parts_of(tmp_path / "whole"), own_tensors(source))


def test_keys_that_more_ranks_than_groups_share(tmp_path):
    """ChatGLM2's two groups on eight ranks: each holds a copy of its group's; four and two ranks make one of them."""
    source = checkpoint("chatglm2", "hf_chatglm2")
    for before, after, degree in ((source, "8", 8), (tmp_path / "8", "4", 4), (tmp_path / "4", "2", 2)):
        run(before, tmp_path / after, degree)
    run(source, tmp_path / "direct", 2)
    assert_same(parts_of(tmp_path / "2"), parts_of(tmp_path / "direct"))


@pytest.mark.parametrize(("bits", "group_size"), [(8, None), (4, None), (8, 32)])
def test_quantised_on_the_way(tmp_path, bits, group_size):
    """The linears of a layer, nothing else, as quantize does it."""
    source = checkpoint("chatglm", "hf_chatglm_untied")
    run(source, tmp_path / "out", 1, bits=bits, group_size=group_size)
    (found,), (whole,) = parts_of(tmp_path / "out"), own_tensors(source)
    quantised = {name.removesuffix("_scale") for name in found if name.endswith("_scale")}
    assert {name for name in found if found[name].dtype == torch.int8} == quantised
    assert len(quantised) == 4 * read_config(source).num_layers
    assert all(torch.equal(found[name], whole[name]) for name in whole if name not in quantised)
    for name in quantised:
        packed, scale = quantize(whole[name], bits, group_size)
        assert torch.equal(found[name], packed) and torch.equal(found[name + "_scale"], scale)


def test_tokenizer_and_configuration_come_along(tmp_path):
    """The result loads by its folder alone, with the tokenizer of the original."""
    source = tmp_path / "in"
    shutil.copytree(checkpoint("glm", "hf_gpt2"), source)
    if not (source / "vocab.json").exists():
        for name in ("added_tokens.json", "merges.txt", "tokenizer_config.json", "vocab.json"):
            shutil.copy(KIT / "tokenizers" / "gpt2" / name, source)
    run(source, tmp_path / "out", 3)
    text = "a [gMASK] of <|endoftext|>"
    one, other = (glm.load(folder)[1] for folder in (source, tmp_path / "out"))
    assert type(one) is type(other) and one.encode(text) == other.encode(text)
    assert open_checkpoint(tmp_path / "out").kind == "sat"


# Megatron's layout


@pytest.mark.parametrize("source", MEGATRON, ids=name_of)
@pytest.mark.parametrize("target", MEGATRON, ids=name_of)
def test_megatron_s_parts_are_those_of_the_original_s_script(source, target, tmp_path):
    degree = open_checkpoint(target).parts
    argv = ["--input-folder", str(source), "--output-folder", str(tmp_path / "out"), "--target-tp", str(degree),
            "--format", "megatron", "--num-attention-heads", "4"]
    assert main(argv) == 0
    assert_same(parts_of(tmp_path / "out"), parts_of(target))
    assert open_checkpoint(tmp_path / "out").kind == "megatron"
    assert (tmp_path / "out" / "latest_checkpointed_iteration.txt").read_text() == "12000"
    for path in open_checkpoint(tmp_path / "out").paths:
        content = torch.load(path, weights_only=True)
        assert content["mp_world_size"] == degree and content["iteration"] == 12000


def test_the_original_s_parts_joined_and_cut_again(tmp_path):
    source = checkpoint("glm", "megatron_chinese_MP2")
    for before, after, degree in ((source, "1", 1), (tmp_path / "1", "4", 4), (tmp_path / "4", "2", 2)):
        convert(before, tmp_path / after, Wish(degree, format="megatron"), HEADS, None)
    assert_same(parts_of(tmp_path / "2"), parts_of(source))


def test_megatron_s_parts_in_the_toolkit_s_layout_and_back(tmp_path):
    """What the tensors cannot say stands in model_config.json from then on."""
    source = checkpoint("glm", "megatron_chinese_MP2")
    convert(source, tmp_path / "own", Wish(4), HEADS, None)
    assert open_checkpoint(tmp_path / "own").kind == "sat"
    assert read_config(tmp_path / "own") == read_config(source, **HEADS)
    assert torch.equal(logits(tmp_path / "own"), logits(source, **HEADS))
    convert(tmp_path / "own", tmp_path / "back", Wish(2, format="megatron"), {}, None)
    assert_same(parts_of(tmp_path / "back"), parts_of(source))


def test_a_published_folder_as_megatron_s(tmp_path):
    """With its own GELU, which model_config.json says."""
    source = checkpoint("glm", "hf_gpt2")
    convert(source, tmp_path / "out", Wish(3, format="megatron"), {}, None)
    assert read_config(tmp_path / "out") == read_config(source)
    assert torch.equal(logits(tmp_path / "out"), logits(source))


# Interrupted, verified


def test_an_interrupted_conversion_of_a_published_folder_goes_on(tmp_path, monkeypatch, capsys):
    from tools.converting import convert as conversion

    source, output, write = checkpoint("glm", "hf_gpt2"), tmp_path / "out", conversion._write_shard

    def stop_at_the_second(path, *rest):
        if "01" in path.name:
            raise KeyboardInterrupt
        return write(path, *rest)

    argv = ["--input-folder", str(source), "--output-folder", str(output), "--target-tp", "3"]
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_write_shard", stop_at_the_second)
        assert main(argv) == 130
    assert "is an unfinished conversion" in verified(output, capsys)[1][0]
    assert main(argv) == 0 and "(1 of them finished before)" in capsys.readouterr().out
    run(source, tmp_path / "whole", 3)
    assert_same(parts_of(output), parts_of(tmp_path / "whole"))


def verified(folder, capsys):
    """(exit code, lines of the report)"""
    capsys.readouterr()
    return verify([str(folder)]), capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("source", [*PUBLISHED, *MEGATRON], ids=name_of)
def test_whole_folders_of_every_layout(source, capsys):
    code, (line,) = verified(source, capsys)
    assert code == 0 and ": whole: " in line


def test_published_folders_that_are_not_whole(tmp_path, capsys):
    def fresh():
        shutil.rmtree(tmp_path / "in", ignore_errors=True)
        return shutil.copytree(checkpoint("chatglm2", "hf_chatglm2"), tmp_path / "in")

    folder = fresh()
    shards = sorted(folder.glob("*.bin"))
    shards[1].unlink()
    assert verified(folder, capsys) == (1, ["pytorch_model-00002-of-00002.bin is missing"])
    (folder / "pytorch_model.bin.index.json").unlink()
    code, (line,) = verified(folder, capsys)
    assert code == 1 and "is a checkpoint of Hugging Face's (it holds config.json), but has none of" in line
    folder = fresh()
    data = shards[0].read_bytes()
    shards[0].write_bytes(data[:-1000])
    code, (line,) = verified(folder, capsys)
    assert code == 1 and shards[0].name in line and "truncated or damaged" in line
    folder, place = fresh(), len(data) // 2
    shards[0].write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1:])
    code, (line,) = verified(folder, capsys)
    assert code == 1 and line.startswith(f"{shards[0].name} is changed: transformer.")
    folder = fresh()
    index = folder / "pytorch_model.bin.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["transformer.rotary_pos_emb.inv_freq"]
    index.write_text(json.dumps(content))
    code, (line,) = verified(folder, capsys)
    assert code == 1 and "holds transformer.rotary_pos_emb.inv_freq, which the index does not place there" in line


def test_a_manifest_of_a_published_folder(tmp_path, capsys):
    folder = shutil.copytree(checkpoint("glm", "hf_gpt2"), tmp_path / "in")
    assert verify([str(folder), "--write-manifest"]) == 0
    assert verified(folder, capsys)[0] == 0
    config = folder / "config.json"
    config.write_text(config.read_text() + " ")
    (folder / "model.safetensors").write_bytes(b"")
    assert verified(folder, capsys) == (1, [
        f"config.json has {config.stat().st_size} bytes, 1 more than the {config.stat().st_size - 1} it had",
        "model.safetensors was added: it is not in the manifest"])


# Mistakes


def refused(capsys, source, output, *flags):
    capsys.readouterr()
    assert main(["--input-folder", str(source), "--output-folder", str(output), *map(str, flags)]) == 2
    assert not output.exists()
    return said(capsys.readouterr().err)


def test_degrees_that_do_not_divide(tmp_path, capsys):
    assert "--target-tp 4: num_attention_heads 3 cannot be divided among 4 ranks; allowed: 1, 3" in refused(
        capsys, checkpoint("glm", "hf_gpt2"), tmp_path / "out", "--target-tp", 4)


def test_megatron_s_layout_of_another_family(tmp_path, capsys):
    flags = ("--target-tp", 1, "--format", "megatron")
    assert "is a model of the family chatglm2; only models of the family glm have this layout; leave" in refused(
        capsys, checkpoint("chatglm2", "hf_chatglm2"), tmp_path / "out", *flags)
    assert "is a model of the family glm-130b; only" in refused(
        capsys, tiny_checkpoint(tmp_path / "in", 1), tmp_path / "out", *flags)


def test_heads_that_megatron_s_files_do_not_say(tmp_path, capsys):
    assert "num_attention_heads not given; add" in refused(
        capsys, checkpoint("glm", "megatron_chinese_MP2"), tmp_path / "out", "--target-tp", 1)


def test_parts_that_are_missing(tmp_path, capsys):
    folder = shutil.copytree(checkpoint("glm", "megatron_chinese_MP2"), tmp_path / "in")
    read_config(folder, **HEADS).save(folder / "model_config.json")
    (folder / "12000" / "mp_rank_01_model_states.pt").unlink()
    assert "missing shard" in (message := refused(capsys, folder, tmp_path / "out", "--target-tp", 1))
    assert "(2 belong together)" in message


def test_a_shape_that_the_tensors_contradict(tmp_path, capsys):
    assert "has the shape" in refused(capsys, checkpoint("glm", "hf_gpt2"), tmp_path / "out", "--target-tp", 1,
                                      "--hidden-size", 96)


def test_a_folder_of_another_model(tmp_path, capsys):
    folder = shutil.copytree(checkpoint("glm", "hf_gpt2"), tmp_path / "in")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert "model_type is 'llama'; served are glm, chatglm, glm-130b" in refused(
        capsys, folder, tmp_path / "out", "--target-tp", 1)
