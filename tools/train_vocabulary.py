"""Train the sentencepiece unigram vocabulary of a small GLM, with the conventions of icetk's `ice_text.model`.

    python tools/train_vocabulary.py --inputs a.txt.xz b.txt.xz --output ice_text.model --pieces 16040

The file holds text pieces only: <unk> 0, <s> 1, </s> 2, <pad> 3, <n> 4, then the learnt pieces. Commands, tab, runs of
blanks and bytes (344 pieces) are appended by `glm.tokenizers.icetk` when the file is read, so the vocabulary size of
the model is at least `pieces + 344`; choose `pieces` so that the sum is a multiple of 512 or little less. Naming an
input twice doubles its weight.
"""

import argparse
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ADDED_PIECES = 344  # 8 commands, a tab, runs of 2..80 blanks, 256 bytes


def lines_of(path: Path, limit: int) -> Iterator[str]:
    """The lines of a UTF-8 text file (.xz or plain), without line ends, up to about `limit` characters (0: all).

    A file over the limit gives lines at a fixed stride, so that they are a sample of all of it and not its beginning.
    """
    from tools.preparing.texts import read_lines

    lines = [line.strip() for line in read_lines(path)]
    total = sum(map(len, lines))
    share = min(1.0, limit / max(total, 1)) if limit else 1.0
    taken = 0.0
    for line in lines:
        taken += share
        if taken >= 1.0:
            taken -= 1.0
            if line:
                yield line


def train_vocabulary(lines: Iterator[str], pieces: int, character_coverage: float, threads: int) -> bytes:
    """Returns the bytes of the sentencepiece model; `pieces` counts <unk>, <s>, </s>, <pad> and <n> too."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        model_type="unigram",
        vocab_size=pieces,
        character_coverage=character_coverage,
        max_sentence_length=8192,
        num_threads=threads,
        user_defined_symbols=["<n>"],
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        normalization_rule_name="nmt_nfkc",
        byte_fallback=False,  # the tokenizer appends the byte pieces itself, behind the command pieces
        minloglevel=1,
    )
    return model.getvalue()


def make_parser() -> argparse.ArgumentParser:
    from runtime.arguments import CommandParser, count, count_or_zero, share

    parser = CommandParser(description=__doc__)
    parser.add_argument("--inputs", nargs="+", type=Path, required=True, help="text files, .txt or .txt.xz, UTF-8")
    parser.add_argument("--output", type=Path, required=True, help="file to write, e.g. ice_text.model")
    parser.add_argument("--pieces", type=count, default=16040, help="pieces in the file")
    parser.add_argument("--character-coverage", type=share, default=0.9998, help="share of characters given a piece")
    parser.add_argument("--characters-per-file", type=count_or_zero, default=0,
                        help="at most this much of a file (default: all)")
    parser.add_argument("--threads", type=count, default=2, help="of the training")
    return parser


def train(options: argparse.Namespace) -> None:
    from runtime.errors import UserError

    lines = [line for path in options.inputs for line in lines_of(path, options.characters_per_file)]
    if not any(map(str.strip, lines)):
        raise UserError(f"{', '.join(map(str, options.inputs[:3]))}{' ...' * (len(options.inputs) > 3)}: there is no "
                        "text to learn pieces from")
    try:
        model = train_vocabulary(iter(lines), options.pieces, options.character_coverage, options.threads)
    except RuntimeError as error:  # sentencepiece's own words, with the most that the text gives where it knows
        if most := re.search(r"value <= (\d+)", str(error)):
            raise UserError(f"--pieces {options.pieces}: this text is enough for {most[1]} at most; give more text, or "
                            "fewer pieces") from None
        raise UserError(f"--pieces {options.pieces}: sentencepiece cannot make that many of this text, or that few: "
                        f"{str(error).rpartition('] ')[2].strip()}") from None
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(model)
    print(f"{options.output}: {options.pieces} pieces, {options.pieces + ADDED_PIECES} ids with the added ones")


def main(arguments: list[str] | None = None) -> None:
    train(make_parser().parse_args(arguments))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from runtime.program import run

    run(main)
