"""Reads and writes what is on disk: manifests, checkpoints, activations, curves and fingerprints.

Every file is written to a temporary name, synced and renamed. A chunk's folder has one writer, who holds its lock. The
activations are zarr v3 arrays with checksums; a missing or damaged part raises an error and is never read as numbers.
"""

import contextlib
import csv
import fcntl
import hashlib
import heapq
import io
import json
import math
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from jax import Array

from repbias_jax.config import ConfigError

FORMAT = 2
CURVE_COLUMNS = ("setting", "seed", "step", "output", "split", "loss", "accuracy", "worst_class")
# The errors that orbax and tensorstore raise for a damaged file. A checkpoint of another structure raises the same errors,
# so `Checkpoints.restore` compares the structures before it loads anything.
DAMAGE = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError)


class StoreError(RuntimeError):
    """Something on disk is missing, damaged, in use or of another format; the message names it and says what to do."""


def existing(folder: Path) -> Path:
    """Returns the folder itself, or the nearest of its parents that exists."""
    return next(p for p in (folder, *folder.absolute().parents) if p.exists())


def check_workdir(folder: Path) -> None:
    """Raises ConfigError when a folder is a file or cannot be written."""
    place = existing(folder)
    if not place.is_dir():
        raise ConfigError(f"--workdir={folder.parent}: {place} is a file; expected a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"--workdir={folder.parent}: {place} cannot be written")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Yields a file to write that replaces `path` whole or not at all: temporary name, sync, rename, sync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.tmp"
    # `tempfile` is not used, because only the owner can read its files, whatever the umask allows to others.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    with replacing(path) as file:
        file.write(content)


def sweep(folder: Path) -> None:
    """Removes what a killed process left half-written in a folder: our temporary files, tensorstore's and orbax's."""
    arrays = folder / "activations.zarr"
    ours = (own for place in (folder, arrays, folder / "checkpoint") for own in place.glob(".*.tmp"))
    for leftover in (*ours, *arrays.rglob("*.__lock")):
        leftover.unlink(missing_ok=True)
    for leftover in (folder / "checkpoint").glob("*orbax-checkpoint-tmp*"):
        shutil.rmtree(leftover, ignore_errors=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON with sorted keys and a digest of its content, so that any damage is detected on reading."""
    signed = {**content, "digest": digest(content)}
    write_bytes(path, (json.dumps(signed, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path, stage: str) -> Any:
    """Reads what `write_json` wrote. Raises StoreError, naming the file and the stage to rerun, if it cannot be used."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); delete it and rerun --stage={stage}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise StoreError(f"{path}: format {found}, expected {FORMAT}; delete it and rerun --stage={stage}")
    if content.pop("digest", None) != digest(content):
        raise StoreError(f"{path}: damaged; delete it and rerun --stage={stage}")
    return content


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file row by row; every cell is read back unchanged."""
    with replacing(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        plain = csv.writer(text, lineterminator="\n")
        quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
        plain.writerow(columns)
        for row in rows:
            # The plain writer leaves a lone carriage return unquoted, and readers end the row there.
            returns = any(isinstance(value, str) and "\r" in value for value in row)
            (quoted if returns else plain).writerow(row)
        text.detach()  # flushes; `replacing` closes the file


def read_table(path: Path) -> Iterator[list[str]]:
    """Yields the rows of a CSV file as text, without its header."""
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        next(reader)
        yield from reader


@contextlib.contextmanager
def merged_rows(
    paths: Sequence[Path], folder: Path, key: Callable[[Sequence[str]], Any], at_once: int = 64
) -> Iterator[Iterator[list[str]]]:
    """Yields the rows of many sorted tables in sorted order, with at most `at_once` files open at a time.

    If there are more tables, groups of neighbours are first merged into temporary files, and these again, until at most
    `at_once` are left. The temporary files are removed at the end; `sweep` removes those that a killed process leaves.

    Args:
      paths: CSV files with the same header, each sorted by `key`; rows with equal keys keep the order of their files.
      folder: for temporary files.
      key: function of a row that returns what rows are sorted by.
      at_once: files to read at the same time, two or more.

    Yields:
      An iterator over all rows, without headers.

    Source: ours.
    """
    left, made = list(paths), []
    try:
        while len(left) > at_once:
            merged = []
            for first in range(0, len(left), at_once):
                part = left[first : first + at_once]
                made.append(folder / f".merged.{secrets.token_hex(8)}.tmp")
                write_table(made[-1], (), heapq.merge(*map(read_table, part), key=key))
                for old in part:
                    if old in made:
                        old.unlink()
                merged.append(made[-1])
            left = merged
        yield heapq.merge(*map(read_table, left), key=key)
    finally:
        for path in made:
            path.unlink(missing_ok=True)


def number(value: float) -> str:
    """Returns a float32 as text that reads back as the same float32; a missing value (NaN) is empty."""
    return "" if np.isnan(value) else np.format_float_positional(np.float32(value), unique=True, trim="-")


def digest(content: Any) -> str:
    """Returns a short digest of anything that JSON can hold; a stage's fingerprint is such a digest."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def checksum(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path, files: Mapping[str, str], stage: str) -> None:
    """Raises StoreError for the first of `files` (name -> SHA-256) that is missing or different."""
    for name, expected in files.items():
        path = folder / name
        if not path.is_file() or checksum(path) != expected:
            state = "damaged" if path.is_file() else "missing"
            place = folder if stage == "train" else path
            raise StoreError(f"{path}: {state}; delete {place} and rerun --stage={stage}")


def verify_chunk(chunk: Path) -> None:
    """Raises StoreError when a chunk is not done or one of its small files is damaged."""
    verify(chunk, read_json(chunk / "done.json", "train")["files"], "train")


def discard(chunk: Path, kept: Sequence[str]) -> None:
    """Removes the activations of a chunk, except those of the views `kept`; factors and the arrays' metadata stay.

    A marker is written first, so that after an interruption these activations count as discarded, and the next call
    removes the rest.
    """
    arrays = chunk / "activations.zarr"
    gone = [name for name in Activations(arrays).attributes()["sites"] if name not in kept]
    marker = {"format": FORMAT, "views": gone}
    if discarded(chunk) != gone:
        write_json(chunk / "discarded.json", marker)
    for name in gone:
        shutil.rmtree(arrays / name / "c", ignore_errors=True)


def discarded(chunk: Path) -> list[str]:
    """Returns the views of a chunk whose activations were discarded."""
    path = chunk / "discarded.json"
    return list(read_json(path, "train")["views"]) if path.exists() else []


@contextlib.contextmanager
def lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Holds a lock file, at most until the process ends.

    If another process holds it, waits if `wait` is true, else raises StoreError naming the owner.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise StoreError(f"{path}: in use by {owner}; wait for it or stop it") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def fingerprint(tree: Any) -> Array:
    """Returns the position-weighted sum of all 32-bit words of one run's state, modulo 2^32.

    The weights are odd, so any single flipped bit changes the sum. Equal fingerprints are taken as proof that a resumed
    run is the same run.

    Args:
      tree: arrays of 32-bit numbers.

    Returns:
      uint32 `[]`.

    Source: ours.
    """
    total, offset = jnp.zeros((), jnp.uint32), 0
    for leaf in jax.tree.leaves(tree):
        words = jax.lax.bitcast_convert_type(leaf, jnp.uint32).reshape(-1)
        weights = 2 * (jnp.arange(words.size, dtype=jnp.uint32) + jnp.uint32(offset)) + 1
        total, offset = total + jnp.sum(words * weights, dtype=jnp.uint32), offset + words.size
    return total


class Saved(NamedTuple):
    """One checkpoint: all runs of a chunk, stacked."""

    state: Any  # [rows, lanes, ...] each
    fingerprints: Any  # of the state, uint32 [rows, lanes]
    curves: Any  # float32 [rows, lanes, points, 2, O, 3]; NaN where not yet reached
    curve_sums: Any  # fingerprints of the curves, uint32 [rows, lanes]


def structure(tree: Any) -> dict[str, str]:
    """Returns the structure of a tree of arrays: by path, each array's type and shape, such as `float32[2, 4]`."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {_path(path): f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for path, leaf in leaves}


def _path(path: Sequence[Any]) -> str:
    """Returns a path in a tree as orbax writes it: `state/params/kernel`."""
    return "/".join(str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path)


def _difference(found: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """Returns in words the first difference between two structures and how many more there are; empty if there is none."""
    names = [name for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
    if not names:
        return ""
    more = f", and {len(names) - 1} more" if names[1:] else ""
    return f"{names[0]} is {found.get(names[0], 'not there')}, expected {wanted.get(names[0], 'nothing')}{more}"


class Checkpoints:
    """The checkpoints of a chunk: written synchronously, the last two kept. `structure.json` describes their arrays."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        # Given a handler, orbax does not guess what a step holds from the contents of the newest step's folder.
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=ocp.StandardCheckpointHandler())

    def save(self, step: int, saved: Saved) -> None:
        """Saves all runs at a step. Raises StoreError if that fails; the previous checkpoint is then still intact."""
        with writing(self.folder):
            self._describe(saved)
            written = self._manager.save(step, args=ocp.args.StandardSave(saved._asdict()))  # pyright: ignore[reportCallIssue]
        if not written:
            raise StoreError(f"{self.folder}: step {step} was not saved; delete {self.folder} and rerun --stage=train")

    def restore(self, like: Saved, is_sound: Callable[[Saved], bool], remove: bool) -> tuple[int, Saved | None, list[str]]:
        """Returns the newest sound checkpoint.

        Args:
          like: shapes and shardings of the arrays to restore.
          is_sound: function that returns whether a restored checkpoint has its fingerprints; every process calls it.
          remove: whether to remove damaged checkpoints, so that the steps after the sound one can be saved again: orbax
            saves no step that is not newer than all that are there.

        Returns:
          Its step and the checkpoint (-1 and None if none is sound), and a line for each damaged one that was skipped.

        Raises:
          StoreError: a checkpoint consists of other arrays than `like`. It is not damaged and is not removed.
        """
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            self._compare(step, like)
            saved = self._restore_one(step, like, is_sound)
            if saved is not None:
                return step, saved, damaged
            damaged.append(f"{self.folder / str(step)}: damaged checkpoint passed over")
            if remove:
                shutil.rmtree(self.folder / str(step), ignore_errors=True)
                self._manager.reload()
        return -1, None, damaged

    def is_empty(self) -> bool:
        """Returns whether there is no checkpoint."""
        return not self._manager.all_steps()

    def _describe(self, saved: Saved) -> None:
        """Writes the structure of the checkpoints to `structure.json`, unless the file has it already."""
        wanted = structure(saved._asdict())
        if jax.process_index() == 0 and self._described() != wanted:
            write_json(self.folder / "structure.json", {"format": FORMAT, "arrays": wanted})

    def _described(self) -> dict[str, str] | None:
        """Returns the structure in `structure.json`; None if the file is damaged or missing."""
        try:
            return read_json(self.folder / "structure.json", "train")["arrays"]
        except StoreError:
            return None

    def _compare(self, step: int, like: Saved) -> None:
        """Raises StoreError if a checkpoint consists of other arrays than `like`, as far as its structure is known."""
        found = self._described()
        if found is None:  # an older version wrote it, or it is damaged: use orbax's own metadata, which have no digest
            found = self._read_by_orbax(step)
        if found is not None and (differs := _difference(found, structure(like._asdict()))):
            raise StoreError(
                f"{self.folder / str(step)}: undamaged, but of another structure ({differs}); go on with the code and the "
                "versions of jax, flax and optax it was begun with, or use another workdir"
            )

    def _read_by_orbax(self, step: int) -> dict[str, str] | None:
        """Returns a step's structure according to orbax's metadata; None if these are damaged."""
        try:
            found: Any = self._manager.item_metadata(step)
            return structure(found.tree if hasattr(found, "tree") else found)
        except DAMAGE:
            return None

    def _restore_one(self, step: int, like: Saved, is_sound: Callable[[Saved], bool]) -> Saved | None:
        """Returns a checkpoint if it has the fingerprints it was saved with, else None."""
        target, alone = like._asdict(), jax.process_count() == 1
        if alone:  # it is read to the host first: orbax's readers into devices outlive a damaged file, and complain
            target = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), target)
        try:
            found: Any = self._manager.restore(step, args=ocp.args.StandardRestore(target))  # pyright: ignore[reportCallIssue]
        except DAMAGE:
            return None
        except Exception as error:
            if type(error) is not Exception:  # orbax wraps tensorstore's errors in the base class itself
                raise
            return None
        saved = Saved(**found)
        if alone:
            saved = jax.tree.map(lambda x, as_: jax.device_put(x, as_.sharding), saved, like)
        return saved if is_sound(saved) else None

    def close(self) -> None:
        """Waits for orbax and releases its resources."""
        self._manager.close()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the errors that orbax and tensorstore raise on a full or failing disk into a StoreError naming the path."""
    try:
        yield
    except (OSError, ValueError) as error:
        free = shutil.disk_usage(path).free / 1e9 if path.exists() else math.nan
        reason = str(error).split("\n")[0].split(" [")[0]
        raise StoreError(f"{path}: cannot be written ({reason}); {free:.2f} GB are free there") from error


class Size(NamedTuple):
    """Sizes of a chunk's arrays."""

    runs: int
    lanes: int  # runs of one zarr chunk, which has one writer
    examples: int


def smallest_integer(num_values: int) -> np.dtype:
    """Returns the smallest signed integer type that holds the values 0 to `num_values` - 1."""
    return next(np.dtype(t) for t in (np.int8, np.int16, np.int32) if num_values - 1 <= np.iinfo(t).max)


class Activations:
    """The activations of a chunk: a zarr v3 array `[run, snapshot, example, unit]` per view, factors and coordinates."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: dict[str, Any] = {}

    def create(
        self,
        sites: Mapping[str, tuple[tuple[int, ...], int, int]],
        size: Size,
        factors: Mapping[str, int] | Sequence[str],
        coordinates: Mapping[str, tuple[tuple[str, ...], np.ndarray]],
        attributes: Mapping[str, Any],
    ) -> None:
        """Creates the arrays, empty, and writes the coordinates; existing arrays that fit are kept.

        Args:
          sites: for each view by name, the steps of its snapshots, examples N and units D.
          size: runs, runs of a zarr chunk, and examples.
          factors: names of the arrays `[run, example]` of factors, with the number of values of each; if only names are
            given, up to 128 values.
          coordinates: small arrays by name, with the names of their dimensions.
          attributes: of the zarr group.
        """
        with self._reading(""):
            lanes = min(size.lanes, size.runs)
            for name, (steps, examples, units) in sites.items():
                dimensions = ("run", f"snapshot_{name}", "example", f"unit_{name}")
                shape = (size.runs, len(steps), examples, units)
                self._create(name, shape, (lanes, 1, examples, units), np.dtype(np.float32), dimensions)
                self._write(f"snapshot_{name}", np.asarray(steps, np.int32), (f"snapshot_{name}",))
            for name, values in (factors if isinstance(factors, Mapping) else dict.fromkeys(factors, 2)).items():
                shape = (size.runs, size.examples)
                self._create(name, shape, (lanes, size.examples), smallest_integer(values), ("run", "example"))
            for name, (dimensions, values) in coordinates.items():
                self._write(name, values, dimensions)
            self._describe(attributes)

    def _describe(self, attributes: Mapping[str, Any]) -> None:
        """Writes the metadata of the zarr group, which include those of its arrays."""
        members = {p.parent.name: json.loads(p.read_bytes()) for p in sorted(self.folder.glob("*/zarr.json"))}
        inline = {"kind": "inline", "must_understand": False, "metadata": members}
        group = {"zarr_format": 3, "node_type": "group", "attributes": {**attributes, "format": FORMAT}}
        content = json.dumps({**group, "consolidated_metadata": inline}, indent=1, sort_keys=True)
        write_bytes(self.folder / "zarr.json", content.encode())

    def _write(self, name: str, values: np.ndarray, dimensions: tuple[str, ...]) -> None:
        self._create(name, values.shape, values.shape, values.dtype, dimensions).write(values).result()

    def _create(self, name: str, shape, pieces, dtype: np.dtype, dimensions) -> Any:
        metadata = {
            "shape": list(shape),
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(1, n) for n in pieces]}},
            "data_type": dtype.name,
            "fill_value": "NaN" if dtype.kind == "f" else 0,
            "dimension_names": list(dimensions),
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                # zstd's own checksum does not cover the bit that says that there is one; crc32c covers every byte.
                {"name": "zstd", "configuration": {"level": 1, "checksum": False}},
                {"name": "crc32c"},
            ],
        }
        self._open[name] = self._driver(name, {"metadata": metadata, "create": True, "open": True})
        return self._open[name]

    def _driver(self, name: str, more: Mapping[str, Any]) -> Any:
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str((self.folder / name).absolute())},
            "fill_missing_data_reads": False,
            "store_data_equal_to_fill_value": True,
        }
        return ts.open({**spec, **more}).result()

    def write(self, name: str, index: Any, values: np.ndarray) -> None:
        """Writes a part of an array: some runs, and for activations one snapshot. Args: values `[run, ...]`.

        Raises:
          StoreError: it cannot be written, or the values do not fit the array's integer type.
        """
        if len(values):
            dtype = self._open[name].dtype.numpy_dtype
            if dtype.kind == "i" and not (values == values.astype(dtype)).all():
                where, low, high = self.folder / name, values.min(), values.max()
                raise StoreError(f"{where}: values from {low} to {high} do not fit its type, {dtype.name}")
            with writing(self.folder):
                self._open[name][index].write(values.astype(dtype)).result()

    def read(self, name: str, index: Any = ...) -> np.ndarray:
        """Reads an array or a part of it. Raises StoreError naming the array if a zarr chunk is missing or damaged."""
        with self._reading(name):
            return np.asarray(self._array(name)[index].read().result())

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of an array."""
        with self._reading(name):
            return tuple(self._array(name).shape)

    def attributes(self) -> dict[str, Any]:
        """Returns the attributes of the zarr group."""
        with self._reading("zarr.json"):
            return json.loads((self.folder / "zarr.json").read_bytes())["attributes"]

    def _array(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = self._driver(name, {"open": True})
        return self._open[name]

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError) as error:
            where, chunk = self.folder / name, self.folder.parent
            reason = str(error).split(" [")[0]
            raise StoreError(f"{where}: damaged ({reason}); delete {chunk} and rerun --stage=train") from error


def read_zarr(folder: Path, metadata: Mapping[str, Any]) -> np.ndarray:
    """Reads a zarr v3 array that another program wrote.

    Args:
      folder: of the array; nothing outside it is read.
      metadata: the content of its zarr.json, checked by the caller; the file is not read again.

    Raises:
      StoreError: the metadata make no sense, or a chunk is missing or damaged.
    """
    kvstore = {"driver": "file", "path": str(folder.resolve())}
    how = {"open": True, "assume_metadata": True, "fill_missing_data_reads": False}
    try:
        spec = {"driver": "zarr3", "kvstore": kvstore, "metadata": dict(metadata), **how}
        return np.asarray(ts.open(spec).result().read().result())
    except (*DAMAGE, OverflowError, RuntimeError) as error:  # the last two: JSON allows numbers and text that C++ does not
        raise StoreError(str(error).split(" [")[0]) from error


def metadata_sums(chunk: Path) -> dict[str, str]:
    """Returns checksums of a finished chunk's small files: curves and the arrays' metadata."""
    files = [chunk / "curves.csv", *sorted((chunk / "activations.zarr").rglob("zarr.json"))]
    return {str(p.relative_to(chunk)): checksum(p) for p in files}
