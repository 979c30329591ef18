"""What may be asked of `python -m tuning`: a dataclass for each idea, whose fields are the flags.

Names and defaults are those of the GLM repository, unless its default was a trap. Knows no torch.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm.config import ModelConfig
from glm.spec import QKV
from quantization import GROUP_SIZES
from runtime.arguments import amount, count, count_or_zero, option, share
from tuning.data.form import GLM_REPOSITORY, SampleForm

TOKENIZERS = ("GPT2BPETokenizer", "BertWordPieceTokenizer", "ChineseSPTokenizer")
SPLITS = ("train", "dev", "test")
LOSSES = ("cross_entropy", "hinge", "generative", "mix", "adapet")
POOLED = ("cls", "start", "pad")
ENCODERS = ("lstm", "mlp", "none")
FORMATS = ("peft", "sat", "glm")
LAYOUTS = ("heads", "stacked")
STYLES = ("linear", "cosine", "constant")


@dataclass(frozen=True)
class TokenizerOptions:
    """Of a checkpoint in the GLM repository's layout, which brings no tokenizer of its own."""

    tokenizer_type: str | None = option(None, "whose files these are", choices=TOKENIZERS,
                                        none="what the folder holds")
    tokenizer_path: Path | None = option(None, "folder of the vocabulary", none="that of --load")
    fix_command_token: bool = option(False, "ChineseSPTokenizer: the command ids of glm-large-chinese")
    task_mask: bool = option(False, "the tokenizer has [gMASK] and [sMASK], and tasks use them")


def split_of(word: str) -> str:
    """One of SPLITS, or their shares."""
    if word not in SPLITS and shares_of(word) is None:
        raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(SPLITS)}, and no shares of these (of "
                                         "pretraining's documents), as 949,50,1")
    return word


def shares_of(split: str) -> tuple[float, ...] | None:
    """Of the documents of pretraining that are for training, validation and test, together 1; None: it says none."""
    try:
        shares = [float(share) for share in split.split(",")]
    except ValueError:
        return None
    if len(shares) > len(SPLITS) or not all(0 <= share < math.inf for share in shares) or not shares[0]:
        return None
    return tuple(share / sum(shares) for share in (shares + [0.0, 0.0])[:len(SPLITS)])


@dataclass(frozen=True)
class DataOptions:
    task: str | None = option(None, "the task's name, as rte, copa, gigaword, blank, pretrain, chat")
    data_dir: Path | None = option(None, "folder with the task's files")
    split: str = option("dev", "which of the files: train, dev (for validation) or test; of pretraining the documents' "
                               "shares of these, as 949,50,1", metavar="SPLIT", read=split_of)
    seq_length: int = option(512, "tokens of a sequence", read=count)
    src_seq_length: int = option(464, "seq2seq: tokens of a source", read=count)
    tgt_seq_length: int = option(48, "seq2seq: tokens of a target", read=count)
    for_train: bool = option(False, "ReCoRD: candidates as in training, whatever the split")
    seed: int = option(1234, "of all draws: order of rows, blanks, dropout, first weights", read=count_or_zero)


@dataclass(frozen=True)
class ClozeOptions:
    """How a row of a classification or multiple-choice task becomes a question of the model."""

    cloze_eval: bool = option(False, "by a cloze question; without it by a classification head")
    pattern_id: int = option(0, "which of the task's patterns", read=count_or_zero)
    multi_token: bool = option(False, "score the verbalizers' tokens and their end, not one token at sop")
    segment_length: int = option(0, "cut answers into pieces of so many tokens; 0: no pieces", read=count_or_zero)
    no_block_position: bool = option(False, "all tokens of an answer have the block position 1")
    wsc_negative: bool = option(False, "WSC with candidates")
    loss_func: str = option("cross_entropy", "of the scores of the choices", choices=LOSSES)
    length_penalty: float = option(0.0, "exponent of the length that a choice's score, or a beam's, is divided by")
    block_lm_ratio: float = option(0.0, "train: for each step of the task so many of pretraining's objective, on the "
                                        "patterns with their answers", read=amount)
    pool_token: str = option("cls", "whose hidden state the classification head reads", choices=POOLED)


@dataclass(frozen=True)
class PromptOptions:
    """Continuous prompts (P-tuning): tokens whose embeddings are learned."""

    continuous_prompt: bool = option(False, "the pattern's places for prompt tokens are used")
    num_prompt_tokens: int = option(0, "tokens that are spread over the places of the pattern", read=count_or_zero)
    prefix_prompt: int = option(0, "tokens at the very beginning", read=count_or_zero)
    prompt_func: str = option("lstm", "what makes their embeddings", choices=ENCODERS)
    freeze_transformer: bool = option(False, "the model itself does not learn")
    tune_prefix_layers: int | None = option(None, "but its first so many layers do", none="none", read=count)
    prompt_init: bool = option(False, "train: their embeddings begin as words, mixed with the verbalizers' tokens")


@dataclass(frozen=True)
class Seq2seqOptions:
    mask_pad_token: bool = option(False, "customization: the padding of a source is not seen")
    blank_maskratio: float = option(0.1, "blank: share of the words that are drawn", read=share)
    label_smoothing: float = option(0.0, "share of the target that is spread over the vocabulary", read=share)
    num_beams: int = option(1, "beams of the search", read=count)
    no_repeat_ngram_size: int = option(0, "no n tokens come twice; 0: any may", read=count_or_zero)
    min_tgt_length: int = option(0, "an answer has at least so many tokens", read=count_or_zero)
    select_topk: bool = option(False, "take the likeliest candidates; without it they are drawn")
    no_decode: bool = option(False, "losses only, nothing is generated")


@dataclass(frozen=True)
class ObjectiveOptions:
    """Of pretraining: which blanks a batch gets."""

    bert_prob: float = option(0.5, "share of batches with short blanks", read=share)
    gap_sentence_prob: float = option(0.0, "share of batches whose blanks are sentences", read=share)
    gpt_infill_prob: float = option(0.5, "share of one long blank that lies anywhere, not at the end", read=share)
    gpt_min_ratio: float = option(0.5, "least share of a text that the long blank takes", read=share)
    single_span_prob: float = option(0.0, "share of batches with a single short blank", read=share)
    short_seq_prob: float = option(0.0, "share of batches that are cut into short texts", read=share)
    avg_block_length: int = option(3, "mean length of a short blank", read=count)
    bert_mask_ratio: float = option(0.15, "share of the tokens in short blanks", read=share)
    gap_sentence_ratio: float = option(0.15, "share of the tokens in blanks that are sentences", read=share)
    block_mask_prob: float = option(0.0, "share of an answer's tokens that are read as dBLOCK", read=share)
    context_mask_ratio: float = option(0.0, "share of the context near the blanks that is read as dBLOCK", read=share)
    random_position: bool = option(False, "a random offset is added to all positions")
    no_shuffle_block: bool = option(False, "blanks are answered in their order")


@dataclass(frozen=True)
class DocumentOptions:
    """Of pretraining: documents in JSON lines of prompt and text, packed into samples."""

    train_data: Path | None = option(None, "file of documents", metavar="FILE")
    sample_one_document: bool = option(False, "a sample holds one document, however short")
    non_sentence_start: float = option(0.0, "share of samples that begin anywhere, not with a sentence", read=share)


@dataclass(frozen=True)
class MixingOptions:
    """Of pretraining: rows of classification tasks in between."""

    multi_task_data: str | None = option(None, "tasks and their folders, as rte=FOLDER,cola=FOLDER", none="none")
    multi_task_ratio: float = option(0.0, "share of the steps that read them", read=share)
    multi_seq_length: int | None = option(None, "tokens of their sequences", none="--seq-length", read=count)
    multi_batch_size: int = option(4, "rows of such a step", read=count)


@dataclass(frozen=True)
class StreamOptions:
    """Of texts that are scored as they stand, and of rows that have ids already."""

    valid_data: Path | None = option(None, "lambda, wikitext, language_model: the file; pretraining: of documents for "
                                           "validation", metavar="FILE")
    test_data: Path | None = option(None, "multichoice: the file; pretraining: of documents for the test",
                                    metavar="FILE")
    overlapping_eval: int = option(32, "tokens by which a window moves on", read=count)
    unidirectional: bool = option(False, "all but the first token stand in the blank")
    tokenized: Path | None = option(None, "chat: JSON lines of input_ids and labels", metavar="FILE")


@dataclass(frozen=True)
class ChatOptions:
    """ChatGLM's rows as its ptuning folder reads them: JSON (a list, or a line a row) or CSV with these columns."""

    train_file: Path | None = option(None, "chat: rows of --split train", metavar="FILE")
    validation_file: Path | None = option(None, "chat: rows of --split dev", metavar="FILE")
    test_file: Path | None = option(None, "chat: rows of --split test", metavar="FILE")
    prompt_column: str = option("prompt", "chat: the questions' column", metavar="NAME")
    response_column: str = option("response", "chat: the answers' column", metavar="NAME")
    history_column: str | None = option(None, "chat: the column of the rounds before", metavar="NAME", none="none")
    source_prefix: str = option("", "chat: what stands before each question", metavar="TEXT")
    max_source_length: int = option(1024, "chat: tokens of a question", read=count)
    max_target_length: int = option(128, "chat: tokens of an answer", read=count)


@dataclass(frozen=True)
class CheckpointOptions:
    """The model itself. What its folder does not say is said here."""

    load: Path | None = option(None, "checkpoint folder", metavar="DIR")
    model: str | None = option(None, "shapes by name", metavar="NAME", none="what the folder says")
    shape: Mapping[str, Any] = option(None, "", overrides=ModelConfig)
    degree: int | None = option(None, "tensor-parallel degree", none="the number of shards",
                                flag="model_parallel_size", read=count)
    bits: int | None = option(None, "quantise the linear layers while loading", flag="quantization_bit_width",
                              choices=(4, 8))
    group_size: int | None = option(None, "so many columns share a scale", none="a whole row",
                                    flag="quantization_group_size", choices=GROUP_SIZES)
    device: str = option("cpu", "cpu, cuda or cuda:N")
    dtype: str = option("float32", "of the weights: float32, bfloat16, float16")


@dataclass(frozen=True)
class PartsOptions:
    """What lies beside the model in files of its own."""

    head: Path | None = option(None, "a classification head", metavar="FILE")
    prompt_encoder: Path | None = option(None, "what makes the continuous prompt", metavar="FILE")
    adapter: Path | None = option(None, "LoRA or a prefix: a file, or a folder in peft's format", metavar="FILE")
    lora_alpha: float = option(1.0, "LoRA: the products are multiplied with alpha / rank; files of peft and of this "
                                    "program say it themselves")
    lora_layout: str | None = option(None, "LoRA with three pairs: their outputs lie head by head, or one below the "
                                           "other", choices=LAYOUTS, none="as the model's own rows")
    lora_rank: int | None = option(None, "train: new LoRA of this rank, beside a frozen model", none="none", read=count)
    lora_dropout: float = option(0.0, "train: share of what new LoRA reads", read=share)
    lora_linears: str = option(QKV.rpartition(".")[2], "train: which linears of the layers get LoRA, several with "
                                                       "commas between", metavar="NAME,NAME")
    lora_split_qkv: bool = option(False, "train: queries, keys and values get a pair each, as SAT has it")
    lora_format: str = option("peft", "train: how LoRA is saved; three pairs take sat's or glm's", choices=FORMATS)
    pre_seq_len: int = option(0, "ChatGLM: tokens of the prefix", read=count_or_zero)
    prefix_projection: bool = option(False, "ChatGLM: the prefix has a projection")
    prefix_encoder: Path | None = option(None, "ChatGLM: file or folder of the prefix", metavar="FILE")


@dataclass(frozen=True)
class Settings:
    """All that decides what the samples of a task are."""

    tokenizer: TokenizerOptions = TokenizerOptions()
    data: DataOptions = DataOptions()
    cloze: ClozeOptions = ClozeOptions()
    prompt: PromptOptions = PromptOptions()
    seq2seq: Seq2seqOptions = Seq2seqOptions()
    objective: ObjectiveOptions = ObjectiveOptions()
    documents: DocumentOptions = DocumentOptions()
    mixing: MixingOptions = MixingOptions()
    streams: StreamOptions = StreamOptions()
    chat: ChatOptions = ChatOptions()
    form: SampleForm = GLM_REPOSITORY  # of the model's family


GROUPS = {"tokenizer": TokenizerOptions, "data": DataOptions, "cloze": ClozeOptions, "prompt": PromptOptions,
          "seq2seq": Seq2seqOptions, "objective": ObjectiveOptions, "documents": DocumentOptions,
          "mixing": MixingOptions, "streams": StreamOptions, "chat": ChatOptions}
