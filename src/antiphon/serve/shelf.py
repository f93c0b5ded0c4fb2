"""A library as the routes see it: its name, its model, and its files by id."""

import os
from dataclasses import dataclass

from antiphon.library import File, Library
from antiphon.serve.batching import Batched
from antiphon.serve.problems import Refused


@dataclass(frozen=True)
class Shelf:
    """A library, what it is called here, and the model that made it."""

    name: str
    library: Library
    model: Batched

    def file(self, id: str) -> File:
        """A file by its id. `Refused` (404) where there is none."""
        found = self.library.file(id)
        if found is None:
            raise Refused(404, f"library '{self.name}' has no file '{id}': search again, it may have changed")
        return found

    def name_of(self, path: str) -> str:
        """The last part of a file's path, or of its address in a tar or table."""
        return path.replace(os.sep, "/").rpartition("/")[2]

    def folder_of(self, path: str) -> str:
        """What comes before the name, from the library's root on where the file lies below it; "" for the root."""
        folder = path.replace(os.sep, "/").rpartition("/")[0]
        root = self.library.card.root.replace(os.sep, "/").rstrip("/")
        return folder[len(root) + 1 :] if folder == root or folder.startswith(f"{root}/") else folder
