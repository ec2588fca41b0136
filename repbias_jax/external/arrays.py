"""Reads arrays that were made elsewhere, as data and nothing else.

This is a strict reader for `.npy`, `.npz` and zarr v3 (`.zarr`). It loads no pickle, runs no code and follows no link
inside an npz or a zarr, and it checks the file's own description before it allocates memory for it. Anything but plain
numbers is refused with a `ConfigError` of one line.

How much damage is detected depends on the format. Every member of an npz has a CRC-32. A zarr array has the checksums that
its writer chose (`crc32c`, or `zstd` with `checksum`; in shards only `crc32c` detects damage in several places). An npy has
none: a flipped bit among its values gives another value, as it does in numpy. The reader can only check that the header
agrees with the file's length and that each value is valid.
"""

import contextlib
import json
import math
import os
import re
import reprlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from repbias_jax.config import ConfigError, safe_name

DTYPES = {name: np.dtype(name) for name in ("bool", "float16", "float32", "float64")}
DTYPES |= {f"{sign}int{bits}": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)}
MAX_HEADER = 10_000  # characters of an npy header, the limit of numpy
MAX_JSON = 2**20  # bytes of a zarr.json, and of a zip's list of members
MAX_ARRAYS = 1000
MAX_FILES = 2**20  # inside a zarr folder
BLOCK = 2**24  # bytes read at a time
KNOWN = "known: .npy, .npz and .zarr, a folder of zarr v3"
# The header of an npy is a Python dict. We match it instead of letting numpy evaluate it: numpy.dtype("M8[s/0]") ends the
# process with a signal (numpy 2.4), and a header can name any type.
GAP, WHOLE = r"[ \t\n]*", r"(?:0|[1-9][0-9]{0,30})"
SHAPE = rf"\({GAP}\)|\((?:{GAP}{WHOLE}{GAP},)+(?:{GAP}{WHOLE})?{GAP}\)"
ITEM = rf"{GAP}'(descr|fortran_order|shape)'{GAP}:{GAP}('[^']*'|True|False|{SHAPE}){GAP}"
HEADER = re.compile(rf"\{{{ITEM},{ITEM},{ITEM},?{GAP}\}}{GAP}")
STORED = {order + dtype.str[1:]: np.dtype(order + dtype.str[1:]) for dtype in DTYPES.values() for order in "<>"}
STORED |= {dtype.str: dtype for dtype in DTYPES.values()}  # "|b1" and so on: one byte has no order
# Exceptions that a hostile path, zip or zarr.json can make the standard library raise.
PATH_ERRORS = (OSError, ValueError)
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError, ValueError)
JSON_ERRORS = (ValueError, RecursionError)
ZIP_BITS = 0x1 | 0x20 | 0x40 | 0x2000  # encrypted, patched, strongly encrypted, names encrypted
MAX_CODECS = 8
GRIDS = ("regular", "sharding_indexed")  # a codec with chunks of its own is described in the same way as a grid
WRITE_ALL = "zarr-python leaves out chunks of zeros unless config={'write_empty_chunks': True}"
ARRAY_CODECS = ("bytes", "sharding_indexed")
PACKERS = ("zstd", "gzip", "blosc")
CODECS = (*ARRAY_CODECS, "transpose", *PACKERS, "crc32c")
ARRAY_KEYS = {"shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs"}
NODE_KEYS = {  # for each type of zarr node: required keys, then optional ones
    "array": ({"zarr_format", "node_type", *ARRAY_KEYS}, {"attributes", "dimension_names", "storage_transformers"}),
    "group": ({"zarr_format", "node_type"}, {"attributes", "consolidated_metadata"}),
}


def read_arrays(path: Path, max_bytes: int = 8 * 2**30) -> dict[str, np.ndarray]:
    """Reads every array of an external file.

    Arrays have the machine's byte order and the shape in the file. Arrays of shape `[]` and arrays without values are
    accepted.

    Args:
      path: `NAME.npy` (one array, `NAME`), `NAME.npz` (one array for each member) or a folder `NAME.zarr` of zarr v3 (an
        array, `NAME`, or a group and the arrays directly in it).
      max_bytes: limit for the bytes of all arrays together. For zarr it also limits the bytes on disk, and the bytes of the
        arrays if all their chunks were whole.

    Returns:
      Arrays by name: bool, 8 to 64-bit integers, float16 to float64, all finite.

    Raises:
      ConfigError: anything else; the message says what was found, what was expected and where.

    Source: ours; formats as in NEP 1, PKWARE's APPNOTE and the zarr v3 core specification.
    """
    if path.suffix not in READERS:
        raise refusal(path, f"unknown kind of file {reprlib.repr(path.suffix)}; {KNOWN}")
    return READERS[path.suffix](path, max_bytes)


def refusal(where: object, text: str) -> ConfigError:
    """Returns the error for a refused file; it is one printable line, whatever text from the file it contains."""
    return ConfigError("".join(c if c.isprintable() else "?" for c in f"{where}: {text}"))


@contextlib.contextmanager
def reading(where: object, kinds: tuple[type[Exception], ...], known: str = KNOWN) -> Iterator[None]:
    """Converts the given exceptions into a refusal, which ends with what is `known`."""
    try:
        yield
    except ConfigError:  # it is a ValueError too
        raise
    except kinds as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0][:200] or type(error).__name__
        raise refusal(where, f"cannot be read ({reason}); expected a whole file; {known}") from error


@contextlib.contextmanager
def opened(path: Path, more_flags: int = 0, known: str = KNOWN) -> Iterator[tuple[IO[bytes], int]]:
    """Yields an open regular file and its size, taken from the open handle. Opening never waits for a pipe's other end."""
    with reading(path, PATH_ERRORS, known):
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | more_flags)
    info = os.fstat(handle)
    if not stat.S_ISREG(info.st_mode):
        os.close(handle)
        raise refusal(path, f"is a folder, a pipe or a device; expected a regular file; {known}")
    with os.fdopen(handle, "rb") as file, reading(path, (OSError,), known):
        if info.st_size == 0:
            raise refusal(path, f"is empty; {known}")
        yield file, info.st_size


def _size(shape: Any, itemsize: int, where: object, max_bytes: int) -> int:
    """Returns how many bytes an array has.

    Raises ConfigError for invalid shapes and for too large ones, where a size of 0 counts as 1.
    """
    sizes = isinstance(shape, list | tuple) and len(shape) <= 32 and all(type(n) is int and 0 <= n < 2**63 for n in shape)
    if not sizes:
        raise refusal(where, "shape: expected at most 32 whole numbers, each from 0 to 2^63")
    if math.prod(max(1, n) for n in shape) * itemsize > max_bytes:
        text = "x".join(map(str, shape))
        raise refusal(where, f"{reprlib.repr(text)} values of {itemsize} bytes; expected at most {max_bytes} bytes")
    return math.prod(shape) * itemsize


def _wrong_type(where: object, found: Any) -> ConfigError:
    hint = "save bfloat16 (V2 in npy) as float32"
    return refusal(where, f"values of type {reprlib.repr(found)}; expected one of {', '.join(DTYPES)}; {hint}")


def _checked(array: np.ndarray, where: object) -> np.ndarray:
    """Returns the array. Raises ConfigError unless its values are finite and its bools 0 or 1."""
    if array.dtype.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        raise refusal(where, "bool values other than 0 and 1")
    if array.dtype.kind == "f":
        bad = ~np.isfinite(array)
        if bad.any():
            first = np.unravel_index(int(np.argmax(bad)), array.shape)
            place = f"the first, {array[first]}, at {[int(i) for i in first]}"
            raise refusal(where, f"{np.count_nonzero(bad)} of {array.size} values are not finite ({place}); expected none")
    return array


def _read_npy(path: Path, max_bytes: int) -> dict[str, np.ndarray]:
    name = safe_name(path.stem, str(path))
    with opened(path) as (file, size):
        return {name: _npy(file, size, path, max_bytes)}


def _npy(stream: IO[bytes], size: int, where: object, max_bytes: int) -> np.ndarray:
    """Reads one array from a stream of `size` bytes that starts with an npy header."""
    head = stream.read(min(size, MAX_HEADER + 12))
    shape, fortran, stored, offset = _npy_header(head, where)
    dtype = stored.newbyteorder("=")
    values = _size(shape, dtype.itemsize, where, max_bytes)
    if size != offset + values:
        raise refusal(where, f"{size} bytes; expected {offset} of header and {values} of values")
    raw = np.empty(values, np.uint8)
    filled = len(head) - offset
    raw[:filled] = np.frombuffer(head, np.uint8)[offset:]
    while filled < values and (more := stream.read(min(BLOCK, values - filled))):
        raw[filled : filled + len(more)] = np.frombuffer(more, np.uint8)
        filled += len(more)
    if filled < values:
        raise refusal(where, f"ended after {filled} of {values} bytes of values")
    flat = raw.view(dtype) if stored == dtype else raw.view(dtype).byteswap(inplace=True)
    return _checked(flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape), where)


def _npy_header(head: bytes, where: object) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Returns the shape of an npy, whether its order is Fortran's, its stored type, and where its header ends."""
    start = {b"\x93NUMPY\1\0": 10, b"\x93NUMPY\2\0": 12}.get(head[:8])
    if start is None:  # version 3.0 is for field names, which we refuse
        raise refusal(where, f"opens with {head[:8]!r}; expected the magic of npy 1.0 or 2.0")
    end = start + int.from_bytes(head[8:start], "little")
    if end > len(head):
        raise refusal(where, f"header of {end - start} bytes; expected at most {MAX_HEADER}, all of them there")
    found = HEADER.fullmatch(head[start:end].decode("latin1"))
    items = dict(zip(found.groups()[::2], found.groups()[1::2], strict=True)) if found else {}
    descr, order, shape = items.get("descr", ""), items.get("fortran_order", ""), items.get("shape", "")
    if not (descr[:1] == "'" and order in ("True", "False") and shape[:1] == "("):
        text = reprlib.repr(head[start:end].decode("latin1").strip())
        raise refusal(where, f"npy header {text}; expected descr: one type, fortran_order, shape: whole numbers")
    if descr[1:-1] not in STORED:
        raise _wrong_type(where, descr[1:-1])
    return tuple(map(int, re.findall(WHOLE, shape))), order == "True", STORED[descr[1:-1]], end


def _read_npz(path: Path, max_bytes: int) -> dict[str, np.ndarray]:
    arrays = {}
    with opened(path) as (file, size), reading(path, ZIP_ERRORS):
        _check_directory(file, size, path)
        with zipfile.ZipFile(file) as archive:
            for name, member in _members(archive, path, max_bytes).items():
                where = f"{path}, member {name}"
                with reading(where, ZIP_ERRORS), archive.open(member) as stream:  # a full read verifies its CRC
                    arrays[name] = _npy(stream, member.file_size, where, max_bytes)
    return arrays


def _check_directory(file: IO[bytes], size: int, path: Path) -> None:
    """Raises ConfigError if a zip's list of members, which `zipfile` reads whole, is too long or followed by a comment."""
    start = file.read(4)
    file.seek(max(0, size - 98))
    tail = file.read(98).rjust(98, b"\0")  # records have 56 and 20 bytes (in zips above 4 GiB) and 22
    if start != b"PK\3\4" or tail[-22:-18] != b"PK\5\6":
        raise refusal(path, "is no zip, is empty, cut short or has something appended; expected what np.savez writes")
    large = tail[:4] == b"PK\6\6"
    if large != (tail[56:60] == b"PK\6\7"):
        raise refusal(path, "has one of the two records of a large zip; expected both, or none")
    (length,) = struct.unpack_from("<Q", tail, 40) if large else struct.unpack_from("<I", tail, 88)
    if length > MAX_JSON:
        raise refusal(path, f"list of members has {length} bytes; expected at most {MAX_JSON}")


def _members(archive: zipfile.ZipFile, path: Path, max_bytes: int) -> dict[str, zipfile.ZipInfo]:
    """Returns the members by the name of their array. Raises ConfigError unless each is a plain `NAME.npy`."""
    members: dict[str, zipfile.ZipInfo] = {}
    if not 1 <= len(archive.infolist()) <= MAX_ARRAYS:
        raise refusal(path, f"{len(archive.infolist())} members; expected 1 to {MAX_ARRAYS}")
    for info in archive.infolist():
        what = f"{path}, member {reprlib.repr(info.orig_filename)}"
        name = safe_name(info.orig_filename.removesuffix(".npy"), what)
        # `filename` is `orig_filename` up to a zero byte, or the name in an extra field.
        if not info.orig_filename == info.filename == f"{name}.npy" or name in members:
            raise refusal(what, "expected NAME.npy, every name once")
        if info.flag_bits & ZIP_BITS or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise refusal(what, "is encrypted or packed in a way we do not know; expected stored or deflated")
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise refusal(what, "is a link or a folder; expected a regular file")
        members[name] = info
    total = sum(info.file_size for info in members.values())
    if total > max_bytes:
        raise refusal(path, f"members declare {total} bytes; expected at most {max_bytes}")
    return members


def _read_zarr(path: Path, max_bytes: int) -> dict[str, np.ndarray]:
    with reading(path, PATH_ERRORS):
        mode = os.lstat(path).st_mode
    if not stat.S_ISDIR(mode):
        raise refusal(path, f"is a file or a link; expected a folder; {KNOWN}")
    name = safe_name(path.stem, str(path))
    _survey(path, max_bytes)
    if _node(path)["node_type"] == "array":
        return {name: _zarr_array(path, max_bytes)[0]}
    with reading(path, (OSError,)):
        folders = sorted(p for p in path.iterdir() if p.is_dir())
    if not 1 <= len(folders) <= MAX_ARRAYS:
        raise refusal(path, f"group of {len(folders)} arrays; expected 1 to {MAX_ARRAYS}")
    arrays, left = {}, max_bytes
    for folder in folders:
        arrays[safe_name(folder.name, str(path))], used = _zarr_array(folder, left)
        left -= used
    return arrays


def _survey(folder: Path, max_bytes: int) -> tuple[list[Path], int]:
    """Returns every file that may hold values, and how many bytes they have in total.

    Raises ConfigError for links, pipes, devices, and too many files or bytes.
    """
    todo, files, stored = [str(folder)], [], 0
    while todo:
        with reading(folder, (OSError,)), os.scandir(todo.pop()) as entries:
            for entry in entries:
                info = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    todo.append(entry.path)
                elif not stat.S_ISREG(info.st_mode):
                    raise refusal(entry.path, "is a link, a pipe or a device; expected files and folders only")
                elif entry.name != "zarr.json":
                    files.append(Path(entry.path))
                    stored += info.st_size
                if len(files) + len(todo) > MAX_FILES or stored > max_bytes:
                    raise refusal(folder, f"too much in it; expected at most {MAX_FILES} files and {max_bytes} bytes")
    return files, stored


def _node(folder: Path) -> dict[str, Any]:
    """Returns the content of a zarr.json. Raises ConfigError unless it has the keys of an array or a group."""
    path = folder / "zarr.json"
    if not os.path.lexists(path):
        old = any(os.path.lexists(folder / name) for name in (".zarray", ".zgroup"))
        raise refusal(folder, f"{'is zarr v2' if old else 'no zarr.json in it'}; {KNOWN}")
    with opened(path, os.O_NOFOLLOW) as (file, size):
        if size > MAX_JSON:
            raise refusal(path, f"{size} bytes; expected at most {MAX_JSON}")
        text = file.read(size)
    with reading(path, JSON_ERRORS):
        node = json.loads(text)
    if not isinstance(node, dict) or type(node.get("zarr_format")) is not int or node["zarr_format"] != 3:
        raise refusal(path, f"expected zarr_format 3; {KNOWN}")
    if node.get("node_type") not in ("array", "group"):
        raise refusal(path, f"node_type {reprlib.repr(node.get('node_type'))}; expected array or group")
    needed, allowed = NODE_KEYS[node["node_type"]]
    if not needed <= node.keys() <= needed | allowed or not isinstance(node.get("attributes", {}), dict):
        raise refusal(path, f"expected keys {', '.join(sorted(needed))}; allowed {', '.join(sorted(allowed))}")
    return node


def _zarr_array(folder: Path, max_bytes: int) -> tuple[np.ndarray, int]:
    """Returns one zarr array, and how many bytes it would have if all its chunks were whole.

    The declared sizes are checked before any chunk is opened.
    """
    from repbias_jax import store  # it imports tensorstore, which nothing else in this package needs

    node, where = _node(folder), folder / "zarr.json"
    if node["node_type"] != "array":
        raise refusal(where, "a group inside a group; expected arrays")
    if not isinstance(node["data_type"], str) or node["data_type"] not in DTYPES:
        raise _wrong_type(where, node["data_type"])
    itemsize, shape = DTYPES[node["data_type"]].itemsize, node["shape"]
    _size(shape, itemsize, where, max_bytes)
    chunk = _chunk_shape(node["chunk_grid"], len(shape), f"{where}, chunk_grid")
    counts = [-(-n // size) for n, size in zip(shape, chunk, strict=True)]
    piece = _size(chunk, itemsize, f"{where}, chunk", max_bytes)
    whole = [count * size for count, size in zip(counts, chunk, strict=True)]
    used = _size(whole, itemsize, f"{where}, all chunks", max_bytes)
    files, stored = _survey(folder, max_bytes)
    if math.prod(counts) > len(files):
        raise refusal(folder, f"{math.prod(counts)} chunks, {len(files)} files; expected every chunk ({WRITE_ALL})")
    _check_codecs(node, used // itemsize, stored, where)
    _check_heads(node["codecs"], files, piece)
    if node.get("storage_transformers", []) != []:
        raise refusal(where, "storage_transformers; expected none")
    try:
        array = store.read_zarr(folder, {key: value for key, value in node.items() if key != "attributes"})
    except store.StoreError as error:
        raise refusal(folder, f"{str(error)[:300]}; expected every chunk, undamaged ({WRITE_ALL})") from error
    return _checked(array, folder), used


def _chunk_shape(grid: Any, rank: int, where: str) -> list[int]:
    """Returns the chunk shape of a regular grid, or of a codec with chunks of its own."""
    configuration = grid.get("configuration") if isinstance(grid, dict) and grid.get("name") in GRIDS else None
    chunk = configuration.get("chunk_shape") if isinstance(configuration, dict) else None
    if not isinstance(chunk, list) or len(chunk) != rank or not all(type(n) is int and n >= 1 for n in chunk):
        raise refusal(where, f"expected name regular and a chunk_shape of {rank} whole numbers above 0")
    return chunk


def _codec_names(codecs: Any, where: object, allowed: tuple[str, ...] = CODECS) -> list[str]:
    """Returns the names in a list of codecs.

    Raises ConfigError unless all are known, exactly one turns arrays into bytes and at most one compresses, so that nothing
    expands twice.
    """
    known = isinstance(codecs, list) and all(isinstance(c, dict) and c.get("name") in allowed for c in codecs)
    if not known or len(codecs) > MAX_CODECS or not all(isinstance(c.get("configuration", {}), dict) for c in codecs):
        text = f"codecs: expected at most {MAX_CODECS} of {', '.join(allowed)}, each with its name and a configuration"
        raise refusal(where, text)
    names = [codec["name"] for codec in codecs]
    arrays, packers = (sum(name in kind for name in names) for kind in (ARRAY_CODECS, PACKERS))
    if arrays != 1 or packers > 1:
        raise refusal(where, f"codecs: expected one of {', '.join(ARRAY_CODECS)} and at most one of {', '.join(PACKERS)}")
    return names


def _check_codecs(node: dict[str, Any], values: int, stored: int, where: object) -> None:
    """Raises ConfigError for unknown codecs, and for shards with more inner chunks than their files can index."""
    names = _codec_names(node["codecs"], where)
    if "sharding_indexed" not in names:
        return
    if names[-1] != "sharding_indexed":
        raise refusal(where, "codecs: expected nothing after sharding_indexed")
    shard = node["codecs"][-1]
    inner, inside = _chunk_shape(shard, len(node["shape"]), f"{where}, sharding_indexed"), f"{where}, inside shards"
    # Blosc is refused within a shard, where the sizes it claims could not be checked before it allocates memory.
    _codec_names(shard["configuration"].get("codecs"), inside, ("bytes", "transpose", "zstd", "gzip", "crc32c"))
    _codec_names(shard["configuration"].get("index_codecs"), inside, ("bytes", "crc32c"))
    if values // math.prod(inner) * 16 > stored:  # an index has 16 bytes for each inner chunk
        raise refusal(where, f"shards of more pieces than {stored} bytes can hold; expected every chunk ({WRITE_ALL})")


def _check_heads(codecs: list[dict[str, Any]], files: list[Path], piece: int) -> None:
    """Raises ConfigError for chunks whose first bytes claim too large a size, or lack the checksum declared in zarr.json.

    Blosc allocates what its header claims, up to 2 GiB. The checksum of zstd does not cover the bit that declares it:
    without that bit nothing is checked.
    """
    configurations = {codec["name"]: codec.get("configuration", {}) for codec in codecs}
    checksum = configurations.get("zstd", {}).get("checksum") is True
    for path in files if checksum or "blosc" in configurations else []:
        with opened(path, os.O_NOFOLLOW) as (file, _):
            head = file.read(8).ljust(8, b"\0")
        if checksum and not (head[:4] == b"\x28\xb5\x2f\xfd" and head[4] & 4):
            raise refusal(path, "no zstd with a checksum; expected what zarr.json says")
        claimed = int.from_bytes(head[4:], "little")
        if not checksum and claimed > piece + 4 * MAX_CODECS:  # each crc32c inside adds 4 bytes
            raise refusal(path, f"blosc piece of {claimed} bytes; expected {piece}")


READERS: dict[str, Callable[[Path, int], dict[str, np.ndarray]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".zarr": _read_zarr,
}
