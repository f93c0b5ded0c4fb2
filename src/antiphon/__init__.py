"""Antiphon: one embedding space for sound and words.

    import antiphon

    model = antiphon.load("folder")
    audio = model.encode_audio(["kick.wav", "song.mp3"])
    text = model.encode_text(["dark metal", "fast house"])
    model.similarity(audio, text)

Importing this loads nothing heavy: each name brings its module when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from antiphon import losses, metrics
    from antiphon.data.manifest import Manifest
    from antiphon.errors import AntiphonError, AudioError, DataError, LibraryError, OptionError, WeightsError
    from antiphon.library import Library
    from antiphon.model import DualEncoder, load

__version__ = "0.1.0"

_HOME = {
    "AntiphonError": "errors",
    "AudioError": "errors",
    "DataError": "errors",
    "DualEncoder": "model",
    "Library": "library",
    "LibraryError": "errors",
    "Manifest": "data.manifest",
    "OptionError": "errors",
    "WeightsError": "errors",
    "load": "model",
    "losses": "losses",
    "metrics": "metrics",
}

__all__ = [
    "AntiphonError",
    "AudioError",
    "DataError",
    "DualEncoder",
    "Library",
    "LibraryError",
    "Manifest",
    "OptionError",
    "WeightsError",
    "load",
    "losses",
    "metrics",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'antiphon' has no attribute '{name}'; it has: {', '.join(__all__)}")
    module = importlib.import_module(f"antiphon.{_HOME[name]}")
    return module if name == _HOME[name] else getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
