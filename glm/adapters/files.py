"""Adapters in files: our own, peft's, SAT's and ChatGLM's, read into a model and written.

    FILE.safetensors      our own: SAT's or ChatGLM's names, and what they belong to in the file's metadata
    FOLDER                peft's: adapter_config.json, adapter_model.safetensors; or ChatGLM's: pytorch_model.bin
    FILE.pt               a dictionary of tensors: SAT's LoRA, SAT's prefixes (prefix.N), ChatGLM's prefix

A file says which base it was trained on where its format has a place for that; another base is refused. No code in any
of them is run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glm.adapters import prefix as prefixes
from glm.adapters.lora import Lora, attach
from glm.checkpoint import identity_of, open_checkpoint, read_file, safetensors, tensors_of
from glm.checkpoint.safetensors import metadata_of
from glm.families import FAMILIES
from glm.shard import MappedTensors
from runtime.errors import UserError, shown
from runtime.files import replacing
from runtime.hashing import hash_bytes
from runtime.reading import read_json

if TYPE_CHECKING:
    from glm.adapters.prefix import Prefix
    from glm.model import GLM

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
CHATGLM_WEIGHTS, OWN, SAT = "pytorch_model.bin", "adapter.safetensors", "lora.pt"  # what a training leaves in a folder
_SAT = re.compile(r"(.+)\.matrix_([AB])\.(\d+)")
_PEFT = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")


@dataclass(frozen=True)
class Adapter:
    """What a file or folder holds."""

    path: Path
    sha256: str  # of its tensors and settings
    lora: Lora | None = None
    tensors: Mapping[str, Tensor] | None = None  # of a prefix
    base: str | None = None  # identity of the checkpoint that it was trained on, where the file says it


def read_adapter(path: str | Path, family: str, alpha: float | None = None, layout: str | None = None) -> Adapter:
    """alpha, layout: of LoRA whose file does not say them. UserError for what is no adapter."""
    path = Path(path)
    own_name = FAMILIES[family].own_name
    if path.is_dir():
        if (path / PEFT_CONFIG).is_file():
            return _peft(path, own_name)
        file = next((path / name for name in (OWN, SAT, CHATGLM_WEIGHTS) if (path / name).is_file()), None)
        if file is None:
            raise UserError(f"{path} is no adapter: it holds neither {PEFT_CONFIG} nor {CHATGLM_WEIGHTS}, {OWN} or "
                            f"{SAT}")
    else:
        file = path
    if not file.exists():
        raise UserError(f"there is no adapter {file}")
    tensors, facts = read_tensors(file, is_wanted=_is_adapter_s), metadata_of(file)  # old ones hold whole models
    if not tensors:
        raise UserError(f"{file} is no adapter: it holds neither LoRA (NAME.matrix_A.0) nor a prefix (prefix.0, "
                        f"{prefixes.NAMES}embedding.weight)")
    pairs = _pairs(tensors, _SAT, own_name, str(file))
    found = {"path": path, "sha256": _sha256(tensors, facts), "base": facts.get("base")}
    if not pairs:
        return Adapter(**found, tensors=tensors)
    rank = next(iter(pairs.values()))[0][0].shape[0]
    alpha = float(facts.get("alpha", 1.0 if alpha is None else alpha))
    return Adapter(**found, lora=Lora(pairs, alpha / rank, facts.get("layout", layout),
                                      float(facts.get("dropout", 0.0))))


def read_tensors(path: Path, is_wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """Of a file of any format, by the names that it has, as float32 of their own."""
    return {name: tensor.to(torch.float32, copy=True)
            for name, tensor in MappedTensors(tensors_of(read_file(path))).items() if is_wanted(name)}


def _is_adapter_s(name: str) -> bool:
    return bool(_SAT.fullmatch(name)) or name.startswith(("prefix.", prefixes.NAMES, "embedding.", "trans."))


def put_on(model: GLM, adapter: Adapter, base: str | None = None, length: int | None = None,
           has_projection: bool | None = None) -> None:
    """The model has the adapter from now on. base: identity of its checkpoint; None: it does not matter. UserError for
    an adapter of another model."""
    if base is not None:
        check_base(adapter, base)
    source = str(adapter.path)
    model.adapter = {"name": adapter.path.name, "sha256": adapter.sha256}
    if adapter.lora is not None:
        attach(model, adapter.lora, source)
        return
    read = prefixes.of_sat if "prefix.0" in adapter.tensors else prefixes.of_chatglm
    more = {} if read is prefixes.of_sat else {"length": length, "has_projection": has_projection}
    made = read(adapter.tensors, model.config, source, **more)
    model.prefix = made.to(next(model.parameters()).device)


def check_base(adapter: Adapter, base: str) -> None:
    if adapter.base not in (None, base):
        raise UserError(f"{adapter.path} was trained on another base (checkpoint {adapter.base[:12]}, this one is "
                        f"{base[:12]}); name that one with --load")


def base_of(folder: str | Path) -> str:
    """What tells a checkpoint's weights from others: SHA-256 of its files' identities."""
    text = "".join(sorted(identity_of(file) for file in open_checkpoint(folder).index.files))
    return hashlib.sha256(text.encode()).hexdigest()


def _pairs(tensors: Mapping[str, Tensor], pattern: re.Pattern, own_name, source: str) -> dict[str, list]:
    """Name of a linear -> its pairs; names that the pattern does not match are left alone."""
    found: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        if match := pattern.fullmatch(name):
            linear = own_name(f"{match[1]}.weight").removesuffix(".weight")
            number = int(match[3]) if pattern.groups > 2 else 0
            found.setdefault(linear, {}).setdefault(number, {})[match[2]] = tensor
    for linear, numbered in found.items():
        if sorted(numbered) != list(range(len(numbered))) or any(len(pair) != 2 for pair in numbered.values()):
            raise UserError(f"{source}: the pairs of {linear} are not whole: each needs an A and a B")
        if any(tensor.dim() != 2 for pair in numbered.values() for tensor in pair.values()):
            raise UserError(f"{source}: {linear} has a matrix that is none")
    return {linear: [(numbered[number]["A"], numbered[number]["B"]) for number in sorted(numbered)]
            for linear, numbered in found.items()}


def _peft(folder: Path, own_name) -> Adapter:
    settings = read_json(folder / PEFT_CONFIG)
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        kind = shown(settings.get("peft_type")) if isinstance(settings, dict) else "none"
        raise UserError(f"{folder / PEFT_CONFIG}: peft_type is {kind}; LORA is served")
    for key, served in (("use_dora", False), ("bias", "none"), ("modules_to_save", None), ("fan_in_fan_out", False),
                        ("alpha_pattern", {}), ("rank_pattern", {}), ("megatron_config", None)):
        if settings.get(key, served) not in (served, None):
            raise UserError(f"{folder / PEFT_CONFIG}: {key} is {shown(settings[key])}; such adapters are not served")
    file = next((folder / name for name in PEFT_WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder} lacks {PEFT_WEIGHTS[0]}, the weights of the adapter")
    numbers = {}
    for key in ("r", "lora_alpha"):
        numbers[key] = settings.get(key)
        if isinstance(numbers[key], bool) or not isinstance(numbers[key], int | float) or numbers[key] <= 0:
            raise UserError(f"{folder / PEFT_CONFIG}: {key} is {shown(numbers[key])}; it must be a number above 0")
    tensors, facts = read_tensors(file), metadata_of(file)
    pairs = _pairs(tensors, _PEFT, own_name, str(file))
    if not pairs or 2 * sum(map(len, pairs.values())) != len(tensors):
        raise UserError(f"{file}: holds tensors that are no pairs of LoRA; such adapters are not served")
    rank = next(iter(pairs.values()))[0][0].shape[0]
    if any(first.shape[0] != numbers["r"] for each in pairs.values() for first, _ in each):
        raise UserError(f"{file}: a matrix has the rank {rank}, {PEFT_CONFIG} says r is {numbers['r']}")
    scale = numbers["lora_alpha"] / (rank ** 0.5 if settings.get("use_rslora") else rank)
    said = {key: settings.get(key) for key in ("r", "lora_alpha", "use_rslora")}
    return Adapter(folder, _sha256(tensors, said), Lora(pairs, scale, None, settings.get("lora_dropout") or 0.0),
                   base=facts.get("base"))


def _sha256(tensors: Mapping[str, Tensor], facts: Mapping) -> str:
    digests = "".join(f"{name} {tuple(tensor.shape)} {hash_bytes(tensor.contiguous().numpy().tobytes(), 'sha256')}\n"
                      for name, tensor in sorted(tensors.items()))
    return hashlib.sha256((digests + json.dumps(dict(facts), sort_keys=True)).encode()).hexdigest()


# Written

def lora_tensors(model: GLM) -> dict[str, Tensor]:
    """The pairs of a model by SAT's names."""
    return {name.replace(".adapters.lora.", "."): parameter.detach() for name, parameter in model.named_parameters()
            if ".adapters.lora." in name}


def prefix_tensors(prefix: Prefix) -> dict[str, Tensor]:
    """By ChatGLM's names."""
    return {f"{prefixes.NAMES}{name}": tensor.detach() for name, tensor in prefix.state_dict().items()}


def write_adapter(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
    """Our own format. facts: `alpha`, `layout`, `dropout` of LoRA, `base`; None where there is nothing to say."""
    said = {name: str(value) for name, value in facts.items() if value is not None}
    write_safetensors(path, tensors, said | {"format": "pt"})


def write_peft(folder: Path, model: GLM, values: Mapping[str, object], lora: Lora, base: str | None,
               name_of_base: str) -> None:
    """values: of the base's config.json, for the names that its tensors have there. UserError for linears with several
    pairs, for which the format has no place."""
    tensors, family = {}, FAMILIES[model.config.family]
    for name, pairs in lora.pairs.items():
        if len(pairs) > 1:
            raise UserError(f"{name} has {len(pairs)} pairs, but peft's format one: it is saved in our own or in SAT's")
        theirs = family.published_name(f"{name}.weight", values).removesuffix(".weight")
        for letter, matrix in zip("AB", pairs[0], strict=True):
            tensors[f"base_model.model.{theirs}.lora_{letter}.weight"] = matrix
    folder.mkdir(parents=True, exist_ok=True)
    rank = next(iter(lora.pairs.values()))[0][0].shape[0]
    settings = {"peft_type": "LORA", "task_type": None, "base_model_name_or_path": name_of_base, "r": rank,
                "lora_alpha": lora.scale * rank, "lora_dropout": lora.dropout, "bias": "none",
                "fan_in_fan_out": False, "inference_mode": True, "modules_to_save": None,
                "target_modules": sorted({name.rpartition(".")[2] for name in lora.pairs})}
    write_safetensors(folder / PEFT_WEIGHTS[0], tensors, {"format": "pt"} | ({} if base is None else {"base": base}))
    with replacing(folder / PEFT_CONFIG) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """There as a whole or not at all. The format: glm/checkpoint/safetensors.py."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    described = {name: (safetensors.NAMES[str(tensors[name].dtype).removeprefix("torch.")], tensors[name].shape,
                        tensors[name].nbytes) for name in order}
    before = safetensors.table(described, order, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(before)
        for name in order:
            file.write(tensors[name].cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
