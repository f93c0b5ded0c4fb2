"""Words before the tokenizer: captions cleaned, and file names read as words.

Sound libraries caption by file name: `Metal_Hit_03.wav`, `metalrumble`, `tinklingchain2short`. `clean` takes off what
names a file and not a sound; `split_compounds` parts words that a language model has never seen into those it knows.
"""

import math
import re
import unicodedata
from collections.abc import Mapping

from antiphon.audio import AUDIO_SUFFIXES

_PLAIN = str.maketrans(
    {
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb", '"'),
        **dict.fromkeys("\u2018\u2019\u201a\u201b`", "'"),
        **dict.fromkeys((*range(32), *range(127, 160)), " "),  # control characters
        **dict.fromkeys("\u00ad\u200b\ufeff"),  # soft hyphen, zero-width space, byte order mark: nothing to see
    }
)
_END = " .,;:|-\u2026\u2013\u2014"  # these, ellipsis and long dashes say nothing at the end of a caption; ! and ? do
_ABBREVIATION = re.compile(r"(?<!\w)[^\W\d_]\.[^\W\d_]$")  # p.a, whose last dot belongs to it
_SUFFIX = re.compile(rf"(?:{'|'.join(map(re.escape, {*AUDIO_SUFFIXES, '.aac', '.m4a', '.wma'}))})$", re.IGNORECASE)
# Numbers that count files are 01, 2, 123456; 808, 440 and 1984 may say how it sounds, and so may the 4 of C4.
_FIRST_NUMBER = re.compile(r"^(?:0\d+|\d{5,})[\s.-]+")  # a bare digit may count what is heard
_LAST_NUMBER = re.compile(r"(?:(?<=[^\W\d_]{2})|(?<![\s(-])[\s(-]+)(?:0\d+|\d{1,2}|\d{5,})\)?$")
_LONGEST_END = 40  # characters of a suffix or of a number with what parts it from the name

_SHORTEST = 3  # letters of a part: with shorter ones ("in", "a") nearly everything falls to pieces
_LONGEST = 14  # letters of a part
_WHOLE = 6  # words shorter than this stay whole
_PIECE_COST = 2.0  # what one more part must gain; keeps "trombone" from becoming "trom bone" where both are words
_DIGITS = re.compile(r"(?<=[a-z]{2})(?=\d)|(?<=\d)(?=[a-z]{2})")  # fx1 -> fx 1, but c4 and 2a stay


def clean(text: str) -> str:
    """A caption as a person would type it; what is clean stays as it is.

    Any caption: Unicode in NFC; white space and control characters to single blanks; curly quotes straight, those
    around the whole off; dots, commas, colons, bars and dashes at the end off. A file name (it ends in the suffix of a
    sound, or has an underscore): also suffix and underscores off, and the running numbers at its ends:
    `Metal_Hit_03.wav` -> `Metal Hit`, `piano_C4_(2).flac` -> `piano C4`.

    Letters' case and the dot of `8 p.m.` stay. A caption without a letter or digit becomes "". Its limit: a number of
    one or two digits at the end of a file name goes even where it means something (`sine_50.wav`).
    """
    while (cleaner := _cleaned(text)) != text:  # what one step takes off may uncover work for another
        text = cleaner
    return text


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


def _cleaned(text: str) -> str:
    text = " ".join(unicodedata.normalize("NFC", text.translate(_PLAIN)).split())
    bare = text.rstrip(_END)
    text = bare + "." if text.startswith(".", len(bare)) and _ABBREVIATION.search(bare[-4:]) else bare
    for quote in ('"', "'"):
        if len(text) > 1 and text[0] == text[-1] == quote and text.count(quote) == 2:
            text = text[1:-1]
    stem = _without_end(text, _SUFFIX)
    if stem != text or "_" in text:
        text = _without_end(_FIRST_NUMBER.sub("", stem.replace("_", " ").strip()), _LAST_NUMBER)
    return text if any(map(str.isalnum, text)) else ""


def _without_end(name: str, ends: re.Pattern[str]) -> str:
    """`name` without any number of such ends; only its tail is looked at, however long it is."""
    stop = len(name)
    while last := ends.search(name, max(0, stop - _LONGEST_END), stop):
        stop = last.start()
    return name[:stop]


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
