"""The sentences that class names are put into, and class names as a person would write them."""

import re
from collections.abc import Sequence

from antiphon.errors import OptionError

SOUND = (
    "{}",
    "this is a sound of {}",  # msclap 2022's example; transformers' zero-shot pipeline
    "this is the sound of {}",  # msclap 2023's example
    "the sounds of {}",  # LAION-CLAP's caption template
)
MUSIC = (
    "{}",
    "{} music",
    "this sounds like {}",  # these three SLAP's
    "a {} track",  # MusCALL's
)
PROMPTS = {"sound": SOUND, "music": MUSIC}
"""Prompts by what is heard."""

OF_SET = {
    **dict.fromkeys(("esc50", "urbansound8k", "fsd50k", "vggsound", "audioset", "clotho", "audiocaps"), "sound"),
    **dict.fromkeys(("gtzan", "magnatagatune", "mtgjamendo", "openmic", "nsynth", "songdescriber"), "music"),
}
"""Which of `PROMPTS` a public set is asked with; its name in small letters and digits."""


def for_source(sources: Sequence[str | None]) -> tuple[str, ...]:
    """The prompts of the set that all sounds are of (a manifest's `source`); those for sounds of any kind otherwise."""
    known = {re.sub(r"[^a-z0-9]", "", (source or "").lower()) for source in sources}
    return PROMPTS[OF_SET.get(known.pop(), "sound")] if len(known) == 1 else SOUND


def checked(prompts: Sequence[str]) -> tuple[str, ...]:
    """The same prompts. Raises `OptionError` where there is none, or one has not exactly one `{}`."""
    for prompt in prompts:
        if prompt.count("{}") != 1:
            raise OptionError(
                f"prompt {prompt!r}: must have one {{}}, where the class goes, as 'this is a sound of {{}}'"
            )
    if not prompts:
        raise OptionError("no prompt came: give at least one, or none at all for the usual ones")
    return tuple(dict.fromkeys(prompts))


def written_out(label: str) -> str:
    """A class as words: `sea_waves` -> `sea waves`, `Bass_drum` -> `bass drum`, `AirConditioner` -> `air conditioner`.

    Underscores and words run together become blanks, all letters small but for words in capitals (`TV`, `DJ`). With the
    underscores of its table ESC-50 costs up to ten points of accuracy.
    """
    parted = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", label.replace("_", " "))
    return " ".join(word if len(word) > 1 and word.isupper() else word.lower() for word in parted.split()) or label
