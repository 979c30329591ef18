"""A checkpoint runs on any number of ranks that divides its model, whatever number of files it has."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import glm
from glm import spec
from glm.checkpoint import find_shards, shard_name
from glm.config import ModelConfig
from glm.loading import load_model
from glm.options import ModelOptions
from glm.resplit import resplit
from glm.shard import read_shard
from glm.weights import convert_shard, quantization_schemes
from runtime import parallel
from runtime.errors import UserError
from tests.golden_data import SHAPE, TOKENIZER, split_state, whole_state, write_checkpoint
from tests.parallel_helper import run_ranks
from tests.test_weights import peak_bytes
from tests.tiny_checkpoints import DEGREES, TINY, quantized, run, tensors_of, tiny_checkpoint, tiny_state

CONFIG = ModelConfig(**SHAPE)
CONFIG_TEXT = json.dumps(SHAPE)
CPU = torch.device("cpu")
LARGE = ModelConfig(num_layers=6, hidden_size=1024, num_attention_heads=8, inner_hidden_size=2048, vocab_size=512,
                    max_sequence_length=8)


def parts_of(folder):
    return [read_shard(path) for path in find_shards(folder)]


@given(files=st.sampled_from(DEGREES), degree=st.sampled_from(DEGREES))
def test_every_part_of_every_split(tmp_path_factory, files, degree):
    folder = tiny_checkpoint(tmp_path_factory.mktemp("tiny"), files)
    shards = parts_of(folder)
    for rank, wanted in enumerate(split_state(tiny_state(), degree)):
        part = resplit(shards, TINY, degree, rank)
        assert set(part.tensors) == set(wanted) == set(spec.expected(TINY, degree))
        for name, tensor in wanted.items():
            assert torch.equal(part.tensors[name], tensor), name
            assert part.tensors[name].shape == spec.expected(TINY, degree)[name].shape


@given(files=st.sampled_from(DEGREES), degree=st.sampled_from(DEGREES), bits=st.sampled_from((8, 4)))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_quantised_weights_are_cut_and_joined_as_the_converter_does(tmp_path_factory, files, degree, bits):
    folder = tmp_path_factory.mktemp("tiny")
    shards = parts_of(tiny_checkpoint(folder / "in", files, bits))
    run(folder / "in", folder / "out", degree)
    schemes = quantization_schemes(shards[0].tensors, spec.expected(TINY, files))
    for rank, wanted in enumerate(tensors_of(folder / "out")):
        part = resplit(shards, TINY, degree, rank, schemes)
        assert set(part.tensors) == set(wanted)
        for name, tensor in wanted.items():
            assert torch.equal(part.tensors[name], tensor) and part.tensors[name].dtype is tensor.dtype, name


def test_no_byte_of_two_columns_is_cut(tmp_path):
    odd = TINY.override(num_attention_heads=4, inner_hidden_size=12)
    folder = write_checkpoint(tmp_path / "one", quantized([tiny_state(config=odd)], 4))
    (tmp_path / "meeting").mkdir()
    for message in run_ranks(_refused, 4, tmp_path / "meeting", folder, odd):
        assert "transformer.layers.0.mlp.dense_4h_to_h.weight has 3 columns on each of 4" in message
        assert "would cut a byte of two 4-bit weights in two; start 1" in message


def _refused(folder, config):
    parallel.start(4)
    with pytest.raises(UserError) as caught:
        load_model(ModelOptions(folder, device=CPU, dtype=torch.float32), config)
    return str(caught.value)


def _loaded(folder, degree, dtype, bits):
    parallel.start(degree)
    model = load_model(ModelOptions(folder, bits=bits, device=CPU, dtype=dtype), CONFIG)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, len(model.mapped_files)


@pytest.mark.parametrize("files, degree, dtype, bits", [
    (1, 2, torch.float16, None), (4, 2, torch.float16, None), (2, 4, torch.float32, None), (4, 2, torch.float32, 8),
    (1, 2, torch.bfloat16, 4)])
def test_it_is_as_if_converted_first(tmp_path, files, degree, dtype, bits):
    found = {}
    for count in (files, degree):
        folder = write_checkpoint(tmp_path / f"split-{count}", split_state(whole_state(), count))
        (tmp_path / f"meeting-{count}").mkdir()
        found[count] = run_ranks(_loaded, degree, tmp_path / f"meeting-{count}", folder, degree, dtype, bits)
    for (ours, mapped), (converted, _) in zip(found[files], found[degree], strict=True):
        assert ours.keys() == converted.keys()
        assert all(torch.equal(ours[name], converted[name]) for name in converted)
        assert mapped in (0, files)


def test_all_files_on_one_rank(tmp_path):
    folder = write_checkpoint(tmp_path / "eight", split_state(whole_state(), 8))
    (tmp_path / "eight" / "model_config.json").write_text(CONFIG_TEXT)
    shutil.copy(TOKENIZER / "ice_text.model", folder)
    model, _ = glm.load(folder, dtype="float16")
    assert all(torch.equal(tensor, whole_state()[name]) for name, tensor in model.state_dict().items())


def test_rows_of_a_single_file_stay_in_it(tmp_path):
    folder = write_checkpoint(tmp_path / "one", [whole_state()])
    (tmp_path / "meeting").mkdir()
    found = run_ranks(_loaded, 2, tmp_path / "meeting", folder, 2, torch.float16, None)
    assert [mapped for _, mapped in found] == [1, 1]
    part = resplit(parts_of(folder), CONFIG, 2, 1)
    (rows,) = part.slices(f"{spec.in_layer(0, spec.LINEARS[0])}.weight")
    assert rows.is_contiguous() and rows._base is not None


def test_streamed_layers_need_a_file_a_rank(tmp_path):
    folder = write_checkpoint(tmp_path / "two", split_state(whole_state(), 2))
    if not parallel.is_started():
        parallel.start()
    with pytest.raises(UserError) as caught:
        load_model(ModelOptions(folder, offload_memory_limit=0.01, device=CPU, dtype=torch.float32), CONFIG)
    message = str(caught.value)
    assert message.startswith(f"{folder} is split for 2 tensor-parallel ranks, but 1 is running, and layers are read "
                              "from one file a rank")
    assert "--target-tp 1" in message and "\n" not in message


def test_a_fault_in_any_of_the_files_is_named(tmp_path):
    parts = split_state(whole_state(), 2)
    name = f"{spec.in_layer(1, spec.LINEARS[1])}.weight"
    parts[1][name] = parts[1][name][:, :-1].clone()
    folder = write_checkpoint(tmp_path / "two", parts)
    if not parallel.is_started():
        parallel.start()
    with pytest.raises(UserError, match=rf"{shard_name(1)}: {name} has the shape"):
        load_model(ModelOptions(folder, device=CPU, dtype=torch.float32), CONFIG)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak memory from Linux's /proc")
@pytest.mark.parametrize("files, degree", [(2, 1), (1, 2)])
def test_a_rank_takes_memory_for_its_own_part_only(tmp_path, files, degree):
    (tmp_path / "meeting").mkdir()
    size, peak = run_ranks(_grown, degree, tmp_path / "meeting", tmp_path / "large", files, degree)[0]
    assert size > 100 * 2**20 / degree and peak < 1.4 * size


def _grown(folder, files, degree):
    """Bytes of this rank's part, and how much memory, with the pages of mapped files, grew while it was read."""
    parallel.start(degree)
    if parallel.rank() == 0:
        shapes = spec.expected(LARGE, files)
        write_checkpoint(folder, [{name: torch.ones(part.shape, dtype=torch.float16) for name, part in shapes.items()}
                                  for _ in range(files)])
    torch.distributed.barrier()
    shard = resplit(parts_of(folder), LARGE, degree, parallel.rank())
    expected = spec.expected(LARGE, degree)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    kept = convert_shard(shard, expected, torch.bfloat16, CPU, {})
    return sum(tensor.nbytes for tensor in kept.values()), peak_bytes() - before
