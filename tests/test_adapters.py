"""LoRA and prefixes: their files, what they add, gradients through them, and who refuses them."""

import json

import numpy
import pytest
import torch

from glm.adapters import files, lora
from glm.adapters.files import PEFT_CONFIG, base_of, put_on, read_adapter, write_adapter, write_peft
from glm.adapters.prefix import Prefix, of_sat
from glm.config import ModelConfig
from glm.linear import Linear, linears
from glm.loading import load_without_tokenizer
from glm.model import GLM
from glm.options import ModelOptions
from glm.spec import Cut
from kernels import reference
from kernels.packing import dequantize
from quantization.functional import Scheme, quantize
from runtime import parallel
from runtime.errors import UserError
from tests.golden_data import GOLDEN, SHAPE, TP1
from tests.golden_finetune import KIT
from tests.parallel_helper import run_ranks
from tuning import api

LORA, PREFIX = KIT / "checkpoints" / "lora.pt", KIT / "checkpoints" / "prefix.pt"
EXPECTED = KIT / "expected" / "adapters" / "logits.npz"
CASES = ("mask_bidirectional", "gmask", "unidirectional")
FAMILIES = {"glm": {"gelu": "tanh"}, "chatglm": {"rotary_table": "half_inv_freq"}, "glm-130b": {},
            "chatglm2": {"position_encoding_2d": False, "num_key_value_groups": 2, "tie_word_embeddings": False}}


def inputs(case):
    with numpy.load(GOLDEN / "logits.npz") as arrays:
        return [arrays[f"{case}/{name}"] for name in ("tokens", "position_ids", "attention_mask")]


def assert_golden(found, kind, case):
    with numpy.load(EXPECTED) as arrays:
        part = {name: arrays[f"{kind}/{case}/{name}"] for name in ("topk_ids", "topk_logits", "logsumexp")}
    best = numpy.take_along_axis(found, part["topk_ids"].astype(int), -1)
    numpy.testing.assert_allclose(best, part["topk_logits"], atol=1e-3, rtol=0)
    numpy.testing.assert_allclose(torch.tensor(found).double().logsumexp(-1), part["logsumexp"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["lora", "lora_stacked", "prefix"])
def test_logits_of_sat(kind, case):
    adapter, layout = (PREFIX, "heads") if kind == "prefix" else (LORA, "stacked" if "stacked" in kind else "heads")
    assert_golden(api.logits(TP1, *inputs(case), adapter, 8, layout, SHAPE), kind, case)


def _logits_on_two_ranks(adapter):
    return api.logits(TP1, *inputs("gmask"), adapter, 8, "heads", SHAPE | {"degree": 2})


@pytest.mark.parametrize("adapter", [LORA, PREFIX])
def test_two_ranks_compute_the_same(adapter, tmp_path):
    for found in run_ranks(_logits_on_two_ranks, 2, tmp_path, adapter):
        assert_golden(found, adapter.stem, "gmask")


def tiny(family="chatglm", seed=0):
    if not parallel.is_started():
        parallel.start()
    config = ModelConfig(**dict(num_layers=2, hidden_size=32, num_attention_heads=4, inner_hidden_size=48,
                                vocab_size=60, max_sequence_length=64, position_encoding_2d=True, num_image_tokens=0,
                                family=family) | FAMILIES[family])
    model, generator = GLM(config, skip_init=False), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.requires_grad_(False).eval()


def random_lora(config, **how):
    made = lora.fresh(config, 3, 6, lora.spec.LINEARS, seed=5, **how)
    generator = torch.Generator().manual_seed(9)
    return lora.Lora({name: [(first, torch.randn(second.shape, generator=generator) * 0.2) for first, second in pairs]
                      for name, pairs in made.pairs.items()}, made.scale, made.layout, made.dropout)


def places(config, tokens):
    counting = torch.arange(tokens.shape[1]).expand_as(tokens)
    return torch.stack((counting, torch.zeros_like(counting)), 1) if config.position_encoding_2d else counting


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_split", [False, True])
def test_what_is_added_is_the_product_of_the_pairs(family, is_split):
    model, merged = tiny(family), tiny(family)
    adapter = random_lora(model.config, is_split=is_split)
    lora.attach(model, adapter, "here")
    for name, linear in linears(merged):
        pair = dict(linears(model))[name].adapters[lora.NAME]
        first, second = pair.matrices()
        linear.weight += second @ first
    tokens = torch.arange(1, 8)[None]
    found, wanted = (each.logits(tokens, places(model.config, tokens)) for each in (model, merged))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, tiny(family).logits(tokens, places(model.config, tokens)), atol=1e-2)


def test_the_three_pairs_are_those_of_queries_keys_and_values():
    """Of rows [q | k | v] head by head, and of all of q, of k, of v."""
    zero = torch.zeros(32, 3)
    for family in ("chatglm", "glm"):
        config = tiny(family).config
        order = lora.order_of(f"transformer.layers.0.{lora.spec.QKV}", 3, [32] * 3, config, None)
        second = torch.cat([zero, torch.ones(32, 3), zero])
        placed = second if order is None else second[order]
        keys = placed.view(4, 3, 8, 3)[:, 1] if family == "chatglm" else placed.view(3, 4, 8, 3)[1]
        assert keys.sum() == 32 * 3


@pytest.mark.parametrize(("bits", "group_size"), [(8, None), (4, None), (4, 16)])
def test_gradients_pass_through_a_packed_base_as_through_its_numbers(bits, group_size):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(24, 32), torch.randn(24), torch.randn(2, 5, 32)
    packed, plain = (Linear((24, 32), Cut.ROWS, torch.float32, "cpu") for _ in range(2))
    packed.pack(Scheme(bits, group_size))
    packed.weight.data, packed.weight_scale.data = quantize(weight, bits, group_size)
    plain.weight.data = dequantize(packed.weight, packed.weight_scale, bits, torch.float32)
    results = []
    for linear in (packed, plain):
        linear.bias.data = bias
        linear.requires_grad_(False)
        pair = lora.LowRank([(torch.nn.Parameter(torch.full((2, 32), 0.1)), torch.nn.Parameter(torch.ones(24, 2)))],
                            2.0, None, None)
        linear.adapters["lora"] = pair
        read = x.clone().requires_grad_()
        output = linear(read, reference)
        output.square().sum().backward()
        results.append((output, read.grad, pair.matrix_A[0].grad, pair.matrix_B[0].grad))
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)


def test_a_packed_weight_is_not_kept_unpacked_for_the_gradient():
    weight, scale = quantize(torch.randn(64, 64), 8)
    output = reference.weight_only_linear(torch.randn(3, 64, requires_grad=True), weight, scale)
    assert {tensor.dtype for tensor in output.grad_fn.saved_tensors} == {torch.int8, torch.float16}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_stands_in_front_with_a_cache_and_without(family):
    model = tiny(family)
    groups = model.config.key_value_heads
    generator = torch.Generator().manual_seed(2)
    tensors = {f"prefix.{layer}": torch.randn(2, groups, 5, 8, generator=generator) for layer in range(2)}
    tokens = torch.arange(1, 9)[None].expand(2, -1)
    position_ids, s = places(model.config, tokens), 8
    future = (torch.arange(s)[None] > torch.arange(s)[:, None]).expand(2, s, s)
    plain = model.logits(tokens, position_ids, future)
    model.prefix = of_sat(tensors, model.config, "here")
    with torch.inference_mode():
        whole = model.logits(tokens, position_ids, future)
        assert not torch.allclose(whole, plain, atol=1e-2)
        cache = model.new_cache(2, s)
        first = model.hidden_states(tokens[:, :5], position_ids[..., :5], future[:, :5, :5], cache)
        steps = [model.hidden_states(tokens[:, at:at + 1], position_ids[..., at:at + 1], None, cache)
                 for at in range(5, s)]
        assert cache.length == s and cache.capacity == s
        torch.testing.assert_close(model.head(torch.cat([first, *steps], dim=1)), whole, atol=1e-4, rtol=1e-4)


def test_a_projection_is_computed_once_for_a_model_that_does_not_learn():
    from tuning.model import initialise

    prefix = initialise(Prefix(tiny().config, 3, projection=7), seed=1)
    flat = prefix.flat()
    assert flat.trans is None and prefix.trans is not None
    torch.testing.assert_close(flat(), prefix())


def test_a_batch_of_a_model_with_a_prefix_gives_what_rows_give_alone():
    from generation.batch import generate
    from generation.params import SamplingParams

    model = tiny()
    tensors = {f"prefix.{layer}": torch.full((2, 4, 3, 8), 0.5) for layer in range(2)}
    model.prefix = of_sat(tensors, model.config, "here")
    contexts, params = [[1, 2, 3, 9], [4, 9], [5, 6, 7, 8, 9, 10]], SamplingParams(top_k=1)
    how = dict(end_tokens=[59], seeds=None)
    together = generate(model, contexts, params, limits=[6, 6, 6], **how)
    assert together == [generate(model, [context], params, limits=[6], **how)[0] for context in contexts]


# Files

def test_our_own_file_says_alpha_and_base_and_another_base_is_refused(tmp_path):
    model = tiny()
    adapter = random_lora(model.config)
    lora.attach(model, adapter, "here")
    file = tmp_path / "task.safetensors"
    write_adapter(file, files.lora_tensors(model), {"alpha": 6, "dropout": 0.1, "layout": None, "base": "abc" * 20})
    found = read_adapter(file, "chatglm")
    assert (found.lora.scale, found.lora.layout, found.lora.dropout, found.base) == (2.0, None, 0.1, "abc" * 20)
    assert set(found.lora.pairs) == set(adapter.pairs)
    put_on(tiny(), found, "abc" * 20)
    with pytest.raises(UserError, match=r"was trained on another base \(checkpoint abcabcabcabc, this one is xyz\)"):
        put_on(tiny(), found, "xyz")
    with pytest.raises(UserError, match=r"adapts transformer.layers.0.attention|made for another"):
        put_on(GLM(ModelConfig(**dict(num_layers=1, hidden_size=16, num_attention_heads=2, inner_hidden_size=32,
                                      vocab_size=40, max_sequence_length=64, num_image_tokens=0))), found)


def test_the_base_of_a_checkpoint_is_told_by_its_weights(tmp_path):
    import shutil

    other = shutil.copytree(TP1, tmp_path / "other")
    assert base_of(TP1) == base_of(other)
    file = next(other.glob("*/*.pt"))
    content = torch.load(file, weights_only=True)
    content["module"]["transformer.layers.0.attention.dense.bias"][0] += 1
    torch.save(content, file)
    assert base_of(TP1) != base_of(other)


class Like(torch.nn.Module):
    """What peft sees: a tree of torch's linears with the model's names."""

    def __init__(self, model):
        super().__init__()
        for name, linear in linears(model):
            *parents, last = name.split(".")
            inner = self
            for parent in parents:
                if not hasattr(inner, parent):
                    inner.add_module(parent, torch.nn.Module())
                inner = getattr(inner, parent)
            made = torch.nn.Linear(*reversed(linear.weight.shape))
            made.load_state_dict({"weight": linear.weight, "bias": linear.bias})
            inner.add_module(last, made)

    def forward(self, x):
        return x


def test_peft_s_own_files_are_read_and_peft_reads_ours(tmp_path):
    peft = pytest.importorskip("peft")
    model = tiny()
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=["query_key_value", "dense_4h_to_h"],
                             lora_dropout=0.1, init_lora_weights=False)
    theirs = peft.get_peft_model(Like(model), config)
    theirs.save_pretrained(tmp_path / "theirs")
    adapter = read_adapter(tmp_path / "theirs", "chatglm")
    assert (adapter.lora.scale, adapter.lora.dropout, len(adapter.lora.pairs)) == (3.0, 0.1, 4)
    put_on(model, adapter)
    write_peft(tmp_path / "ours", model, {}, adapter.lora, "abc", "base")
    again = peft.PeftModel.from_pretrained(Like(tiny()), tmp_path / "ours").eval()
    assert read_adapter(tmp_path / "ours", "chatglm").base == "abc"
    for name, linear in linears(model):
        x = torch.randn(3, linear.weight.shape[1])
        for tree in (theirs.eval(), again):
            torch.testing.assert_close(linear(x, reference), tree.base_model.model.get_submodule(name)(x))


@pytest.mark.parametrize(("change", "message"), [
    ({"peft_type": "IA3"}, "peft_type is 'IA3'; LORA is served"), ({"use_dora": True}, "use_dora is true"),
    ({"r": 5}, "has the rank 3, adapter_config.json says r is 5"), ({"lora_alpha": "x"}, "lora_alpha is 'x'")])
def test_peft_s_adapters_that_are_not_served(tmp_path, change, message):
    model = tiny()
    write_peft(tmp_path, model, {}, random_lora(model.config), None, "base")
    values = json.loads((tmp_path / PEFT_CONFIG).read_text())
    (tmp_path / PEFT_CONFIG).write_text(json.dumps(values | change))
    with pytest.raises(UserError, match=message):
        read_adapter(tmp_path, "chatglm")


def test_what_is_no_adapter(tmp_path):
    for name, content, message in (("a.pt", {"x": torch.zeros(2)}, "is no adapter: it holds neither LoRA"),
                                   ("b.pt", {"a.matrix_A.0": torch.zeros(2, 2)}, "each needs an A and a B"),
                                   ("c.pt", {"a.matrix_A.0": [1]}, "is no tensor")):
        torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match=message):
            read_adapter(tmp_path / name, "chatglm")
    (tmp_path / "empty").mkdir()
    for path, message in ((tmp_path / "empty", "holds neither adapter_config.json"), (tmp_path / "none", "no adapter")):
        with pytest.raises(UserError, match=message):
            read_adapter(path, "chatglm")


def test_a_prefix_of_another_model():
    model = load_without_tokenizer(ModelOptions(path=TP1, shape=SHAPE, device="cpu", dtype="float32"))
    with pytest.raises(UserError, match="--pre-seq-len says 7"):
        files.put_on(model, files.Adapter(PREFIX, "", tensors={"embedding.weight": torch.zeros(6, 512)}), length=7)
    with pytest.raises(UserError, match="leave away --prefix-projection|not one with a projection"):
        files.put_on(model, files.Adapter(PREFIX, "", tensors={"embedding.weight": torch.zeros(6, 512)}),
                     has_projection=True)
    with pytest.raises(UserError, match=r"prefix.0 has the shape \(2, 8, 6, 9\)"):
        of_sat({f"prefix.{layer}": torch.zeros(2, 8, 6, 9) for layer in range(4)}, model.config, "here")
