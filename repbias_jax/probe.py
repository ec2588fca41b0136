"""Runs the probes of this package on your own activations.

  python -m repbias_jax.probe --activations=x.npz|x.npy|x.zarr --features=y.csv --workdir=DIR [--sites=a,b] [--ignore=id]
         [--categorical=a,b] [--continuous=c] [--split=COLUMN] [--decodable=0.9] [--small=5] [--draws=200]

`repbias-probe` is the same command. Activations are arrays `[N, ...]` of plain numbers with one example per row; each array
of a file is a site. Features are a csv file: a header line with names, then one line for each of the N examples. At the end
the command writes `results.csv` (with the same columns as for experiments), `figures/`, `report.html` and `manifest.json`.
The same command always writes the same bytes.

Exit status: 0 done; 75 interrupted, nothing written; 2 bad input, nothing written; 1 any other error.
"""

import hashlib
import math
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from absl import flags

from repbias_jax import external, store
from repbias_jax.columns import COLUMNS
from repbias_jax.config import ConfigError
from repbias_jax.external import diagnostics, record
from repbias_jax.external.arrays import read_arrays
from repbias_jax.external.features import Feature, features_of, read_columns
from repbias_jax.report import external_page

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 75
MAX_SITES = 24

FLAGS = flags.FlagValues()  # apart from absl's global ones, so that importing this module defines no flags
flags.DEFINE_string("activations", None, "activations: a file .npy or .npz, or a folder .zarr (v3)", flag_values=FLAGS)
flags.DEFINE_string("features", None, "csv file: a header line with names, then one line per example", flag_values=FLAGS)
flags.DEFINE_string("workdir", None, "folder for results", flag_values=FLAGS)
flags.DEFINE_list("sites", [], "arrays of the file to probe; default: all", flag_values=FLAGS)
flags.DEFINE_list("ignore", [], "columns of the csv to ignore", flag_values=FLAGS)
flags.DEFINE_list("categorical", [], "columns to treat as classes", flag_values=FLAGS)
flags.DEFINE_list("continuous", [], "columns to treat as continuous numbers", flag_values=FLAGS)
flags.DEFINE_string(
    "split", None, "column with fit or score for each example; default: a random half each", flag_values=FLAGS
)
flags.DEFINE_float(
    "decodable", external.DECODABLE, "balanced accuracy from which a feature counts as decodable", 0, 1, flag_values=FLAGS
)
flags.DEFINE_float(
    "small", 100 * external.SMALL, "percent of variance below which a feature counts as small", 0, 100, flag_values=FLAGS
)
flags.DEFINE_integer(
    "draws", external.NUM_DRAWS, "number of bootstrap draws over examples", external.MIN_DRAWS, 10_000, flag_values=FLAGS
)
for _name in ("decodable", "small"):  # NaN passes absl's bounds
    flags.register_validator(_name, math.isfinite, "expected a finite number", flag_values=FLAGS)


class Interrupted(Exception):
    """Raised when the command is interrupted before anything was written."""


class Request(NamedTuple):
    """The input of the command, read and checked."""

    folder: Path
    sites: dict[str, np.ndarray]
    features: list[Feature]
    split: list[str] | None
    choices: external.Choices
    inputs: list[str]  # sentences that describe the input


def parse(arguments: Sequence[str]) -> None:
    """Reads the flags. Exits with status 2 and one line on standard error if they are bad, with 0 after `--help`."""
    if any(a in ("--help", "-h", "-help", "--helpfull") for a in arguments):
        named = [FLAGS[name] for name in FLAGS]
        lines = [f"  --{flag.name}: {flag.help} (default: {flag.default_as_str or 'none'})" for flag in named]
        print("\n".join([str(__doc__), "Flags:", *lines]))
        sys.exit(DONE)
    try:
        rest = FLAGS(arguments)
    except flags.Error as error:
        sys.exit(complain(str(error).replace("\n", " ")))
    if len(rest) > 1:
        sys.exit(complain(f"unexpected argument {rest[1]}; flags are written --name=value"))


def run() -> int:
    """Reads the input, measures, writes the results and prints a summary; returns the exit status."""
    stop = catch_signals()
    try:
        request = _read()
        rows = _measured(request, stop)
        text = _text(request, rows)
        _write(request, rows, text)
    except ConfigError as error:
        return complain(str(error))
    except Interrupted as error:
        print(f"interrupted: {error}; nothing is written", file=sys.stderr, flush=True)
        return INTERRUPTED
    except (store.StoreError, OSError) as error:
        return complain(str(error), FAILED)
    for heading in ("inputs", "notes", "dissociated"):
        print("\n".join(text[heading]), end="\n" if text[heading] else "")
    for name in ("report.html", "figures", "results.csv"):
        print(request.folder / name)
    return DONE


def catch_signals() -> Callable[[], bool]:
    """Returns a function that tells whether SIGTERM, SIGINT or SIGUSR1 has arrived; a second signal exits at once."""
    caught: list[int] = []

    def note(number: int, _frame: Any) -> None:
        if caught:
            os._exit(INTERRUPTED)
        caught.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, note)
    return lambda: bool(caught)


def complain(message: str, status: int = BAD_INPUT) -> int:
    """Prints one line on standard error; returns the exit status."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    return status


def _required(name: str) -> str:
    value = FLAGS[name].value
    if not value:
        raise ConfigError(f"--{name} is missing; expected --activations, --features and --workdir")
    return value


def _read() -> Request:
    """Reads and checks all input; writes nothing."""
    path, table, folder = Path(_required("activations")), Path(_required("features")), Path(_required("workdir"))
    _check_workdir(folder)
    sites = _chosen(read_arrays(path), path)
    first = next(iter(sites.values()))
    if first.ndim == 0:
        raise ConfigError(f"{path}: a single number; expected arrays [N, ...]")
    columns = read_columns(table, len(first))
    for flag in ("ignore", "split"):
        for name in [FLAGS[flag].value] if flag == "split" and FLAGS[flag].value else FLAGS[flag].value or []:
            if name not in columns:
                raise ConfigError(f"--{flag}={name}: no such column in {table}; known: {', '.join(list(columns)[:20])}")
    split = columns.pop(FLAGS.split) if FLAGS.split else None
    kept = {name: column for name, column in columns.items() if name not in FLAGS.ignore}
    features = features_of(kept, FLAGS.categorical, FLAGS.continuous)
    external.check(sites, features, split)
    how = f"column {FLAGS.split}" if FLAGS.split else "a random half each, drawn with a fixed seed"
    shapes = ", ".join(f"{name} {' x '.join(map(str, a.shape))}" for name, a in sites.items())
    inputs = [f"Activations: {path.name}: {shapes}", f"Features: {table.name}: {len(features)}"]
    inputs.append(f"Probes are fitted on one part of the examples and scored on the other: {how}")
    choices = external.Choices(FLAGS.draws, FLAGS.decodable, FLAGS.small / 100)
    limits = f"balanced accuracy of at least {choices.decodable:g} and explains under {FLAGS.small:g} % of variance"
    inputs.append(f"A feature counts as decodable but small if it has {limits}")
    return Request(folder, sites, features, split, choices, inputs)


def _check_workdir(folder: Path) -> None:
    """Raises ConfigError unless results can be written below this folder. Makes a folder there to see, and removes it."""
    try:
        store.check_workdir(folder / "figures")
        if broken := [p for p in (folder, *folder.absolute().parents) if p.is_symlink() and not p.exists()]:
            raise ConfigError(f"--workdir={folder}: {broken[0]} is a link to nothing; expected a folder or a new name")
        os.rmdir(tempfile.mkdtemp(prefix=".repbias-", dir=store.existing(folder)))
    except OSError as error:
        raise ConfigError(
            f"--workdir={folder}: cannot be written ({error.strerror}); expected a folder or a new name"
        ) from error


def _chosen(sites: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    for name in FLAGS.sites:
        if name not in sites:
            raise ConfigError(f"--sites={name}: no such array in {path}; known: {', '.join(list(sites)[:20])}")
    chosen = {name: sites[name] for name in dict.fromkeys(FLAGS.sites)} or sites
    if len(chosen) > MAX_SITES:
        raise ConfigError(f"{path}: {len(chosen)} arrays; expected at most {MAX_SITES}: choose with --sites=NAME,NAME")
    return chosen


def _measured(request: Request, stop: Callable[[], bool]) -> pd.DataFrame:
    """Returns the rows of `results.csv`, with numbers. Raises Interrupted at the next measurement after a signal."""

    def say(text: str) -> None:
        if stop():
            raise Interrupted(f"before {text}")
        print(f"probe: {text}", file=sys.stderr, flush=True)

    rows = list(external.probe(request.sites, request.features, request.split, request.choices, say))
    say("writing")
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _text(request: Request, rows: pd.DataFrame) -> dict[str, list[Any]]:
    """Returns the sentences and the table of features for the page and the terminal."""
    shares = rows[rows["metric"] == "class_share"]
    table = []
    for feature in request.features:
        own = shares[shares["feature"] == feature.name]
        classes = ", ".join(f"{level}: {share:.3g}" for level, share in zip(own["at"], own["value"], strict=True))
        table.append((feature.name, feature.kind, classes))
    notes, small = diagnostics.notes(rows), diagnostics.dissociated(rows)
    return {"inputs": request.inputs, "notes": notes, "dissociated": small, "features": table}


def _write(request: Request, rows: pd.DataFrame, text: Mapping[str, list[Any]]) -> None:
    """Writes all files, each one whole or not at all, and the manifest last."""
    folder, recorded = request.folder, record.versions()
    for place in (folder, folder / "figures"):
        store.sweep(place)
    cells = rows.assign(value=[store.number(value) for value in rows["value"]])
    store.write_table(folder / "results.csv", COLUMNS, cells.to_numpy().tolist())
    page = external_page.write(folder, rows, "Probes of activations", text, recorded, request.choices.decodable)
    files = ["results.csv", *page]
    sites = {name: (list(a.shape), str(a.dtype), _sum(a)) for name, a in request.sites.items()}
    features = {f.name: (f.kind, list(f.levels), _sum(f.values)) for f in request.features}
    entry = {"sites": sites, "features": features, "choices": request.choices._asdict(), "split": request.split is not None}
    sums = {name: store.checksum(folder / name) for name in files}
    store.write_json(folder / "manifest.json", {"format": store.FORMAT, **entry, "record": recorded, "files": sums})


def _sum(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def main() -> None:
    """Runs the console script `repbias-probe`."""
    parse(sys.argv)
    sys.exit(run())


if __name__ == "__main__":
    main()
