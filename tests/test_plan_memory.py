"""planning.memory and planning.shapes: bytes beside those of real models; planning.check."""

import re
import sys
from dataclasses import replace

import pytest
import torch

from commands.doctor import make_parser as doctor_parser
from commands.evaluate import parser as evaluation_parser
from commands.generate import parser as generation_parser
from commands.plan import main as plan_main
from evaluation.requests import shape_of
from glm.config import ModelConfig
from glm.linear import pack_linears
from glm.loading import DTYPES
from glm.model import GLM
from glm.spec import LINEARS
from planning import memory
from planning.check import Room, Use, check_divisible, fits, message, remedies, shortage
from planning.devices import known
from planning.shapes import Format, Setup, weights
from quantization.functional import Scheme
from runtime.errors import UserError
from tools import check_cost
from tools.check_plan import format_of, output_of, pair

TINY = ModelConfig(num_layers=3, hidden_size=64, num_attention_heads=4, inner_hidden_size=96, vocab_size=200,
                   max_sequence_length=128)
LARGE = ModelConfig.from_name("glm-130b")
GB = 1e9


def bytes_of(model):
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("bits, group_size", [(None, None), (8, None), (4, None), (4, 32), (8, 32)])
def test_weights_are_those_of_the_model(precision, bits, group_size):
    model = GLM(TINY, dtype=DTYPES[precision], device="meta")
    names = [f"transformer.layers.{i}.{name}.weight" for i in range(TINY.num_layers) for name in LINEARS]
    pack_linears(model, dict.fromkeys(names, Scheme(bits, group_size)) if bits else {})
    setup = Setup(TINY, Format(precision, bits, group_size))
    assert memory.plan(setup).weights == bytes_of(model)


def test_the_order_of_the_weights_is_that_in_which_they_are_loaded():
    counts = [tensor.numel() for tensor in GLM(TINY, device="meta").state_dict().values()]
    assert [weight.count for weight in weights(Setup(TINY, Format("fp32")))] == counts


def test_the_cache_is_that_of_the_model():
    model = GLM(TINY, dtype=torch.bfloat16)
    cache = model.new_cache(3, 50)
    setup = Setup(TINY, Format("bf16"), rows=3, read_rows=3, context=20, new_tokens=30)
    size = sum(part.nbytes for part in (*cache.keys, *cache.values))
    assert memory.cache_bytes(setup) == size
    assert memory.cache_bytes(replace(setup, read_rows=1)) == size  # beams are made in rows of their own


def test_ranks_divide_what_they_can():
    whole, part = (memory.plan(Setup(LARGE, Format("fp16"), "cuda", degree, context=1, new_tokens=2047))
                   for degree in (1, 8))
    assert part.cache * 8 == whole.cache
    assert part.weights * 8 - whole.weights < 0.001 * whole.weights  # norms and some biases are everywhere
    assert round(part.weights / GB, 1) == 32.2


def test_a_file_of_the_same_precision_is_mapped_and_another_is_converted():
    """What is converted lies in memory beside the tensor of the file that is being read."""
    setup = Setup(TINY, Format("bf16"), file=Format("bf16"))
    total = memory.plan(setup).weights
    assert memory.plan(setup).mapped == total == memory.loading_peak(setup)
    converted = Setup(TINY, Format("fp32"), file=Format("bf16"))
    assert memory.plan(converted).mapped == 0
    largest = max(2 * weight.count for weight in weights(converted))
    assert memory.plan(converted).weights < memory.loading_peak(converted) <= memory.plan(converted).weights + largest
    unmapped = Setup(TINY, Format("bf16"), file=Format("bf16"), mapped=False)
    assert memory.loading_peak(unmapped) == 2 * total  # a file of torch before 1.6 is read whole


def test_packed_weights_of_a_file_stay_in_it_whatever_the_precision():
    setup = Setup(TINY, Format("fp32", 8), file=Format("fp16", 8))
    packed = sum(setup.run.bytes(weight) for weight in weights(setup) if weight.packs)
    assert memory.plan(setup).mapped == packed


def test_offloading_holds_no_more_than_the_limit_and_streams_the_rest():
    setup = Setup(LARGE, Format("fp16"), "cuda", 8, offload_limit=20 * GB)
    held, streamed, buffers = memory.on_device(setup)
    assert held + buffers <= 20 * GB < held + buffers + buffers / 2
    assert held + streamed == memory.plan(Setup(LARGE, Format("fp16"), "cuda", 8)).weights
    assert memory.on_device(Setup(LARGE, Format("fp16"), "cuda", 8, offload_limit=40 * GB))[1:] == (0, 0)


def test_activations_grow_with_the_tokens_of_a_pass_and_expanded_weights_with_none():
    small, large = (memory.plan(Setup(LARGE, Format("fp16", 4), "cuda", 8, context=context, new_tokens=1))
                    for context in (512, 2048))
    assert large.activations > 3 * small.activations
    assert small.workspace == large.workspace == 2 * (65536 + 32768) * 12288 // 8  # two at a time
    few = Setup(LARGE, Format("fp16", 4), "cuda", 8, context=32, new_tokens=1)
    assert memory.plan(few).workspace == 0
    assert memory.plan(replace(few, simple_gpu=True)).workspace == small.workspace
    assert memory.plan(replace(few, simple_gpu=True, context=16)).workspace == 0
    assert [name for name, device in known().items() if device.is_simple_gpu] == ["v100-16g", "v100-32g", "t4",
                                                                                  "rtx-2080ti"]


def room(host=1000 * GB, addresses=1000 * GB, data=1000 * GB, device=None, ranks=1):
    return Room(host, addresses, data, device, "GPU 0", ranks)


def ways(setup, use, where, checkpoint=None):
    return remedies(setup, use, lambda tried: fits(tried, where), checkpoint, where.device is not None)


def test_what_fits_is_not_refused():
    setup = Setup(LARGE, Format("fp16"), "cuda", 8)
    assert shortage(setup, room(device=33 * GB)) is None
    assert shortage(setup, room(device=31 * GB)).needed == pytest.approx(32.4 * GB, rel=0.01)


def test_what_lies_in_the_mapped_file_is_nobodys_own_but_read_in_every_pass():
    config = ModelConfig.from_name("glm-1.3b")
    mapped = Setup(config, Format("bf16"), file=Format("bf16"))
    assert shortage(mapped, room(host=3 * GB)) is None and shortage(mapped, room(host=3 * GB, ranks=2)) is None
    assert shortage(mapped, room(host=1 * GB)).parts["weights that stay in the file"] > 2.5 * GB
    assert shortage(replace(mapped, offload_limit=0.5 * GB), room(host=1 * GB)) is None
    assert shortage(mapped, room(addresses=2 * GB)).where == "the limit on this process's address space"
    assert shortage(mapped, room(data=1 * GB)) is None
    assert shortage(mapped, room(data=0.1 * GB)).where == "the limit on this process's data"
    assert shortage(Setup(config, Format("fp32"), file=Format("bf16")), room(host=1 * GB)).where == "this machine"


def test_processes_of_a_host_share_its_memory():
    setup = Setup(LARGE, Format("fp32"), degree=8, file=Format("fp16"))
    assert shortage(setup, room(host=70 * GB)) is None
    assert shortage(setup, room(host=70 * GB, ranks=8)).needed > 500 * GB


def test_each_flag_that_is_named_makes_it_fit():
    setup = Setup(LARGE, Format("fp16"), "cuda", 4, context=1, new_tokens=2047)
    use = Use((10,))
    found = ways(setup, use, room(device=42 * GB), "glm")
    assert found[0] == "--quantization-bit-width 8" and found[1] == "--quantization-bit-width 4"
    limit = float(found[2].removeprefix("--offload-memory-limit "))
    assert 38 < limit < 40  # whole layers of it are used
    assert found[3] == "--model-parallel-size 8 with 8 GPUs"
    packed = Setup(LARGE, Format("fp16", 8), "cuda", 4, file=Format("fp16", 8), context=1, new_tokens=2047)
    assert ways(packed, use, room(device=25 * GB), "glm")[-1] == "--model-parallel-size 8 with 8 GPUs"
    limited = Setup(LARGE, Format("fp16"), "cuda", 4, context=1024, new_tokens=1024, offload_limit=limit * GB)
    assert memory.plan(limited).device <= 42 * GB


def test_shorter_and_fewer_sequences_are_named_where_the_cache_is_what_does_not_fit():
    setup = Setup(LARGE, Format("fp16", 8), "cuda", 8, context=1, new_tokens=2047, rows=64, read_rows=16,
                  file=Format("fp16", 8))
    found = ways(setup, Use((10,) * 16, beams=4), room(device=24 * GB))
    assert found[0] == "--batch-size 1"
    assert found[1].startswith("--out-seq-length ")
    longest = int(found[1].split()[1])
    for places, is_short_enough in ((longest, True), (longest + 64, False)):
        tried = replace(setup, new_tokens=places - 1)
        assert fits(tried, room(device=24 * GB)) == is_short_enough


@pytest.mark.parametrize("parser, use, rows", [
    (generation_parser(), Use((10,) * 16, beams=4), 64), (generation_parser(), Use((10,), max_gen_length=2000), 1),
    (evaluation_parser(), Use(), 1), (doctor_parser(), Use(), 1),
])
def test_every_flag_that_is_named_is_one_of_the_command_s(parser, use, rows):
    run = Setup(LARGE, Format("fp32"), "cuda", 4, context=1, new_tokens=2047 if use.sizes else 0, rows=rows,
                read_rows=max(1, rows // 4), file=Format("fp16"))
    seen = set()
    for size in (20, 40, 80, 100, 110, 150):
        for way in ways(run, use, room(device=size * GB), "glm"):
            flags = way.partition(" with ")[0].split()
            seen.add(flags[0])
            assert not parser.parse_known_args(flags)[1], way
    assert {"--bf16", "--model-parallel-size"} <= seen and ("--batch-size" in seen) == (rows > 1)


@pytest.mark.parametrize("words", [
    "--fp16 --device v100-32g --model-parallel-size 8 --context 1024",
    "--fp16 --device a100-40g --model-parallel-size 8 --batch-size 4 --num-beams 8",
    "--fp32 --device a100-40g --model-parallel-size 8", "--fp16 --device rtx-3090 --context 64",
])
def test_whatever_plan_recommends_it_takes_and_it_then_fits(capsys, words):
    words = ["--model", "glm-130b", *words.split()]
    assert plan_main(words) == 2
    ways = re.findall(r"^  would fit with (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert ways
    for way in ways:
        replaced = [word for word in words if word != "--fp32"] if "--bf16" in way else words
        assert plan_main([*replaced, *way.split()]) == 0, way


def test_two_flags_are_named_where_one_does_not_suffice():
    setup = Setup(LARGE, Format("fp16"), "cuda", 1, context=1, new_tokens=2047, rows=8, read_rows=2)
    use = Use((10, 10), beams=4)
    found = ways(setup, use, room(device=50 * GB))  # 56 GB of keys and values alone
    assert found and all(way.count("--") == 2 for way in found)
    assert not [way for way in found if "quantization" in way and "offload" in way]  # not of an unquantised file
    assert ways(setup, use, room(device=2 * GB)) == []


def test_the_message_says_what_is_needed_what_there_is_and_what_mends_it():
    setup = Setup(LARGE, Format("fp16"), "cuda", 8)
    text = message("this run", shortage(setup, room(device=16 * GB)), ["--quantization-bit-width 4"])
    assert text.startswith("this run needs 32.43 GB at least (weights 32.18, CUDA 0.25), but GPU 0 has 16.00 GB free; "
                           "any of these makes it fit: --quantization-bit-width 4.")
    assert "no flag makes it fit here" in message("this run", shortage(setup, room(device=1 * GB)), [])


def test_a_prompt_counts_where_it_certainly_is_answered():
    assert Use((5, 10, 500)).prompts(TINY) == 2
    assert Use((5, 10, 500)).places(TINY) == TINY.max_sequence_length
    assert Use((5,), out_seq_length=32).places(TINY) == 32
    assert Use((5,), max_gen_length=10).places(TINY) == 11
    assert Use((5,) * 9, batch_size=4).at_once(TINY, 100) == 4
    assert Use((5,) * 9, bounds=lambda size, beams: (6, 500)).at_once(TINY, 100) == 3
    assert Use((5,) * 9, bounds=lambda size, beams: (6, 500), max_gen_length=4).at_once(TINY, 100) == 1
    assert Use().places(TINY) == 0


def test_ranks_that_do_not_divide_the_model_are_a_mistake():
    with pytest.raises(UserError, match="num_attention_heads 4 cannot be divided among 3"):
        check_divisible(TINY, 3)


# tools/check_plan.py and its likes


def test_comparisons_name_a_wrong_precision_and_take_the_others():
    assert format_of("bf16") == Format("bf16") and format_of("fp32,4") == Format("fp32", 4)
    for word in ("int3", "bf16,3", "8"):
        with pytest.raises(UserError, match=f"--precisions {word}: must be one of fp32, bf16, fp16, alone"):
            format_of(word)


def test_comparisons_of_ranks_begin_with_what_none_can_share(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["check_cost.py", "--models", "shape-335m", "glm-small", "--ranks", "2", "4"])
    monkeypatch.setattr(check_cost, "child", lambda *_: pytest.fail("a case has begun"))
    with pytest.raises(UserError, match="num_attention_heads 6 cannot be divided among 4"):
        check_cost.main()


def test_comparisons_pass_on_what_ended_a_process(capsys):
    assert output_of(["-c", "print(3)"]) == "3\n"
    with pytest.raises(SystemExit, match="2"):
        output_of(["-c", "import sys; sys.exit(print('error: why', file=sys.stderr) or 2)"])
    assert capsys.readouterr().err == "error: why\n"
    assert pair(11, 10) == "11 / 10 (+10%)"


def test_rows_whose_scoring_is_timed_are_as_many_as_the_table_says():
    assert [shape_of(check_cost.requests_of(*case)) for case in check_cost.SCORING] == list(check_cost.SCORING)
