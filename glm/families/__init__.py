"""The families of models, a file each; what a checkpoint says of itself decides of which one it is.

A family's file holds all that is peculiar to it. No torch at import: plans and conversions read it, too.

    NAME, PRESETS                      ModelConfig.family; name -> fields of ModelConfig
    MODEL_TYPE, is_mine(values), fields(values)  of a published config.json: whose it is, the fields of ModelConfig
    published(config)                  of a config.json: the keys that say these fields
    own_name(name)                     our name for a tensor of a published file
    published_name(name, values)       the name there for a tensor of ours; values: of its config.json
    open_tokenizer(folder, path, config)         path: where the vocabulary was said to be, or None
    tensors(config)                    the table of its tensors (glm.spec.Table)
    check(config)                      raises UserError where the configuration is none of this family's
    rotary_parts(config)               into what a head is divided for rotation: 2 halves, a pair of which turns, or 4
                                       quarters, of which the last two turn by themselves or not; 0: learned positions
    prompt_form(config)                what stands around a prompt (glm.prompt_form)
    embed(transformer, words, position_ids)      the embedded words (b, s, h) -> what goes into the first layer
    block(layer, number, hidden, step)           one layer, over its linears, the kernels and glm.sat.Step
    layer_form(config)                 optional: that layer for the compiled decoding step (kernels.layer),
                                       without which the layers are walked
    initialise(model)                  optional: random weights to train from
"""

from collections.abc import Mapping
from types import ModuleType

from glm.families import chatglm, chatglm2, glm, glm130b
from runtime.errors import UserError, shown

FAMILIES = {family.NAME: family for family in (glm130b, glm, chatglm, chatglm2)}
PUBLISHED = (glm, chatglm2, chatglm, glm130b)  # of two that a config.json may be of, the first


def published_family(values: Mapping[str, object]) -> ModuleType | None:
    """The family that a published config.json is of."""
    return next((family for family in PUBLISHED if family.is_mine(values)), None)


def published_fields(values: Mapping[str, object]) -> dict[str, object]:
    """The fields of ModelConfig in a published config.json. Raises UserError for a model that is not served."""
    family = published_family(values)
    if family is None:
        known = ", ".join(dict.fromkeys(family.MODEL_TYPE for family in PUBLISHED))
        raise UserError(f"model_type is {shown(values.get('model_type'))}; served are {known}")
    return family.fields(values)
