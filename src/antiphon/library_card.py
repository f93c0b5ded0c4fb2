"""The card of a library, `library.json`: which model made it, and when, so that no other model goes on with it."""

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from antiphon.encoding import EmbeddingModel
from antiphon.errors import LibraryError

FORMAT = 1
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
    def of(cls, model: EmbeddingModel, *, root: Path) -> "Card":
        """The card of a library that `model` makes now of the sounds in `root`."""
        return cls(
            format=FORMAT,
            model_source=model.source,
            model_fingerprint=model.fingerprint(),
            dim=model.dim,
            space=model.space,
            clip_seconds=model.clip_seconds,
            root=str(root),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @classmethod
    def read(cls, folder: Path) -> "Card":
        """The card in `folder`. Raises `LibraryError` if there is none or its format is not known."""
        path = folder / CARD_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
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

    def write(self, folder: Path) -> None:
        """Put the card into `folder`: whole, once it is on disk, or not at all."""
        path = folder / CARD_FILE
        part = path.with_name(f".{path.name}.part")
        with part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            json.dump(asdict(self), file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
