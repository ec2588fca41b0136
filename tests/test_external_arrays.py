"""Files from outside: read exactly, or refused in one line, whatever is in them; never run, never waited for."""

import contextlib
import io
import json
import os
import pickle
import re
import shutil
import stat
import struct
import time
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

from repbias_jax.config import ConfigError
from repbias_jax.external import arrays
from repbias_jax.external.arrays import read_arrays, safe_name

SMALL = 2**20  # bytes that the reader may hold in most tests
VALUES = np.arange(35, dtype=np.float32).reshape(5, 7) + 1
DTYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64")
fuzzing = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def modest_memory():
    """No test of this file may make the process grow by more than 96 MiB, not even for a moment."""

    def memory(field):
        return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

    if not os.access("/proc/self/clear_refs", os.W_OK):
        yield
        return
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = memory("VmRSS")
    yield
    assert memory("VmHWM") - before < 96


def attempt(path, max_bytes=SMALL):
    """The arrays, or None where they are refused: by one printable line that names the file, within a second."""
    begun = time.perf_counter()
    try:
        return read_arrays(path, max_bytes)
    except ConfigError as error:
        check_line(str(error), path)
        return None
    finally:
        assert time.perf_counter() - begun < 1


def check_line(message, path):
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) < len(str(path)) + 1000


def refuse(path, match, max_bytes=SMALL):
    with pytest.raises(ConfigError, match=match):
        read_arrays(path, max_bytes)
    assert attempt(path, max_bytes) is None


def same(found, expected):
    """Whether two dicts of arrays are equal to the bit, but for the byte order in memory."""
    return list(found) == list(expected) and all(
        a.shape == b.shape and a.dtype == b.dtype.newbyteorder("=") and a.tobytes() == b.astype(a.dtype).tobytes()
        for a, b in zip(found.values(), expected.values(), strict=True)
    )


def save_npy(path, array, version=(1, 0)):
    with open(path, "wb") as file:
        np.lib.format.write_array(file, array, version=version)
    return path


def save_zarr(path, array=VALUES, chunks=(2, 4), **more):
    """As zarr-python writes it, with every chunk on disk."""
    shutil.rmtree(path, ignore_errors=True)
    zarr.create_array(path, data=array, chunks=chunks, config={"write_empty_chunks": True}, **more)
    return path


def save_group(path, consolidated=False):
    group = zarr.create_group(path, attributes={"by": "someone"})
    for name, array in {"hidden_1": VALUES, "labels": np.arange(5)}.items():
        group.create_array(name, data=array, chunks=array.shape, compressors=Crc32cCodec())
    if consolidated:
        zarr.consolidate_metadata(path)
    return path


def raw_npy(header, data=b"", version=b"\1\0"):
    """An npy file with any text for its header."""
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H" if version[0] == 1 else "<I", len(text)) + text + data


def header(descr="'<f4'", shape="(2,)", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


def write(path, content):
    path.write_bytes(content)
    return path


# Good files


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_is_read_exactly_from_every_format(tmp_path, dtype):
    array = (np.arange(35).reshape(5, 7) % 2 if dtype == "bool" else VALUES).astype(dtype)
    save_npy(tmp_path / "a.npy", array)
    np.savez(tmp_path / "b.npz", a=array)
    np.savez_compressed(tmp_path / "c.npz", a=array)
    save_zarr(tmp_path / "a.zarr", array)
    for name in ("a.npy", "b.npz", "c.npz", "a.zarr"):
        found = read_arrays(tmp_path / name)
        assert same(found, {"a": array}), name
        assert found["a"].dtype == np.dtype(dtype)


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(VALUES),
        VALUES.astype(">f4"),
        np.asfortranarray(VALUES.astype(">f8")),
        VALUES.astype(">i2"),
        np.float64(3.5),
        np.zeros((0, 3), np.int16),
        np.zeros((2, 0, 4), np.float32),
        np.arange(2**20, dtype=np.float32),  # longer than what is read with the header
        np.float32([-0.0, np.finfo(np.float32).max, 1e-45]),
    ],
    ids=lambda a: f"{a.dtype.str}{a.shape}",
)
def test_orders_and_shapes(tmp_path, array):
    array = np.asanyarray(array)
    save_npy(tmp_path / "a.npy", array)
    save_npy(tmp_path / "b.npy", array, version=(2, 0))
    np.savez_compressed(tmp_path / "c.npz", a=array, b=array[..., None])
    assert same(read_arrays(tmp_path / "a.npy"), {"a": array})
    assert same(read_arrays(tmp_path / "b.npy"), {"b": array})
    found = read_arrays(tmp_path / "c.npz")
    assert same(found, {"a": array, "b": array[..., None]})
    assert found["a"].dtype.isnative
    save_zarr(tmp_path / "a.zarr", array, tuple(max(1, n) for n in array.shape))
    assert same(read_arrays(tmp_path / "a.zarr"), {"a": array})


@pytest.mark.parametrize(
    "more",
    [
        {"compressors": None},
        {"compressors": ZstdCodec(checksum=True)},
        {"compressors": GzipCodec()},
        {"compressors": BloscCodec()},
        {"compressors": Crc32cCodec()},
        {"compressors": [BloscCodec(), Crc32cCodec()]},
        {"filters": TransposeCodec(order=(1, 0))},
        {"serializer": BytesCodec(endian="big")},
        {"chunks": (2, 2), "shards": (4, 4)},
        {"chunks": (2, 2), "shards": (4, 4), "compressors": [ZstdCodec(), Crc32cCodec()]},
        {"chunks": (50, 70)},
        {"chunk_key_encoding": {"name": "v2", "separator": "."}},
        {"attributes": {"layer": 3}, "dimension_names": ("example", "unit"), "fill_value": np.nan},
    ],
    ids=lambda more: " ".join(more),
)
def test_codecs_of_zarr(tmp_path, more):
    assert same(read_arrays(save_zarr(tmp_path / "a.zarr", **more)), {"a": VALUES})


def test_groups_are_read_with_or_without_a_summary(tmp_path):
    expected = {"hidden_1": VALUES, "labels": np.arange(5)}
    assert same(read_arrays(save_group(tmp_path / "a.zarr")), expected)
    with pytest.warns(UserWarning, match="[Cc]onsolidated"):
        save_group(tmp_path / "b.zarr", consolidated=True)
    assert same(read_arrays(tmp_path / "b.zarr"), expected)


def test_a_file_as_large_as_the_bound_is_read_and_one_byte_more_is_not(tmp_path):
    save_npy(tmp_path / "a.npy", VALUES)
    np.savez(tmp_path / "b.npz", a=VALUES)
    save_zarr(tmp_path / "c.zarr", chunks=(5, 7), compressors=None)
    for name, needed in (("a.npy", 140), ("b.npz", 140 + 128), ("c.zarr", 140)):
        assert same({"a": next(iter(read_arrays(tmp_path / name, needed).values()))}, {"a": VALUES})
        refuse(tmp_path / name, f"expected at most .*{needed - 1}", needed - 1)


# Names and kinds of files


@pytest.mark.parametrize("name", ["a", "factor.parity1", "_x", "7", "A-b_c.d", "a" * 128])
def test_safe_names_are_given_back(name):
    assert safe_name(name, "here") == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "-a", "a/b", "a\\b", "a b", "a\n", "a\0", "é", "\u0661", "\udc80", "a" * 129]
)
def test_unsafe_names_are_refused_by_name(name):
    with pytest.raises(ConfigError, match=r"^here: name '.*': expected 1 to 128 of") as caught:
        safe_name(name, "here")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "name", ["missing.npy", "missing.npz", "missing.zarr", "a\0/a.npy", "a\0.npz", "a\0.zarr", "x" * 999 + ".npz"]
)
def test_files_that_are_not_there(tmp_path, name):
    with pytest.raises(ConfigError, match=r"cannot be read \(.*known: .npy, .npz and .zarr") as caught:
        read_arrays(tmp_path / name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a.txt", "a", "a.h5", "a.NPY", "a.zip", ".npy", "a.zarr.zip", "a.pkl"])
def test_other_kinds_are_refused_with_those_that_are_known(tmp_path, name):
    refuse(write(tmp_path / name, b"x"), r"unknown kind of file '.*'; known: .npy, .npz and .zarr, a folder of zarr v3")


def test_files_for_folders_and_folders_for_files(tmp_path):
    for name in ("a.npy", "a.npz"):
        (tmp_path / name).mkdir()
        refuse(tmp_path / name, r"is a folder, .*; expected a regular file; known: .npy")
    refuse(write(tmp_path / "a.zarr", b"x"), "is a file or a link; expected a folder; known: .npy")
    (tmp_path / "b.zarr").mkdir()
    refuse(tmp_path / "b.zarr", "no zarr.json in it; known: .npy")
    zarr.create_array(tmp_path / "c.zarr", data=VALUES, zarr_format=2)
    refuse(tmp_path / "c.zarr", "is zarr v2; known: .npy")
    for name in ("e.npy", "e.npz"):
        refuse(write(tmp_path / name, b""), "is empty; known: .npy")


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.zarr"])
def test_pipes_are_not_waited_for_and_devices_not_read(tmp_path, name):
    os.mkfifo(tmp_path / name)
    refuse(tmp_path / name, "expected a (regular file|folder); known: .npy")
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    refuse(tmp_path / name, "expected a (regular file|folder); known: .npy")
    refuse(Path("/dev/zero"), "unknown kind of file ''")


def test_a_link_to_a_file_is_what_it_points_to(tmp_path):
    save_npy(tmp_path / "a.npy", VALUES)
    (tmp_path / "b.npy").symlink_to("a.npy")
    assert same(read_arrays(tmp_path / "b.npy"), {"b": VALUES})


def test_a_file_without_permission(tmp_path, monkeypatch):
    save_npy(tmp_path / "a.npy", VALUES)
    monkeypatch.setattr(arrays.os, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    refuse(tmp_path / "a.npy", r"cannot be read \(Permission denied\)")


# Values


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted_and_placed(tmp_path, value, dtype):
    array = VALUES.astype(dtype)
    array[3, 2] = array[4, 0] = value
    save_npy(tmp_path / "a.npy", np.asfortranarray(array))
    np.savez(tmp_path / "a.npz", a=array)
    save_zarr(tmp_path / "a.zarr", array)
    for name in ("a.npy", "a.npz", "a.zarr"):
        refuse(tmp_path / name, rf"2 of 35 values are not finite \(the first, {value}, at \[3, 2\]\)")
    save_npy(tmp_path / "b.npy", np.asarray(value, dtype))
    refuse(tmp_path / "b.npy", r"1 of 1 values are not finite \(the first, .*, at \[\]\)")


def test_bools_are_0_or_1(tmp_path):
    refuse(write(tmp_path / "a.npy", raw_npy(header("'|b1'"), b"\1\2")), "bool values other than 0 and 1")
    refuse(write(tmp_path / "b.npy", raw_npy(header("'|b1'", "()"), b"\xff")), "bool values other than 0 and 1")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(2, complex),
        np.zeros(2, np.longdouble),
        np.zeros(2, "M8[s]"),
        np.zeros(2, "m8[s]"),
        np.array(["a", "b"]),
        np.array([b"a", b"b"]),
        np.zeros(2, [("x", "f4"), ("y", "i4")]),
        np.zeros(2, "V3"),
        np.zeros(2, ml_dtypes.bfloat16),
        np.zeros(2, ml_dtypes.float8_e4m3fn),
    ],
    ids=lambda a: str(a.dtype),
)
def test_other_types_are_refused(tmp_path, array):
    save_npy(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", a=array)
    for name in ("a.npy", "a.npz"):
        refuse(tmp_path / name, r"values of type .*; expected one of bool, .*; save bfloat16 \(V2 in npy\)|descr: one type")


@pytest.mark.parametrize(
    "kind", ["bfloat16", "complex64", "float128", "r16", "string", "int4", {"name": "float32"}, None, 3, ["float32"]]
)
def test_other_types_are_refused_in_zarr(tmp_path, kind):
    change(save_zarr(tmp_path / "a.zarr"), ["data_type"], kind)
    refuse(tmp_path / "a.zarr", r"values of type .*; expected one of bool, .*; save bfloat16")


# Programs


class Payload:
    """Makes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_is_unpickled(tmp_path):
    proof = tmp_path / "executed"
    payload = np.array([Payload(proof)], object)
    save_npy(tmp_path / "a.npy", payload)
    np.savez(tmp_path / "a.npz", a=payload)
    bare = pickle.dumps(Payload(proof))
    write(tmp_path / "b.npy", bare)
    write(tmp_path / "b.npz", bare)
    write(tmp_path / "c.npy", raw_npy(header("'|O'"), bare))
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("a.npy", bare)
    for name, why in (
        ("a.npy", "O"),
        ("a.npz", "O"),
        ("b.npy", "magic"),
        ("b.npz", "zip"),
        ("c.npy", "O"),
        ("d.npz", "mag"),
    ):
        refuse(tmp_path / name, why)
        assert not proof.exists()
    with pytest.raises(TypeError):  # the payload is live: a reader that allows pickles makes the file
        np.load(tmp_path / "a.npy", allow_pickle=True) + 0
    assert proof.exists()


# npy


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"\x93NUMPX" + b"\0" * 99, "expected the magic of npy 1.0 or 2.0"),
        (b"\x93NUM", "expected the magic of npy 1.0 or 2.0"),
        (raw_npy(header(), b"\0" * 8, b"\3\0"), "expected the magic of npy 1.0 or 2.0"),
        (raw_npy(header(), b"\0" * 8, b"\1\1"), "expected the magic of npy 1.0 or 2.0"),
        (raw_npy(header(), b"\0" * 7), "expected 68 of header and 8 of values"),
        (raw_npy(header(), b"\0" * 9), "77 bytes; expected 68 of header and 8 of values"),
        (raw_npy(header())[:40], "header of 58 bytes; expected at most 10000, all of them there"),
        (b"\x93NUMPY\1\0", "header of 0 bytes; expected at most 10000"),
        (b"\x93NUMPY\1\0\0\0", "npy header ''"),
        (b"\x93NUMPY\2\0\xff\xff\xff\xff{", "header of 4294967295 bytes; expected at most 10000"),
        (raw_npy(header() + " " * 20_000, b"\0" * 8), "expected at most 10000"),
        (raw_npy(header(shape=f"({2**60},)")), f"{2**60}' values of 4 bytes; expected at most {SMALL} bytes"),
        (raw_npy(header(shape=f"({2**30}, {2**30})")), "expected at most"),
        (raw_npy(header(shape=f"(0, {2**60})")), "expected at most"),
        (raw_npy(header(shape=f"({2**70},)")), "shape: expected at most 32 whole numbers"),
        (raw_npy(header(shape="(" + "1," * 33 + ")"), b"\0" * 4), "shape: expected at most 32 whole numbers"),
        *(
            (
                raw_npy(header(shape=shape), b"\0" * 8),
                "npy header .*; expected descr: one type, fortran_order, shape: whole",
            )
            for shape in (
                "(-2,)",
                "(-1, -2)",
                "(True, 2)",
                "(2.0,)",
                "(2L,)",
                "(02,)",
                "(2)",
                "2",
                "[2]",
                "(,)",
                "(2,,)",
                "True",
                "'(2,)'",
                "(2_0,)",
            )
        ),
        *(
            (raw_npy(header(descr=descr), b"\0" * 16), "npy header .*; expected descr: one type")
            for descr in ("('<f4', (2,))", "[('x', '<f4')]", "()", "3", "True", "'", "'<f4", "b'<f4'", "__import__('os')")
        ),
        *(
            # numpy.dtype of the second and third ends the process with a signal
            (raw_npy(header(descr=f"'{descr}'"), b"\0" * 16), "values of type '.*'; expected one of bool")
            for descr in ("f4,f4", "M8[s/0]", "m8[Y/0]", "<f4 ", "f4", "=f4", "|f4", "", r"\x3cf4", "(2,)f4", "<f16", "<b2")
        ),
        (raw_npy(header(order="2"), b"\0" * 8), "npy header"),
        (raw_npy(header(order="'True'"), b"\0" * 8), "npy header"),
        (raw_npy(header()[:-2] + "'more': 1}"), "npy header"),
        (raw_npy(header().replace("fortran_order", "descr"), b"\0" * 8), "npy header"),
        (raw_npy(header().replace("'shape'", '"shape"'), b"\0" * 8), "npy header"),
        *(
            (raw_npy(text), "npy header")
            for text in ("{}", "[]", "(" * 9000, "{'shape': (" + "1," * 4000, "'", "\0", "1" * 5000)
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else str(len(value)),
)
def test_headers_of_npy(tmp_path, content, match):
    refuse(write(tmp_path / "a.npy", content), match)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", content)
    refuse(tmp_path / "a.npz", match)


@pytest.mark.parametrize(
    "text",
    [
        header(),
        header() + " " * 50,
        "{'shape':(2,),'descr':'<f4','fortran_order':True}",
        "{ 'descr' : '>f4' ,\n'shape':\t( 2 , ) , 'fortran_order': False , } ",
        header("'<f4'", "(1,2)"),
        header("'<i4'", "(2,1,)"),
        header("'<f8'", "()"),
        header("'<b1'", "(2, 4)").replace("}", "}\t"),
    ],
)
def test_headers_as_other_programs_write_them(tmp_path, text):
    path = write(tmp_path / "a.npy", raw_npy(text, b"\0\1\0\1\1\0\0\1"))
    assert same(read_arrays(path), numpy_says(path))


def test_a_file_cut_while_it_is_read(tmp_path, monkeypatch):
    save_npy(tmp_path / "a.npy", np.zeros(9000))
    real = os.fstat
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays.os, "fstat", lambda handle: (os.truncate(handle_path(handle), 40_000), real(handle))[1])
        refuse(tmp_path / "a.npy", "40000 bytes; expected 128 of header and 72000")
    info = real(os.open(save_npy(tmp_path / "b.npy", np.zeros(9000)), os.O_RDONLY))
    os.truncate(tmp_path / "b.npy", 40_000)
    monkeypatch.setattr(arrays.os, "fstat", lambda _: info)
    refuse(tmp_path / "b.npy", "ended after 39872 of 72000 bytes of values")


def handle_path(handle):
    return os.readlink(f"/proc/self/fd/{handle}")


# npz


def save_zip(path, members, method=zipfile.ZIP_STORED):
    """A zip with any names; contents are npy bytes, settings go to the member."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, more in members:
            info = zipfile.ZipInfo("x" * len(name))
            info.filename, info.compress_type = name, method
            for key, value in more.items():
                setattr(info, key, value)
            archive.writestr(info, npy_bytes())
    return path


def npy_bytes(array=VALUES):
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    "name",
    [
        "../a.npy",
        "../../../../tmp/a.npy",
        "/a.npy",
        "/etc/passwd",
        "C:a.npy",
        "C:\\a.npy",
        "..\\a.npy",
        "a/b.npy",
        "a/",
        "..",
        ".npy",
        ".a.npy",
        "-a.npy",
        "a",
        "a.txt",
        "a.NPY",
        "a.npy\0.txt",
        "a b.npy",
        "ä.npy",
        "a\x1b[31m.npy",
        "a" * 300 + ".npy",
    ],
)
def test_names_of_members(tmp_path, name):
    refuse(save_zip(tmp_path / "a.npz", [("ok.npy", {}), (name, {})]), r"member '.*: (name '.*: )?expected ")
    assert [p.name for p in tmp_path.rglob("*")] == ["a.npz"]


def test_kinds_of_members(tmp_path):
    path = tmp_path / "a.npz"
    assert same(read_arrays(save_zip(path, [("a.npy", {})])), {"a": VALUES})
    for mode in (stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO):
        refuse(save_zip(path, [("a.npy", {"external_attr": (mode | 0o644) << 16})]), "'a.npy': is a link or a folder")
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        refuse(save_zip(path, [("a.npy", {})], method), "'a.npy': is encrypted or packed in a way we do not know")
    with pytest.warns(UserWarning, match="Duplicate"):
        save_zip(path, [("a.npy", {}), ("a.npy", {})])
    refuse(path, "'a.npy': expected NAME.npy, every name once")
    for flag in (0x1, 0x20, 0x40, 0x2000):
        raw = bytearray(save_zip(path, [("a.npy", {})]).read_bytes())
        at = raw.index(b"PK\1\2") + 8
        raw[at : at + 2] = struct.pack("<H", flag)
        refuse(write(path, raw), "'a.npy': is encrypted or packed in a way we do not know")


def test_what_surrounds_the_members(tmp_path):
    path = save_zip(tmp_path / "a.npz", [("a.npy", {})])
    raw = path.read_bytes()
    refuse(write(path, raw + b"x"), "has something appended")
    refuse(write(path, b"x" + raw), "is no zip")
    refuse(write(path, raw[:-1]), "cut short")
    refuse(write(path, raw[: len(raw) // 2]), "cut short")
    refuse(write(path, raw[-22:]), "is no zip")
    refuse(write(path, npy_bytes()), "expected what np.savez writes")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", npy_bytes())
        archive.comment = b"hello"
    refuse(path, "has something appended")
    np.savez(path)
    refuse(path, "is no zip, is empty")
    end = raw[:-22] + raw[-22:-10] + struct.pack("<I", 2**31) + raw[-6:]
    refuse(write(path, end), f"list of members has {2**31} bytes; expected at most {arrays.MAX_JSON}")
    large = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, 2**40, 0)
    locator = b"PK\6\7" + struct.pack("<IQI", 0, len(raw) - 22, 1)
    refuse(write(path, raw[:-22] + large + locator + raw[-22:]), f"list of members has {2**40} bytes")
    refuse(write(path, raw[:-22] + bytes(56) + locator + raw[-22:]), "one of the two records")


def test_zips_above_4_gib_are_laid_out_otherwise_and_read(tmp_path):
    raw = save_zip(tmp_path / "a.npz", [("a.npy", {})]).read_bytes()
    start = raw.index(b"PK\1\2")
    large = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, len(raw) - 22 - start, start)
    locator = b"PK\6\7" + struct.pack("<IQI", 0, len(raw) - 22, 1)
    end = raw[-22:-6] + b"\xff\xff\xff\xff" + raw[-2:]
    assert same(read_arrays(write(tmp_path / "a.npz", raw[:-22] + large + locator + end)), {"a": VALUES})


def test_the_number_of_members_is_bounded(tmp_path):
    names = [(f"m{i}.npy", {}) for i in range(1001)]
    assert len(read_arrays(save_zip(tmp_path / "a.npz", names[:-1]))) == 1000
    refuse(save_zip(tmp_path / "a.npz", names), "1001 members; expected 1 to 1000")


def bomb(path, array_bytes, claim=None):
    """A zip of one npy of zeros; `claim` is the size it declares in place of its own."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        member.write(raw_npy(header("'|u1'", f"({claim or array_bytes},)")))
        for _ in range(array_bytes // 2**20):
            member.write(bytes(2**20))
        size = len(raw_npy(header("'|u1'", f"({claim or array_bytes},)")))
    raw = bytearray(path.read_bytes())
    if claim:
        for place in (22, raw.index(b"PK\1\2") + 24):
            raw[place : place + 4] = struct.pack("<I", size + claim)
    return write(path, raw)


def test_zip_bombs(tmp_path):
    path = bomb(tmp_path / "a.npz", 2**27)
    assert path.stat().st_size < 2**18
    refuse(path, rf"members declare {2**27 + 76} bytes; expected at most {SMALL}")
    refuse(bomb(path, 2**27, 1000), "CRC")  # says 1,000 bytes, holds 128 MiB
    refuse(bomb(path, 2**20, 2**27), r"CRC|ended", 2**30)  # says 128 MiB, holds 1
    members = [(f"m{i}.npy", {}) for i in range(10)]
    refuse(save_zip(path, members), "members declare 2680 bytes; expected at most 2679", 2679)


def test_a_crc_that_does_not_fit(tmp_path):
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raw = bytearray(save_zip(tmp_path / "a.npz", [("a.npy", {})], method).read_bytes())
        raw[raw.index(b"PK\1\2") + 16] ^= 1
        refuse(write(tmp_path / "a.npz", raw), r"member a: cannot be read \(Bad CRC-32")


def test_records_that_point_nowhere(tmp_path):
    """What zipfile itself trips over: each of these raises another exception there."""
    raw = save_zip(tmp_path / "a.npz", [("a.npy", {})]).read_bytes()
    start = raw.index(b"PK\1\2")
    for offset, value, match in (
        (6, struct.pack("<H", 99), "version 9.9"),  # NotImplementedError
        (42, struct.pack("<I", len(raw) - 10), "cannot be read"),
        (42, struct.pack("<I", 2**31), "cannot be read"),
        (24, struct.pack("<I", 10**6), "cannot be read|bytes; expected"),
        (46, b"A", "cannot be read"),  # another name than the member's own
    ):
        at = start + offset
        refuse(write(tmp_path / "a.npz", raw[:at] + value + raw[at + len(value) :]), match)
    cut = raw[: start - 100] + raw[start:]
    shorter = cut[:-6] + struct.pack("<I", start - 100) + cut[-2:]
    refuse(write(tmp_path / "a.npz", shorter), "cannot be read")
    claim = raw_npy(header(shape="(100000,)"))  # a member that goes on beyond the end of the file
    member = save_zip(tmp_path / "a.npz", [("a.npy", {})]).read_bytes()
    at = member.index(b"\x93NUMPY")
    longer = member[:at] + claim + member[at + len(claim) :]
    sizes = struct.pack("<II", len(claim) + 400_000, len(claim) + 400_000)
    refuse(write(tmp_path / "a.npz", longer[: start + 20] + sizes + longer[start + 28 :]), "cannot be read|ended")


# zarr


def change(folder, keys, value, name="zarr.json"):
    """Replaces one entry of a zarr.json."""
    node = json.loads((folder / name).read_bytes())
    inner = node
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (folder / name).write_text(json.dumps(node))
    return folder


@pytest.mark.parametrize(
    ("keys", "value", "match"),
    [
        (["zarr_format"], 2, "expected zarr_format 3; known: .npy"),
        (["zarr_format"], 4, "expected zarr_format 3"),
        (["zarr_format"], True, "expected zarr_format 3"),
        (["node_type"], "tree", "node_type 'tree'; expected array or group"),
        (["node_type"], ["array"], "expected array or group"),
        (["node_type"], "group", "expected keys node_type, zarr_format; allowed attributes"),
        (["url"], "gs://bucket", "expected keys .*; allowed attributes"),
        (["attributes"], [], "expected keys"),
        (["shape"], [2**60, 7], "values of 4 bytes; expected at most"),
        (["shape"], [2**70, 7], "shape: expected at most 32 whole numbers"),
        (["shape"], [-5, 7], "shape: expected at most 32 whole numbers"),
        (["shape"], [5.0, 7], "shape: expected at most 32 whole numbers"),
        (["shape"], [True, 7], "shape: expected at most 32 whole numbers"),
        (["shape"], 35, "shape: expected at most 32 whole numbers"),
        (["shape"], [1] * 40, "shape: expected at most 32 whole numbers"),
        (["shape"], [5], "chunk_shape of 1 whole numbers above 0"),
        (["shape"], [500, 7], "500 chunks, 6 files; expected every chunk"),
        (["chunk_grid", "name"], "rectangular", "chunk_grid: expected name regular"),
        (["chunk_grid"], "regular", "chunk_grid: expected name regular"),
        (["chunk_grid", "configuration"], None, "chunk_grid: expected name regular"),
        (["chunk_grid", "configuration", "chunk_shape"], [2**60, 4], "expected at most"),
        (["chunk_grid", "configuration", "chunk_shape"], [2**40, 2**40], "expected at most"),
        (["chunk_grid", "configuration", "chunk_shape"], [1, 2**18], "all chunks: .* expected at most"),
        (["chunk_grid", "configuration", "chunk_shape"], [0, 4], "whole numbers above 0"),
        (["chunk_grid", "configuration", "chunk_shape"], [2], "whole numbers above 0"),
        (["chunk_grid", "configuration", "chunk_shape"], [2.0, 4], "whole numbers above 0"),
        (["chunk_key_encoding", "name"], "mine", "mine"),
        (["chunk_key_encoding", "configuration", "separator"], "/../", "separator"),
        (["fill_value"], "x", "fill_value"),
        (["storage_transformers"], [{"name": "x"}], "storage_transformers; expected none"),
        (["dimension_names"], ["a"], "dimension_names"),
        (["codecs"], [], "codecs: expected one of bytes, sharding_indexed and at most one of zstd"),
        (["codecs"], [{"name": "bytes"}] * 2, "codecs: expected one of bytes, sharding_indexed"),
        (["codecs"], "bytes", "codecs: expected at most 8 of bytes, sharding_indexed, transpose"),
        (["codecs"], ["bytes"], "codecs: expected at most 8 of bytes"),
        (["codecs", 1, "name"], "numcodecs.lzma", "codecs: expected at most 8 of bytes"),
        (["codecs", 1, "name"], "vlen-utf8", "codecs: expected at most 8 of bytes"),
        (["codecs", 1, "configuration", "level"], 10**30, "expected every chunk"),
        (["codecs", 1, "configuration"], {"url": "http://x"}, "url"),
        (["codecs"], [{"name": "bytes", "configuration": {"endian": "little"}}] * 9, "codecs: expected at most 8"),
        (
            ["codecs"],
            [{"name": "bytes"}, {"name": "gzip"}, {"name": "gzip"}],
            "and at most one of zstd, gzip, blosc",
        ),
        (["codecs", 0], {"name": "sharding_indexed"}, "expected nothing after sharding_indexed"),
    ],
    ids=str,
)
def test_descriptions_of_zarr(tmp_path, keys, value, match):
    refuse(change(save_zarr(tmp_path / "a.zarr"), keys, value), match)


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"null", b"\xff\xfe\xfd", b"[" * 10**5, b'{"zarr_format": ' + b"9" * 5000]
)
def test_descriptions_that_are_no_json(tmp_path, content):
    write(save_zarr(tmp_path / "a.zarr") / "zarr.json", content)
    refuse(tmp_path / "a.zarr", r"zarr.json: (cannot be read|expected zarr_format 3)")


def test_descriptions_are_small_files(tmp_path):
    path = save_zarr(tmp_path / "a.zarr")
    with (path / "zarr.json").open("ab") as file:
        file.write(b" " * 2**20)
    refuse(path, "expected at most 1048576")
    write(path / "zarr.json", b"")
    refuse(path, "zarr.json: is empty")


@pytest.mark.parametrize(
    ("keys", "value", "match"),
    [
        (["configuration"], None, "codecs: expected .* with its name and a configuration"),
        (["configuration"], {}, "sharding_indexed: expected"),
        (["configuration", "chunk_shape"], [2**60, 1], "cannot|expected"),
        (["configuration", "chunk_shape"], [1, 1], "shards of more pieces than .* bytes can hold"),
        (["configuration", "chunk_shape"], [0, 1], "whole numbers above 0"),
        (["configuration", "codecs"], [{"name": "bytes"}, {"name": "blosc"}], "inside shards: codecs: expected"),
        (["configuration", "codecs"], [{"name": "sharding_indexed"}], "inside shards: codecs: expected"),
        (["configuration", "index_codecs"], [{"name": "bytes"}, {"name": "zstd"}], "inside shards: codecs: expected"),
        (["configuration", "index_location"], "middle", "index_location"),
    ],
    ids=str,
)
def test_descriptions_of_shards(tmp_path, keys, value, match):
    path = save_zarr(tmp_path / "a.zarr", np.ones((64, 64), np.int8), (32, 32), shards=(64, 64))
    assert read_arrays(path)["a"].sum() == 64 * 64
    refuse(change(path, ["codecs", 0, *keys], value), match)


def test_pieces_that_are_missing(tmp_path):
    for more in ({}, {"chunks": (2, 2), "shards": (4, 4)}):
        path = save_zarr(tmp_path / "a.zarr", **more)
        (path / "c" / "0" / "0").rename(path / "elsewhere")
        refuse(path, r"a.zarr: .*c/0/0.* missing; expected every chunk, undamaged \(zarr-python leaves out")
        (path / "elsewhere").unlink()
        refuse(path, r"\d chunks, \d files; expected every chunk \(zarr-python leaves out chunks of zeros")
    shutil.rmtree(path)
    sparse = VALUES.copy()
    sparse[:2, :2] = 0
    zarr.create_array(path, data=sparse, chunks=(2, 2), shards=(4, 4))  # one piece of one shard is left out
    refuse(path, "expected every chunk")


def test_links_and_pipes_in_folders(tmp_path):
    path = save_group(tmp_path / "a.zarr")
    (tmp_path / "b.zarr").symlink_to("a.zarr")
    refuse(tmp_path / "b.zarr", "is a file or a link")
    for place in ("link", "hidden_1/c/0/link", "labels/c/link"):
        for target in ("/etc/passwd", "/", tmp_path / "nowhere", "zarr.json"):
            (path / place).symlink_to(target)
            refuse(path, f"{place}: is a link, a pipe or a device; expected files and folders only")
            (path / place).unlink()
        os.mkfifo(path / place)
        refuse(path, f"{place}: is a link, a pipe or a device")
        (path / place).unlink()
    (path / "labels").rename(tmp_path / "labels")
    (path / "labels").symlink_to(tmp_path / "labels")
    refuse(path, "labels: is a link")
    (path / "labels").unlink()
    (path / "hidden_1" / "zarr.json").rename(tmp_path / "zarr.json")
    (path / "hidden_1" / "zarr.json").symlink_to(tmp_path / "zarr.json")
    refuse(path, "hidden_1/zarr.json: is a link")


def test_members_of_groups(tmp_path):
    path = save_group(tmp_path / "a.zarr")
    refuse(path, "expected at most 39 bytes|too much in it; .* and 179 bytes", 179)  # 140 + 40 bytes, 4 more of crc32c each
    assert len(read_arrays(path, 188)) == 2
    (path / "labels").rename(path / "my labels")
    refuse(path, "name 'my labels': expected 1 to 128 of")
    (path / "my labels").rename(path / "labels")
    zarr.create_group(path / "nested")
    refuse(path, "nested/zarr.json: a group inside a group; expected arrays")
    shutil.rmtree(path / "nested")
    (path / "plain").mkdir()
    refuse(path, "plain: no zarr.json in it")
    zarr.create_group(tmp_path / "b.zarr")
    refuse(tmp_path / "b.zarr", "group of 0 arrays; expected 1 to 1000")


def test_the_arrays_of_a_group_share_the_bound(tmp_path):
    group = zarr.create_group(tmp_path / "a.zarr")
    for name in "ab":
        group.create_array(name, data=np.ones(1000, np.float32), chunks=(1000,))  # packs well: little on disk
    refuse(tmp_path / "a.zarr", "b/zarr.json: .*expected at most 3999 bytes", 7999)
    assert len(read_arrays(tmp_path / "a.zarr", 8000)) == 2


def test_pieces_that_expand_beyond_their_chunk(tmp_path):
    """Each holds 64 MiB where a chunk has 32 bytes; and one says that it holds 2 GiB."""
    for codec in (ZstdCodec(), GzipCodec(), BloscCodec()):
        big = save_zarr(tmp_path / "big.zarr", np.zeros(2**24, np.float32), (2**24,), compressors=codec)
        path = save_zarr(tmp_path / "a.zarr", compressors=codec)
        shutil.copy(big / "c" / "0", path / "c" / "0" / "0")
        refuse(path, "End of data expected|blosc piece of 67108864 bytes; expected 32")
        shutil.rmtree(big)
    piece = path / "c" / "0" / "0"
    shutil.copy(path / "c" / "0" / "1", piece)
    raw = bytearray(piece.read_bytes())
    raw[4:8] = struct.pack("<I", 2**31 - 32)
    write(piece, raw)
    refuse(path, "blosc piece of 2147483616 bytes; expected 32")


def test_a_zstd_piece_cannot_say_that_it_has_no_checksum(tmp_path):
    """The bit is outside the checksum, and tensorstore reads on to another number without it."""
    path = save_zarr(tmp_path / "a.zarr", **CHECKED["zstd"])
    piece = path / "c" / "0" / "0"
    raw = bytearray(piece.read_bytes())
    raw[-5] ^= 1  # of a value
    write(piece, raw)
    refuse(path, "c/0/0")
    raw[4] = 0
    write(piece, raw)
    refuse(path, "c/0/0: no zstd with a checksum; expected what zarr.json says")
    change(path, ["codecs", 1, "configuration", "checksum"], False)
    assert not same(read_arrays(path), {"a": VALUES})  # without a checksum there is nothing to find it by


def test_pieces_larger_than_the_bound_are_not_read(tmp_path):
    path = save_zarr(tmp_path / "a.zarr")
    os.truncate(path / "c" / "0" / "0", 2**40)  # sparse
    refuse(path, f"too much in it; expected at most .* {SMALL} bytes")


# Mutations

changes = st.lists(
    st.tuples(
        st.sampled_from(["flip", "replace", "insert", "delete", "cut"]),
        st.one_of(st.integers(-300, 300), st.integers(0, 2**16)),
        st.one_of(st.integers(0, 255), st.sampled_from(b"0123456789,()[]{}'\"-LOPVifb<>|\xff")),
    ),
    min_size=1,
    max_size=3,
)


def mutate(raw, changes, start=0, end=None):
    """`raw` with changes at places from `start` up to `end`, which count from either end as in a list."""
    raw, end = bytearray(raw), len(raw) if end is None else end
    for kind, place, byte in changes:
        at = start + place % max(1, min(end, len(raw)) - start)
        if kind == "insert" or at >= len(raw):
            raw.insert(at, byte)
        elif kind == "cut":
            del raw[at : at + 1 + byte]
        elif kind == "delete":
            del raw[at]
        else:
            raw[at] = byte if kind == "replace" else raw[at] ^ (1 << byte % 8)
    return bytes(raw)


def numpy_says(path):
    found = np.load(path, allow_pickle=False)
    with found if isinstance(found, np.lib.npyio.NpzFile) else contextlib.nullcontext():
        return dict(found) if isinstance(found, np.lib.npyio.NpzFile) else {path.stem: found}


@np.errstate(over="ignore")  # a fill value that is too large
def zarr_says(path):
    found = zarr.open(path, mode="r", use_consolidated=False)
    if isinstance(found, zarr.Array):
        return {path.stem: np.asarray(found[...])}
    return {name: np.asarray(array[...]) for name, array in sorted(found.arrays())}


@pytest.mark.parametrize("order", ["C", "F"])
@fuzzing
@given(changes=changes)
def test_mutated_npy(tmp_path, order, changes):
    path = write(tmp_path / "a.npy", mutate(npy_bytes(np.asarray(VALUES, order=order)), changes))
    found = attempt(path)
    assert found is None or same(found, numpy_says(path))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@fuzzing
@given(changes=changes)
def test_mutated_npz(tmp_path, method, changes):
    path = save_zip(tmp_path / "a.npz", [("a.npy", {}), ("b.npy", {})], method)
    found = attempt(write(path, mutate(path.read_bytes(), changes)))
    assert found is None or same(found, numpy_says(path))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@fuzzing
@given(changes=changes)
def test_mutated_values_in_npz_are_found(tmp_path, method, changes):
    raw = save_zip(tmp_path / "a.npz", [("a.npy", {})], method).read_bytes()
    mutated = mutate(raw, changes, 30 + len("a.npy"), raw.index(b"PK\1\2"))
    found = attempt(write(tmp_path / "a.npz", mutated))
    assert found is None or same(found, {"a": VALUES})


CHECKED = {
    "zstd": {"compressors": ZstdCodec(checksum=True)},
    "crc32c": {"compressors": Crc32cCodec()},
    "shards": {"chunks": (2, 2), "shards": (8, 8), "compressors": Crc32cCodec()},
    "blosc": {"compressors": [BloscCodec(), Crc32cCodec()]},
}


@pytest.mark.parametrize("kind", list(CHECKED))
@fuzzing
@given(changes=changes, which=st.integers(0, 5))
def test_mutated_values_in_zarr_are_found(tmp_path, kind, changes, which):
    path = tmp_path / "a.zarr"
    if not path.exists():
        save_zarr(path, **CHECKED[kind])
    pieces = sorted(p for p in (path / "c").rglob("*") if p.is_file())
    piece = pieces[which % len(pieces)]
    mutated = mutate(piece.read_bytes(), changes)
    with holding(piece, mutated) as raw:
        found = attempt(path)
    assert same(found, {"a": VALUES}) if mutated == raw else found is None or same(found, {"a": VALUES})


@contextlib.contextmanager
def holding(path, content):
    """Gives a file another content for a while; yields what it had."""
    raw = path.read_bytes()
    try:
        write(path, content)
        yield raw
    finally:
        write(path, raw)


@pytest.mark.parametrize("kind", ["zstd", "shards", "group", "member"])
@fuzzing
@given(changes=changes)
def test_mutated_descriptions_of_zarr(tmp_path, kind, changes):
    path, place = described(tmp_path, kind)
    with holding(place, mutate(place.read_bytes(), changes)):
        found = attempt(path)
        assert found is None or same(found, zarr_says(path))


def described(tmp_path, kind):
    """A zarr folder, made once a test, and one of its descriptions."""
    path = tmp_path / "a.zarr"
    if not path.exists():
        save_group(path) if kind in ("group", "member") else save_zarr(path, **CHECKED[kind])
        for file in path.rglob("zarr.json"):  # compact, so that changes hit what matters
            file.write_text(json.dumps(json.loads(file.read_bytes()), separators=(",", ":")))
    return path, path / "hidden_1" / "zarr.json" if kind == "member" else path / "zarr.json"


def places(node, keys=()):
    """Every way down into JSON."""
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in inner:
        yield [*keys, key]
        yield from places(value, (*keys, key))


ODD = [
    None,
    True,
    0,
    -1,
    1,
    2,
    7,
    2**31,
    2**60,
    2**64,
    10**400,
    1.5,
    1e300,
    float("nan"),
    "",
    "x",
    "\ud800",
    "a\0b",
    "../x",
]
ODD += ["a" * 10**4, [], [[]], [1], [1, 0], [0, 1], [3, 3], {}, {"name": "bytes"}, {"name": "x"}, [{}], [None, None]]
ODD += [json.loads("[" * 500 + "]" * 500), [1] * 1000, "uint32", "float16", "big", "none", "start", "v2", "."]


@pytest.mark.parametrize("kind", ["zstd", "shards", "group", "member"])
@fuzzing
@given(data=st.data())
def test_odd_values_in_descriptions_of_zarr(tmp_path, kind, data):
    path, place = described(tmp_path, kind)
    keys = data.draw(st.sampled_from(list(places(json.loads(place.read_bytes())))))
    with holding(place, place.read_bytes()):
        change(place.parent, keys, data.draw(st.sampled_from(ODD)))
        found = attempt(path)
        assert found is None or same(found, zarr_says(path))
