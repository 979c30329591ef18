"""A few layers of a model, of random weights, to be timed in its place. Imports torch."""

from __future__ import annotations

from dataclasses import replace

import torch

from glm import spec
from glm.config import ModelConfig
from glm.linear import pack_linears
from glm.loading import DTYPES, share_small_sums
from glm.model import GLM
from kernels.vocabulary import pack
from planning.shapes import Format, Setup, layer_weights
from quantization.functional import Scheme
from runtime import parallel
from runtime.errors import UserError
from runtime.pages import LargePages

MOST_WEIGHTS = 1 << 28  # of a layer; larger ones are tried narrower
MOST_TABLE = 1 << 26  # weights of the vocabulary's matrix
DIVISIBLE = 1024  # by it
BLOCK = (1 << 18) + 1  # random values that all weights of the layers repeat, odd so that rows differ


def narrowed(config: ModelConfig, ranks: int = 1) -> tuple[ModelConfig, int]:
    """A model that can be tried in the place of this one, and by how many times the widths of its layers are less."""
    times = 1
    while layer_weights(Setup(config, Format("fp32"))) > MOST_WEIGHTS:
        halved = {name: -(-getattr(config, name) // 2) for name in ("hidden_size", "inner_hidden_size",
                                                                    "num_attention_heads", "num_key_value_groups")}
        try:
            narrower = replace(config, **halved)
        except UserError:  # such a model cannot be: this one is tried, as large as it is
            break
        if spec.undivided(narrower, ranks) is not None:
            break
        config, times = narrower, 2 * times
    return config, times


def sample_model(setup: Setup, layers: int) -> GLM:
    """Its first layers, as the run holds them, and no more of its vocabulary than MOST_TABLE allows."""
    config = replace(setup.config, num_layers=layers, vocab_size=tried_vocabulary(setup.config, setup.degree),
                     num_image_tokens=0)
    if setup.degree == 1 and not parallel.is_started():
        alone()
    parallel.start(setup.degree, device="cpu")
    share_small_sums(torch.device("cpu"))
    model, pages = GLM(config, DTYPES[setup.run.precision], "meta"), LargePages()
    if setup.run.bits:
        scheme = Scheme(setup.run.bits, setup.run.group_size)
        pack_linears(model, dict.fromkeys(filter(spec.is_packed, spec.expected(config)), scheme))
    model.to_empty(device="cpu").requires_grad_(False).eval()
    block = torch.empty(BLOCK).normal_(std=0.02)
    for name, parameter in model.named_parameters():
        parameter.data = pages.empty(parameter.shape, parameter.dtype)
        if parameter.dtype is torch.int8:
            repeated(parameter.data, (block * 2000).to(torch.int8))
        elif name.endswith("weight_scale"):
            parameter.data.fill_(0.035 / (2 ** (setup.run.bits - 1) - 1))
        elif parameter.dim() > 1 and "embeddings" not in name and "lm_head" not in name:
            repeated(parameter.data, block.to(parameter.dtype))
        elif parameter.dim() > 1:  # equal rows would be equally likely tokens, of which too many are looked at again
            parameter.data.normal_(std=0.02)
        else:
            parameter.data.fill_(1.0 if name.endswith("weight") else 0.0)
    if setup.int8_vocabulary:
        model.vocabulary = pack(model.head_weight.detach())
    return model


def tried_vocabulary(config: ModelConfig, ranks: int = 1) -> int:
    """No more than MOST_TABLE allows, as far as the ranks divide it."""
    share = DIVISIBLE * ranks
    return min(config.vocab_size, max(1, MOST_TABLE // config.hidden_size // share) * share)


def part_of(model: GLM, layers: int) -> GLM:
    """Its first layers, with the same memory."""
    part = GLM(replace(model.config, num_layers=layers), model.head_weight.dtype, "meta")
    names = [name for name, _ in part.named_parameters()]
    schemes = {name: model.get_submodule(name.removesuffix(".weight")).scheme for name in names if spec.is_packed(name)}
    pack_linears(part, {name: scheme for name, scheme in schemes.items() if scheme is not None})
    held = model.state_dict()
    part.load_state_dict({name: held[name] for name in part.state_dict()}, assign=True)
    return part.requires_grad_(False).eval()


def repeated(target: torch.Tensor, block: torch.Tensor) -> None:
    """Fills it with the block again and again."""
    flat = target.view(-1)
    for begin in range(0, len(flat), len(block)):
        flat[begin:begin + len(block)] = block[:len(flat) - begin]


def alone() -> None:
    """A process group of this process, however many ranks its launcher has started."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
