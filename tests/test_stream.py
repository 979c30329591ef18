"""Streamed layers: bitwise the model that stays in memory, within the limit; what cannot be streamed is said."""

import os
import re

import pytest
import torch

import glm
import glm.stream
from generation.batch import generate
from generation.params import BeamParams, SamplingParams
from glm.checkpoint import find_shards
from glm.config import ModelConfig
from glm.loading import load_model
from glm.model import GLM
from glm.options import ModelOptions
from glm.shard import save_index
from glm.stream import choose
from runtime import parallel
from runtime.errors import UserError
from tests.golden_data import split_state, write_checkpoint
from tests.parallel_helper import run_ranks
from tests.test_imports import ROOT
from tests.tiny_checkpoints import quantized

CONFIG = ModelConfig(num_layers=7, hidden_size=64, num_attention_heads=4, inner_hidden_size=96, vocab_size=320,
                     max_sequence_length=64)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def checkpoint(folder, dtype=torch.bfloat16, bits=None, degree=1, group_size=None):
    torch.manual_seed(0)
    state = {name: tensor.to(dtype) for name, tensor in GLM(CONFIG, skip_init=False).state_dict().items()}
    parts = split_state(state, degree)
    write_checkpoint(folder, quantized(parts, bits, group_size) if bits else parts)
    save_index(folder, "49300", CONFIG)
    return folder


def load(folder, dtype=torch.bfloat16, limit=None, **options):
    if not parallel.is_started():
        parallel.start()
    return load_model(ModelOptions(folder, offload_memory_limit=limit, device=torch.device("cpu"), dtype=dtype,
                                   **options), CONFIG)


def least(folder, dtype=torch.bfloat16):
    """The least limit, as the message says it."""
    with pytest.raises(UserError) as caught:
        load(folder, dtype, 1e-6)
    return float(re.search(r"needs at least (\S+) GB", str(caught.value))[1])


def answers(model):
    """Logits, greedy and beam search, weights: everything that a model is asked for."""
    tokens = torch.arange(3, 15).view(2, 6)
    with torch.inference_mode():
        found = [model.logits(tokens, torch.arange(6).expand(2, 6)) for _ in range(2)]
    contexts = [list(range(5, 12)), [3, 4]]
    for params in (SamplingParams(top_k=1, min_gen_length=6), BeamParams(num_beams=3, min_gen_length=6)):
        found.append(generate(model, contexts, params, end_tokens=[1], limits=[6, 6]))
    return found


def assert_same(one, other):
    for mine, its in zip(one, other, strict=True):
        assert torch.equal(mine, its) if isinstance(mine, torch.Tensor) else mine == its


@pytest.mark.parametrize("in_file, dtype", [("fp32", "fp32"), ("bf16", "bf16"), ("fp16", "bf16"), ("fp32", "bf16"),
                                            ("fp16", "fp32")])
def test_bitwise_the_model_in_memory(tmp_path, in_file, dtype):
    """From the least limit to all that it needs, in the file's precision and in another one."""
    folder = checkpoint(tmp_path / "model", DTYPES[in_file])
    resident = load(folder, DTYPES[dtype])
    lowest, highest = least(folder, DTYPES[dtype]), resident.weight_bytes() / 1e9
    counts = []
    for share in (0.0, 0.4, 0.8, 1.01):
        limit = lowest + share * max(0.0, highest - lowest)
        streamed = load(folder, DTYPES[dtype], limit)
        assert streamed.weight_bytes() <= limit * 1e9
        assert_same(answers(streamed), answers(resident))
        counts.append(len(streamed.stream.order) if streamed.stream else 0)
    assert counts[0] == 7 and counts == sorted(counts, reverse=True) and counts[-1] == 0


@pytest.mark.parametrize("bits, group_size", [(8, None), (4, None), (4, 32)])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_packed_weights_stream_as_they_are(tmp_path, bits, group_size, dtype):
    folder = checkpoint(tmp_path / "model", DTYPES[dtype], bits, group_size=group_size)
    streamed = load(folder, DTYPES[dtype], least(folder, DTYPES[dtype]))
    assert len(streamed.stream.order) == 7
    assert_same(answers(streamed), answers(load(folder, DTYPES[dtype])))


def test_without_compiled_kernels(tmp_path, monkeypatch):
    monkeypatch.setattr("kernels.compiled", lambda: None)
    folder = checkpoint(tmp_path / "model")
    assert_same(answers(load(folder, limit=least(folder))), answers(load(folder)))


def on_each_rank(folder, limit):
    parallel.start(torch.distributed.get_world_size())
    streamed = load(folder, torch.float32, limit)
    assert_same(answers(streamed), answers(load(folder, torch.float32)))
    return len(streamed.stream.order)


@pytest.mark.parametrize("bits", [None, 4])
def test_each_rank_streams_its_own_shard(tmp_path, bits):
    folder = checkpoint(tmp_path / "model", torch.float32, bits, degree=2)
    (tmp_path / "meeting").mkdir()
    assert run_ranks(on_each_rank, 2, tmp_path / "meeting", str(folder), 0.00029 if bits is None else 0.00012) \
        == [6 if bits is None else 7] * 2


def test_weights_can_be_looked_at_one_by_one(tmp_path):
    """As the search for NaN does; outside their turn streamed layers hold nothing."""
    folder = checkpoint(tmp_path / "model")
    streamed, resident = load(folder, limit=least(folder)), load(folder)
    for (name, mine), (its_name, its) in zip(streamed.named_weights(), resident.named_weights(), strict=True):
        assert name == its_name and torch.equal(mine, its)
    assert {parameter.is_meta for parameter in streamed.transformer.layers.parameters()} == {True}


def test_a_pass_that_was_given_up_does_no_harm(tmp_path):
    folder = checkpoint(tmp_path / "model")
    streamed, expected = load(folder, limit=least(folder)), answers(load(folder))
    hooks = streamed.hooks["layer_forward"]

    def give_up(*arguments, layer_id, **options):
        if int(layer_id) == 3:
            raise KeyboardInterrupt
        return hooks(*arguments, layer_id=layer_id, **options)

    streamed.hooks["layer_forward"] = give_up
    with pytest.raises(KeyboardInterrupt):
        answers(streamed)
    streamed.hooks["layer_forward"] = hooks
    assert_same(answers(streamed), expected)


# which layers


def test_layers_that_stay_and_layers_that_come_alternate():
    assert choose([10] * 6, 5, 65) == ((0, 1, 2, 3, 4, 5), ())
    assert choose([10] * 6, 5, 64) == ((0, 2, 4), (1, 3, 5))
    assert choose([10] * 6, 5, 45) == ((1, 4), (0, 2, 3, 5))
    assert choose([10] * 6, 5, 25) == ((), (0, 1, 2, 3, 4, 5))
    assert choose([10, 9, 10], 5, 33).streamed == (0, 1, 2)  # a slot takes the largest
    assert choose([10] * 6, 5, 54, raw=10).streamed == (0, 1, 2, 3, 5)  # a place for what is to be converted


@pytest.mark.parametrize("count", [3, 4, 24, 70])
def test_memory_is_used_up_and_never_more(count):
    for limit in range(20, 10 * count):
        found = choose([10] * count, 0, limit)
        taken = 10 * (len(found.resident) + glm.stream.SLOTS)
        assert limit - 10 < taken <= limit and sorted(found.resident + found.streamed) == list(range(count))
        gaps = {after - before for before, after in zip(found.streamed, found.streamed[1:], strict=False)}
        assert found.streamed[-1] == count - 1 and len(gaps) <= 2 and max(gaps, default=0) - min(gaps, default=0) <= 1


def test_the_least_limit_is_said():
    with pytest.raises(UserError, match=r"--offload-memory-limit 2: this model needs at least 2.501 GB on each rank, "
                                        r"for the embedding and 2 of 6 layers; with 6.501 all layers fit"):
        choose([10 ** 9] * 6, 500_000_001, 2e9)


def test_bf16_is_named_where_a_run_in_it_would_fit(tmp_path):
    folder = checkpoint(tmp_path)
    needed = least(folder, torch.bfloat16)
    with pytest.raises(UserError, match=f"of {CONFIG.num_layers} layers, in --bf16 {needed:g}; with "):
        load(folder, torch.float32, needed)
    with pytest.raises(UserError, match=f"of {CONFIG.num_layers} layers; with "):
        load(folder, torch.float32, 0.99 * needed)
    assert load(folder, torch.bfloat16, needed).stream is not None


def test_the_embedded_model_runs_as_its_page_says():
    page = (ROOT / "docs" / "low-resource-inference.md").read_text(encoding="utf-8")
    dtype, limit = re.search(r'glm.load\(path, dtype="(\w+)", offload_memory_limit=(\S+)\)', page).groups()
    assert f"--bf16 --offload-memory-limit {limit} " in page
    model, _ = glm.load(ROOT / "checkpoints" / "glm-small", dtype=dtype, offload_memory_limit=float(limit))
    assert model.stream is not None


# what cannot be streamed


def test_a_plain_file_is_not_quantised_on_the_way(tmp_path):
    folder = checkpoint(tmp_path / "the model")
    with pytest.raises(UserError) as caught:
        load(folder, limit=0.0001, bits=4, group_size=32)
    assert str(caught.value).endswith(
        f"do it once: python tools/convert_tp.py --input-folder '{folder}' --output-folder '{folder}_int4' --target-tp "
        "1 --quantization-bit-width 4 --quantization-group-size 32")
    assert load(folder, limit=1, bits=4).stream is None  # where all fits nothing is in the way


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_files_of_the_old_format_stream_as_others_do(tmp_path, dtype):
    """Their tensors begin anywhere."""
    folder = checkpoint(tmp_path / "model")
    expected, shard = answers(load(folder, DTYPES[dtype])), find_shards(folder)[0]
    torch.save(torch.load(shard, weights_only=True), shard, _use_new_zipfile_serialization=False)
    streamed = load(folder, DTYPES[dtype], least(folder, DTYPES[dtype]))
    assert len(streamed.stream.order) == 7
    assert_same(answers(streamed), expected)


def test_a_tensor_that_is_not_in_one_piece_is_named(tmp_path):
    folder = checkpoint(tmp_path / "model")
    shard = find_shards(folder)[0]
    content = torch.load(shard, weights_only=True)
    name = "transformer.layers.2.attention.dense.weight"
    content["module"][name] = content["module"][name].t()
    torch.save(content, shard)
    with pytest.raises(UserError, match=f"{name} do not lie one after another"):
        load(folder, limit=0.0003)


# faults while the model runs


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("change", ["write", "truncate"])
def test_a_file_that_changes(tmp_path, change, dtype):
    folder = checkpoint(tmp_path / "model")
    streamed = load(folder, DTYPES[dtype], least(folder, DTYPES[dtype]))
    answers(streamed)
    shard = find_shards(folder)[0]
    with shard.open("r+b") as file:
        if change == "write":
            file.seek(5000)
            file.write(b"x")
        else:
            file.truncate(5000)
    for _ in range(2):  # it stays so
        with pytest.raises(UserError, match="was written to while it was in use") as caught:
            answers(streamed)
    assert str(shard) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_replaced_or_deleted_does_no_harm(tmp_path):
    folder = checkpoint(tmp_path / "model")
    streamed = load(folder, limit=least(folder))
    expected = answers(streamed)
    os.unlink(find_shards(folder)[0])
    assert_same(answers(streamed), expected)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_disk_that_fails_is_one_line_and_may_recover(tmp_path, monkeypatch, dtype):
    folder = checkpoint(tmp_path / "model")
    streamed, read = load(folder, DTYPES[dtype], least(folder, DTYPES[dtype])), os.preadv
    expected = answers(streamed)

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(UserError, match=r"cannot be read any more \(Input/output error\): look after its disk"):
        answers(streamed)
        answers(streamed)  # the first layers may have been read before
    monkeypatch.setattr(os, "preadv", read)
    assert_same(answers(streamed), expected)
