"""What is trained beside a frozen model, LoRA and prefixes: how it begins, and what is left of it in files.

    peft   adapter_config.json, adapter_model.safetensors      one pair for each linear
    sat    lora.pt                                             SAT's names
    glm    adapter.safetensors                                 SAT's names, with alpha, layout and base
    pytorch_model.bin                                          a prefix, by ChatGLM's names
"""

from __future__ import annotations

from pathlib import Path

from glm.adapters import files, lora
from glm.adapters.prefix import Prefix
from glm.checkpoint import HUGGING_FACE_CONFIG
from glm.linear import linears, quantization_of
from runtime.errors import UserError
from runtime.files import write_torch
from runtime.reading import read_json
from tuning.model import Tuned, initialise


def begin(tuned: Tuned, seed: int) -> None:
    """New ones where the flags ask for some and no file gives them; functions of the seed. UserError for flags that
    contradict each other."""
    model, parts = tuned.model, tuned.parts
    if parts.lora_rank is not None:
        if tuned.is_adapted:
            raise UserError("--lora-rank asks for new LoRA, but --adapter or --prefix-encoder brings an adapter: leave "
                            "one away")
        if parts.lora_split_qkv and parts.lora_format == "peft":
            raise UserError("--lora-split-qkv gives three pairs to a linear, and peft's format has one: add "
                            "--lora-format sat or glm")
        made = lora.fresh(model.config, parts.lora_rank, parts.lora_alpha, parts.lora_linears.split(","), seed,
                          parts.lora_split_qkv, parts.lora_dropout)
        lora.attach(model, made, "--lora-rank")
    elif parts.pre_seq_len and model.prefix is None:
        width = model.config.hidden_size if parts.prefix_projection else None
        device = next(model.parameters()).device
        model.prefix = initialise(Prefix(model.config, parts.pre_seq_len, width), seed).to(device)
    if not tuned.is_adapted and quantization_of(model):
        raise UserError("a quantised model cannot learn; LoRA (--lora-rank N) or a prefix (--pre-seq-len N) beside it "
                        "can")


def save_adapters(folder: Path, tuned: Tuned, load: Path) -> None:
    """What is on the model, as `--adapter FOLDER` takes it."""
    model, parts = tuned.model, tuned.parts
    if model.prefix is not None:
        tensors = {name: tensor.float().cpu().clone() for name, tensor in files.prefix_tensors(model.prefix).items()}
        write_torch(folder / files.CHATGLM_WEIGHTS, tensors)
    trained = _lora_of(tuned)
    if not trained.pairs:
        return
    rank = next(iter(trained.pairs.values()))[0][0].shape[0]
    base, tensors = files.base_of(load), {name: tensor.float().cpu().clone()
                                          for name, tensor in files.lora_tensors(model).items()}
    if parts.lora_format == "sat":
        write_torch(folder / files.SAT, tensors)
    elif parts.lora_format == "glm" or any(len(pairs) > 1 for pairs in trained.pairs.values()):
        files.write_adapter(folder / files.OWN, tensors, {"alpha": trained.scale * rank, "dropout": trained.dropout,
                                                          "layout": parts.lora_layout, "base": base})
    else:
        config = load / HUGGING_FACE_CONFIG
        values = read_json(config) if config.is_file() else {}
        files.write_peft(folder, model, values, trained, base, str(load))


def _lora_of(tuned: Tuned) -> lora.Lora:
    found = {name: linear.adapters[lora.NAME] for name, linear in linears(tuned.model) if linear.adapters}
    pairs = {name: [(first.detach().float().cpu(), second.detach().float().cpu())
                    for first, second in zip(each.matrix_A, each.matrix_B, strict=True)]
             for name, each in found.items()}
    some = next(iter(found.values()), None)
    return lora.Lora(pairs, 1.0 if some is None else some.scale, None, 0.0 if some is None else some.dropout)
