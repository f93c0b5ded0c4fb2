"""Where sounds are embedded: in this process, or by Ray on many machines. The same plan, the same results.

An engine is `paths -> results`: a stream of `Embedded` and `Failed`, in any order, that a library or a file takes in as
it comes. On Ray (Moritz et al., 2018; Ray Data's actor pool) every worker loads the model once, one per GPU or, where
there are none, one per core; paths must mean the same file on every machine.
"""

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from antiphon.encoding import Embedded, EmbeddingModel, Failed, embed_files
from antiphon.errors import LibraryError, MissingExtraError

Engine = Callable[[Sequence[str]], Iterator[Embedded | Failed]]

_FILES_AT_ONCE = 32  # what a worker takes: seconds of work, so that all end at about the same time


def local(model: EmbeddingModel, *, batch_size: int = 16) -> Engine:
    """This process: reader threads and the model as it is."""
    return lambda paths: embed_files(model, paths, batch_size=batch_size, facts=True)


def ray(model: EmbeddingModel, *, batch_size: int = 16) -> Engine:
    """Ray: the cluster at `RAY_ADDRESS`, or one that is started on this machine for as long as it is needed.

    `model` says what the workers load; `LibraryError` where it lies in memory alone.
    """
    if model.source is None:
        raise LibraryError("a model made in memory can't be loaded by Ray's workers: save it, and load what was saved")
    try:
        import ray.data
    except ImportError as error:
        raise MissingExtraError("ray", "--engine ray") from error
    return lambda paths: _on_ray(ray, model, paths, batch_size) if len(paths) else iter(())


def _on_ray(ray: Any, model: EmbeddingModel, paths: Sequence[str], batch_size: int) -> Iterator[Embedded | Failed]:
    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        address = os.environ.get("RAY_ADDRESS")
        ray.init(address=address, include_dashboard=False if address is None else None, logging_level="ERROR")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it has to say is raised
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        gpus, cores = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
        # Cut here: a task of Ray's that did it would wait for ever for a core, which the workers hold.
        portions = [
            pa.table({"path": pa.array(paths[first : first + _FILES_AT_ONCE], pa.string())})
            for first in range(0, len(paths), _FILES_AT_ONCE)
        ]
        results = ray.data.from_arrow(portions).map_batches(
            _Worker,
            fn_constructor_kwargs={
                "source": model.source,
                "fingerprint": model.fingerprint(),
                "batch_size": batch_size,
                "device": "cuda" if gpus else "cpu",
            },
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=max(1, min(gpus or cores, len(portions)))),
            num_cpus=1,
            num_gpus=1 if gpus else 0,
        )
        for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            for one in batch["result"]:
                yield pickle.loads(one.as_py())
    except ray.exceptions.RayError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise LibraryError(f"Ray's workers stopped ({reason}): mend that and run again, it goes on there") from error
    finally:
        if started:
            ray.shutdown()


class _Worker:
    """A model in a process of Ray's. Results travel pickled, as everything does between Ray's processes."""

    def __init__(self, *, source: str, fingerprint: str, batch_size: int, device: str) -> None:
        import torch

        from antiphon.model import load

        if device == "cpu":
            torch.set_num_threads(1)
        self.model, self.batch_size = load(source, device=device), batch_size
        if self.model.fingerprint() != fingerprint:
            raise LibraryError(f"model '{source}' is another one on {os.uname().nodename}: put the same there")

    def __call__(self, batch: pa.Table) -> pa.Table:
        found = embed_files(self.model, batch["path"].to_pylist(), batch_size=self.batch_size, facts=True)
        return pa.table({"result": pa.array([pickle.dumps(one) for one in found], pa.large_binary())})
