"""What captions are like as text: the same one again, one language among others, one pattern.

Languages are told without a model: by script, and for Latin letters by the most frequent small words of seven European
languages. So a caption of a few words ("dark metal") has no language, others are taken for none of the seven, and a
borrowed line in a caption is not seen.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

_WORD = re.compile(r"\w+")
_TEMPLATE_WORDS = 3  # that captions begin or end with
_TEMPLATE_SHARE, _TEMPLATE_COUNT = 0.2, 20  # of the captions of more words than that

LATIN = "Latin script"
SMALL_WORDS = {
    "English": "a an and are as at by for from in is it of on or the then to while with over into being this there",
    "German": "auf aus bei das dem den der des die ein eine einem einen einer eines im ist mit und von wird zu zum",
    "French": "au aux avec dans de des du elle en est et il la le les par pour qui sur un une dont puis",
    "Spanish": "al con de del el en es esta hay la las lo los para por que se sobre su un una y mientras",
    "Italian": "al che con da dal dei del della di e gli il in la le lo nel nella per si su sul un una mentre",
    "Portuguese": "ao as com da das de do dos e em enquanto na nas no nos o os para por que se um uma",
    "Dutch": "aan de dat door een en er het hij in is met naar niet of om op te van voor wordt zijn",
}
"""The languages that can be told by their small words, which are no names of things."""

_SETS = {language: frozenset(words.split()) for language, words in SMALL_WORDS.items()}


def plain(caption: str) -> str:
    """The caption without case, punctuation and spacing: by this two captions are the same."""
    return " ".join(_WORD.findall(caption.casefold()))


def language(caption: str) -> str:
    """One of `SMALL_WORDS`, else the script of most letters ("Latin script", "Cyrillic script"), "" without letters.

    A language must have two different small words in the caption and more of them than any other.
    """
    letters = Counter(_script(letter) for letter in caption if letter.isalpha())
    if not letters:
        return ""
    script = letters.most_common(1)[0][0]
    if script != LATIN:
        return script
    words = set(_WORD.findall(caption.casefold()))
    (best, most), (_, second) = Counter({name: len(words & small) for name, small in _SETS.items()}).most_common(2)
    return best if most > max(1, second) else LATIN


def usual(languages: Iterable[str]) -> str:
    """What most captions are in: of Latin script the most frequent language that could be told, if any."""
    counts = Counter(name for name in languages if name)
    scripts: Counter[str] = Counter()
    for name, count in counts.items():
        scripts[_script_of(name)] += count
    if not scripts:
        return ""
    script = scripts.most_common(1)[0][0]
    within = {name: count for name, count in counts.items() if _script_of(name) == script and name != LATIN}
    return max(within, key=within.__getitem__, default=script)


def is_foreign(language: str, usual: str) -> bool:
    """Whether a caption's language is another than the usual one; one of Latin script that is not told passes there."""
    if not language or not usual:
        return False
    if LATIN in (language, usual):
        return _script_of(language) != _script_of(usual)
    return language != usual


def templates(captions: Iterable[str]) -> list[tuple[str, int, str]]:
    """(pattern, captions, the first of these): what a fifth or more of the plain captions begin or end with."""
    begins: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    first: dict[str, str] = {}
    total = 0
    for caption in captions:
        words = caption.split()
        if len(words) <= _TEMPLATE_WORDS:
            continue
        total += 1
        for pattern, counts in (
            (" ".join(words[:_TEMPLATE_WORDS]) + " ...", begins),
            ("... " + " ".join(words[-_TEMPLATE_WORDS:]), ends),
        ):
            counts[pattern] += 1
            first.setdefault(pattern, caption)
    least = max(_TEMPLATE_COUNT, _TEMPLATE_SHARE * total)
    return [
        (pattern, count, first[pattern])
        for counts in (begins, ends)
        for pattern, count in counts.most_common()
        if count >= least
    ]


def _script_of(language: str) -> str:
    return LATIN if language in SMALL_WORDS else language


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    """Of a letter, by its Unicode name."""
    if letter.isascii():
        return LATIN
    name = unicodedata.name(letter, "UNKNOWN").split()[0]
    return f"{'CJK' if name in ('CJK', 'HIRAGANA', 'KATAKANA') else name.capitalize()} script"
