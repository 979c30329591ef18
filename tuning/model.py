"""The model that is tuned: a GLM with what is learned beside it, a classification head and a continuous prompt.

What learns has gradients and, as all weights in the precision that was asked for, memory of its own. Names are those of
the originals' state dictionaries.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glm import spec
from glm.adapters.files import base_of, put_on, read_adapter, read_tensors
from glm.families import FAMILIES
from glm.linear import linears
from glm.loading import load_without_tokenizer
from glm.options import ModelOptions
from runtime.errors import UserError
from tuning.learned_places import PLACES, lengthen, longer_than_learned
from tuning.options import CheckpointOptions, PartsOptions

if TYPE_CHECKING:
    from glm.dropout import Dropout
    from glm.model import GLM
    from tuning.batch import Batch

NO_PARTS = PartsOptions()
FIRST_WORDS = 5000  # of the vocabulary, which a prompt's tokens may begin as
PROMPT = "prompt_spell."  # before the names of a prompt encoder's parameters


class Head(torch.nn.Module):
    """(b, h) -> (b, labels): Linear, tanh, dropout, Linear."""

    def __init__(self, hidden_size: int, labels: int) -> None:
        super().__init__()
        self.pool_layer = torch.nn.Linear(hidden_size, hidden_size)
        self.multichoice_head = torch.nn.Linear(hidden_size, labels)

    def forward(self, hidden: Tensor, dropout: Dropout | None = None) -> Tensor:
        pooled = torch.tanh(self.pool_layer(hidden.to(self.pool_layer.weight.dtype)))
        return self.multichoice_head(pooled if dropout is None else dropout.output(pooled)).float()


class PromptEncoder(torch.nn.Module):
    """() -> (n, h): what stands for the embeddings of the continuous prompt's tokens (P-tuning, Liu et al. 2021)."""

    def __init__(self, hidden_size: int, count: int, kind: str) -> None:
        """kind: "lstm", "mlp" or "none"."""
        super().__init__()
        linear = torch.nn.Linear
        self.spell_embeddings = torch.nn.Embedding(count, hidden_size)
        self.lstm_head = self.mlp_head = None
        if kind == "lstm":
            self.lstm_head = torch.nn.LSTM(hidden_size, hidden_size, num_layers=2, bidirectional=True,
                                           batch_first=True)
        if kind != "none":
            self.mlp_head = torch.nn.Sequential(linear((2 if kind == "lstm" else 1) * hidden_size, hidden_size),
                                                torch.nn.ReLU(), linear(hidden_size, hidden_size))

    def forward(self) -> Tensor:
        found = self.spell_embeddings.weight
        if self.lstm_head is not None:
            found = self.lstm_head(found[None])[0][0]
        return found if self.mlp_head is None else self.mlp_head(found)


class Tuned(torch.nn.Module):
    def __init__(self, model: GLM, head: Head | None = None, prompt: PromptEncoder | None = None) -> None:
        super().__init__()
        self.model, self.head, self.prompt = model, head, prompt
        self.parts = NO_PARTS  # what was asked for beside the model
        self.learned_places: int | None = None  # positions behind these begin as drawn; None: there are none such
        self.is_checkpointed = False  # layers are computed again for their gradients: less memory

    def hidden_states(self, batch: Batch, dropout: Dropout | None = None) -> Tensor:
        """(n, h) at the batch's wanted places. dropout: that of its rows."""
        prompts = None
        if len(batch.prompts):
            if self.prompt is None:
                raise UserError("the samples have places for a continuous prompt, but there is no encoder: "
                                "--prompt-encoder FILE")
            vectors, places = self.prompt(), int(batch.prompt_numbers.max()) + 1
            if places != len(vectors):
                raise UserError(f"{self.parts.prompt_encoder or 'the prompt encoder'} has {len(vectors)} tokens, but "
                                f"the samples have {places} places (--num-prompt-tokens, --prefix-prompt)")
            prompts = batch.prompts, vectors[batch.prompt_numbers]
        for _, linear in linears(self.model):
            for adapter in linear.adapters.values():
                adapter.dropping(dropout, batch.tokens.shape[1], batch.places)
        return self.model.hidden_states(batch.tokens, batch.position_ids, batch.blocked, places=batch.places,
                                        prompts=prompts, dropout=dropout, is_checkpointed=self.is_checkpointed)

    def named(self) -> dict[str, torch.nn.Parameter]:
        """All parameters by the originals' names: those of the model as its files have them, of adapters as SAT and
        ChatGLM have them, of head and prompt encoder as in their files."""
        family = FAMILIES[self.model.config.family]
        found = {}
        for name, parameter in self.model.named_parameters():
            if name.startswith("prefix."):
                name = f"transformer.prefix_encoder.{name.removeprefix('prefix.')}"
            elif ".adapters." in name:
                name = name.replace(".adapters.lora.", ".")
            else:
                name = family.published_name(name, {})
            found[name] = parameter
        if self.head is not None:
            found |= dict(self.head.named_parameters())
        if self.prompt is not None:
            found |= {f"{PROMPT}{name}": parameter for name, parameter in self.prompt.named_parameters()}
        return found

    @property
    def is_adapted(self) -> bool:
        """Whether LoRA or a prefix is on the model, which is frozen then."""
        return self.model.prefix is not None or any(linear.adapters for _, linear in linears(self.model))

    def frozen(self) -> set[str]:
        """Names of what belongs to the model itself."""
        return {name for name in Tuned(self.model).named() if ".matrix_" not in name and ".prefix_encoder." not in name}

    def is_split(self, name: str) -> bool:
        """Whether tensor-parallel ranks hold parts of the parameter of this name; what is beside the model is whole."""
        return spec.cut_of(FAMILIES[self.model.config.family].own_name(name)) is not spec.Cut.WHOLE

    def learn(self, choose: Callable[[str], bool]) -> dict[str, torch.nn.Parameter]:
        """Give gradients to the chosen parameters, by their names, and to no others -> these. What is not kept in
        floating point cannot learn."""
        chosen = {}
        for name, parameter in self.named().items():
            learns = choose(name) and parameter.is_floating_point()
            if learns:
                parameter.data = parameter.data.clone()  # not the file's own pages
                chosen[name] = parameter
            parameter.requires_grad_(learns)
        return chosen


def load(options: CheckpointOptions, parts: PartsOptions = NO_PARTS) -> Tuned:
    """A checkpoint's model, without gradients, and what lies beside it in files. UserError for what does not fit."""
    shape, wanted = options.shape or {}, longer_than_learned(options)
    if wanted is not None:
        shape = {name: value for name, value in shape.items() if name != PLACES}
    model = load_without_tokenizer(ModelOptions(
        path=options.load, model=options.model, shape=shape, degree=options.degree, bits=options.bits,
        group_size=options.group_size, device=options.device, dtype=options.dtype, int8_vocabulary="off"))
    learned_places = model.config.max_sequence_length
    if wanted is not None:
        lengthen(model, wanted)
    device, width = next(model.parameters()).device, model.config.hidden_size
    if parts.adapter is not None:
        put_on(model, read_adapter(parts.adapter, model.config.family, parts.lora_alpha, parts.lora_layout),
               base_of(options.load))
    if parts.prefix_encoder is not None:
        put_on(model, read_adapter(parts.prefix_encoder, model.config.family), base_of(options.load),
               parts.pre_seq_len or None, parts.prefix_projection)
    head, encoder = parts.head, parts.prompt_encoder
    tuned = Tuned(model, None if head is None else read_head(head, width).to(device),
                 None if encoder is None else read_prompt_encoder(encoder, width).to(device))
    tuned.parts, tuned.learned_places = parts, None if wanted is None else learned_places
    return tuned


def read_head(path: Path, hidden_size: int) -> Head:
    tensors = read_tensors(path)
    last = tensors.get("multichoice_head.weight")
    if last is None or last.dim() != 2:
        raise UserError(f"{path}: no classification head: it holds no multichoice_head.weight")
    return filled(Head(hidden_size, last.shape[0]), tensors, path)


def read_prompt_encoder(path: Path, hidden_size: int) -> PromptEncoder:
    tensors = {name.removeprefix(PROMPT): tensor for name, tensor in read_tensors(path).items()}
    words = tensors.get("spell_embeddings.weight")
    if words is None or words.dim() != 2:
        raise UserError(f"{path}: no prompt encoder: it holds no {PROMPT}spell_embeddings.weight")
    kind = ("lstm" if "lstm_head.weight_ih_l0" in tensors else "mlp" if "mlp_head.0.weight" in tensors else "none")
    return filled(PromptEncoder(hidden_size, words.shape[0], kind), tensors, path)


def filled(part: torch.nn.Module, tensors: Mapping[str, Tensor], path: Path) -> torch.nn.Module:
    """UserError where names or shapes differ."""
    wanted = part.state_dict()
    if set(wanted) != set(tensors):
        name = sorted(set(wanted) ^ set(tensors))[0]
        raise UserError(f"{path} {'lacks' if name in wanted else 'holds'} {name}, "
                        f"{'which is needed' if name in wanted else 'for which there is no use'}")
    for name, tensor in wanted.items():
        if tensors[name].shape != tensor.shape:
            raise UserError(f"{path}: {name} has the shape {tuple(tensors[name].shape)}, {tuple(tensor.shape)} is "
                            "needed: it was made for another model")
    part.load_state_dict(dict(tensors))
    return part.requires_grad_(False)


@torch.no_grad()
def initialise(part: torch.nn.Module, seed: int) -> torch.nn.Module:
    """First weights as torch draws them for linears and LSTMs, uniform up to 1 / sqrt(inputs) (an LSTM's: its width),
    normal for embeddings; a function of the seed."""
    generator = torch.Generator().manual_seed(seed)
    for module in part.modules():
        if isinstance(module, torch.nn.Embedding):
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
        elif isinstance(module, torch.nn.Linear | torch.nn.LSTM):
            width = module.in_features if isinstance(module, torch.nn.Linear) else module.hidden_size
            for parameter in module.parameters(recurse=False):
                drawn = torch.rand(parameter.shape, generator=generator)
                parameter.copy_((2 * drawn - 1) / width ** 0.5)
    return part


@torch.no_grad()
def begin_as_words(encoder: PromptEncoder, model: GLM, verbalizers: Sequence[int], seed: int) -> None:
    """The embedding of each of the prompt's tokens becomes that of a word that is drawn, mixed in a share that is drawn
    with that of one of the verbalizers' tokens, where there are any. A function of the seed."""
    draw, words = random.Random(seed), model.transformer.word_embeddings
    most = min(FIRST_WORDS, model.config.vocab_size)
    for number in range(encoder.spell_embeddings.num_embeddings):
        tokens, share = [draw.randrange(most)], 1.0
        if verbalizers:
            tokens.append(draw.choice(verbalizers))
            share = draw.random()
        ids = torch.tensor(tokens, device=words.weight.device)
        is_whole = words.weight.shape[0] == words.num_embeddings  # not split over ranks
        vectors = (words.weight[ids] if is_whole else words(ids)).float()
        encoder.spell_embeddings.weight[number] = share * vectors[0] + (1 - share) * vectors[-1]
