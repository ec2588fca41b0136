"""`confirm.json`: the plan of a confirmation, written and committed before any of its networks is trained.

It is a list of entries, one for each deciding part of each confirmed claim:

  {"claim": "C01a", "statistic": "r2(easy) - r2(hard), cross-entropy", "side": 1, "margin": 0.05, "n": 256,
   "seeds": {"first": 10000, "count": 256}, "date": "2026-12-01"}

`claim` is the id of a claim, or of a part of one; `side` is 1, -1, or 0 for an equivalence; `date` is the day on which the
entry was written. Seeds begin at 10,000, so that no seed of the first look (0 to 15), of calibrations (1000 to 1999) or of
smaller presets is reused. Parts of one claim read the same block of seeds or disjoint blocks. Different claims have
disjoint blocks, unless they read the same networks: `"with": "C05"` names the claim whose block an entry shares. The
optional `"separate": true` marks parts that each count in Holm's correction, without a joint verdict.
"""

import calendar
import dataclasses
import json
import math
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from repbias_jax.config import ConfigError
from repbias_jax.statistics import MIN_SEEDS, Claim, Part

FIRST_SEED = 10_000
LAST_SEED = 2**31 - 1
REQUIRED = ("claim", "statistic", "side", "margin", "n", "seeds", "date")
OPTIONAL = ("with", "separate")
ID = re.compile(r"(C\d\d)([a-z]?)")


@dataclasses.dataclass(frozen=True)
class Confirmed:
    """One entry of `confirm.json`.

    Attributes:
      claim: id of the claim, `C01`.
      part: label of the part, or empty.
      statistic: its primary statistic, in words and symbols.
      side: +1, -1, or 0 for an equivalence.
      margin: the smallest effect that matters.
      n: number of values that were planned; exactly this many are analysed, once.
      first: the first seed of its block.
      count: number of seeds of the block: n, or more if a value takes several runs.
      date: day on which the entry was written.
      shares: id of the claim whose networks it reads, or empty.
      separate: whether the part counts separately in Holm's correction.
    """

    claim: str
    part: str
    statistic: str
    side: int
    margin: float
    n: int
    first: int
    count: int
    date: str
    shares: str
    separate: bool


def load(path: Path) -> tuple[Confirmed, ...]:
    """Returns the entries of `confirm.json`, checked.

    Raises:
      ConfigError: there is no such file, it is not valid JSON, an entry does not have the form above, or blocks of seeds
        overlap.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; a confirmation needs it, committed before anything of it runs")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:  # a key twice, bad text, numbers or nesting beyond Python's limits
        raise ConfigError(f"{path}: no valid JSON: {error}") from error
    if not isinstance(raw, list) or not raw:
        raise ConfigError(f"{path}: expected a list of at least one entry, got {_short(raw)}")
    entries = tuple(_entry(f"{path}, entry {i}", item) for i, item in enumerate(raw))
    _check_ids(path, entries)
    _check_blocks(path, entries)
    return entries


class _Twice(ValueError):
    """Raised for a JSON object that has the same key twice."""


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(f"twice the key {next(name for name in names if names.count(name) > 1)!r}")
    return found


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _entry(where: str, item: Any) -> Confirmed:
    """Returns one entry, after checking each of its values."""
    if not isinstance(item, dict):
        raise ConfigError(f"{where}: expected an object with {', '.join(REQUIRED)}, got {_short(item)}")
    if wrong := [name for name in item if name not in REQUIRED + OPTIONAL]:
        raise ConfigError(f"{where}: unknown key {_short(wrong[0])}; known: {', '.join(REQUIRED + OPTIONAL)}")
    if missing := [name for name in REQUIRED if name not in item]:
        raise ConfigError(f"{where}: no key {missing[0]!r}; needed: {', '.join(REQUIRED)}")
    identity = ID.fullmatch(item["claim"]) if isinstance(item["claim"], str) else None
    if identity is None:
        raise _wrong(where, "claim", item["claim"], "an id like C01 or C01a")
    where = f"{where} ({item['claim']})"
    if not isinstance(item["statistic"], str) or not item["statistic"].strip():
        raise _wrong(where, "statistic", item["statistic"], "a text")
    if not _is_whole(item["side"]) or item["side"] not in (-1, 0, 1):
        raise _wrong(where, "side", item["side"], "1, -1, or 0 for an equivalence")
    margin = item["margin"]
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 < margin <= sys.float_info.max:
        raise _wrong(where, "margin", margin, "a number above 0")
    if not _is_whole(item["n"]) or item["n"] < MIN_SEEDS:
        raise _wrong(where, "n", item["n"], f"a whole number of at least {MIN_SEEDS}")
    first, count = _block(where, item["seeds"], item["n"])
    shares, separate = item.get("with", ""), item.get("separate", False)
    if "with" in item and (not isinstance(shares, str) or not re.fullmatch(r"C\d\d", shares) or shares == identity[1]):
        raise _wrong(where, "with", shares, "the id of another claim, like C05")
    if not isinstance(separate, bool):
        raise _wrong(where, "separate", separate, "true or false")
    date = _date(where, item["date"])
    of = (identity[1], identity[2], item["statistic"], item["side"], float(margin), item["n"])
    return Confirmed(*of, first, count, date, shares, separate)


def _wrong(where: str, name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(f"{where}: {name} is {_short(value)}, expected {expected}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _block(where: str, seeds: Any, n: int) -> tuple[int, int]:
    """Returns the first seed and the number of seeds of a block."""
    if not isinstance(seeds, dict) or set(seeds) != {"first", "count"}:
        raise _wrong(where, "seeds", seeds, '{"first": ..., "count": ...}')
    first, count = seeds["first"], seeds["count"]
    if not _is_whole(first) or first < FIRST_SEED:
        raise _wrong(where, "seeds.first", first, f"a whole number of at least {FIRST_SEED}")
    if not _is_whole(count) or count < n:
        raise _wrong(where, "seeds.count", count, f"a whole number of at least n = {n}")
    if first + count - 1 > LAST_SEED:
        raise _wrong(where, "seeds.count", count, f"no seed above {LAST_SEED}")
    return first, count


def _date(where: str, text: Any) -> str:
    if isinstance(text, str) and re.fullmatch(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}", text):
        year, month, day = map(int, text.split("-"))
        if 1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1]:
            return text
    raise _wrong(where, "date", text, "a day like 2026-12-01")


def _check_ids(path: Path, entries: Sequence[Confirmed]) -> None:
    """Raises ConfigError if ids are inconsistent.

    An id must not occur twice, a claim not both as a whole and in parts; the parts of a claim must agree on `separate`;
    and a claim named by `with` must have an entry.
    """
    seen: dict[str, Confirmed] = {}
    for entry in entries:
        id_ = entry.claim + entry.part
        if id_ in seen:
            raise ConfigError(f"{path}: {id_} twice; expected one entry for each part")
        seen[id_] = entry
    claims = {entry.claim for entry in entries}
    for entry in entries:
        if entry.part and entry.claim in seen:
            raise ConfigError(f"{path}: {entry.claim} as a whole and its part {entry.part}; expected one or the other")
        if entry.shares and entry.shares not in claims:
            raise ConfigError(f"{path}: {entry.claim}{entry.part} is with {entry.shares}, which has no entry")
        if any(other.claim == entry.claim and other.separate != entry.separate for other in entries):
            raise ConfigError(f"{path}: some parts of {entry.claim} are separate and some are not; expected all or none")


def _check_blocks(path: Path, entries: Sequence[Confirmed]) -> None:
    """Raises ConfigError if blocks of seeds overlap.

    Only parts of one claim, and claims linked by `with`, may have the same block; and `with` requires a shared block.
    """
    ordered = sorted(entries, key=lambda entry: (entry.first, entry.count))
    for i, entry in enumerate(ordered):
        for other in ordered[i + 1 :]:
            if other.first >= entry.first + entry.count:
                break
            same = (entry.first, entry.count) == (other.first, other.count)
            related = root(entry) == root(other)
            if not (same and related):
                ids = " and ".join(sorted((entry.claim + entry.part, other.claim + other.part)))
                way = (
                    "the same block or blocks apart"
                    if related
                    else 'blocks apart, or "with" where they read the same networks'
                )
                raise ConfigError(f"{path}: seeds of {ids} overlap at {other.first}; expected {way}")
    for entry in entries:
        blocks = {(other.first, other.count) for other in entries if other.claim == entry.shares}
        if entry.shares and (entry.first, entry.count) not in blocks:
            raise ConfigError(f"{path}: {entry.claim}{entry.part} is with {entry.shares} and has other seeds")


def root(entry: Confirmed) -> str:
    """Returns the id of the claim whose networks an entry reads: its own claim, or the one named by `with`."""
    return entry.shares or entry.claim


def seeds_of(entries: Sequence[Confirmed], id_: str) -> tuple[int, int]:
    """Returns the first seed and the number of seeds of a claim, or of a part of one.

    Raises:
      ConfigError: it has no entry, or its parts have different seeds.
    """
    blocks = {(entry.first, entry.count) for entry in entries if id_ in (entry.claim, entry.claim + entry.part)}
    if not blocks:
        raise ConfigError(f"no confirmation of {id_}; confirmed are {', '.join(family(entries))}")
    if len(blocks) > 1:
        raise ConfigError(f"{id_}: its parts have different seeds; ask for one of them")
    return blocks.pop()


def family(entries: Sequence[Confirmed]) -> tuple[str, ...]:
    """Returns the sorted ids of Holm's correction: claims, or each of their parts if these are separate."""
    return tuple(sorted({entry.claim + (entry.part if entry.separate else "") for entry in entries}))


def planned(
    entries: Sequence[Confirmed], claims: Sequence[Claim], blocks: Collection[tuple[int, int]]
) -> list[Claim]:  # fmt: skip
    """Returns the claims that blocks of seeds decide, checked, with exactly as many values as were planned.

    Args:
      entries: of `confirm.json`.
      claims: of an experiment, from the networks of these blocks.
      blocks: first seed and number of seeds of each.

    Raises:
      ConfigError: as in `check`, or the number of values of a part is not the planned one.
    """
    own = {entry.claim + entry.part: entry for entry in entries if (entry.first, entry.count) in blocks}
    chosen = [claim for claim in claims if claim.id in {entry.claim for entry in own.values()}]
    check(entries, chosen)
    return [
        dataclasses.replace(
            claim,
            parts=tuple(
                _exactly(claim.id, part, own[claim.id + part.label].n) if part.kind == "deciding" else part
                for part in claim.parts
                if part.kind != "deciding" or claim.id + part.label in own
            ),
        )
        for claim in chosen
    ]


def _exactly(id_: str, part: Part, n: int) -> Part:
    """Returns the part if it has n values, else raises ConfigError.

    A value may depend on all seeds of a block, so surplus values are not dropped.
    """
    found = len(part.passed)
    if found != n:
        raise ConfigError(f"{id_}{part.label}: {found} values, confirm.json plans n = {n}; expected exactly as many")
    return part


def check(entries: Sequence[Confirmed], claims: Sequence[Claim]) -> None:
    """Checks that the deciding parts of claims agree with their entries.

    Args:
      entries: of `confirm.json`.
      claims: of an experiment; claims that are not confirmed, and parts that do not decide, are ignored.

    Raises:
      ConfigError: a part has no entry, an entry has no part, or statistic, side, margin or separate differ.
    """
    confirmed = {entry.claim for entry in entries}
    for claim in claims:
        if claim.id not in confirmed:
            continue
        own = {entry.part: entry for entry in entries if entry.claim == claim.id}
        parts = {part.label: part for part in claim.parts if part.kind == "deciding"}
        if set(own) != set(parts):
            listed = [", ".join(claim.id + label for label in sorted(names)) or "none" for names in (own, parts)]
            raise ConfigError(f"{claim.id}: confirm.json has {listed[0]}, its experiment decides by {listed[1]}")
        for label, part in parts.items():
            _alike(own[label], {"statistic": part.statistic, "side": part.side, "margin": part.sesoi}, claim.separate)


def _alike(entry: Confirmed, found: Mapping[str, Any], separate: bool) -> None:
    for name, value in {**found, "separate": separate}.items():
        written = getattr(entry, name)
        same = math.isclose(written, value, rel_tol=1e-5) if name == "margin" else written == value
        if not same:
            raise ConfigError(f"{entry.claim}{entry.part}: {name} is {_short(value)}, confirm.json has {_short(written)}")
