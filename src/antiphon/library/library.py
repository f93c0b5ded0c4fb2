"""The library itself: made, opened, brought up to date, asked, taken elsewhere.

Its folder (or `s3://bucket/folder`) holds `library.json` (which model made it, and when), `windows.lance` (the table)
and `errors.csv` (files of the last run that could not be read); or folders of such libraries, one for each model.
"""

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from antiphon import embed, engines, remote
from antiphon.encoding import Embedded, EmbeddingModel, Failed, embed_files
from antiphon.engines import Engine
from antiphon.errors import AntiphonError, DataError, LibraryError
from antiphon.library import exports, positions, query, writing
from antiphon.library.card import CARD_FILE, Card
from antiphon.library.index import Index
from antiphon.library.query import Example
from antiphon.library.ranking import By, diverse
from antiphon.library.results import File, Hit
from antiphon.library.table import Table, Version, among, kinds_of
from antiphon.library.view import Found, View, tags_of
from antiphon.library.writing import ERRORS_FILE, Progress, Result, Summary

EXACT_BELOW = 100_000  # windows; a view of as many takes 200 MB at 512 dimensions, and 20 ms to search
_QUICK = 5_000_000  # cells of vectors: a product of 20 MB
_WIDER = 8  # times as many candidates as results, to choose diverse ones from

Sounds = str | Path | Example | Iterable[str | Path | Example] | None
Words = str | Sequence[str] | None


class Library:
    """An open library; see `create`, `open` and `open_or_create`. `len(library)` is its number of files.

    Safe to use from several threads, and while another process writes: each search sees the last commit, or, with
    `patience_seconds`, one at most about that old, while the next is read in the background.
    """

    def __init__(self, folder: str, card: Card, *, patience_seconds: float | int = 0.0) -> None:
        self.location = folder
        self.card = card
        self.patience_seconds = patience_seconds
        self.table = Table(folder, card.dim)
        self._checked: EmbeddingModel | None = None
        self._seen: View | Index | None = None
        self._looked = 0.0
        self._reading = threading.Lock()

    @classmethod
    def create(cls, folder: str | Path, *, model: EmbeddingModel, root: str | Path) -> "Library":
        """Make an empty library in `folder` (new or empty) for `model`; `root` is where the sounds lie.

        Raises `LibraryError` if `folder` holds anything already or cannot be written.
        """
        place = _absolute(folder)
        try:
            if not remote.is_url(place):
                os.makedirs(place, exist_ok=True)
            names = remote.Place(place).names()
        except (OSError, DataError) as error:
            raise LibraryError(f"cannot make a library in '{place}' ({error}): choose another folder") from error
        if any(not name.startswith(".") for name in names):
            kind = "holds a library already" if CARD_FILE in names else "holds other files"
            raise LibraryError(f"'{place}' {kind}: give --library a new or empty folder, or open the library")
        card = Card.of(model, root=_absolute(root))
        card.write(place)
        return cls(place, card)

    @classmethod
    def open(cls, folder: str | Path, name: str | None = None, *, patience_seconds: float | int = 0.0) -> "Library":
        """Open the library in `folder`, or the one called `name` of several in it.

        Raises `LibraryError` if there is none, if there are several and `name` is none of them, or if its format is not
        known.
        """
        place = _absolute(folder)
        names = [] if name is None and _has_card(place) else cls.names(place)
        if name is None and len(names) == 1:
            name = names[0]
        if name is None and names:
            raise LibraryError(f"'{place}' holds several libraries: name one of {', '.join(names)}")
        if name is not None and name not in names:
            raise LibraryError(f"'{place}' holds no library '{name}'; it holds {', '.join(names) or 'none'}")
        at = place if name is None or _has_card(place) else f"{place}/{name}"
        return cls(at, Card.read(at), patience_seconds=patience_seconds)

    @classmethod
    def names(cls, folder: str | Path) -> list[str]:
        """The libraries in `folder`: its own name if it is one, else those of the folders in it that are."""
        place = _absolute(folder)
        if _has_card(place):
            return [place.rstrip("/").rpartition("/")[2]]
        return [name for name in sorted(_listed(place)) if _has_card(f"{place}/{name}")]

    @classmethod
    def open_or_create(cls, folder: str | Path, *, model: EmbeddingModel, root: str | Path) -> "Library":
        """Open the library in `folder` if `model` made it, or make it: what lets the same command go on.

        Raises `LibraryError` for another model's library.
        """
        if not _has_card(_absolute(folder)):
            return cls.create(folder, model=model, root=root)
        library = cls.open(folder)
        library.check_model(model)
        return library

    @property
    def folder(self) -> Path:
        """Where it is, of a library on this machine."""
        return Path(self.location)

    @property
    def version(self) -> int:
        """The number of the table's last commit, or of the one that is searched where `patience_seconds` allows it."""
        return self._see(empty=True).version if self.patience_seconds else self.table.version

    def __len__(self) -> int:
        return self.table.count("start_seconds = 0")

    def __contains__(self, path: str | Path) -> bool:
        """Whether the file is in the table."""
        return self.table.count(among("path", [_absolute(path)])) > 0

    def stats(self) -> dict[str, int]:
        """`{"files": ..., "windows": ...}` as of now."""
        return {"files": len(self), "windows": self.table.count()}

    def hours(self) -> float:
        """Hours of sound in it."""
        seconds = self.table.rows(["seconds"], "start_seconds = 0")["seconds"]
        return float(seconds.to_numpy().sum()) / 3600

    def check_model(self, model: EmbeddingModel) -> None:
        """Raise `LibraryError` unless `model` embeds as the model that this library was made with."""
        if model is self._checked:  # a fingerprint reads all weights: too slow for every search
            return
        card, came = self.card, model.fingerprint()
        if came != card.model_fingerprint:
            raise LibraryError(
                f"library '{self.location}' was made with {_named(card.model_source)} "
                f"({card.dim} dimensions, {card.space}, fingerprint {card.model_fingerprint[:12]}), "
                f"not with {_named(model.source)} ({model.dim} dimensions, {model.space}, "
                f"fingerprint {came[:12]}): use that model, or index into a new folder"
            )
        self._checked = model

    # What is in it

    def add(
        self,
        sounds: Iterable[str | Path] | Iterable[Result],
        *,
        model: EmbeddingModel,
        batch_size: int = 16,
        progress: Progress | None = None,
    ) -> Summary:
        """Embed files, or take a stream that `embed_files` made anywhere, and add them to the table.

        A file's old rows give way to its new ones. `model` is the one that made the embeddings; `progress` is called
        as `writing.Progress` says. Raises `LibraryError` for another model's library.
        """
        self.check_model(model)
        with self.table.writing():
            stream = _as_stream(sounds, model, batch_size)
            done = writing.write(
                self.table, stream, known=self.table.known(), total=None, columns={}, progress=progress
            )
            self._index()
        return done

    def sync(
        self,
        inputs: str | Path | Iterable[str | Path] | embed.Plan,
        *,
        model: EmbeddingModel,
        prune: bool = False,
        batch_size: int = 16,
        engine: Engine | None = None,
        progress: Progress | None = None,
    ) -> Summary:
        """Bring the library up to date with folders, manifests or shards; a run that was killed goes on there.

        A file whose size and modification time are in the table, or else its content's digest, is left alone; a changed
        one is embedded again, by `model` here or by `engine`. Files below a given folder that are in the table and no
        longer on disk are counted in `missing`, and their rows deleted if `prune`. Raises `DataError` if an input is
        missing or none of the sounds can be read, `LibraryError` for another model, a second writer, or no way to
        write.
        """
        self.check_model(model)
        plan = inputs if isinstance(inputs, embed.Plan) else embed.plan(inputs)
        with self.table.writing():
            self.table.add_columns(kinds_of(plan))
            known = self.table.known()
            todo, restamped = writing.changed(plan.sounds, known)
            self.table.restamp(restamped)
            self.table.retell(plan.columns)
            stream = (engine or engines.local(model, batch_size=batch_size))(todo)
            done = writing.write(
                self.table, stream, known=known, total=len(todo), columns=plan.columns, progress=progress
            )
            missing = [path for path in known if _is_below(path, plan.folders) and _gone(path)]
            if prune:
                self.table.delete(missing)
            self._index()
        if done.failed == len(plan.sounds):
            raise DataError(
                f"none of the {len(plan.sounds)} sound files could be read: "
                f"the reasons are in '{self.location}/{ERRORS_FILE}'"
            )
        return replace(done, unchanged=len(plan.sounds) - len(todo), missing=len(missing))

    def remove(self, paths: str | Path | Iterable[str | Path]) -> int:
        """Take files out, or all below a folder; how many there were. The sounds themselves stay where they are."""
        given = {_absolute(one) for one in ([paths] if isinstance(paths, str | Path) else paths)}
        with self.table.writing():
            gone = [path for path in self.table.known() if path in given or _is_below(path, tuple(given))]
            self.table.delete(gone)
        return len(gone)

    def versions(self) -> list[Version]:
        """The states that `rollback` can bring back, oldest first."""
        return self.table.versions()

    def rollback(self, version: int) -> None:
        """Make an earlier state the last one. `LibraryError` where there is no such version."""
        with self.table.writing():
            self.table.rollback(version)

    # Asking it

    def search(
        self,
        *,
        model: EmbeddingModel,
        words: Words = None,
        like: Sounds = None,
        without: Words = None,
        unlike: Sounds = None,
        words_weight: float | int = 1.0,
        like_weight: float | int = 1.0,
        top: int = 10,
        by: By = "moment",
        where: str | None = None,
        diversity: float | int = 0.0,
    ) -> list[Hit]:
        """The `top` results nearest to words, to sounds, or to both, best first: `query`, then `nearest`.

        Sounds that are searched like are left out. Raises `LibraryError` for nothing to search for, a bad number or
        filter, another model or an empty library, `AudioError` for a sound that cannot be read.
        """
        if top < 1:
            raise LibraryError(f"top={top}: ask for 1 result or more")
        examples = query.as_examples(like)
        vector = self.query(
            model=model,
            words=words,
            like=examples,
            without=without,
            unlike=unlike,
            words_weight=words_weight,
            like_weight=like_weight,
        )
        whole = [str(one.sound) for one in examples if not isinstance(one.sound, np.ndarray)]
        return self.nearest(vector, top=top, by=by, where=where, diversity=diversity, skip=whole)

    def query(
        self,
        *,
        model: EmbeddingModel,
        words: Words = None,
        like: Sounds = None,
        without: Words = None,
        unlike: Sounds = None,
        words_weight: float | int = 1.0,
        like_weight: float | int = 1.0,
    ) -> Float[np.ndarray, " dim"]:
        """What is asked as one unit vector; see the module `query`, and `search` for errors."""
        self.check_model(model)
        seen = self._see()
        return query.make(
            model=model,
            find=self._find,
            spread=seen.spread,
            words=query.as_texts(words),
            like=query.as_examples(like),
            without=query.as_texts(without),
            unlike=query.as_examples(unlike),
            words_weight=words_weight,
            like_weight=like_weight,
        )

    def nearest(
        self,
        vector: Float[np.ndarray, " dim"],
        *,
        top: int = 10,
        by: By = "moment",
        where: str | None = None,
        diversity: float | int = 0.0,
        skip: Iterable[str] = (),
    ) -> list[Hit]:
        """The `top` results nearest to a unit vector, best first.

        Args:
            by: `moment`, a file at its best window; `window`, every window by itself; `file`, a file by the mean of its
                windows.
            where: SQL over `columns()`, such as `bpm > 120 AND artist = 'Ada'`.
            diversity: 0 is the order of scores; towards 1 results less like those before them come first.
            skip: files to leave out, by path or id.
        """
        if top < 1 or not 0 <= diversity <= 1:
            raise LibraryError(f"top={top}, diversity={diversity}: give top from 1 and diversity from 0 to 1")
        if by not in By.__args__:  # type: ignore[attr-defined]
            raise LibraryError(f"by={by!r}: one of {', '.join(By.__args__)}")  # type: ignore[attr-defined]
        if vector.shape != (self.card.dim,) or not np.isfinite(vector).all():
            raise LibraryError(f"a vector of shape {vector.shape} came; {self.card.dim} finite numbers are needed")
        seen = self._see()
        known = (self._find(one) for one in skip)
        most = max(top, _WIDER * min(top, 100)) if diversity else top
        found = seen.nearest(vector, by=by, most=most, where=where, skip={one.path for one in known if one})
        if diversity:
            found = found.take(diverse(found.scores, vectors=found.vectors, top=top, diversity=diversity))
        return _hits(found)

    def file(self, id: str) -> File | None:
        """All that is known of a file, by its id or path; None where it is not in the library."""
        return self._see(empty=True).file(id)

    def paths(self) -> dict[str, str]:
        """Every file's path by its id."""
        rows = self.table.rows(["id", "path"], "start_seconds = 0")
        return dict(zip(rows["id"].to_pylist(), rows["path"].to_pylist(), strict=True))

    def columns(self) -> dict[str, str]:
        """What `where` may name, each `text` or `number`."""
        return self.table.filterable()

    def filled(self) -> list[str]:
        """The columns that hold anything."""
        return self.table.filled()

    def is_quick(self) -> bool:
        """Whether a search takes about a millisecond, once the query is known: up to some 20,000 windows."""
        seen = self._see(empty=True)
        return isinstance(seen, View) and seen.windows * self.card.dim <= _QUICK

    def values(self, column: str, *, prefix: str = "", most: int = 20) -> list[str]:
        """Some of the texts in a column that begin with `prefix`, in any case, sorted."""
        if self.columns().get(column) != "text":
            texts = ", ".join(name for name, kind in self.columns().items() if kind == "text")
            raise LibraryError(f"column '{column}' holds no text here; these do: {texts}")
        begun = prefix.lower()
        found = {cell for batch in self.table.batches([column]) for cell in batch.column(0).unique().to_pylist()}
        return sorted(cell for cell in found if cell and cell.lower().startswith(begun))[:most]

    def positions(
        self, *, most: int = 20_000, progress: Callable[[float], None] | None = None
    ) -> tuple[list[str], Float[np.ndarray, "files 2"]]:
        """A map: the ids of up to `most` files and where they lie, in [0, 1], like beside like (`positions`)."""
        return positions.make(self.table, most=most, progress=progress)

    def export(self, path: str | Path, *, to: str | None = None) -> Path:
        """Write all windows as `parquet`, `numpy` or `faiss` (default: what the suffix says); see `exports`."""
        return exports.write(self.table, self.card, Path(_absolute(path)), to=to)

    def _find(self, name: str) -> File | None:
        """A file by its id, or by any of its paths."""
        seen = self._see()
        tried = dict.fromkeys((name, _absolute(name), os.path.realpath(name)))
        return next((file for one in tried if (file := seen.file(one)) is not None), None)

    def _see(self, *, empty: bool = False) -> View | Index:
        """The last version, read if it is not; `LibraryError` where nothing is in it and `empty` is false."""
        seen = self._seen
        now = time.monotonic()
        if seen is None or now - self._looked >= self.patience_seconds:
            if seen is None or not self.patience_seconds:
                seen = self._read()
            elif not self._reading.locked():
                threading.Thread(target=self._read_again, name="antiphon-library", daemon=True).start()
        if seen.windows == 0 and not empty:
            raise LibraryError(
                f"library '{self.location}' is empty: run `antiphon index FOLDER --library DIR --model M` first"
            )
        return seen

    def _read(self) -> View | Index:
        with self._reading:
            self._looked = time.monotonic()
            version, seen = self.table.version, self._seen
            if seen is None or seen.version != version:
                small = self.table.count() < EXACT_BELOW
                warm = self.patience_seconds > 0  # many searches will come
                seen = View.load(self.table, version) if small else Index(self.table, version, warm=warm)
                self._seen = seen
            return seen

    def _read_again(self) -> None:
        """In the background: where that fails, the last version is searched on, and the next search tries again."""
        with suppress(LibraryError):
            self._read()

    def _index(self) -> None:
        if self.table.count() >= EXACT_BELOW:
            self.table.build_index()


def _hits(found: Found) -> list[Hit]:
    rows = found.rows.to_pylist()
    return [
        Hit(
            id=row["id"],
            path=row["path"],
            start_seconds=row["start_seconds"],
            end_seconds=row["end_seconds"],
            score=min(1.0, max(-1.0, float(score))),
            percentile=float(percentile),
            seconds=row["seconds"],
            tags=tags_of(row),
        )
        for row, score, percentile in zip(rows, found.scores, found.percentiles, strict=True)
    ]


def _as_stream(
    sounds: Iterable[str | Path] | Iterable[Result], model: EmbeddingModel, batch_size: int
) -> Iterator[Result]:
    """Results as they are, paths through the model; what comes first decides which."""
    stream = iter(sounds)
    for first in stream:
        rest: Any = itertools.chain([first], stream)
        if isinstance(first, Embedded | Failed):
            return (replace(item, path=_absolute(item.path)) for item in rest)
        return embed_files(model, map(_absolute, rest), batch_size=batch_size, facts=True)
    return iter(())


def _gone(path: str) -> bool:
    """Whether the file surely is not there (a folder that may not be entered says nothing)."""
    try:
        os.stat(path)
    except OSError as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    return False


def _is_below(path: str, folders: Sequence[str]) -> bool:
    return any(path.startswith(os.path.join(folder, "")) for folder in folders)


def _absolute(path: str | Path) -> str:
    text = os.fspath(path)
    return text.rstrip("/") if remote.is_url(text) else os.path.abspath(text)


def _has_card(folder: str) -> bool:
    return CARD_FILE in _listed(folder)


def _listed(folder: str) -> list[str]:
    """The names in a folder, here or afar; none where there is no such folder."""
    try:
        if not remote.is_url(folder):
            return os.listdir(folder)
        files, path = remote.filesystem(folder)
        return [one.rstrip("/").rpartition("/")[2] for one in files.ls(path, detail=False, refresh=True)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except Exception as error:  # of cloud libraries too
        if isinstance(error, AntiphonError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise LibraryError(f"cannot reach '{folder}' ({reason}): check the address and the rights to it") from error


def _named(source: str | None) -> str:
    return "a model made in memory" if source is None else f"model '{source}'"
