"""A library of sounds in a folder, searched by words or by sound.

```
files -> embed_files -> writing -> table (LanceDB) -> view | index -> ranking -> hits
                                    words, sounds -> query ----^
```

`library` is the door, `card` says which model made it, `table` holds a row for each window, `writing` brings it up to
date, `query` makes a vector of what is asked, `view` and `index` find its nearest windows (a small table in memory and
exactly, a large one through an index on disk), `ranking` makes results of windows, `positions` a map.
"""

from antiphon.library.library import Library
from antiphon.library.query import Example
from antiphon.library.results import File, Hit
from antiphon.library.writing import ERRORS_FILE, Summary

__all__ = ["ERRORS_FILE", "Example", "File", "Hit", "Library", "Summary"]
