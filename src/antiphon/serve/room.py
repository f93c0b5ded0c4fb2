"""What the routes share: the libraries, and the parts of the server that remember something."""

from collections.abc import Mapping, Sequence

from antiphon.encoding import EmbeddingModel
from antiphon.errors import LibraryError
from antiphon.library import Library
from antiphon.serve.batching import Batched
from antiphon.serve.figures import Figures
from antiphon.serve.maps import Maps
from antiphon.serve.outlines import Outlines
from antiphon.serve.problems import Refused
from antiphon.serve.settings import Settings
from antiphon.serve.shelf import Shelf
from antiphon.serve.uploads import Uploads


class Room:
    """See the module. `LibraryError` for no library, or for one that another model made than the one given with it."""

    def __init__(
        self, libraries: Mapping[str, Library], models: Mapping[str, EmbeddingModel], settings: Settings
    ) -> None:
        if not libraries:
            raise LibraryError("no library to serve: make one with `antiphon index FOLDER --library DIR --model M`")
        self.settings = settings
        self._batched = {id(model): Batched(model) for model in models.values()}
        self.shelves = {
            name: Shelf(name, library, self._batched[id(models[name])]) for name, library in libraries.items()
        }
        self.figures, self.maps, self.uploads = Figures(), Maps(), Uploads(settings)
        self.outlines = Outlines(limit_seconds=settings.decode_seconds)
        for shelf in self.shelves.values():
            shelf.library.check_model(shelf.model)
            shelf.library.is_quick()  # reads it now and not in the first search
            self.figures.library(shelf.name, shelf.library.stats)

    @property
    def names(self) -> Sequence[str]:
        """Of the libraries, the default first."""
        return list(self.shelves)

    def shelf(self, name: str | None) -> Shelf:
        """A library by its name, or the default. `Refused` (404) where there is none."""
        found = self.shelves.get(self.names[0] if name is None else name)
        if found is None:
            raise Refused(404, f"there is no library '{name}': there are {', '.join(self.names)}")
        return found

    def close(self) -> None:
        """End the processes and threads."""
        self.uploads.close()
        self.outlines.close()
        for model in self._batched.values():
            model.close()
