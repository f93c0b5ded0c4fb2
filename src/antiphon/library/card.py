"""The card of a library, `library.json`: which model made it, and when, so that no other model goes on with it."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from antiphon import remote
from antiphon.encoding import EmbeddingModel
from antiphon.errors import LibraryError
from antiphon.remote import Place

FORMAT = 2
CARD_FILE = "library.json"


@dataclass(frozen=True)
class Card:
    """What `library.json` says: the model a library was made with, and where its sounds lay then."""

    format: int
    model_source: str | None
    model_fingerprint: str
    dim: int
    space: str
    clip_seconds: float
    root: str
    created: str  # ISO 8601, UTC

    @classmethod
    def of(cls, model: EmbeddingModel, *, root: str) -> "Card":
        """The card of a library that `model` makes now of the sounds in `root`."""
        return cls(
            format=FORMAT,
            model_source=model.source,
            model_fingerprint=model.fingerprint(),
            dim=model.dim,
            space=model.space,
            clip_seconds=model.clip_seconds,
            root=root,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @classmethod
    def read(cls, folder: str) -> "Card":
        """The card in `folder`. Raises `LibraryError` if there is none or its format is not known."""
        path = f"{folder}/{CARD_FILE}"
        try:
            files, place = remote.filesystem(path)
            values = json.loads(files.cat_file(place).decode())
            found = values["format"]
            card = cls(**values) if found == FORMAT else None
        except (FileNotFoundError, NotADirectoryError) as error:
            raise LibraryError(
                f"'{folder}' is not a library (no {CARD_FILE} in it): "
                "make one with `antiphon index FOLDER --library DIR --model M`"
            ) from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise LibraryError(f"cannot read '{path}' ({error}): index the sounds into a new folder") from error
        if card is None:
            raise LibraryError(
                f"library '{folder}' has format {found}, this version reads {FORMAT}: "
                "update antiphon, or index the sounds into a new folder"
            )
        return card

    def write(self, folder: str) -> None:
        """Put the card into `folder`: whole, once it is on disk, or not at all."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        Place(folder).write(CARD_FILE, text.encode(errors="surrogateescape"))
