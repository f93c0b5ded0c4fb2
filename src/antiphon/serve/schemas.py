"""What is asked and answered, with its bounds; `/openapi.json` is made of these."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MOST_TOP = 200
MOST_POINTS = 200  # of a curve

Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Words = Annotated[str, StringConstraints(max_length=2000)]
Where = Annotated[str, StringConstraints(max_length=2000)]
Second = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Number = Annotated[float, Field(ge=-1e15, le=1e15, allow_inf_nan=False)]
Top = Annotated[int, Field(ge=1, le=MOST_TOP)]
By = Literal["moment", "window", "file"]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Like(_Asked):
    """A sound to search like: a file of the library, from `start` to `end` seconds of it, or an upload."""

    id: Id | None = None
    upload: Id | None = None
    start: Second | None = None
    end: Second | None = None
    weight: Weight = 1.0


class ColumnFilter(_Asked):
    """Bounds of a number, or what a text must have in it, in any case."""

    min: Number | None = None
    max: Number | None = None
    contains: Annotated[str, StringConstraints(max_length=200)] | None = None


class Search(_Asked):
    """What to search for and where. At least one of `words` and `like` is needed."""

    words: Words | None = None
    without: Words | None = None
    like: Annotated[list[Like], Field(max_length=32)] = []
    unlike: Annotated[list[Like], Field(max_length=32)] = []
    words_weight: Weight = 1.0
    like_weight: Weight = 1.0
    where: Where | None = None
    filters: Annotated[dict[Name, ColumnFilter], Field(max_length=32)] = {}
    by: By = "moment"
    diversity: Share = 0.0
    top: Top = 20
    curve: bool = False
    library: Name | None = None


class Texts(_Asked):
    """Texts to embed."""

    texts: Annotated[list[Words], Field(min_length=1, max_length=64)]
    library: Name | None = None


class Problem(BaseModel):
    """Why a request was refused, in one line: what came, what is allowed, what to do."""

    error: str


class Result(BaseModel):
    """A file, where it fits best (seconds), its cosine with the query, and the share of the library that fits less."""

    id: str
    name: str
    folder: str
    path: str
    start: float
    end: float
    score: float
    percentile: float
    seconds: float
    tags: dict[str, Any]
    curve: list[tuple[float, float]] | None = None


class Found(BaseModel):
    """Results, best first. `upload` names the sound that was sent in, for `like`; it is known for an hour."""

    results: list[Result]
    took_ms: float
    version: int
    upload: str | None = None


class Vectors(BaseModel):
    """Embeddings of texts, or of a sound's windows with their times."""

    vectors: list[list[float]]
    dim: int
    space: str
    windows: list[tuple[float, float]] | None = None
    mean: list[float] | None = None
    upload: str | None = None
    seconds: float | None = None


class Waveform(BaseModel):
    """The loudest sample of equal stretches of a file, 255 = full scale."""

    seconds: float
    peaks: list[int]


class FileAnswer(BaseModel):
    """A file of the library; `size` in bytes, `windows` in seconds."""

    id: str
    name: str
    folder: str
    path: str
    seconds: float
    size: int
    tags: dict[str, Any]
    windows: list[tuple[float, float]]


class Map(BaseModel):
    """Files as points in the unit square, near where they sound alike; 202 with the share that is done before."""

    state: Literal["ready", "making"]
    points: list[tuple[str, float, float]] | None = None
    names: list[str] | None = None
    version: int | None = None
    done: float | None = None


class Values(BaseModel):
    """Values of a column that begin with what was given."""

    values: list[str]


class Column(BaseModel):
    """A column that filters may name."""

    name: str
    kind: Literal["text", "number"]
    empty: bool = False  # no file has anything there


class ModelAnswer(BaseModel):
    """The model of a library."""

    source: str | None
    dim: int
    space: str
    clip_seconds: float


class Stats(BaseModel):
    """What a library holds, and what the server lets in."""

    name: str
    libraries: list[str]
    library: str
    files: int
    windows: int
    hours: float
    model: ModelAnswer
    root: str
    columns: list[Column]
    version: int
    max_upload_mb: int
    max_upload_seconds: float
    token_needed: bool


class Health(BaseModel):
    """That the server answers."""

    status: Literal["ok"]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route may refuse with, for the OpenAPI; what the guard refuses with is among it."""
    return {status: {"model": Problem} for status in sorted({400, 401, 403, 413, 422, 429, 500, *statuses})}
