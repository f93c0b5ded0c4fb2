"""A library of tones behind a real server on a free port; nothing else is reached."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile

from antiphon.library import Library
from test_encoding import TONES, ToneModel, write_tones

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("fastapi")
pytest.importorskip("lancedb")

TOKEN = "a-token-of-enough-letters"
UGLY = "it's märchen.wav"
LONG = ((0, 0, 0, 1), (0, 1, 0, 0), (0, 1, 1, 0))


@contextlib.contextmanager
def serving(app) -> Iterator[str]:
    """The address of a server of `app`, in a thread."""
    config = uvicorn.Config(app, port=0, log_level="critical", ws="none", server_header=False, proxy_headers=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.005)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def tones(*weights: tuple[float, float, float, float], rate: int = 8000) -> np.ndarray:
    """A second of the model's four tones for each tuple of weights."""
    t = np.arange(rate) / rate
    waves = np.stack([np.sin(2 * np.pi * hertz * t) for hertz in TONES])
    return 0.2 * np.concatenate([np.asarray(weight) @ waves for weight in weights])


@pytest.fixture(scope="session")
def sounds(tmp_path_factory) -> Path:
    """Tones low, middle, high and top, two mixtures, one of three seconds, one AIFF."""
    folder = tmp_path_factory.mktemp("serve") / "sounds"
    write_tones(folder / "low.wav", (1, 0, 0, 0))
    write_tones(folder / "high.wav", (0, 0, 1, 0))
    write_tones(folder / "long.wav", *LONG)
    write_tones(folder / "deep" / UGLY, (1, 1, 0, 0))
    soundfile.write(folder / "deep" / "apple.aiff", tones((1, 0, 0.5, 0)), 8000, subtype="PCM_16")
    soundfile.write(folder / "deep" / "stereo.flac", np.stack([tones((0, 1, 0, 1))] * 2, axis=1), 8000)
    return folder


@pytest.fixture(scope="session")
def model() -> ToneModel:
    return ToneModel()


@pytest.fixture(scope="session")
def library(sounds, model) -> Library:
    made = Library.create(sounds.parent / "library", model=model, root=sounds)
    made.sync(sounds, model=model)
    return made


@pytest.fixture(scope="session")
def served(library, model) -> Iterator[str]:
    """The address of a server with no narrow limit."""
    from antiphon.serve.app import create_app
    from antiphon.serve.settings import Settings

    settings = Settings(name="tones", upload_burst=1000, burst=100_000)
    with serving(create_app({"tones": library, "again": library}, {"tones": model, "again": model}, settings)) as url:
        yield url


@pytest.fixture
def client(served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served, trust_env=False, timeout=30) as made:
        yield made


@pytest.fixture
def with_settings(library, model) -> Iterator[Callable[..., httpx.Client]]:
    """Makes clients of servers with other settings."""
    from antiphon.serve.app import create_app
    from antiphon.serve.settings import Settings

    with contextlib.ExitStack() as stack:

        def make(**settings) -> httpx.Client:
            app = create_app({"tones": library}, {"tones": model}, Settings(**settings))
            url = stack.enter_context(serving(app))
            return stack.enter_context(httpx.Client(base_url=url, trust_env=False, timeout=30))

        yield make


@pytest.fixture
def ids(library) -> dict[str, str]:
    """File name -> id."""
    return {Path(path).name: library.file(path).id for path in library.table.known()}
