"""The forward pass against itself: with and without a cache, padded and alone, trained and initialised."""

import pytest
import torch

from glm.config import ModelConfig
from glm.inputs import padding_blocked, prefix_causal_blocked, right_pad
from glm.model import GLM
from runtime.errors import UserError

TINY = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, inner_hidden_size=48, vocab_size=96,
                   max_sequence_length=64, num_image_tokens=0)


@pytest.fixture(scope="module", params=[False, True], ids=["1d", "2d"])
def model(request) -> GLM:
    torch.manual_seed(0)
    return GLM(TINY.override(position_encoding_2d=request.param), skip_init=False).requires_grad_(False)


def positions(model: GLM, tokens: torch.Tensor, start: int = 0) -> torch.Tensor:
    counting = torch.arange(start, start + tokens.shape[1]).expand(tokens.shape)
    return torch.stack((counting, counting // 2), dim=1) if model.config.position_encoding_2d else counting


def random_tokens(*shape: int) -> torch.Tensor:
    return torch.randint(0, TINY.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def test_cached_decoding_equals_the_full_forward(model):
    tokens = random_tokens(3, 12)
    prefix = torch.full((3,), 7)
    expected = model.logits(tokens, positions(model, tokens), prefix_causal_blocked(prefix, torch.full((3,), 12), 12))
    cache = model.new_cache(batch=3, capacity=16)
    parts = [model.hidden_states(tokens[:, :7], positions(model, tokens[:, :7]), cache=cache)]
    for place in range(7, 12):
        token = tokens[:, place:place + 1]
        parts.append(model.hidden_states(token, positions(model, token, place), cache=cache))
    assert cache.length == 12
    torch.testing.assert_close(model.head(torch.cat(parts, dim=1)), expected, atol=2e-5, rtol=0)


def test_only_the_places_wanted(model):
    tokens = random_tokens(3, 6)
    whole = model.hidden_states(tokens, positions(model, tokens)).flatten(0, 1)
    places = torch.tensor([0, 5, 5, 11, 17])
    found = model.hidden_states(tokens, positions(model, tokens), places=places)
    torch.testing.assert_close(found, whole[places], atol=2e-6, rtol=0)
    cache = model.new_cache(batch=3, capacity=6)
    part = cache.part(slice(0, 3))
    model.hidden_states(tokens[:, :5], positions(model, tokens[:, :5]), cache=part, places=places[:1])
    cache.length = 5
    last = model.hidden_states(tokens[:, 5:], positions(model, tokens[:, 5:], 5), cache=cache, places=places[:1])
    alone = model.new_cache(batch=1, capacity=6)
    model.hidden_states(tokens[:1, :5], positions(model, tokens[:1, :5]), cache=alone)
    expected = model.hidden_states(tokens[:1, 5:], positions(model, tokens[:1, 5:], 5), cache=alone)
    torch.testing.assert_close(last, expected[0], atol=2e-6, rtol=0)


def test_a_padded_row_is_what_it_is_alone(model):
    rows = [random_tokens(5).tolist(), random_tokens(9).tolist()]
    tokens, lengths = right_pad(rows)
    together = model.logits(tokens, positions(model, tokens), padding_blocked(lengths, 9).expand(2, 9, 9))
    alone = model.logits(tokens[:1, :5], positions(model, tokens[:1, :5]))
    torch.testing.assert_close(together[:1, :5], alone, atol=2e-5, rtol=0)


def test_a_row_blocked_everywhere_is_finite(model):
    tokens = random_tokens(1, 4)
    assert model.logits(tokens, positions(model, tokens), torch.ones(1, 4, 4, dtype=torch.bool)).isfinite().all()


def test_reordered_cache_continues_as_its_parents(model):
    tokens = random_tokens(2, 6)
    cache = model.new_cache(batch=2, capacity=8)
    model.hidden_states(tokens, positions(model, tokens), cache=cache)
    before = [buffer.clone() for buffer in cache.keys + cache.values]
    cache.exchange([(0, 1, 2, 6), (1, 0, 2, 6)])
    for mine, other in zip(cache.keys + cache.values, before, strict=True):
        assert torch.equal(mine[:, :, 2:6], other[[1, 0], :, 2:6]) and torch.equal(mine[:, :, :2], other[:, :, :2])
    larger = model.new_cache(batch=3, capacity=9)
    larger.take_over(cache, 2, 6)
    for mine, other in zip(larger.keys + larger.values, cache.keys + cache.values, strict=True):
        assert torch.equal(mine[:2, :, :6], other[:, :, :6])
    larger.copy_row(1, slice(2, 3))
    larger.move_rows(torch.tensor([2]), torch.tensor([0]), 6)
    for mine, other in zip(larger.keys + larger.values, cache.keys + cache.values, strict=True):
        assert all(torch.equal(mine[row, :, :6], other[1, :, :6]) for row in range(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions_stay_near_float32(model, dtype):
    tokens = random_tokens(1, 10)
    exact = model.logits(tokens, positions(model, tokens))
    state = {name: value.to(dtype) for name, value in model.state_dict().items()}
    half = GLM(model.config, dtype=dtype, device="meta")
    half.load_state_dict(state, assign=True)
    with torch.inference_mode():
        cache = half.new_cache(1, 10)
        logits = half.head(half.hidden_states(tokens, positions(model, tokens), cache=cache))
    assert logits.dtype == torch.float32
    assert (logits - exact).abs().max() < 0.05 * exact.abs().max() + 0.05


def test_gradients_reach_every_parameter_and_the_shrink_scales_only_the_input_path():
    torch.manual_seed(0)
    model = GLM(TINY, skip_init=False)
    tokens = random_tokens(1, 6)

    def embedding_gradient(scale: float) -> torch.Tensor:
        model.zero_grad()
        hidden = model.hidden_states(tokens, positions(model, tokens), embedding_gradient_scale=scale)
        hidden.square().sum().backward(retain_graph=True)
        hidden.sum().backward()
        return model.transformer.word_embeddings.weight.grad.clone()

    torch.testing.assert_close(embedding_gradient(0.1), 0.1 * embedding_gradient(1.0))
    model.zero_grad()
    model.logits(tokens, positions(model, tokens)).logsumexp(-1).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_initialisation_is_deepnorms():
    torch.manual_seed(0)
    config = ModelConfig(num_layers=8, hidden_size=256, num_attention_heads=4, inner_hidden_size=512, vocab_size=512,
                         max_sequence_length=64)
    layer = GLM(config, skip_init=False).transformer.layers[0]
    query, key, value = layer.attention.query_key_value.weight.view(4, 3, 64, 256).unbind(1)
    for weight, std in ((query, 256 ** -0.5), (key, 256 ** -0.5), (value, 0.25 * 256 ** -0.5),
                        (layer.mlp.dense_4h_to_h.weight, 0.25 * (2 / 768) ** 0.5)):
        assert weight.std().item() == pytest.approx(std, rel=0.03)
    assert layer.input_layernorm.weight.eq(1).all() and layer.attention.dense.bias.eq(0).all()


def test_prefix_causal_mask_by_hand():
    mask = prefix_causal_blocked(torch.tensor([2]), torch.tensor([4]), 5)[0]
    drawn = ["".join(".x"[int(blocked)] for blocked in row) for row in mask]
    assert drawn == ["..xxx", "..xxx", "...xx", "....x", "xxxxx"]


@pytest.mark.parametrize(("fields", "message"), [
    ({"hidden_size": 30}, "hidden_size 30 is not a multiple of num_attention_heads 4"),
    ({"rotary_table": "halff"}, "rotary_table is 'halff'; allowed: half, half_inv_freq, exact"),
    ({"num_layers": 0}, "num_layers is 0; it must be at least 1"),
    ({"num_layers": "2"}, "num_layers is '2'; it must be of type int"),
    ({"hiden_size": 32}, "did you mean 'hidden_size'"),
])
def test_a_wrong_shape_is_named(fields, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        TINY.override(**fields)


def test_config_file_round_trip_and_faults(tmp_path):
    path = tmp_path / "model_config.json"
    TINY.save(path)
    assert ModelConfig.from_file(path) == TINY
    path.write_text('{"num_layers": 2}')
    with pytest.raises(UserError, match=r"model_config.json: hidden_size, .* not given"):
        ModelConfig.from_file(path)
    path.write_text("[]")
    with pytest.raises(UserError, match="must hold one JSON object"):
        ModelConfig.from_file(path)
    with pytest.raises(UserError, match=r"unknown model preset 'glm-130' .did you mean 'glm-130b'"):
        ModelConfig.from_name("glm-130")


@pytest.mark.parametrize(("size", "published"), [("335m", "glm-large"), ("110m", "glm-base")])
def test_a_model_s_size_is_not_its_name(size, published):
    with pytest.raises(UserError, match=f"'glm-{size}': the published model of this size is {published}; shape-{size}"):
        ModelConfig.from_name(f"glm-{size}")
    assert ModelConfig.from_name(f"shape-{size}").num_layers > 0
