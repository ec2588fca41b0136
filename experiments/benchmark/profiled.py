"""Where the time of a training step goes: a profile by kind of operation, from JAX's profiler and the compiled program.

The compiled program tells what an operation is: it, or what is fused into it, has a matrix product, which is of attention
if it has an axis of examples and one of heads; else its name tells that it copies or transposes an array; else the layer
that it stems from is a convolution, attention or a norm. Products of convolutional networks are one kind, since XLA keeps
no names of layers on those of a single run. Source: ours.
"""

import collections
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

DENSE, ATTENTION_PRODUCTS = "products of dense layers", "products of attention"
NORMS, ATTENTION, COPIES, REST = "norms", "the rest of attention", "copies between layouts", "the rest"
PRODUCTS, WINDOWS = "matrix products", "windows of convolutions"
KINDS = {  # by part of the benchmark
    "transformer": (DENSE, ATTENTION_PRODUCTS, NORMS, ATTENTION, COPIES, REST),
    "convnet": (PRODUCTS, WINDOWS, NORMS, COPIES, REST),
}
CALLS = ("while", "call", "conditional")  # their time is that of the operations inside


def seconds_by_operation(run: Callable[[], object]) -> dict[str, float]:
    """Returns the seconds of each operation of the compiled programs that `run` calls, summed over devices."""
    found = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        for path in Path(folder).rglob("*.xplane.pb"):
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
                events = [event for line in plane.lines for event in line.events if "hlo_op" in dict(event.stats)]
                for event in events:
                    found[event.name] += event.duration_ns / 1e9
    return {name: value for name, value in found.items() if not name.startswith(CALLS)}


def shares(program: str, seconds: Mapping[str, float], part: str) -> dict[str, float]:
    """Returns the share of each kind of operation in the time.

    Args:
      program: compiled, as text.
      seconds: by operation.
      part: of the benchmark, whose KINDS are returned.
    """
    bodies, own = _computations(program), re.findall(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$", program, re.MULTILINE)
    lines: dict[str, str] = dict(reversed(own))
    found: dict[str, float] = dict.fromkeys(KINDS[part], 0.0)
    for name, value in seconds.items():
        line = lines.get(name, "")
        called = re.search(r"calls=%?([\w.\-]+)", line)
        kind = _kind(name, line + bodies.get(called[1], "") if called else line)
        found[PRODUCTS if kind in (DENSE, ATTENTION_PRODUCTS) and PRODUCTS in found else kind] += value
    return {kind: value / sum(seconds.values()) for kind, value in found.items()}


def _computations(program: str) -> dict[str, str]:
    """Returns the text of every computation of a compiled program, by name."""
    return dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", program, re.MULTILINE | re.DOTALL))


def _kind(name: str, text: str) -> str:
    """Returns the kind of an operation. Args: text, its line and what is fused into it."""
    if re.search(r"\bdot\(", text):
        return ATTENTION_PRODUCTS if re.search(r"lhs_batch_dims=\{\d+,", text) else DENSE
    if name.startswith(("copy", "transpose")):
        return COPIES
    if "_conv/" in text:
        return WINDOWS
    if "_attend" in text:
        return ATTENTION
    return NORMS if re.search(r"norm[/\"]", text) else REST
