"""Encode text files for tools/pretrain.py: one array of ids per file, the held-out documents in an array of their own.

    python tools/prepare_corpus.py --vocabulary ice_text.model --inputs zh_a.txt.xz en_b.txt.xz --output corpus/

Documents are separated by a blank line. A document belongs to the held-out part if the hash of its text says so, so
that the choice outlives any reordering; where hardly any hash does, as of one long document, the end of the file is
held out. The language is what stands before the first "_" of the file's name, or before its suffix.

    corpus/<name>.npy, <name>.heldout.npy     uint16 ids, every document followed by eos
    corpus/corpus.json                        per file: language, hash of the vocabulary, and of both parts documents,
                                              tokens, characters and bytes
"""

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

PURPOSES = {"train": "to train on", "held_out": "held out"}


def encode_documents(documents: list[str], tokenizer):
    """All documents in one uint16 array, each followed by eos."""
    import numpy as np

    eos = tokenizer.command("eos")
    parts = [np.array([*tokenizer.encode(document), eos], dtype=np.uint16) for document in documents]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint16)


def prepare_file(path: Path, vocabulary: Path, output: Path, held_out: float) -> tuple[str, dict]:
    """Writes both arrays of a file; its name, and what corpus.json says of it."""
    import numpy as np

    from evaluation.store import hash_files
    from glm.tokenizers.icetk import IcetkTokenizer
    from runtime.errors import UserError
    from runtime.files import replacing
    from tools.preparing.texts import divided, documents_of, is_held_out, read_lines
    from tuning.data.corpus import SHORTEST_TEXT

    tokenizer = IcetkTokenizer(vocabulary, num_image_tokens=0)
    name = path.name.split(".")[0]
    facts = {"language": name.split("_")[0], "vocabulary": hash_files([vocabulary])[0]}
    parts = divided(documents_of(read_lines(path)), held_out)
    for key, suffix, part in zip(("train", "held_out"), ("", ".heldout"), parts, strict=True):
        ids = encode_documents(part, tokenizer)
        if len(ids) < SHORTEST_TEXT:
            raise UserError(f"{path}: {len(ids)} tokens are too little {PURPOSES[key]}; give more text, or another "
                            f"--held-out than {held_out}")
        with replacing(output / f"{name}{suffix}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, ids)
        facts[key] = {
            "documents": len(part),
            "tokens": len(ids),
            "characters": sum(map(len, part)),
            "bytes": sum(len(document.encode()) for document in part),
        }
    facts["held_out_by"] = "hash" if all(is_held_out(document, held_out) for document in parts[1]) else "place"
    return name, facts


def make_parser() -> argparse.ArgumentParser:
    from runtime.arguments import CommandParser, count, part

    parser = CommandParser(description=__doc__)
    parser.add_argument("--vocabulary", type=Path, required=True, help="ice_text.model, see tools/train_vocabulary.py")
    parser.add_argument("--inputs", nargs="+", type=Path, required=True, help=".txt or .txt.xz files, UTF-8")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--held-out", type=part, default=0.01, help="share of documents kept apart")
    parser.add_argument("--processes", type=count, default=2, help="files at a time")
    return parser


def described(name: str, facts: dict) -> str:
    """One line of what became of a file."""
    from runtime.show import counted

    parts = [f"{facts[key]['tokens']:,} tokens of {counted(facts[key]['documents'], 'document')} {purpose}"
             for key, purpose in PURPOSES.items()]
    return f"{name}: {', '.join(parts)}" + (", the end of the text" if facts["held_out_by"] == "place" else "")


def prepare(options: argparse.Namespace) -> None:
    from glm.tokenizers.icetk import IcetkTokenizer
    from runtime.errors import UserError
    from runtime.files import replacing

    if IcetkTokenizer(options.vocabulary, num_image_tokens=0).num_tokens > 65536:
        raise UserError(f"--vocabulary {options.vocabulary}: over 65536 ids do not fit the uint16 of the corpus files")
    names = [path.name.split(".")[0] for path in options.inputs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--inputs: two files are called {twice[0]}, as their arrays would be; rename one")
    options.output.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.processes) as pool:
        jobs = [pool.submit(prepare_file, path, options.vocabulary, options.output, options.held_out)
                for path in options.inputs]
        files = dict(job.result() for job in jobs)
    for name, facts in files.items():
        print(described(name, facts))
    with replacing(options.output / "corpus.json") as temporary:
        temporary.write_text(json.dumps(files, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    prepare(make_parser().parse_args(arguments))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from runtime.program import run

    run(main)
