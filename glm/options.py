"""What decides which model runs, where and in which precision: the arguments of glm.load, and the flags of commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

from glm.config import FIELDS, PRESETS, ModelConfig, nearest
from quantization import GROUP_SIZES
from runtime.arguments import option, positive
from runtime.errors import UserError

PRECISIONS = ("fp16", "bf16", "fp32")


@dataclass(frozen=True)
class ModelOptions:
    """Paths may be strings, device and dtype torch's own."""

    path: Path = option(
        None, "checkpoint folder: the toolkit's and SAT's, with a file 'latest'; Megatron's; Hugging Face's, with "
              "config.json (default: $CHECKPOINT_PATH, else the embedded model)", flag="load", metavar="DIR")
    tokenizer_path: Path | None = option(
        None, "folder of the tokenizer's files, or a vocabulary file: ice_text.model, tokenizer.model, "
              "cog-pretrain.model, vocab.json or vocab.txt (default: beside the checkpoint; for GLM-130B else "
              "~/.icetk_models)", metavar="PATH")
    model: str | None = option(  # a preset, whose shapes win over the checkpoint's model_config.json
        None, f"shapes by name: {', '.join(PRESETS)} (default: the checkpoint's model_config.json)", metavar="NAME")
    shape: Mapping[str, Any] = option(None, "", overrides=ModelConfig)  # fields of ModelConfig, which win over both
    degree: int | None = option(  # tensor-parallel; None: that of runtime.parallel.start, or else the number of shards
        None, "tensor-parallel degree", none="the number of shards", flag="model_parallel_size")
    bits: int | None = option(  # files that are quantised are recognised without it
        None, "quantise the linear layers while loading", flag="quantization_bit_width", choices=(4, 8))
    group_size: int | None = option(
        None, "so many columns share a scale", none="a whole row", flag="quantization_group_size", choices=GROUP_SIZES)
    from_quantized: bool = option(  # an error if it is not
        False, "say that the file is quantised; found out without it", flag="from_quantized_checkpoint")
    int8_vocabulary: str | None = option(  # docs/quantization.md
        None, "choose tokens by the vocabulary's matrix in INT8 and the exact rows of the likeliest: of one rank, with "
              "all weights in memory", none="on with quantised linear layers on a CPU, off in evaluation",
        choices=("on", "off"))
    offload_memory_limit: float | None = option(  # None: all weights stay on the device
        None, "the weights may take so much of the device, 10^9 bytes per rank; layers beyond are read again for every "
              "pass (docs/low-resource-inference.md)", aliases=("bminf_memory_limit",), metavar="GB",
        read=positive("a number of GB above 0, for example 12 or 0.5"))
    bminf: bool = option(False, "like --offload-memory-limit, with the limit found out from what is free")
    sequential: bool = option(  # where a host's memory or disk cannot serve all ranks at once
        False, "ranks read their shards one after another", flag="sequential_initialization")
    device: str | None = option(  # "cuda": this rank's GPU on its host
        None, "cpu, cuda, cuda:N or another device of torch, such as xpu or mps", none="cuda where there is a GPU")
    dtype: str | None = option(  # of weights and arithmetic, whatever the file holds
        None, "run in CHOICE", none="what the device computes fastest", flag="precision", choices=PRECISIONS,
        is_switches=True)

    adapter: tuple[str, ...] = option(
        (), "LoRA or a prefix on the model: a file, or a folder in peft's or ChatGLM's format; of a server any number, "
            "chosen by a request's model: FILE, or NAME=FILE", is_repeated=True, metavar="FILE")
    lora_alpha: float | None = option(None, "of SAT's files of LoRA, which do not say it", none="1")
    lora_layout: str | None = option(
        None, "of three pairs for queries, keys and values: their outputs lie head by head, or one below the other",
        none="as the model's rows", choices=("heads", "stacked"))

    @classmethod
    def of(cls, **values: Any) -> ModelOptions:
        """The fields, and those of a shape, side by side. Raises UserError for others."""
        names = [field.name for field in fields(cls) if field.name != "shape"]
        for name in values:
            if name not in (*names, *FIELDS):
                raise UserError(f"glm.load has no argument {name!r}{nearest(name, (*names, *FIELDS))}; there are "
                                f"{', '.join(names)}, and of the model's shape {', '.join(FIELDS)}")
        if isinstance(values.get("adapter"), str | PathLike):
            values["adapter"] = (str(values["adapter"]),)
        shape = {name: value for name, value in values.items() if name in FIELDS}
        return cls(**{name: value for name, value in values.items() if name not in FIELDS}, shape=shape)


def holds_int8_vocabulary(asked: str | None, device: str, is_quantised: bool, degree: int, is_streamed: bool,
                          element: int) -> bool:
    """Whether a rank holds its vocabulary's matrix in INT8, too. asked: ModelOptions.int8_vocabulary; device: its type;
    is_quantised: the linear layers; is_streamed: the weights have a limit; element: bytes of an activation, which must
    be 2 for the kernels of a GPU."""
    if degree > 1 or is_streamed:
        return False
    if device == "cuda":  # nobody has measured it there
        return asked == "on" and element == 2
    return device == "cpu" and (asked == "on" or (asked is None and is_quantised))
