"""Strings of tokens, for models that read a string and report several features of it, one after the other.

A string has features of one of two kinds.

Features of bits are the truth tables of `repbias_jax.features`. The tokens are 0 and 1, and every feature reads its own
tokens. They are the bits that `repbias_jax.data.binary` draws, and where each bit stands is drawn once per run:

  task = SequenceOptions(features=("parity2", "parity2"), length=8)
  bits of parity2_1: 0, 1; of parity2_2: 2, 3; of their unused twins: 4 to 7; place of bit i in the string: places[i]

Features of strings are those of `STRINGS`, functions of the whole string over a larger vocabulary. A feature may own tokens
that occur nowhere else (the phrase that it looks for); which tokens these are is drawn once per run. Everything else is
filled with the remaining tokens. Every example puts the features' parts in another order:

  task = SequenceOptions(features=("contains_token", "contains_phrase"), length=24, vocabulary=16)
  contains_token    j  a  c  .  .  .        a is there                     or not
  contains_phrase   .  .  .  e  p  q        p and q are there, q after p   or p and q are there, but not like this

The outputs report the features in an order that is listed, drawn once per run, or drawn for every example. The last kind
appends a query token for each output position, which names the feature to report there.

Source: identity and xor of tokens, and features of strings, after Lampinen et al. 2024; lengths and negatives are ours.
"""

import functools
import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from repbias_jax.config import Config, ConfigError, Dials, Factor, Task, num_outputs, option
from repbias_jax.data import binary
from repbias_jax.data.binary import UNSEEN, BinaryOptions, Example, check_length, check_outputs, feature_names
from repbias_jax.features import FEATURES

MOST_PLACEMENTS = 1_000_000  # of features at distances, which are listed


class StringFeature(NamedTuple):
    """A feature of a string: it is there (1) or not (0), each in half of the strings unless prevalence says otherwise.

    Attributes:
      write: `(value, filler [w], own [k], key) -> tokens [w]` puts it into a stretch of the string full of filler tokens.
      read: `(tokens [L], own [k]) -> value` reads it from the whole string.
      symbols: `(task) -> k`, the number of tokens that it owns; they occur nowhere else in the string.
      least: `(task) -> w`, the shortest stretch.
      ends: whether its stretch is the string's first and last token, instead of neighbouring tokens inside.
    """

    write: Callable[[Array, Array, Array, Array], Array]
    read: Callable[[Array, Array], Array]
    symbols: Callable[["SequenceOptions"], int] = lambda task: 0
    least: Callable[["SequenceOptions"], int] = lambda task: 2
    ends: bool = False


def _write_token(value: Array, filler: Array, own: Array, key: Array) -> Array:
    """Puts the feature's token at a random place, or leaves the filler."""
    place = jax.random.randint(key, (), 0, len(filler))
    return filler.at[place].set(jnp.where(value == 1, own[0], filler[place]))


def _write_phrase(value: Array, filler: Array, own: Array, key: Array) -> Array:
    """Puts the feature's tokens next to each other in their order, or at other places.

    Each token is equally often at each of its places in both cases, so neither the set of tokens nor any single place tells
    the two apart.
    """
    starts, token = len(filler) - len(own) + 1, jnp.arange(len(own), dtype=jnp.int32)
    shifts = jnp.asarray(_shifts(len(own), starts), jnp.int32)
    first, which = jax.random.randint(key, (2,), 0, jnp.asarray([starts, len(shifts)], jnp.int32))
    apart = jnp.where(value == 1, 0, token * shifts[which])
    return filler.at[token + (first + apart) % starts].set(own)


def _shifts(tokens: int, starts: int) -> list[int]:
    """Returns by how much more each token of a phrase can be moved than the one before, cyclically over its places.

    No two tokens may collide: of two that are m apart, the later one must not be taken back by m. That is, m s mod starts
    must not be starts - m.
    """
    return [s for s in range(1, starts) if all(m * s % starts != starts - m for m in range(1, min(tokens, starts)))]


def _read_phrase(tokens: Array, own: Array) -> Array:
    windows = jnp.stack([tokens[i : len(tokens) - len(own) + 1 + i] for i in range(len(own))], axis=1)
    return jnp.any(jnp.all(windows == own[None], axis=1))


def _write_ends(value: Array, filler: Array, own: Array, key: Array) -> Array:
    """Makes the two tokens equal, or leaves two different ones.

    How often each token occurs does not tell the two apart, but WHETHER it occurs does a little: equal ends leave fewer
    different tokens. The longer the string for its vocabulary, the less.
    """
    del own, key
    first, other = filler[0], filler[1]
    return jnp.stack([first, jnp.where(value == 1, first, other)])


STRINGS: dict[str, StringFeature] = {
    "contains_token": StringFeature(_write_token, lambda tokens, own: jnp.any(tokens == own[0]), lambda task: 1),
    "contains_phrase": StringFeature(
        _write_phrase, _read_phrase, lambda task: task.phrase, lambda task: task.phrase + 2
    ),
    "first_equals_last": StringFeature(_write_ends, lambda tokens, own: tokens[0] == tokens[-1], ends=True),
}  # fmt: skip


@dataclass(frozen=True)
class SequenceOptions(Task):
    """Options of strings of tokens."""

    name: str = option("sequences", "data generator", choices=("sequences",))
    features: tuple[str, ...] = option(
        ("parity2",) * 4, f"features of the string, all of {', '.join(FEATURES)}; or all of {', '.join(STRINGS)}"
    )
    length: int = option(16, "the string, without query tokens", "tokens", low=1, high=4096)
    vocabulary: int = option(2, "different tokens of a string; 2 for features of bits", "tokens", low=2, high=65536)
    distances: tuple[int, ...] = option(
        (),
        "distance between the two tokens of each feature of bits, and of its twin; 0: any; empty: any for all",
        "tokens",
        low=0,
    )
    phrase: int = option(2, "the phrase of contains_phrase", "tokens", low=2, high=4)
    twins: bool = option(True, "give every feature an unused twin: the same function of tokens that no output needs")
    order: str = option(
        "run",
        "listed: as in output_order; run: the same after relabelling the outputs at random once per run; example: an order "
        "drawn for every example, which query tokens announce",
        choices=("listed", "run", "example"),
    )
    prevalence: tuple[float, ...] = option(
        (),
        "P(feature = 1) in training; empty: its base rate",
        "probability",
        True,
        fill=lambda config: _own(config).prevalence or base_rates(_own(config)),
        above=0.0,
        below=1.0,
    )


OPTIONS = SequenceOptions


def _own(config: Config) -> SequenceOptions:
    assert isinstance(config.task, SequenceOptions)  # noqa: S101
    return config.task


class Drawn(NamedTuple):
    """What a run draws once."""

    places: Array  # [length], the place of each bit in the string
    tokens: Array  # [vocabulary], the token that plays each part: first the features' own, then the filler
    labels: Array  # [O], the listed output that takes the place of each in the order


class Tokens(NamedTuple):
    """The input of a model: `length` tokens of a string, 0..values-1, then `queries` tokens, values..values+queries-1."""

    length: int
    values: int
    queries: int


def tokens_of(task: SequenceOptions) -> Tokens:
    """Returns the number of tokens of an input, and of their values."""
    return Tokens(task.length, task.vocabulary, num_outputs(task) if task.order == "example" else 0)


def input_spec(task: SequenceOptions) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of one example's input."""
    own = tokens_of(task)
    return jax.ShapeDtypeStruct((own.length + own.queries,), jnp.int32)


def of_bits(task: SequenceOptions) -> bool:
    """Returns whether the features are truth tables of bits, instead of features of strings."""
    return all(name in FEATURES for name in task.features)


def as_bits(task: SequenceOptions) -> BinaryOptions:
    """Returns the task of which the string's tokens are the bits, in another order."""
    same = ("features", "outputs", "num_train", "num_test", "num_probe", "twins", "prevalence", "exposure", "output_order")
    return BinaryOptions(num_bits=task.length, **{name: getattr(task, name) for name in same})


def check(task: SequenceOptions) -> None:
    """Raises ConfigError, naming the option, if the task cannot be generated."""
    for name in task.features:
        if name not in (*FEATURES, *STRINGS):
            raise ConfigError(f"config.task.features={name}: unknown; known: {', '.join((*FEATURES, *STRINGS))}")
    if of_bits(task):
        if task.vocabulary != 2:
            raise ConfigError(f"config.task.vocabulary={task.vocabulary}: expected 2, for features of bits")
        try:
            binary.check(as_bits(task))
        except ConfigError as error:  # its bits are the string's tokens
            raise ConfigError(str(error).replace("task.num_bits", "task.length")) from error
        check_outputs(task, factors(task))
        _check_distances(task)
        return
    if task.distances:
        raise ConfigError(f"config.task.distances={task.distances}: expected none, for features of strings")
    if mixed := [name for name in task.features if name in FEATURES]:
        raise ConfigError(
            f"config.task.features={','.join(task.features)}: {mixed[0]} is a feature of bits; expected none, or only such"
        )
    check_length(task, "prevalence", len(task.features), "features")
    check_outputs(task, factors(task))
    _check_room(task)
    if task.num_probe % 2 or (task.num_probe // 2) % 2 ** len(task.features):
        raise ConfigError(
            f"config.task.num_probe={task.num_probe}: expected a multiple of {2 ** (1 + len(task.features))}, so that all "
            f"combinations of the features are equally frequent in each half"
        )


def _check_distances(task: SequenceOptions) -> None:
    """Raises ConfigError if distances do not belong to features of two bits, or there is no room for them."""
    check_length(task, "distances", len(task.features), "features")
    for name, distance in zip(task.features, task.distances, strict=False):
        if distance and FEATURES[name].arity != 2:
            raise ConfigError(f"config.task.distances={task.distances}: {name} has no two tokens; expected 0 for it")
    ways = math.prod(max(1, 2 * (task.length - d)) ** (1 + task.twins) for d in task.distances if d)
    if ways > MOST_PLACEMENTS:
        raise ConfigError(
            f"config.task.distances={task.distances}: up to {ways:,} placements in {task.length} tokens; expected at most "
            f"{MOST_PLACEMENTS:,}: use a shorter string, or a distance for one feature only"
        )
    if any(task.distances) and not _placements(task.features, task.distances, task.twins, task.length)[1]:
        raise ConfigError(
            f"config.task.length={task.length}: features at the distances {task.distances} do not fit; expected more tokens"
        )


def _check_room(task: SequenceOptions) -> None:
    """Raises ConfigError if the string is too short for its features, or the vocabulary for their tokens."""
    if "contains_phrase" in task.features and task.phrase > task.length:
        raise ConfigError(f"config.task.phrase={task.phrase}: longer than the string; expected at most {task.length}")
    parts = _parts(task)
    ends = sum(part.feature.ends for part in parts)
    least = max((part.feature.least(task) for part in parts if not part.feature.ends), default=0)
    needed = 2 * ends + least * (len(parts) - ends)
    if task.length < needed:
        raise ConfigError(
            f"config.task.length={task.length}: {len(parts)} features and twins need {needed} tokens; expected as many, "
            f"fewer features, or config.task.twins=false"
        )
    owned = sum(part.symbols for part in parts)
    if task.vocabulary < owned + 2:
        raise ConfigError(
            f"config.task.vocabulary={task.vocabulary}: the features own {owned} tokens; expected at least {owned + 2}"
        )


class Part(NamedTuple):
    """A feature of strings, or a twin, as a part of every string."""

    name: str
    feature: StringFeature
    first: int  # of its own tokens
    symbols: int  # how many there are
    end: int  # for a feature of the ends: how far from the ends of the string; else -1

    def own(self, drawn: Drawn) -> Array:
        """The tokens that it owns, `[symbols]`."""
        return drawn.tokens[self.first : self.first + self.symbols]

    def read(self, drawn: Drawn, tokens: Array) -> Array:
        """Its value, int32 `[]`, from the string `[length]`."""
        inner = tokens[max(0, self.end) : len(tokens) - max(0, self.end)]
        return self.feature.read(inner, self.own(drawn)).astype(jnp.int32)


def _parts(task: SequenceOptions) -> tuple[Part, ...]:
    """Returns the features of strings in order, then their twins."""
    names = feature_names(task)
    listed = list(zip(names, task.features, strict=True))
    listed += [(f"twin_{name}", feature) for name, feature in listed] if task.twins else []
    parts, first, end = [], 0, 0
    for name, feature in listed:
        own = STRINGS[feature]
        parts.append(Part(name, own, first, own.symbols(task), end if own.ends else -1))
        first, end = first + own.symbols(task), end + own.ends
    return tuple(parts)


def factors(task: SequenceOptions) -> dict[str, Factor]:
    """Returns the factors of every drawn example: each feature and its parts, then the twins."""
    if of_bits(task):
        return {name: factor for name, factor in binary.factors(as_bits(task)).items() if factor.role != "latent"}
    names, found = feature_names(task), {}
    for i, part in enumerate(_parts(task)):
        found[part.name] = Factor(2, "feature") if i < len(names) else Factor(2, "twin", names[i - len(names)])
    return found


def probe_factors(task: SequenceOptions, name: str) -> dict[str, Factor]:
    """Returns the factors of a probe set; the crossed one has the bits, too, if these are crossed."""
    if not of_bits(task):
        return factors(task)
    found = binary.probe_factors(as_bits(task), name)
    return {name: factor for name, factor in found.items() if factor.role != "latent"}


def definitions(task: SequenceOptions) -> str:
    """Returns the truth tables of the task's features as text; of features of strings, the functions that define them."""
    if of_bits(task):
        return binary.definitions(as_bits(task))
    return repr([(name, [_text(part) for part in STRINGS[name]]) for name in task.features])


def _text(part: Any) -> str:
    """Returns what identifies a part of a feature.

    Of a function this is its name within this module, whose code is known, else its source and the values it refers to.
    """
    if isinstance(part, functools.partial):
        return f"{_text(part.func)} {part.args} {part.keywords}"
    if not inspect.isfunction(part):
        return repr(part)
    if part.__module__ == __name__:
        return part.__qualname__
    code, inner = part.__code__, [_text(cell.cell_contents) for cell in part.__closure__ or ()]
    constants = [own for own in code.co_consts if not inspect.iscode(own)]  # two functions may stand in one line of source
    try:
        text = inspect.getsource(part)
    except OSError:  # it was typed into an interpreter
        text = code.co_code.hex()
    return f"{text} {constants} {code.co_names} {part.__defaults__} {inner}"


def base_rates(task: SequenceOptions) -> tuple[float, ...]:
    """Returns P(feature = 1) under uniform tokens, for each feature; 1/2 for features of strings."""
    return tuple(FEATURES[name].base_rate if name in FEATURES else 0.5 for name in task.features)


def fair(task: SequenceOptions, dials: Dials) -> Dials:
    """Returns dials under which features are independent, at their base rates, and their labels are always seen."""
    own = {"prevalence": jnp.asarray(base_rates(task), jnp.float32), "exposure": jnp.ones_like(dials.task["exposure"])}
    return dials._replace(task={**dials.task, **own})


def draw(task: SequenceOptions, dials: Dials, key: Array) -> Drawn:
    """Returns the places, tokens and labels of a run."""
    del dials
    places, tokens, labels = jax.random.split(key, 3)
    own = jnp.arange(num_outputs(task), dtype=jnp.int32)
    return Drawn(
        _draw_places(task, places),
        jax.random.permutation(tokens, jnp.arange(task.vocabulary, dtype=jnp.int32)),
        own if task.order == "listed" else jax.random.permutation(labels, own),
    )


def _draw_places(task: SequenceOptions, key: Array) -> Array:
    """Returns the place of each bit, int32 `[length]`: features at their distances, all others anywhere."""
    which, rest = jax.random.split(key)
    order = jax.random.permutation(rest, jnp.arange(task.length, dtype=jnp.int32))
    if not any(task.distances):
        return order
    bits, table = _placements(task.features, task.distances, task.twins, task.length)
    fixed = jnp.asarray(table, jnp.int32)[jax.random.randint(which, (), 0, len(table))]
    # The remaining places, in the random order, go to the remaining bits.
    taken = jnp.any(order[:, None] == fixed[None], axis=1)
    free = order[jnp.argsort(taken, stable=True)][: task.length - len(bits)]
    others = jnp.asarray([bit for bit in range(task.length) if bit not in bits], jnp.int32)
    return jnp.zeros(task.length, jnp.int32).at[jnp.asarray(bits, jnp.int32)].set(fixed).at[others].set(free)


@functools.cache
def _placements(
    features: tuple[str, ...], distances: tuple[int, ...], twins: bool, length: int
) -> tuple[list[int], list[tuple[int, ...]]]:  # fmt: skip
    """Returns the bits of the features that have a distance, and every way to place them without a collision."""
    blocks = binary.blocks(BinaryOptions(features=features, num_bits=length, twins=twins))
    fixed = [(block, distances[i % len(features)]) for i, block in enumerate(blocks) if distances[i % len(features)]]
    ways: list[tuple[int, ...]] = [()]
    for _, distance in fixed:
        pairs = [(a, a + d) for d in (distance, -distance) for a in range(length) if 0 <= a + d < length]
        ways = [(*way, *pair) for way in ways for pair in pairs if not set(way) & set(pair)]
    return [bit for block, _ in fixed for bit in range(block.places.start, block.places.stop)], ways


def order_of(task: SequenceOptions, dials: Dials, drawn: Drawn) -> Array | None:
    """Returns the listed output at each output position, int32 `[O]`; None if every example has its own order."""
    return None if task.order == "example" else drawn.labels[dials.task["output_order"]]


def sample(task: SequenceOptions, dials: Dials, drawn: Drawn, key: Array) -> Example:
    """Draws ONE example: factors first, then a string that has them."""
    own, ordering = jax.random.split(key)
    found = (_sample_bits if of_bits(task) else _sample_string)(task, dials, drawn, own)
    order = _order(task, dials, drawn, ordering)
    return Example(_with_queries(task, found.inputs, order), found.factors, found.labels[order], order)


def _order(task: SequenceOptions, dials: Dials, drawn: Drawn, key: Array) -> Array:
    """Returns the order of one example, int32 `[O]`."""
    listed = drawn.labels[dials.task["output_order"]]
    return jax.random.permutation(key, listed) if task.order == "example" else listed


def _with_queries(task: SequenceOptions, tokens: Array, order: Array) -> Array:
    """Appends the query tokens, if there are any."""
    queries = order + task.vocabulary if task.order == "example" else order[:0]
    return jnp.concatenate([tokens, queries]).astype(jnp.int32)


def _sample_bits(task: SequenceOptions, dials: Dials, drawn: Drawn, key: Array) -> Example:
    """Draws an example of bits, with its labels by listed output."""
    found = binary.sample(as_bits(task), _bit_dials(task, dials), None, key)
    known = {name: value for name, value in found.factors.items() if name != "target"}
    return Example(_as_tokens(drawn, found.inputs), known, found.labels, found.order)


def _bit_dials(task: SequenceOptions, dials: Dials) -> Dials:
    """Returns the dials of the task of bits: no two features are correlated, and outputs stand as listed."""
    never = jnp.full((len(task.features),), 0.5, jnp.float32)
    listed = jnp.arange(num_outputs(task), dtype=jnp.int32)
    return dials._replace(task={**dials.task, "predictivity": never, "output_order": listed})


def _as_tokens(drawn: Drawn, bits: Array) -> Array:
    """Puts each bit in its place. Args: bits `[..., length]`. Returns: int32, of the same shape."""
    return jnp.zeros(bits.shape, jnp.int32).at[..., drawn.places].set(bits.astype(jnp.int32))


def _sample_string(task: SequenceOptions, dials: Dials, drawn: Drawn, key: Array) -> Example:
    """Draws an example of features of strings, with its labels by listed output."""
    values, seen, rest = jax.random.split(key, 3)
    rates = jnp.tile(dials.task["prevalence"], 2)  # of the features and of their twins
    drawn_values = jax.random.bernoulli(values, rates[: len(_parts(task))]).astype(jnp.int32)
    tokens = _write(task, drawn, drawn_values, rest)
    known = _read(task, drawn, tokens)
    labels = jnp.stack([known[name] for name in task.outputs or feature_names(task)])
    labels = jnp.where(jax.random.bernoulli(seen, dials.task["exposure"]), labels, UNSEEN)
    return Example(tokens, known, labels, jnp.arange(len(labels), dtype=jnp.int32))


def _read(task: SequenceOptions, drawn: Drawn, tokens: Array) -> dict[str, Array]:
    """Reads all features and twins from a string `[length]`."""
    return {part.name: part.read(drawn, tokens) for part in _parts(task)}


def _write(task: SequenceOptions, drawn: Drawn, values: Array, key: Array) -> Array:
    """Returns a string `[length]` with the given values of the features and their twins, int32 `[parts]`."""
    parts = _parts(task)
    owned = sum(part.symbols for part in parts)
    free = task.vocabulary - owned
    fill, differ, shuffle, shift, *keys = jax.random.split(key, 4 + len(parts))
    chosen = jax.random.randint(fill, (task.length,), 0, free)
    ends, inner = ([part for part in parts if (part.end >= 0) == outer] for outer in (True, False))
    # The last token of a pair at the ends is one that differs from the first.
    other = jax.random.randint(differ, (task.length,), 1, free)
    for part in ends:
        a, b = part.end, task.length - 1 - part.end
        chosen = chosen.at[b].set((chosen[a] + other[a]) % free)
    tokens = drawn.tokens[owned + chosen]
    for part in ends:
        both = jnp.asarray([part.end, task.length - 1 - part.end], jnp.int32)
        own = part.feature.write(values[parts.index(part)], tokens[both], part.own(drawn), keys[parts.index(part)])
        tokens = tokens.at[both].set(own)
    if not inner:
        return tokens
    width = (task.length - 2 * len(ends)) // len(inner)
    spare = task.length - 2 * len(ends) - width * len(inner)
    first = len(ends) + jax.random.randint(shift, (), 0, spare + 1)
    stretches = jax.random.permutation(shuffle, jnp.arange(len(inner), dtype=jnp.int32))
    for part, stretch in zip(inner, stretches, strict=True):
        start = first + stretch * width
        filler = jax.lax.dynamic_slice_in_dim(tokens, start, width)
        own = part.feature.write(values[parts.index(part)], filler, part.own(drawn), keys[parts.index(part)])
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, own, start, 0)
    return tokens


def probe_set(
    task: SequenceOptions, dials: Dials, drawn: Drawn, name: str, key: Array
) -> tuple[Array, dict[str, Array], Array]:  # fmt: skip
    """Draws the examples on which representations are probed: the first half to fit on, the second to score on.

    The sets are those of `repbias_jax.data.binary`. In the `balanced` set all combinations of the features' bits, or of the
    values of features of strings, are equally frequent in each half; twins take them in an independent order.

    Args:
      task: options of the generator.
      dials: prevalence, for `natural`.
      drawn: the result of `draw` for this run.
      name: `natural`, `decorrelated` or `balanced`.
      key: a PRNG key.

    Returns:
      inputs int32 `[N, length + queries]`; factors int32 `[N]` by name, as `probe_factors` lists them; the order `[O]`, or
      `[N, O]` if every example has its own.
    """
    own, ordering = jax.random.split(key)
    if of_bits(task):
        bits, found, _ = binary.probe_set(as_bits(task), _bit_dials(task, dials), None, name, own)
        tokens = _as_tokens(drawn, bits)
        known = {name: value for name, value in found.items() if name != "target"}
    else:
        tokens = _strings_of_set(task, dials, drawn, name, own)
        known = jax.vmap(lambda x: _read(task, drawn, x))(tokens)
    each = jax.random.split(ordering, task.num_probe)
    orders = jax.vmap(lambda k: _order(task, dials, drawn, k))(each)
    inputs = jax.vmap(lambda x, o: _with_queries(task, x, o))(tokens, orders)
    common = order_of(task, dials, drawn)
    return inputs, known, orders if common is None else common


def _strings_of_set(task: SequenceOptions, dials: Dials, drawn: Drawn, name: str, key: Array) -> Array:
    """Returns the strings of a probe set, `[N, length]`."""
    if name != "balanced":
        own = dials if name == "natural" else fair(task, dials)
        keys = jax.random.split(key, task.num_probe)
        return jax.vmap(lambda k: _sample_string(task, own, drawn, k).inputs)(keys)
    count, half = len(task.features), task.num_probe // 2
    table = jnp.asarray(np.array(list(itertools.product((0, 1), repeat=count))), jnp.int32)  # [2^F, F]
    crossed = jnp.tile(table, (math.ceil(half / len(table)), 1))
    strings = []
    for own in jax.random.split(key, 2):
        twins, each = jax.random.split(own)
        both = jnp.concatenate([crossed, jax.random.permutation(twins, crossed)], axis=1)[:, : len(_parts(task))]
        strings.append(jax.vmap(lambda v, k: _write(task, drawn, v, k))(both, jax.random.split(each, half)))
    return jnp.concatenate(strings)
