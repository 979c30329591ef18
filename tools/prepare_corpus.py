"""Encode text files for tools/pretrain.py: one array of ids per file, the held-out documents in an array of their own.

    python tools/prepare_corpus.py --vocabulary ice_text.model --inputs zh_a.txt.xz en_b.txt.xz --output corpus/

Documents are separated by a blank line. A document belongs to the held-out part if the hash of its text says so, so
that the choice outlives any reordering. The language is what stands before the first "_" of the file's name.

    corpus/<name>.npy, <name>.heldout.npy     uint16 ids, every document followed by eos
    corpus/corpus.json                        per file: language, documents, tokens, characters and bytes of both parts
"""

import argparse
import hashlib
import json
import lzma
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

BUCKETS = 10_000


def is_held_out(document: str, share: float) -> bool:
    digest = hashlib.sha256(document.encode()).digest()
    return int.from_bytes(digest[:8], "big") % BUCKETS < share * BUCKETS


def read_documents(path: Path) -> list[str]:
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return [document.strip("\n") for document in file.read().split("\n\n") if document.strip()]


def encode_documents(documents: list[str], tokenizer):
    """All documents in one uint16 array, each followed by eos."""
    import numpy as np

    eos = tokenizer.command("eos")
    parts = [np.array([*tokenizer.encode(document), eos], dtype=np.uint16) for document in documents]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint16)


def prepare_file(path: Path, vocabulary: Path, output: Path, held_out: float) -> tuple[str, dict]:
    import numpy as np

    from glm.files import replacing
    from glm.tokenizer import Tokenizer

    tokenizer = Tokenizer(vocabulary, num_image_tokens=0)
    name = path.name.split(".")[0]
    documents = read_documents(path)
    facts = {"language": name.split("_")[0]}
    for suffix, wanted in (("", False), (".heldout", True)):
        part = [document for document in documents if is_held_out(document, held_out) == wanted]
        ids = encode_documents(part, tokenizer)
        with replacing(output / f"{name}{suffix}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, ids)
        facts["held_out" if wanted else "train"] = {
            "documents": len(part),
            "tokens": len(ids),
            "characters": sum(map(len, part)),
            "bytes": sum(len(document.encode()) for document in part),
        }
    return name, facts


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=Path, required=True, help="ice_text.model, see tools/train_vocabulary.py")
    parser.add_argument("--inputs", nargs="+", type=Path, required=True, help=".txt or .txt.xz files, UTF-8")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--held-out", type=float, default=0.01, help="share of documents kept apart (default: 0.01)")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    from glm.errors import UserError
    from glm.files import replacing
    from glm.tokenizer import Tokenizer

    for path in [options.vocabulary, *options.inputs]:
        if not path.is_file():
            parser.error(f"{path}: no such file")
    try:
        if Tokenizer(options.vocabulary, num_image_tokens=0).num_tokens > 65536:
            parser.error(f"--vocabulary {options.vocabulary}: over 65536 ids do not fit the uint16 of the corpus files")
    except UserError as error:
        parser.error(str(error))
    options.output.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.processes) as pool:
        jobs = [pool.submit(prepare_file, path, options.vocabulary, options.output, options.held_out)
                for path in options.inputs]
        files = dict(job.result() for job in jobs)
    for name, facts in files.items():
        print(f"{name}: {facts['train']['tokens']:,} tokens to train on, {facts['held_out']['tokens']:,} held out")
    with replacing(options.output / "corpus.json") as temporary:
        temporary.write_text(json.dumps(files, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from glm.program import run

    run(main)
