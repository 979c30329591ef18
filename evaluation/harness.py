"""GLM as a model of lm-evaluation-harness, by the name `glm`.

    from evaluation import harness
    harness.register()
    lm_eval.simple_evaluate(model="glm", model_args="pretrained=checkpoints/glm-small", tasks=["wikitext"])

The harness is an optional package, imported by `register` only (docs/lm-eval.md).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import glm
from evaluation.harness_answers import Answers
from evaluation.harness_requests import frame_of
from generation.conversation import FORMATS, ROLES, ChatFormat, read_messages
from planning.machine import default_device
from runtime.errors import UserError, shown
from runtime.show import nearest

NAME = "glm"
REQUIREMENT = "lm_eval[api]>=0.4.9,<0.5"
HARNESS_DEVICE = "cuda:0"  # its default, even where there is no GPU


@dataclass(frozen=True)
class HarnessOptions:
    """What `model_args` may hold, and what the harness adds from its own command line. Raises UserError."""

    pretrained: str  # the checkpoint's folder
    dtype: str = "float32"
    device: str | None = None  # None, and what the harness says of itself (HARNESS_DEVICE): a GPU where there is one
    bits: int | None = None  # quantise the linears while loading
    tokenizer_path: str | None = None
    mask: str = "[gMASK]"  # that stands behind a context; or [MASK]
    unidirectional: bool = False  # contexts are read from left to right, as a causal model's
    max_length: int | None = None  # tokens that the model reads; None: as many as it is made for
    max_gen_toks: int = 256  # of an answer, where the task says nothing
    batch_size: int | str = "auto"  # most sequences of a batch; "auto": by memory
    max_batch_size: int | None = None  # with "auto"

    def __post_init__(self):
        if not isinstance(self.unidirectional, bool):
            raise UserError(f"unidirectional is {shown(self.unidirectional)}; allowed: True, False")
        for name in ("max_length", "max_gen_toks", "max_batch_size"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise UserError(f"{name} is {shown(value)}; it must be a whole number of at least 1")
        if not (self._is_auto or (str(self.batch_size).isdecimal() and int(self.batch_size) > 0)):
            raise UserError(f"batch_size is {shown(self.batch_size)}; allowed: a whole number of at least 1, auto")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> HarnessOptions:
        """Raises UserError for an option that is not known, with the nearest one."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                close = nearest(name, known)
                hint = f" (did you mean {close!r}?)" if close else ""
                raise UserError(f"model_args: unknown argument {name!r}{hint}; there are: {', '.join(known)}")
        if "pretrained" not in values:
            raise UserError("model_args: pretrained is missing, the checkpoint's folder; say --model_args "
                            "pretrained=FOLDER")
        return cls(**values)

    @property
    def _is_auto(self) -> bool:
        return str(self.batch_size).partition(":")[0] == "auto"

    @property
    def most_sequences(self) -> int | None:
        """Of a batch; None: by memory."""
        return self.max_batch_size if self._is_auto else int(self.batch_size)


def register() -> None:
    """Makes the harness know the model `glm`, beside its own. Raises UserError where the harness is not installed."""
    try:
        import lm_eval.models  # noqa: F401 (before ours: a registry that is not empty is not filled any more)
        from lm_eval.api.model import LM
        from lm_eval.api.registry import MODEL_REGISTRY, register_model
    except ImportError as error:
        raise UserError(f"lm-evaluation-harness is not installed for this Python ({error}); {sys.executable} -m pip "
                        f'install "{REQUIREMENT}"') from None
    if NAME not in MODEL_REGISTRY:
        register_model(NAME)(_model_class(LM))


def load(options: HarnessOptions) -> Answers:
    """Raises UserError for every fault of the checkpoint or the options."""
    if not Path(options.pretrained).is_dir():
        raise UserError(f"pretrained={options.pretrained}: no such folder; name the one that holds the checkpoint")
    device = default_device() if options.device in (None, HARNESS_DEVICE) else options.device
    model, tokenizer = glm.load(options.pretrained, device, options.dtype, options.tokenizer_path, options.bits)
    frame = frame_of(model.config.prompt_form, tokenizer, options.mask, options.unidirectional)
    return Answers(model, tokenizer, frame, options.max_length, options.max_gen_toks, options.most_sequences)


def chat_prompt(messages: Sequence[Mapping[str, str]], family: str) -> str:
    """Messages as a chat model's prompt. The last one is the user's, or an answer that is begun.

    Raises UserError for a model without chat format, and for an answer that cannot be begun."""
    form = chat_format(family)
    begun = ""
    if messages and messages[-1].get("role") == ROLES[-1]:
        *messages, last = messages
        begun = last["content"]
        if not form.is_causal:
            raise UserError(f"a model of the family {family} begins its answers itself; the task's gen_prefix "
                            f"{shown(begun)} cannot be given to it")
    said = read_messages(messages)
    return form.prompt(said.history, said.query, said.system) + begun


def chat_format(family: str) -> ChatFormat:
    if family not in FORMATS:
        raise UserError(f"--apply_chat_template: a model of the family {family} has no chat format; leave it out. "
                        f"Families for chats: {', '.join(FORMATS)}")
    return FORMATS[family]


def _model_class(base: type) -> type:
    """The harness's class of models (lm_eval.api.model.LM) -> ours."""

    class HarnessModel(base):
        """What the harness asks goes to `answers`; what it wants to keep in its cache is told as it comes."""

        def __init__(self, **values):
            super().__init__()
            self.answers = load(HarnessOptions.of(values))
            self.family = self.answers.model.config.family

        @classmethod
        def create_from_arg_obj(cls, arg_dict, additional_config=None):
            """What model_args say wins over the harness's flags of the same names, and over their defaults."""
            own = {name: value for name, value in (additional_config or {}).items() if value is not None}
            return cls(**own | arg_dict)

        @classmethod
        def create_from_arg_string(cls, arg_string, additional_config=None):
            from lm_eval.utils import simple_parse_args_string

            return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

        def loglikelihood(self, requests, disable_tqdm: bool = False):
            found = self.answers.log_likelihoods([request.args for request in requests],
                                                 self._keeper("loglikelihood", requests))
            return [tuple(choice) for choice in found]

        def loglikelihood_rolling(self, requests, disable_tqdm: bool = False):
            return self.answers.rolling([text for text, in (request.args for request in requests)])

        def generate_until(self, requests, disable_tqdm: bool = False):
            return self.answers.generate([request.args for request in requests],
                                         self._keeper("generate_until", requests))

        def apply_chat_template(self, chat_history, add_generation_prompt: bool = True) -> str:
            return chat_prompt(chat_history, self.family)

        def chat_template(self, chat_template=False) -> str:
            """The format's pattern of a round, for the harness's records. Raises UserError where there is none."""
            if not chat_template:
                return ""
            if chat_template not in (True, self.family):
                raise UserError(f"--apply_chat_template {chat_template}: a model of the family {self.family} has its "
                                "own format; leave the name out")
            return chat_format(self.family).past

        @property
        def tokenizer_name(self) -> str:
            """For the key of requests that the harness keeps."""
            return str(self.answers.tokenizer.vocabulary_file.absolute())

        def _keeper(self, kind, requests):
            def keep(place, answer):
                if not (kind == "generate_until" and requests[place].args[1].get("do_sample", False)):
                    self.cache_hook.add_partial(kind, requests[place].args,
                                                tuple(answer) if isinstance(answer, tuple) else answer)

            return keep

    return HarnessModel
