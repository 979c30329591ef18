"""Golden data of tuning: rows, samples, scores and steps as the originals compute them; and the commands.

golden/finetune holds a part of the kit; GLM_GOLDEN_FINETUNE names the folder of the whole one, where there is one.
"""

import json
import os
from pathlib import Path

from tests.golden_data import GOLDEN
from tuning.__main__ import main

KIT = Path(os.environ.get("GLM_GOLDEN_FINETUNE", GOLDEN / "finetune"))
TOKENIZERS = {  # the kit's name -> --tokenizer-type, folder, further flags
    "bpe": ("GPT2BPETokenizer", "tokenizer_bpe", ["--task-mask"]),
    "bpe_plain": ("GPT2BPETokenizer", "tokenizer_bpe", []),
    "wordpiece": ("BertWordPieceTokenizer", "tokenizer_wordpiece", []),
    "sp": ("ChineseSPTokenizer", "tokenizer_sp", ["--task-mask", "--fix-command-token"]),
}


def is_whole():
    """Whether all rows of the kit are here."""
    return "GLM_GOLDEN_FINETUNE" in os.environ


def lines(name):
    """The lines of a file of the kit; none where only a part of the kit is here."""
    path = KIT / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def tokenizer_flags(name):
    kind, folder, more = TOKENIZERS[name]
    return ["--tokenizer-type", kind, "--tokenizer-path", str(KIT / folder), *more]


def has_tokenizer(name):
    return (KIT / TOKENIZERS[name][1]).exists()


def run(command, *arguments, capsys):
    """What a command writes: its JSON lines."""
    code = main([command, *map(str, arguments)])
    told = capsys.readouterr()
    assert code == 0, told.err
    return [json.loads(line) for line in told.out.splitlines()]


def refused(command, *arguments, capsys):
    """The one line of a command that ends with 2."""
    assert main([command, *map(str, arguments)]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: ") and told.err.count("\n") == 1, told
    return told.err
