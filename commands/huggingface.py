"""glm export-hf and glm import-hf: checkpoints in Hugging Face's layout, written and taken over."""

import time
from pathlib import Path

from commands.convert import NUMBERS, add_shape
from runtime.arguments import CommandParser
from runtime.errors import UserError, printable
from runtime.program import FORESEEN, ended, terminating
from runtime.show import counted

ABOUT_EXPORTING = """\
Write a checkpoint of any layout as a folder of Hugging Face's: config.json, safetensors, tokenizer files, README.md.

    python -m glm export-hf glm-10b-chinese_tp4 glm-10b-chinese-hf --tokenizer-path glm-10b-chinese

Parts of tensor-parallel ranks are joined; weights keep their precision, quantised ones their bits. GLM, ChatGLM-6B and
ChatGLM2-6B get the names and keys of the published folders. Nothing is uploaded. An export that was interrupted is
finished by the same command.
"""
ABOUT_IMPORTING = """\
Write a folder of Hugging Face's in the toolkit's own layout, to archive it, quantise it or divide it among GPUs.

    python -m glm import-hf glm-10b-chinese-hf glm-10b-chinese

Every command runs such folders as they are; tools/convert_tp.py converts them directly, too. Nothing is downloaded, and
no code of the folder is run. An import that was interrupted is finished by the same command.
"""


def export_main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(description=ABOUT_EXPORTING)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of a checkpoint")
    parser.add_argument("output", type=Path, metavar="OUT", help="new folder for the result")
    parser.add_argument("--tokenizer-path", type=Path, metavar="PATH",
                        help="folder with the tokenizer's files, or the vocabulary in it (default: CHECKPOINT)")
    add_shape(parser)
    options = parser.parse_args(arguments)
    shapes = {name: getattr(options, name) for name in NUMBERS}
    return _converted("huggingface", "CHECKPOINT", options.checkpoint, options.output, shapes, options.model,
                      options.tokenizer_path)


def import_main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(description=ABOUT_IMPORTING)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder with config.json and the weights")
    parser.add_argument("output", type=Path, metavar="OUT", help="new folder for the result")
    options = parser.parse_args(arguments)
    return _converted("sat", "FOLDER", options.folder, options.output, {}, None)


def _converted(form: str, flag: str, folder: Path, output: Path, shapes: dict, model: str | None,
               tokenizer: Path | None = None) -> int:
    from tools.converting.convert import convert
    from tools.converting.plan import Wish

    begin = time.monotonic()
    try:
        if form == "sat":
            _check_is_of_hugging_face(folder)
        with terminating():
            outcome = convert(folder, output, Wish(1, format=form, tokenizer=tokenizer), shapes, model,
                              flags=(flag, "OUT"))
    except FORESEEN as error:
        return ended(error, "the same command goes on")
    shards = counted(outcome.written + outcome.kept, "shard")
    if not outcome.written:
        print(printable(f"{output}: {shards}, finished before"))
        return 0
    seconds = time.monotonic() - begin
    print(printable(f"{output}: {shards}, {outcome.bytes / 1e9:.2f} GB in {seconds:.1f} s, manifest.json beside them"))
    return 0


def _check_is_of_hugging_face(folder: Path) -> None:
    from glm.checkpoint import open_checkpoint

    if folder.is_dir() and open_checkpoint(folder).weight_map is None:
        raise UserError(f"FOLDER {folder} is no checkpoint of Hugging Face's: it has a file for each tensor-parallel "
                        "rank; tools/convert_tp.py converts it")
