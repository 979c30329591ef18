"""tools/convert_tp.py: golden's splits and quantised files, any degree to any other, quantised input cut and joined."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import glm
from glm.checkpoint import find_shards
from glm.config import ModelConfig
from kernels.packing import dequantize
from quantization.functional import quantize
from runtime.errors import UserError
from tests.golden_data import (
    SHAPE,
    TOKENIZER,
    digest,
    quantized_parts,
    split_digests,
    split_state,
    whole_state,
    write_checkpoint,
)
from tests.parallel_helper import run_ranks
from tests.tiny_checkpoints import DEGREES, LINEARS, TINY, assert_same, run, tensors_of, tiny_checkpoint, tiny_state
from tools.converting.convert import convert
from tools.converting.plan import Wish

# What the original computes


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    for degree in (1, 8):
        write_checkpoint(folder / f"tp{degree}", split_state(whole_state(), degree))
    return folder


@pytest.mark.parametrize(("source", "target"), [(1, 2), (1, 8), (8, 1), (8, 4), (8, 2), (8, 8)])
def test_golden_s_splits_tensor_for_tensor(golden, tmp_path, source, target):
    run(golden / f"tp{source}", tmp_path / "out", target)
    found = [{name: digest(tensor) for name, tensor in part.items()} for part in tensors_of(tmp_path / "out")]
    if target == 1:
        assert_same(tensors_of(tmp_path / "out"), [whole_state()])
    else:
        assert found == split_digests()[str(target)]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("source", [1, 8])
def test_golden_s_quantised_files_bit_for_bit(golden, tmp_path, source, bits):
    run(golden / f"tp{source}", tmp_path / "out", 2, bits=bits)
    assert_same(tensors_of(tmp_path / "out"), quantized_parts(bits))


# Any degree to any other


@settings(max_examples=12)
@given(st.lists(st.sampled_from(DEGREES), min_size=2, max_size=4), st.sampled_from((torch.float16, torch.bfloat16,
                                                                                   torch.float32)))
def test_any_way_through_the_degrees_is_what_splitting_gives(tmp_path_factory, degrees, dtype):
    """a -> b -> ... -> a is the identity, and so is every stop on the way."""
    folder = tmp_path_factory.mktemp("way")
    before = tiny_checkpoint(folder / "start", degrees[0], dtype=dtype)
    for number, degree in enumerate([*degrees[1:], degrees[0]]):
        run(before, folder / str(number), degree)
        before = folder / str(number)
        assert_same(tensors_of(before), split_state(tiny_state(dtype), degree))


def whole_weights(folder, degree):
    """Name -> the float32 weight of the whole model, of quantised shards."""
    found = {}
    parts = tensors_of(folder)
    assert len(parts) == degree
    for name in parts[0]:
        if name + "_scale" not in parts[0]:
            continue
        columns = TINY.hidden_size if "4h_to_h" not in name else TINY.inner_hidden_size
        columns //= degree if name.endswith(("attention.dense.weight", "4h_to_h.weight")) else 1
        bits = 8 * parts[0][name].shape[1] // columns
        pieces = [dequantize(part[name], part[name + "_scale"], bits, torch.float32) for part in parts]
        if name.endswith(("attention.dense.weight", "4h_to_h.weight")):
            found[name] = torch.cat(pieces, dim=1)
        elif "h_to_4h" in name:
            halves = [piece.chunk(2) for piece in pieces]
            found[name] = torch.cat([half[0] for half in halves] + [half[1] for half in halves])
        else:
            found[name] = torch.cat(pieces)
    return found


@settings(max_examples=12)
@given(st.sampled_from((8, 4)), st.sampled_from(DEGREES), st.sampled_from(DEGREES), st.sampled_from(DEGREES))
def test_quantised_weights_are_cut_and_joined_exactly(tmp_path_factory, bits, first, second, third):
    folder = tmp_path_factory.mktemp("quantised")
    tiny_checkpoint(folder / "a", first, bits=bits)
    expected = whole_weights(folder / "a", first)
    for before, after, degree in (("a", "b", second), ("b", "c", third)):
        run(folder / before, folder / after, degree)
        found = whole_weights(folder / after, degree)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("source", "target", "groups"), [(2, 1, 2), (6, 4, 3), (4, 6, 2), (1, 4, None), (12, 3, 4)])
def test_scales_of_row_parallel_shards_stand_side_by_side(tmp_path, source, target, groups):
    """6 -> 4: a rank's 6 columns come from scales of 4 columns; groups of 2 are the largest that no cut divides."""
    tiny_checkpoint(tmp_path / "in", source, bits=8)
    run(tmp_path / "in", tmp_path / "out", target)
    for part in tensors_of(tmp_path / "out"):
        prefix = "transformer.layers.0."
        hidden = TINY.hidden_size
        assert part[f"{prefix}mlp.dense_4h_to_h.weight_scale"].shape == ((hidden, groups) if groups else (hidden,))
        assert part[f"{prefix}attention.query_key_value.weight_scale"].shape == (3 * hidden // target,)


@pytest.mark.parametrize("bits", [8, 4])
def test_reshards_of_quantised_weights_are_the_identity(tmp_path, bits):
    """Scales that are the same again, after all cuts, stand for a whole row again."""
    tiny_checkpoint(tmp_path / "a", 4, bits=bits)
    for before, after, degree in (("a", "b", 6), ("b", "c", 12), ("c", "d", 4)):
        run(tmp_path / before, tmp_path / after, degree)
    assert_same(tensors_of(tmp_path / "d"), tensors_of(tmp_path / "a"))


@pytest.mark.parametrize(("bits", "target_bits"), [(8, None), (4, None), (8, 4)])
def test_requantize_makes_one_scale_a_row_again(tmp_path, bits, target_bits):
    tiny_checkpoint(tmp_path / "in", 4, bits=bits)
    run(tmp_path / "in", tmp_path / "out", 1, requantize=True, bits=target_bits)
    expected, found = whole_weights(tmp_path / "in", 4), whole_weights(tmp_path / "out", 1)
    (part,) = tensors_of(tmp_path / "out")
    for name, weight in expected.items():
        assert part[name + "_scale"].dim() == 1
        if target_bits is None and not name.endswith(("attention.dense.weight", "4h_to_h.weight")):
            assert torch.equal(found[name], weight), name  # had one scale a row all the time
        else:
            packed, scale = quantize(weight, target_bits or bits)
            assert torch.equal(part[name], packed) and torch.equal(part[name + "_scale"], scale), name


def test_groups_that_do_not_divide_the_columns(tmp_path):
    """GLM-130B's sizes have room for all three group sizes; golden's 176 / 1 columns have not."""
    write_checkpoint(tmp_path / "in", split_state(whole_state(), 2))
    with pytest.raises(UserError, match="size 32 does not divide the 176 columns of .*4h_to_h.weight on 1 rank; "
                                        "allowed there: no groups"):
        run(tmp_path / "in", tmp_path / "out", 1, bits=4, group_size=32)
    assert not (tmp_path / "out").exists()


def test_groups_of_columns(tmp_path):
    """Quantised in groups, cut between them and joined again."""
    state = tiny_state(config=ModelConfig(1, 128, 4, 256, 48, 8))
    write_checkpoint(tmp_path / "in", [state])
    config = {"num_attention_heads": 4}
    with pytest.raises(UserError, match="128 does not divide the 64 columns of .*.dense.weight on 2 ranks; allowed "
                                        "there: 64 or 32"):
        convert(tmp_path / "in", tmp_path / "out", Wish(2, 4, 128), config, None)
    for source, target, degree, scheme in (("in", "a", 2, (4, 32)), ("a", "b", 4, ()), ("b", "c", 1, ())):
        convert(tmp_path / source, tmp_path / target, Wish(degree, *scheme), config, None)
    (found,) = tensors_of(tmp_path / "c")
    for name in [name for name in state if name.endswith(tuple(f"{linear}.weight" for linear in LINEARS))]:
        packed, scale = quantize(state[name], 4, 32)
        assert torch.equal(found[name], packed) and torch.equal(found[name + "_scale"], scale), name


# What is converted loads and computes the same


def logits_of(folder, expected_degree=1):
    model, _ = glm.load(folder, tokenizer_path=TOKENIZER, **SHAPE)
    assert len(find_shards(folder)) == expected_degree
    tokens = torch.tensor([[20005, 20100, 23000, 20007, 21000]])
    blocked = torch.zeros(1, 5, 5, dtype=torch.bool)
    with torch.no_grad():
        return model.logits(tokens, torch.arange(5)[None], blocked)


@pytest.mark.parametrize("bits", [None, 8])
def test_what_is_converted_gives_the_same_logits(golden, tmp_path, bits):
    run(golden / "tp8", tmp_path / "two", 2, bits=bits)
    run(tmp_path / "two", tmp_path / "one", 1)
    reference = logits_of(golden / "tp1")
    if bits:
        write_checkpoint(tmp_path / "reference", quantized_parts(8))
        reference = run_ranks(logits_of, 2, tmp_path, tmp_path / "reference", 2)[0]
        (tmp_path / "rendezvous").unlink(missing_ok=True)
    two = run_ranks(logits_of, 2, tmp_path, tmp_path / "two", 2)
    tolerance = 1e-2 if bits else 1e-4  # packed weights meet x in whole numbers, of which a row's part has other ones
    assert torch.allclose(two[0], reference, atol=tolerance) and torch.equal(two[0], two[1])
    assert torch.allclose(logits_of(tmp_path / "one"), reference, atol=tolerance)


def test_configuration_and_vocabulary_come_along(tmp_path):
    tiny_checkpoint(tmp_path / "in", 2)
    (tmp_path / "in" / "ice_text.model").write_bytes(b"pieces")
    run(tmp_path / "in", tmp_path / "out", 3)
    assert ModelConfig.from_file(tmp_path / "out" / "model_config.json") == TINY
    assert (tmp_path / "out" / "ice_text.model").read_bytes() == b"pieces"
    assert (tmp_path / "out" / "latest").read_text() == "49300"


def test_a_configuration_that_was_said_is_written_down(tmp_path):
    tiny_checkpoint(tmp_path / "in", 2)
    (tmp_path / "in" / "model_config.json").unlink()
    flags = {"num_layers": 2, "hidden_size": 48, "num_attention_heads": 12, "inner_hidden_size": 24, "vocab_size": 48,
             "max_sequence_length": 8}
    convert(tmp_path / "in", tmp_path / "out", Wish(1), flags, None)
    assert ModelConfig.from_file(tmp_path / "out" / "model_config.json") == TINY


def test_flags_that_win_over_the_configuration_win_in_the_result_too(tmp_path):
    tiny_checkpoint(tmp_path / "in", 2)
    convert(tmp_path / "in", tmp_path / "out", Wish(4), {"num_attention_heads": 8, "max_sequence_length": 16}, None)
    said = TINY.override(num_attention_heads=8, max_sequence_length=16)
    assert ModelConfig.from_file(tmp_path / "out" / "model_config.json") == said


# Unknown tensors, other dtypes


def test_unknown_tensors_and_values_are_kept_and_reported(tmp_path, capsys):
    parts = split_state(tiny_state(), 2)
    for rank, part in enumerate(parts):
        part["other.table"] = torch.arange(6, dtype=torch.int64).view(2, 3).T
        part["other.count"] = torch.tensor(7)
        part["other.rank"] = torch.tensor([rank], dtype=torch.float64)
    write_checkpoint(tmp_path / "in", parts)
    for rank, path in enumerate(find_shards(tmp_path / "in")):
        torch.save({"module": parts[rank], "iteration": 49300, "optimizer": {"step": torch.ones(2)}}, path)
    convert(tmp_path / "in", tmp_path / "out", Wish(4), {"num_attention_heads": 12}, None)
    reported = capsys.readouterr().err
    assert "note: other.table, other.count, other.rank: not of a GLM; kept whole on every rank" in reported
    assert "warning: other.rank: not the same in all shards; the first shard's is taken" in reported
    for path in find_shards(tmp_path / "out"):
        content = torch.load(path, weights_only=True)
        assert torch.equal(content["module"]["other.table"], parts[0]["other.table"])
        assert content["module"]["other.count"].item() == 7 and content["module"]["other.rank"].item() == 0
        assert content["iteration"] == 49300 and torch.equal(content["optimizer"]["step"], torch.ones(2))


def test_files_in_torch_s_old_format_are_read(tmp_path):
    tiny_checkpoint(tmp_path / "in", 2)
    for path in find_shards(tmp_path / "in"):
        torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)
    run(tmp_path / "in", tmp_path / "out", 1)
    assert_same(tensors_of(tmp_path / "out"), [tiny_state()])
