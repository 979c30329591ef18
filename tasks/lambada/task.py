"""LAMBADA: the last word of a passage, found by beam search (Paperno et al. 2016; the original's rules).

The model continues the passage for a few tokens. A beam counts as a whole word where punctuation stands behind its
first word. Punctuation that is attached to the word, as it is with most vocabularies but icetk's, is taken off.
"""

import string

from evaluation.metrics import is_punctuation
from evaluation.tasks import GenerationTask

# Ids of GLM-130B's vocabulary that are no words: never generated, and never at an answer's beginning.
INVALID_IDS = (20068, 146010, 146337)
FORBIDDEN_STARTS = (46010, 146337)
ICETK_IMAGE_TOKENS = 20000  # other vocabularies number their ids in their own way


class LAMBADA(GenerationTask):
    default_metrics = ("Accuracy",)

    def __init__(self, config, tokenizer):
        super().__init__(config, tokenizer)
        self._punctuation = tuple(tuple(tokenizer.encode(character)) for character in string.punctuation)
        self._invalid = (*self._icetk(INVALID_IDS), *(ids[0] for ids in self._punctuation if len(ids) == 1))
        self._starts = (*((token,) for token in self._icetk(FORBIDDEN_STARTS)), *self._punctuation)

    def invalid_ids(self) -> tuple[int, ...]:
        return self._invalid

    def forbidden_starts(self) -> tuple[tuple[int, ...], ...]:
        return self._starts

    def predicted_ids(self, beams) -> list[int]:
        """The first word of the best beam in which a word is complete, tokenised by itself."""
        words = [self.tokenizer.decode(beam).strip().split(" ") for beam in beams]
        complete = (each for each in words if len(each) > 1 and each[1] in string.punctuation)
        return self.tokenizer.encode(cleaned(next(complete, words[0])[0]))

    def _icetk(self, ids) -> tuple[int, ...]:
        if self.tokenizer.num_image_tokens != ICETK_IMAGE_TOKENS:
            return ()
        return tuple(token for token in ids if token < self.tokenizer.num_tokens)


def cleaned(word: str) -> str:
    """Without the punctuation at its ends, and whatever follows a line's end. What is nothing else stays as it is."""
    first = (word.split() or [""])[0]
    inside = [place for place, sign in enumerate(first) if not is_punctuation(sign)]
    return first[inside[0]:inside[-1] + 1] if inside else word
