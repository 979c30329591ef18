"""glm.load: configuration, tokenizer and weights come together, or one line says why they do not."""

import json
import shlex
import shutil
import subprocess
import sys

import pytest
import torch

import glm
from glm.linear import quantization_of
from glm.loading import sharing
from glm.spec import LINEARS
from quantization.functional import quantize
from runtime.errors import UserError
from tests.golden_data import SHAPE, TOKENIZER, TP1, quantized_parts, split_state, whole_state, write_checkpoint
from tests.parallel_helper import run_ranks


@pytest.fixture
def checkpoint(tmp_path):
    """Golden's, with its shapes and its vocabulary beside it: nothing else need be said."""
    folder = shutil.copytree(TP1, tmp_path / "model")
    shutil.copy(TOKENIZER / "ice_text.model", folder)
    (folder / "model_config.json").write_text(json.dumps(SHAPE))
    return folder


def refused(*arguments, **keywords):
    with pytest.raises(UserError) as caught:
        glm.load(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_argument_that_there_is_not_is_no_fault_of_a_file(checkpoint):
    message = refused(checkpoint, quantization_bit_width=4)
    assert message.startswith("glm.load has no argument 'quantization_bit_width'; there are path, tokenizer_path, ")
    assert "bits, " in message and "hidden_size, " in message and "model_config.json" not in message
    assert "(in Python: offload_memory_limit)" in refused(checkpoint, offload_memory_limit=1e-6)


def test_a_folder_that_holds_everything(checkpoint):
    model, tokenizer = glm.load(checkpoint)
    assert model.config.num_layers == 4 and tokenizer.command("[gMASK]") == 23001
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    tokens = torch.tensor([tokenizer.encode("Hello")])
    positions = torch.arange(tokens.shape[1])[None]
    assert glm.load(str(checkpoint), "cpu", "bfloat16")[0].logits(tokens, positions).dtype is torch.float32


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("float16", torch.float16),
                                             (torch.float32, torch.float32)])
def test_every_parameter_has_the_dtype_asked_for(checkpoint, name, dtype):
    assert {parameter.dtype for parameter in glm.load(checkpoint, dtype=name)[0].parameters()} == {dtype}


def test_importing_the_package_imports_no_torch():
    code = "import sys, glm; assert callable(glm.load); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# configuration


def test_overrides_win_over_the_file(checkpoint):
    assert glm.load(checkpoint, max_sequence_length=100)[0].config.max_sequence_length == 100
    assert "num_layers 5" in refused(checkpoint, num_layers=5)


def test_a_preset_fills_in_and_is_overridden(checkpoint):
    (checkpoint / "model_config.json").unlink()
    shape = {name: value for name, value in SHAPE.items() if name != "rotary_table"}
    assert glm.load(checkpoint, model="glm-130b", **shape)[0].config.rotary_table == "half"
    assert "'glm-130b'" in refused(checkpoint, model="glm-130")


def test_missing_sizes_are_named(checkpoint):
    (checkpoint / "model_config.json").unlink()
    message = refused(checkpoint, num_layers=4, hidden_size=64)
    assert "num_attention_heads, inner_hidden_size, vocab_size, max_sequence_length not given" in message


def test_unknown_override_names_the_nearest(checkpoint):
    assert "did you mean 'num_layers'" in refused(checkpoint, num_layer=3)


@pytest.mark.parametrize("content", ["{", "[]", '{"num_layers": "4"}', '{"layers": 4}', "\xff"])
def test_faulty_configuration_file_is_named(checkpoint, content):
    (checkpoint / "model_config.json").write_text(content, encoding="latin-1")
    assert "model_config.json" in refused(checkpoint)


def test_folder_that_is_not_there(tmp_path):
    message = refused(tmp_path / "nowhere")
    assert f"no checkpoint folder {tmp_path / 'nowhere'};" in message and "--" not in message  # Python has no flags


# device, precision, quantisation


def test_device_and_dtype_are_checked(checkpoint):
    assert "unknown dtype 'float8'; allowed: float32" in refused(checkpoint, dtype="float8")
    assert "unknown dtype" in refused(checkpoint, dtype=torch.int8)
    assert "allowed: cpu, cuda" in refused(checkpoint, device="gpu")
    assert "device meta was asked for, but torch cannot use it" in refused(checkpoint, device="meta")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(checkpoint):
    assert "use --device cpu" in refused(checkpoint, device="cuda")


def test_number_of_bits_is_checked(checkpoint):
    assert "allowed: 4, 8" in refused(checkpoint, bits=5)
    assert "but no quantisation; say how many bits, too" in refused(checkpoint, group_size=32)
    assert "mlp.dense_4h_to_h.weight on 1 tensor-parallel rank: groups of 64 columns do not divide 176 columns" in \
        refused(checkpoint, bits=4, group_size=64)
    assert "is not quantised; leave --from-quantized-checkpoint away: it is quantised to 8 bits while loading" in \
        refused(checkpoint, bits=8, from_quantized=True)


@pytest.mark.parametrize("bits, group_size", [(8, None), (4, None), (4, 16)])
def test_linears_are_quantised_while_loading(checkpoint, bits, group_size):
    model, _ = glm.load(checkpoint, bits=bits, group_size=group_size)
    groups = f", groups of {group_size} columns" if group_size else ""
    assert quantization_of(model) == f"INT{bits}{groups}"
    model.transformer.layers[0].mlp.dense_4h_to_h.row_parts = 2
    assert quantization_of(sharing(model)) == quantization_of(model) == f"INT{bits}{groups}, rows in 2 parts"
    linear, plain = model.transformer.layers[1].mlp.dense_4h_to_h, glm.load(checkpoint)[0]
    weight, scale = quantize(whole_state()["transformer.layers.1.mlp.dense_4h_to_h.weight"], bits, group_size)
    assert torch.equal(linear.weight, weight) and torch.equal(linear.weight_scale, scale)
    tokens, positions = torch.arange(20005, 20013)[None], torch.arange(8)[None]
    expected, found = (each.logits(tokens, positions) for each in (plain, model))
    assert 0 < (found - expected).square().mean() < (0.01 if bits == 8 else 0.5) * expected.var()


def test_what_is_said_of_a_quantised_checkpoint_must_be_true(checkpoint, tmp_path):
    """Nothing need be said; right statements are accepted, wrong ones answered in one line."""
    name = "transformer.layers.{}.{}.weight"
    state = dict(whole_state())
    for weight in [name.format(layer, linear) for layer in range(4) for linear in LINEARS]:
        state[weight], state[weight + "_scale"] = quantize(state[weight], 8, 16)
    (checkpoint / "49300" / "mp_rank_00_model_states.pt").unlink()
    torch.save({"module": state}, checkpoint / "49300" / "mp_rank_00_model_states.pt")
    for said in ({}, {"bits": 8}, {"bits": 8, "group_size": 16}, {"from_quantized": True}):
        assert quantization_of(glm.load(checkpoint, **said)[0]) == "INT8, groups of 16 columns"
    assert "is quantised to 8 bits, but 4 were asked for" in refused(checkpoint, bits=4)
    assert "quantised by groups of 16 columns, but groups of 32 were asked for" in \
        refused(checkpoint, bits=8, group_size=32)


# vocabulary


def test_missing_vocabulary_says_where_to_put_it(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (checkpoint / "ice_text.model").unlink()
    assert "copy it beside the checkpoint or name it with --tokenizer-path" in refused(checkpoint)


def test_vocabulary_larger_than_the_model(checkpoint):
    assert "has ids up to 33343, the model's vocab_size is 23552" in refused(checkpoint, num_image_tokens=30000)


def test_forgotten_image_tokens(checkpoint):
    assert "num_image_tokens 20000; set it" in refused(checkpoint, num_image_tokens=0)


# tensor parallel


def test_wrong_number_of_shards_gives_the_command(tmp_path):
    path = write_checkpoint(tmp_path / "two", quantized_parts(8))
    message = refused(path, offload_memory_limit=0.01, tokenizer_path=TOKENIZER, **SHAPE)
    command = shlex.split(message[message.index("python tools/"):])
    assert command == ["python", "tools/convert_tp.py", "--input-folder", str(path),
                       "--output-folder", f"{path}_tp1", "--target-tp", "1"]


def test_missing_last_shard_is_not_taken_for_another_split(tmp_path):
    path = write_checkpoint(tmp_path / "four", split_state(whole_state(), 4)[:3])
    message = refused(path, tokenizer_path=TOKENIZER, **SHAPE)
    assert "missing shard" in message and "mp_rank_03" in message and "4 belong together" in message


def load_and_report(path, **options):
    """What this rank holds and may say; its error's message if it fails."""
    try:
        model, _ = glm.load(path, tokenizer_path=TOKENIZER, **SHAPE, **options)
    except UserError as error:
        return str(error)
    return tuple(model.transformer.word_embeddings.weight.shape)


def load_in_turn(path):
    return load_and_report(path, sequential=True)


@pytest.mark.parametrize("load", [load_and_report, load_in_turn])
def test_every_rank_has_its_part(tmp_path, load):
    path = write_checkpoint(tmp_path / "two", split_state(whole_state(), 2))
    assert run_ranks(load, 2, tmp_path, path) == [(11776, 64)] * 2


def test_more_ranks_than_shards_hold_whole_copies(tmp_path):
    assert run_ranks(load_and_report, 2, tmp_path, TP1) == [(23552, 64)] * 2


def test_more_shards_than_ranks(tmp_path):
    path = write_checkpoint(tmp_path / "four", split_state(whole_state(), 4))
    assert run_ranks(load_and_report, 2, tmp_path, path) == [(11776, 64)] * 2


@pytest.mark.parametrize("load", [load_and_report, load_in_turn])
def test_one_rank_that_fails_stops_all(tmp_path, load):
    path = write_checkpoint(tmp_path / "two", split_state(whole_state(), 2))
    broken = path / "49300" / "mp_rank_01_model_states.pt"
    broken.write_bytes(broken.read_bytes()[:-5000])
    first, second = run_ranks(load, 2, tmp_path, path)
    assert f"{broken} (" in second and "truncated or damaged" in second
    assert first == f"rank 1 failed: {second}"


def test_a_model_that_cannot_be_divided(tmp_path):
    for message in run_ranks(load_undivided, 2, tmp_path):
        assert message == "num_attention_heads 3 cannot be divided among 2 tensor-parallel ranks; allowed: 1"


def load_undivided():
    from glm.config import ModelConfig
    from glm.loading import load_model
    from glm.options import ModelOptions
    from runtime import parallel

    parallel.start(2)
    config = ModelConfig.from_values(SHAPE | {"num_attention_heads": 3, "hidden_size": 66})
    try:
        load_model(ModelOptions(TP1, device=torch.device("cpu"), dtype=torch.float32), config)
    except UserError as error:
        return str(error)
