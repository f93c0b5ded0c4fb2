"""Keywords to captions, and captions to others: templates, tag dropout, de-bias, swapped negatives.

tags -> `keywords` -> `drop_tags` -> `from_tags` (or a language model: `caption.py`) -> `de_bias` -> caption -> `swap`

The way to a template's caption is also gone during training, anew in each epoch: `one_of`.

Template and de-bias are LAION-CLAP's (Wu et al. 2023, arXiv:2211.06687), who put "person" for "woman" and "man" in what
T5 wrote. Dropping and swapping take up the ideas of "Augment, Drop & Swap" (Manco, Salamon and Nieto 2024,
arXiv:2409.11498): varied views of a sound's words, and hard negatives made from its caption. The rules and word lists
here are our own.

Whatever is random is drawn from a generator that `draws` makes of (seed, row, number): a row gets the same captions
wherever it stands in the table and whatever came before it.
"""

import functools
import random
import re
from collections.abc import Collection, Mapping, Sequence

from antiphon.errors import OptionError
from antiphon.text import clean

TEMPLATE = "The sounds of {}"

NEUTRAL = {
    **dict.fromkeys(("man", "woman", "gentleman", "lady", "guy"), "person"),
    **dict.fromkeys(("men", "women", "gentlemen", "ladies", "guys"), "people"),
    **dict.fromkeys(("boy", "girl"), "child"),
    **dict.fromkeys(("boys", "girls"), "children"),
    **dict.fromkeys(("he", "she"), "the person"),  # or "the child", see de_bias
    "him": "them",
    "his": "their",  # or "theirs"
    "her": "their",  # or "them"
    "hers": "theirs",
    **dict.fromkeys(("himself", "herself"), "themselves"),
}
"""Words that `de_bias` replaces, and by what."""

KINDS: dict[str, tuple[str, ...]] = {
    "instrument": (
        *("piano", "electric guitar", "acoustic guitar", "guitar", "violin", "cello", "harp", "flute", "clarinet"),
        *("saxophone", "trumpet", "trombone", "organ", "accordion", "banjo", "ukulele", "synthesizer", "drums"),
    ),
    "genre": (
        *("rock", "jazz", "blues", "techno", "reggae", "country", "hip hop", "classical", "disco", "punk", "folk"),
        *("ambient", "gospel", "salsa"),
    ),
    "mood": ("happy", "sad", "calm", "aggressive"),
    "tempo": ("slow", "fast"),
    "brightness": ("dark", "bright"),
    "loudness": ("quiet", "loud"),
    "pitch": ("low-pitched", "high-pitched"),
    "animal": ("dog", "cat", "bird", "horse", "cow", "sheep", "frog", "rooster"),
    "place": ("indoors", "outdoors"),
}
"""Words for sound by kind, for `swap`; those of one kind seldom hold for the same sound at once."""

_BAND = r"(?:boy|girl)s?\s+(?:band|group)s?"  # what music is called, whoever sings
_GENDERED = re.compile(rf"(?<![\w-])(?i:{_BAND}|((?a:{'|'.join(NEUTRAL)}))((?<=s)['\u2019](?=\s+\w))?)(?![\w-])")
_NEW_PART = (  # words that begin something new: nothing that "her" or "his" could own starts with them
    "a|about|after|against|along|an|and|are|around|as|at|away|because|before|behind|but|by|can|could|did|do|does|down|"
    "during|for|from|had|has|have|if|in|inside|into|is|like|may|might|near|of|off|on|onto|or|out|outside|over|so|than|"
    "that|the|then|this|through|to|too|towards|under|until|up|was|were|when|where|which|while|who|will|with|within|"
    "without|would"
)
_OWNED = re.compile(rf"\s+(?!(?:{_NEW_PART})(?![\w-]))\w", re.IGNORECASE)


def draws(*, seed: int, row: str, number: int = 0) -> random.Random:
    """The generator of caption (or epoch) `number` of the row with this id: the same on every machine, in any order."""
    return random.Random(f"{seed} {number} {row}")


def keywords(tags: Sequence[str], *, label: str | None = None) -> list[str]:
    """Clean tags, each once, or the clean label where no tag says anything: `dog_bark` -> `dog bark`."""
    return list(dict.fromkeys(filter(None, map(clean, tags)))) or list(filter(None, [clean(label or "")]))


def from_tags(tags: Sequence[str], *, template: str = TEMPLATE) -> str:
    """`template` with the tags in place of its `{}`: "a", "a and b", "a, b, and c".

    Raises `OptionError` where there is no tag, or not one `{}` in the template.
    """
    if template.count("{}") != 1:
        raise OptionError(f"the template {template!r} must have one {{}}, where the tags go, as in {TEMPLATE!r}")
    if not tags:
        raise OptionError("no tags came: a caption needs at least one")
    *most, last = tags
    listed = " and ".join(tags) if len(tags) < 3 else f"{', '.join(most)}, and {last}"
    return template.replace("{}", listed)


def drop_tags(tags: Sequence[str], *, share: float | int, draw: random.Random) -> list[str]:
    """A random part of the tags in random order: each is dropped with the chance `share`, 0 to 1, but never all."""
    _check_share(share, of="tags to drop")
    order = draw.sample(list(tags), len(tags))
    return [tag for tag in order if draw.random() >= share] or order[:1]


def one_of(
    captions: Sequence[str],
    *,
    tags: Sequence[str],
    label: str | None = None,
    share: float | int,
    drop: float | int = 0.0,
    template: str = TEMPLATE,
    draw: random.Random,
) -> str:
    """The caption that a sound is trained with in one epoch: one of its own, or one made of its tags there and then.

    Args:
        captions: the sound's own; may be empty where it has tags or a label.
        tags, label: as in `keywords`.
        share: chance, 0 to 1, that the caption is made of tags. A sound without captions always gets such a one, a
            sound without keywords always one of its own.
        drop: chance that a tag is left out of it; one at least stays. Tags come in random order.
        template: a text with `{}` in the tags' place.
        draw: as `draws(seed=seed, row=id, number=epoch)` makes it.

    Raises `OptionError` for a share out of range, a template without `{}`, or a sound without any words.
    """
    _check_share(share, of="captions to make of tags")
    made, which = draw.random() < share, draw.random()
    if (made or not captions) and (words := keywords(tags, label=label)):
        return from_tags(drop_tags(words, share=drop, draw=draw), template=template)
    if not captions:
        raise OptionError("a sound without caption, tag or label came: leave it out of the table")
    return captions[int(which * len(captions))]


def de_bias(caption: str) -> str:
    """The caption without the gender of people: a language model that made it from tags has made that up.

    Nouns become person, people, child, children. `he` and `she` become "the person", or "the child" if that was the
    last one named: unlike "they" it leaves verbs as they are. `her` and `his` before a word that can begin what is
    owned become "their"; else they stand alone, as "them" and "theirs". Case stays (Man, MAN).

    Left alone: parts of words (human, walkman), words with hyphens (man-made), boy bands and girl groups, and `male`
    and `female`, which say how a voice sounds. Limits, for want of grammar: "hears her sing" becomes "hears their
    sing"; "he'd" "the person'd"; "the boys wait while he plays" has "the person"; a man and a woman become "a person
    and a person".
    """
    last = "person"

    def neutral(match: re.Match[str]) -> str:
        nonlocal last
        if not match[1]:  # a band
            return match[0]
        word = match[1].lower()
        new = NEUTRAL[word]
        if new in ("person", "child"):
            last = new
        elif word in ("he", "she"):
            new = f"the {last}"
        elif word in ("her", "his") and not _OWNED.match(caption, match.end()):
            new = "them" if word == "her" else "theirs"
        return _cased(new + ("'s" if match[2] else ""), like=match[1])

    return _GENDERED.sub(neutral, caption)


def swap(
    caption: str, *, tags: Sequence[str] = (), kinds: Mapping[str, Collection[str]] = KINDS, draw: random.Random
) -> str | None:
    """A hard negative: the caption with one of its words exchanged for another of its kind, everywhere it stands.

    Args:
        caption: what is true of a sound.
        tags: what else is true of it, and so never swapped in.
        kinds: kind -> lower-case words or phrases, each of one kind only.
        draw: as `draws` makes it. Which word is swapped is uniform over those that can be, and so is what for.

    Returns:
        The negative, with "a" and "an" put right: bad grammar must not give it away. None where no word can be
        swapped. Nothing comes in that the caption or the tags say, or part of it, or more closely: for "guitar"
        neither "guitars" nor "electric guitar".
    """
    kind_of = {term: kind for kind, terms in kinds.items() for term in terms}
    pattern = _any_of(tuple(kind_of))
    # dotless i and long s pass for i and s where case is ignored, and are no capitals of theirs
    found = list(dict.fromkeys(term for match in pattern.finditer(caption) if (term := match[3].lower()) in kind_of))
    said, true = _words(caption), list(filter(None, map(_words, (*found, *tags))))

    def is_new(term: str) -> bool:
        words = _words(term)
        return not words <= said and not any(words <= other or other <= words for other in true)

    for old in draw.sample(found, len(found)):
        if others := list(filter(is_new, kinds[kind_of[old]])):
            return _exchange(caption, pattern, old=old, new=draw.choice(others))
    return None


def _check_share(share: float | int, *, of: str) -> None:
    if not 0 <= share <= 1:
        raise OptionError(f"a share of {share} {of} came: it must be from 0 to 1")


@functools.lru_cache
def _any_of(terms: tuple[str, ...]) -> re.Pattern[str]:
    """Finds terms as whole words, the longest first, with "a" or "an" before them; nothing where there are no terms."""
    longest_first = "|".join(sorted(map(re.escape, terms), key=len, reverse=True)) or "(?!)"
    return re.compile(rf"(?<![\w-])(?=\w)(?:(an?)(\s+))?({longest_first})(?![\w-])", re.IGNORECASE)


def _exchange(caption: str, pattern: re.Pattern[str], *, old: str, new: str) -> str:
    def exchanged(match: re.Match[str]) -> str:
        if match[3].lower() != old:
            return match[0]
        article = _cased(_article(new), like=match[1]) + match[2] if match[1] else ""
        return article + _cased(new, like=match[3])

    return pattern.sub(exchanged, caption)


def _words(text: str) -> set[str]:
    """Lower-case words; singular and plural are one."""
    return {word.rstrip("s") or word for word in re.findall(r"\w+", text.lower())}


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" and not word.startswith(("eu", "uk", "uni")) else "a"


def _cased(new: str, *, like: str) -> str:
    """`new` with the capitals of `like`: none, the first, or all."""
    if len(like) > 1 and like.isupper():
        return new.upper()
    return new[0].upper() + new[1:] if like[0].isupper() else new
