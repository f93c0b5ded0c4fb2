"""Words before the tokenizer: captions that are file names, read as words.

Sound libraries caption by file name: `metalrumble`, `hollowhit loud`, `tinklingchain2short`. A language model has never
seen those words, but it knows their parts.
"""

import math
import re
from collections.abc import Mapping

_SHORTEST = 3  # letters of a part: with shorter ones ("in", "a") nearly everything falls to pieces
_LONGEST = 14  # letters of a part
_WHOLE = 6  # words shorter than this stay whole
_PIECE_COST = 2.0  # what one more part must gain; keeps "trombone" from becoming "trom bone" where both are words
_DIGITS = re.compile(r"(?<=[a-z]{2})(?=\d)|(?<=\d)(?=[a-z]{2})")  # fx1 -> fx 1, but c4 and 2a stay


def split_compounds(text: str, *, ranks: Mapping[str, int]) -> str:
    """Lower-case `text`, with unknown words split into known ones and digits set apart from words.

    `ranks`: known words by frequency rank (0 the most frequent), for example the whole words of a WordPiece vocabulary.
    A word is split into the parts with the least sum of `log(rank + 1) + 2` (a unigram model with Zipf's law); a word
    that is known or has no such parts stays.
    """
    return " ".join(_split(word, ranks) for word in _DIGITS.sub(" ", text.lower()).split())


def word_ranks(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """The whole words of a tokenizer's vocabulary that may be parts, by id: BERT's ids are in order of frequency."""
    return {word: rank for word, rank in vocabulary.items() if word.isalpha() and len(word) >= _SHORTEST}


def _split(word: str, ranks: Mapping[str, int]) -> str:
    if word in ranks or len(word) < _WHOLE:
        return word
    best: list[tuple[float, tuple[str, ...]]] = [(0.0, ()), *[(math.inf, ())] * len(word)]  # up to each letter
    for end in range(_SHORTEST, len(word) + 1):
        for start in range(max(0, end - _LONGEST), end - _SHORTEST + 1):
            part = word[start:end]
            if part in ranks:
                cost = best[start][0] + math.log(ranks[part] + 1) + _PIECE_COST
                best[end] = min(best[end], (cost, (*best[start][1], part)))
    return " ".join(best[-1][1]) or word
