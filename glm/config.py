"""The architecture of a GLM as one frozen value, and the named presets."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import MISSING, dataclass
from pathlib import Path

from glm.families import FAMILIES, glm130b
from glm.prompt_form import PromptForm
from glm.spec import Table
from runtime import show
from runtime.arguments import option
from runtime.errors import UserError, shown
from runtime.reading import read_json

ROTARY_TABLES = ("half", "half_inv_freq", "exact")
GELUS = ("exact", "tanh")
# Far beyond any model, and small enough that nothing which is computed from them is too large to be a size.
RANGES = {"num_layers": (1, 10_000), "hidden_size": (1, 2**24), "num_attention_heads": (1, 2**24),
          "inner_hidden_size": (1, 2**24), "vocab_size": (1, 2**31 - 1), "max_sequence_length": (1, 2**31 - 1),
          "num_image_tokens": (0, 2**31 - 1), "num_key_value_groups": (0, 2**24)}
_OVERRIDES = "overrides the shape so named"


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and numeric conventions of one model; everything else about a run lives elsewhere."""

    num_layers: int = option(MISSING, _OVERRIDES)
    hidden_size: int = option(MISSING, _OVERRIDES)
    num_attention_heads: int = option(MISSING, _OVERRIDES)
    inner_hidden_size: int = option(MISSING, _OVERRIDES)  # of the MLP's second linear; a gated first one has twice that
    vocab_size: int = option(MISSING, _OVERRIDES)
    max_sequence_length: int = option(MISSING, _OVERRIDES)
    layernorm_epsilon: float = option(1e-5, "")
    # position_ids are (b, 2, s): position, and place inside the blank
    position_encoding_2d: bool = option(False, "two-channel positions")
    # of the rotary angles (glm/inputs.py), whatever the dtype
    rotary_table: str = option("exact", "precision of the rotary table", choices=ROTARY_TABLES)
    # id of the vocabulary file's first piece: GLM-130B's ids begin with image tokens
    num_image_tokens: int = option(20000, _OVERRIDES)
    family: str = glm130b.NAME  # whose architecture it is (glm/families)
    gelu: str = "exact"  # with erf, or "tanh": the usual approximation
    tie_word_embeddings: bool = True  # the head is the word embeddings
    num_key_value_groups: int = 0  # heads that share keys and values form so many groups; 0: every head has its own

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name), field.type)
        for name, (least, most) in RANGES.items():
            if not least <= getattr(self, name) <= most:
                raise UserError(f"{name} is {shown(getattr(self, name))}; it must be at least {least} and at most "
                                f"{most}")
        if not 0 < self.layernorm_epsilon < 1:
            raise UserError(f"layernorm_epsilon is {shown(self.layernorm_epsilon)}; it must lie between 0 and 1, such "
                            "as 1e-5")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                            f"{self.num_attention_heads}")
        if self.family not in FAMILIES:
            raise UserError(f"family is {shown(self.family)}{nearest(self.family, FAMILIES)}; allowed: "
                            f"{', '.join(FAMILIES)}")
        family = FAMILIES[self.family]
        parts = family.rotary_parts(self)
        if parts and self.head_size % parts:
            raise UserError(f"the head size {self.head_size} (hidden_size / num_attention_heads) must be a multiple of "
                            f"{parts} for rotary positions")
        family.check(self)
        if self.num_attention_heads % self.key_value_heads:
            raise UserError(f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_groups "
                            f"{self.num_key_value_groups}")
        if self.gelu not in GELUS:
            raise UserError(f"gelu is {shown(self.gelu)}; allowed: {', '.join(GELUS)}")
        if self.rotary_table not in ROTARY_TABLES:
            raise UserError(f"rotary_table is {shown(self.rotary_table)}; allowed: {', '.join(ROTARY_TABLES)}")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def key_value_heads(self) -> int:
        return self.num_key_value_groups or self.num_attention_heads

    @property
    def prompt_form(self) -> PromptForm:
        """What stands around a prompt, and which masks are filled."""
        return FAMILIES[self.family].prompt_form(self)

    @property
    def table(self) -> Table:
        """Of the model's tensors."""
        return FAMILIES[self.family].tensors(self)

    @classmethod
    def from_name(cls, name: str) -> ModelConfig:
        if name in PUBLISHED:
            raise UserError(f"model preset {name!r}: the published model of this size is {PUBLISHED[name]}; "
                            f"{name.replace('glm', 'shape')} is one of GLM-130B's architecture, for benchmarks")
        if name not in PRESETS:
            raise UserError(f"unknown model preset {name!r}{nearest(name, PRESETS)}; allowed: {', '.join(PRESETS)}")
        return cls(**PRESETS[name])

    @classmethod
    def from_file(cls, path: str | Path) -> ModelConfig:
        """Read `model_config.json`. Raises UserError naming the file and key at fault."""
        return cls.from_values(read_config_file(path), source=str(path))

    @classmethod
    def from_values(cls, values: dict, source: str = "the model's shape") -> ModelConfig:
        unknown = [key for key in values if key not in FIELDS]
        if unknown:
            raise UserError(f"{source}: unknown key {shown(unknown[0])}{nearest(unknown[0], FIELDS)}; "
                            f"allowed: {', '.join(FIELDS)}")
        missing = [key for key in REQUIRED_FIELDS if key not in values]
        if missing:
            flags = " ".join(f"--{key.replace('_', '-')} N" for key in missing)
            raise UserError(f"{source}: {', '.join(missing)} not given; add a model_config.json to the checkpoint, "
                            f"name a preset (--model {'|'.join(PRESETS)}) or say {flags} (in Python: model=..., "
                            f"{missing[0]}=...)")
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{source}: {error}") from None

    def override(self, **fields) -> ModelConfig:
        """A copy with the given fields replaced; None means "not said"."""
        return self.from_values(dataclasses.asdict(self) | {k: v for k, v in fields.items() if v is not None})

    def to_json(self) -> str:
        """The text of a `model_config.json`."""
        values = {name: value for name, value in dataclasses.asdict(self).items()
                  if name not in LATER or value != getattr(type(self), name)}
        return json.dumps(values, indent=2) + "\n"

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.to_json(), encoding="utf-8")


# Fields that older files do not have: they are written only where they say something.
LATER = ("family", "gelu", "tie_word_embeddings", "num_key_value_groups")
FIELDS = tuple(field.name for field in dataclasses.fields(ModelConfig))
REQUIRED_FIELDS = tuple(field.name for field in dataclasses.fields(ModelConfig)
                        if field.default is MISSING)


PRESETS: dict[str, dict] = {name: values for family in FAMILIES.values() for name, values in family.PRESETS.items()}
PUBLISHED = {"glm-335m": "glm-large", "glm-110m": "glm-base"}  # names that are taken for others


def read_config_file(path: str | Path) -> dict:
    """The values of a `model_config.json`, unchecked but for being a JSON object."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold one JSON object of the model's shapes, is {shown(values)}")
    return values


def nearest(name: str, allowed) -> str:
    close = show.nearest(name, allowed)
    return f" (did you mean {close!r}?)" if close else ""


def _check_type(name: str, value: object, kind: str) -> None:
    expected = {"int": int, "float": (int, float), "bool": bool, "str": str}[kind]
    if not isinstance(value, expected) or (isinstance(value, bool) and kind != "bool"):
        raise UserError(f"{name} is {shown(value)}; it must be of type {kind}")
