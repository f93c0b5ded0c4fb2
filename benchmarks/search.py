"""Claim: among a million windows in 512 dimensions, a library answers a top 50 in 20 ms (median; 95 % in 50 ms) on one
core at recall@10 of 0.95 or more against exact search, in 1.5 GB of memory, through LanceDB's own index.

    .venv/bin/python benchmarks/search.py [--rows 1_000_000] [--queries 250] [--seed 0] [--folder DIR] [--json FILE]
        [--only library usearch faiss exact]

Needs usearch and faiss-cpu for the peers. Vectors are made, since random directions would be a false test: a
mixture of 4,000 clusters, the n-th a share of 1/n, means and spreads with a spectrum of 1/n in a random basis, around
a common mean, to unit length (told: the effective rank, exp of the entropy of the covariance's eigenvalues). `sounds`
are further draws; `words` are such draws moved by one constant vector, twice as long, as a text tower's are (modality
gap: Liang et al. 2022, arXiv:2203.02053): the hard ones, as no cluster is near them.

Each index is built in a process of its own (two threads; wall and CPU seconds, disk without the vectors' own file), and
searched in another, on one core: opened from disk, asked all queries, one at a time. Told are the median and the 95th
percentile of wall and CPU milliseconds, and what the process then holds: `anon`, its own memory, and `file`, mapped
pages, libraries among them. `open` is the time to the first answer.
"""

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

DIM, CLUSTERS, BLOCK, TOP = 512, 4000, 1 << 15, 50
PARTITION = 1000  # rows in a list, of both IVF indices
Search = Callable[[np.ndarray], np.ndarray]


# --- the vectors ------------------------------------------------------------------------------------------------------


class Mixture:
    """Clusters of unit vectors, few large and many small, of low effective rank."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        spectrum = 1 / np.arange(1, DIM + 1)
        basis = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0] * np.sqrt(spectrum / spectrum.sum())
        self.basis = basis.T.astype(np.float32)
        self.mean = (0.8 * unit(rng.standard_normal(DIM))).astype(np.float32)
        self.centres = rng.standard_normal((CLUSTERS, DIM), dtype=np.float32) @ self.basis
        self.shares = 1 / np.arange(1, CLUSTERS + 1) / np.sum(1 / np.arange(1, CLUSTERS + 1))
        self.spreads = np.exp(rng.normal(np.log(0.45), 0.25, (CLUSTERS, 1))).astype(np.float32)
        self.gap = (2 * unit(rng.standard_normal(DIM))).astype(np.float32)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`count` unit vectors, float32."""
        cluster = rng.choice(CLUSTERS, count, p=self.shares)
        around = rng.standard_normal((count, DIM), dtype=np.float32) @ self.basis
        return unit(self.mean + self.centres[cluster] + self.spreads[cluster] * around)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def make(folder: Path, *, rows: int, queries: int, seed: int) -> dict[str, float]:
    """Writes the rows, and both kinds of queries with their exact answers; what they are like."""
    mixture = Mixture(seed)
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, (rows, DIM))
    for start in range(0, rows, BLOCK):
        block = vectors[start : start + BLOCK]
        block[:] = mixture.draw(np.random.default_rng([seed, 1, start]), len(block))
    rng = np.random.default_rng([seed, 2])
    kinds = {"sounds": mixture.draw(rng, queries), "words": unit(mixture.draw(rng, queries) + mixture.gap)}
    eigenvalues = np.linalg.eigvalsh(np.cov(vectors[: 2 * BLOCK].T))
    shares = eigenvalues / eigenvalues.sum()
    found = {"effective rank": float(np.exp(-(shares * np.log(shares)).sum()))}
    for kind, asked in kinds.items():
        ids, similarities = nearest(vectors, asked)
        np.savez(folder / f"{kind}.npz", queries=asked, ids=ids)
        found |= {f"top-1 cosine of {kind}": float(similarities[:, 0].mean())}
    return found


def nearest(vectors: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The exact TOP of each query, best first, block by block: ids and similarities."""
    ids, best = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
    for start in range(0, len(vectors), BLOCK):
        similarity = queries @ vectors[start : start + BLOCK].T  # [queries, block]
        ids = np.hstack([ids, np.broadcast_to(np.arange(start, start + similarity.shape[1]), similarity.shape)])
        best = np.hstack([best, similarity])
        kept = np.argpartition(-best, TOP - 1, axis=1)[:, :TOP]
        ids, best = np.take_along_axis(ids, kept, 1), np.take_along_axis(best, kept, 1)
    order = np.argsort(-best, axis=1)
    return np.take_along_axis(ids, order, 1), np.take_along_axis(best, order, 1)


# --- the indices: how each is built from `vectors.npy` in a folder, and how it answers --------------------------------


def mapped(folder: Path) -> np.ndarray:
    return np.load(folder / "vectors.npy", mmap_mode="r")


def blocks(folder: Path) -> Iterator[tuple[int, np.ndarray]]:
    vectors = mapped(folder)
    for start in range(0, len(vectors), BLOCK):
        yield start, np.ascontiguousarray(vectors[start : start + BLOCK])


def rescored(vectors: np.ndarray, query: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The best TOP of some rows by their full vectors."""
    ids = np.sort(ids)  # in the order of the file
    return ids[np.argsort(-(vectors[ids] @ query), kind="stable")[:TOP]]


class Stub:
    """What a library asks of the model that made it."""

    dim, sample_rate, clip_seconds, clip_samples, space, source = DIM, 48_000, 10.0, 480_000, "projection", None

    def fingerprint(self) -> str:
        """Any."""
        return "made"


def lance_table(folder: Path) -> None:
    """A library of files of one to nine windows; they go in by the block, without `add`'s portions of 64 files.

    A file is called after its first row.
    """
    from antiphon.encoding import Embedded
    from antiphon.library import Library, table
    from antiphon.windows import Window

    library = Library.create(folder / "library", model=Stub(), root="/sounds")
    kept, rng = library.table.schema(), np.random.default_rng(0)

    def files(start: int, block: np.ndarray) -> list[Embedded]:
        firsts = np.append(np.flatnonzero(rng.integers(0, 9, len(block)) < 3), len(block))
        firsts[0] = 0
        made = []
        for first, last in itertools.pairwise(firsts.tolist()):
            windows = [Window(10.0 * i, 10.0 * i + 10.0) for i in range(last - first)]
            windows[-1] = Window(windows[-1].start_seconds, windows[-1].end_seconds - float(rng.uniform(0, 5)))
            made.append(Embedded(f"/sounds/{start + first:08}.wav", 1, 1, windows, block[first:last]))
        return made

    for start, block in blocks(folder):
        library.table.lance.add(table.rows(files(start, block), kept, {}))
    library.table.compact()  # as `add` does in the end


def lance_build(folder: Path) -> Path:
    from antiphon.library import Library

    Library.open(folder / "library").table.build_index()
    return folder / "library" / "windows.lance" / "_indices"


def lance_search(folder: Path) -> Search:
    """As a server has it: warm."""
    from antiphon.library import Library

    library = Library.open(folder / "library", patience_seconds=60)

    def search(query: np.ndarray) -> np.ndarray:
        hits = library.nearest(query, top=TOP, by="window")
        return np.array([int(hit.path[-12:-4]) + round(hit.start_seconds / 10) for hit in hits])

    return search


def usearch_build(folder: Path) -> Path:
    from usearch.index import Index

    index = Index(ndim=DIM, metric="cos", dtype="f16", connectivity=16, expansion_add=128)
    for start, block in blocks(folder):
        index.add(np.arange(start, start + len(block)), block, threads=2)
    index.save(folder / "usearch")
    return folder / "usearch"


def usearch_search(folder: Path) -> Search:
    from usearch.index import Index

    index = Index.restore(folder / "usearch", view=True)
    index.expansion_search = 256
    return lambda query: index.search(query, TOP, threads=1).keys.astype(np.int64)


def faiss_build(folder: Path) -> Path:
    import faiss

    vectors = mapped(folder)
    index = faiss.index_factory(DIM, f"IVF{max(len(vectors) // PARTITION, 1)},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(np.ascontiguousarray(vectors[:: max(len(vectors) // 100_000, 1)]))
    for _, block in blocks(folder):
        index.add(block)
    faiss.write_index(index, str(folder / "faiss"))
    return folder / "faiss"


def faiss_search(folder: Path) -> Search:
    import faiss

    index, vectors = faiss.read_index(str(folder / "faiss")), mapped(folder)
    index.nprobe = 40

    def search(query: np.ndarray) -> np.ndarray:
        found = index.search(query[None], 2 * TOP)[1][0]
        return rescored(vectors, query, found[found >= 0])

    return search


def exact_search(folder: Path) -> Search:
    vectors = mapped(folder)

    def search(query: np.ndarray) -> np.ndarray:
        similarity = vectors @ query
        best = np.argpartition(-similarity, TOP)[:TOP]
        return best[np.argsort(-similarity[best])]

    return search


INDICES: dict[str, tuple[str, Callable[[Path], Path] | None, Callable[[Path], Search]]] = {
    "library": ("antiphon.library (LanceDB IVF_SQ)", lance_build, lance_search),
    "usearch": ("usearch HNSW f16, ef 256", usearch_build, usearch_search),
    "faiss": ("FAISS IVF SQ8, 40 lists, refined", faiss_build, faiss_search),
    "exact": ("exact, mapped float32", None, exact_search),
}


# --- measuring --------------------------------------------------------------------------------------------------------


def resident(name: str) -> float:
    """MiB of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise OSError(f"this system does not tell {name}")


def size(path: Path) -> float:
    """MiB of a file or folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 2**20


def build(name: str, folder: Path) -> dict[str, float]:
    make_index = INDICES[name][1]
    if make_index is None:
        return {}
    if name == "library":
        lance_table(folder)  # the data, which is there in any case
    start, cpu = time.perf_counter(), time.process_time()
    path = make_index(folder)
    return {
        "build s": time.perf_counter() - start,
        "build CPU s": time.process_time() - cpu,
        "disk MiB": size(path),
        "build peak MiB": resident("VmHWM"),
    }


def search(name: str, folder: Path) -> dict[str, Any]:
    """Both kinds of queries, in this process, on one core."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    kinds = {kind: dict(np.load(folder / f"{kind}.npz")) for kind in ("sounds", "words")}
    start = time.perf_counter()
    ask = INDICES[name][2](folder)
    ask(kinds["sounds"]["queries"][0])
    found: dict[str, Any] = {"open s": time.perf_counter() - start}
    for kind, asked in kinds.items():
        wall, cpu, right = [], [], []
        for query, ids in zip(asked["queries"], asked["ids"], strict=True):
            before = time.perf_counter(), time.process_time()
            answer = ask(query)
            wall.append(1e3 * (time.perf_counter() - before[0]))
            cpu.append(1e3 * (time.process_time() - before[1]))
            right.append(len(np.intersect1d(answer[:10], ids[:10])) / 10)
        found[kind] = {
            "p50 ms": np.median(wall),
            "p95 ms": np.quantile(wall, 0.95),
            "CPU p50 ms": np.median(cpu),
            "CPU p95 ms": np.quantile(cpu, 0.95),
            "recall@10": np.mean(right),
        }
    return {**found, "anon MiB": resident("RssAnon"), "file MiB": resident("RssFile")}


def in_a_process(step: str, name: str, folder: Path) -> dict[str, Any]:
    """`build` or `search` where nothing was before."""
    threads = "2" if step == "build" else "1"
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LANCE_CPU_THREADS"), threads)
    command = [sys.executable, __file__, "--one", step, name, str(folder)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env={**os.environ, **limits, "RUST_LOG": "error"}
    )
    return json.loads(done.stdout.splitlines()[-1])


COLUMNS = ("build s", "build CPU s", "disk MiB", "open s", "anon MiB", "file MiB")
PER_KIND = ("p50 ms", "p95 ms", "CPU p50 ms", "CPU p95 ms", "recall@10")


def show(name: str, row: dict[str, Any]) -> None:
    """Two lines of the table, one for each kind of query."""
    for kind in ("sounds", "words"):
        cells = [
            f"{row[kind][column]:.3f}" if "recall" in column else f"{row[kind][column]:.1f}" for column in PER_KIND
        ]
        once = [f"{row[column]:.1f}" if column in row else "" for column in COLUMNS]
        print("| " + " | ".join([INDICES[name][0], kind, *cells, *once]) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="1_000_000 is the published run")
    parser.add_argument("--queries", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=INDICES, default=list(INDICES))
    parser.add_argument("--folder", type=Path, help="where some 6 kB a row may be written for the while")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # the process that `in_a_process` starts
    given = parser.parse_args()
    if given.one:
        step, name, folder = given.one
        print(json.dumps({"build": build, "search": search}[step](name, Path(folder))))
        return
    missing = [name for name in given.only if name in ("usearch", "faiss") and not importlib.util.find_spec(name)]
    if missing:
        parser.error(f"not installed: {', '.join(missing)}; install them or name the others with --only")
    rows = {}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        told = make(Path(folder), rows=given.rows, queries=given.queries, seed=given.seed)
        print(
            f"{given.rows} rows, seed {given.seed}, " + ", ".join(f"{name} {value:.2f}" for name, value in told.items())
        )
        print("\n| " + " | ".join(["index", "queries", *PER_KIND, *COLUMNS]) + " |")
        print("|" + "---|" * (2 + len(PER_KIND) + len(COLUMNS)))
        for name in given.only:
            rows[name] = {**in_a_process("build", name, Path(folder)), **in_a_process("search", name, Path(folder))}
            show(name, rows[name])
    if given.json:
        given.json.write_text(
            json.dumps({"rows": given.rows, "seed": given.seed, **told, "found": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
