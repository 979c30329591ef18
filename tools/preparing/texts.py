"""The text files of a corpus: their lines, their documents, and which text is held out, to be predicted, not learnt."""

import hashlib
import lzma
from pathlib import Path

from runtime.errors import UserError
from runtime.reading import decode_text, read_bytes

BUCKETS = 10_000
LEAST_HELD_OUT = 500  # characters: with less, the held-out loss says little


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file (.xz or plain), without line ends."""
    data = read_bytes(path)
    if path.suffix == ".xz":
        try:
            data = lzma.decompress(data)
        except (lzma.LZMAError, EOFError):
            raise UserError(f"{path}: is not, or not all of, what xz has written") from None
    return decode_text(data, str(path), is_prose=True).replace("\r\n", "\n").replace("\r", "\n").split("\n")


def documents_of(lines: list[str]) -> list[str]:
    """Runs of lines; one without a visible character ends a document."""
    documents, document = [], []
    for line in [*lines, ""]:
        if line.strip():
            document.append(line)
        elif document:
            documents.append("\n".join(document))
            document = []
    return documents


def is_held_out(document: str, share: float) -> bool:
    digest = hashlib.sha256(document.encode()).digest()
    return int.from_bytes(digest[:8], "big") % BUCKETS < share * BUCKETS


def divided(documents: list[str], share: float) -> tuple[list[str], list[str]]:
    """Documents to train on, and held-out ones: those whose hash says so. Where that is next to nothing, as of one long
    document, it is the end of the text."""
    held_out = [document for document in documents if is_held_out(document, share)]
    size = sum(map(len, documents))
    least = min(LEAST_HELD_OUT, size // 10)
    if held_out and sum(map(len, held_out)) >= least:
        return [document for document in documents if not is_held_out(document, share)], held_out
    return without_end(documents, max(round(share * size), least))


def without_end(documents: list[str], characters: int) -> tuple[list[str], list[str]]:
    """Documents, and about so many characters of their end; a document is cut behind a line or a word if it can be."""
    kept, end = list(documents), []
    while kept and characters > 0:
        document = kept.pop()
        place = max(len(document) - characters, 0)
        for mark in "\n ":
            if place and (found := document.rfind(mark, max(place - characters, 1), place)) > 0:
                place = found + 1
                break
        kept += [document[:place].rstrip("\n")] if place else []
        end.insert(0, document[place:])
        characters -= len(document) - place
    return kept, end
