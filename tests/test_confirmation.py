"""What a confirmation may be: entries of `confirm.json`, their seeds, the family for Holm, and what is refused."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from repbias_jax import confirmation
from repbias_jax.config import ConfigError
from repbias_jax.statistics import Claim, Part


def entry(claim="C01a", first=10_000, count=256, **more):
    return {
        "claim": claim, "statistic": "gap", "side": 1, "margin": 0.05, "n": 256, "seeds": {"first": first, "count": count},
        "date": "2026-12-01",
    } | more  # fmt: skip


GOOD = [
    entry("C01a"),
    entry("C01b"),
    entry("C05", 20_000, 640, n=640),
    entry("C06", 20_000, 640, n=640, **{"with": "C05"}),
    entry("C08a", 30_000, separate=True),
    entry("C08b", 40_000, separate=True),
    entry("C13", 50_000, 512, n=128, side=-1),
]


def written(tmp_path, entries):
    path = tmp_path / "confirm.json"
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return path


def test_entries_seeds_and_family(tmp_path):
    entries = confirmation.load(written(tmp_path, GOOD))
    first = ("C01", "a", "gap", 1, 0.05, 256, 10_000, 256, "2026-12-01", "", False)
    assert dataclasses.astuple(entries[0]) == first
    assert confirmation.seeds_of(entries, "C01") == confirmation.seeds_of(entries, "C01b") == (10_000, 256)
    assert confirmation.seeds_of(entries, "C06") == (20_000, 640)
    assert confirmation.family(entries) == ("C01", "C05", "C06", "C08a", "C08b", "C13")
    for id_, expected in (("C08", "different seeds"), ("C02", "no confirmation of C02; confirmed are C01, C05")):
        with pytest.raises(ConfigError, match=expected):
            confirmation.seeds_of(entries, id_)


BAD = {
    "no list": ({}, "expected a list of at least one entry, got {}"),
    "empty": ([], "expected a list of at least one entry, got []"),
    "no JSON": ("[{", "no valid JSON"),
    "a key twice": ('[{"claim": "C01", "claim": "C02"}]', "no valid JSON: twice the key 'claim'"),
    "no object": ([3], "entry 0: expected an object with claim, statistic"),
    "unknown key": ([entry(seed=1)], 'unknown key "seed"; known: claim'),
    "missing key": ([{k: v for k, v in entry().items() if k != "margin"}], "no key 'margin'"),
    "id": ([entry("c1")], 'claim is "c1", expected an id like C01 or C01a'),
    "id of another type": ([entry(1)], "claim is 1, expected an id"),
    "statistic": ([entry(statistic=" ")], 'statistic is " ", expected a text'),
    "side": ([entry(side=2)], "side is 2, expected 1, -1, or 0"),
    "side true": ([entry(side=True)], "side is true, expected 1, -1, or 0"),
    "margin 0": ([entry(margin=0)], "margin is 0, expected a number above 0"),
    "margin nan": ([entry(margin=float("nan"))], "margin is NaN, expected a number above 0"),
    "margin infinite": ([entry(margin=float("inf"))], "margin is Infinity, expected a number above 0"),
    "n": ([entry(n=11)], "n is 11, expected a whole number of at least 12"),
    "n with a fraction": ([entry(n=20.5)], "n is 20.5, expected a whole number"),
    "seeds": ([entry(seeds=[10_000, 256])], "seeds is [10000, 256], expected {"),
    "seed of the first look": ([entry(first=9_999)], "seeds.first is 9999, expected a whole number of at least 10000"),
    "fewer seeds than n": ([entry(count=255)], "seeds.count is 255, expected a whole number of at least n = 256"),
    "seeds without end": ([entry(first=2**31 - 256, count=257)], "expected no seed above 2147483647"),
    "date": ([entry(date="1 December")], 'date is "1 December", expected a day like 2026-12-01'),
    "day that there is not": ([entry(date="2026-02-30")], 'date is "2026-02-30", expected a day'),
    "month that there is not": ([entry(date="2026-13-01")], 'date is "2026-13-01", expected a day'),
    "separate": ([entry(separate=1)], "separate is 1, expected true or false"),
    "with itself": ([entry(**{"with": "C01"})], 'with is "C01", expected the id of another claim'),
    "with none": ([entry(**{"with": "C05"})], "C01a is with C05, which has no entry"),
    "twice": ([entry(), entry()], "C01a twice"),
    "whole and part": ([entry(), entry("C01")], "C01 as a whole and its part a"),
    "separate in part": ([entry(separate=True), entry("C01b")], "some parts of C01 are separate and some are not"),
    "overlap": ([entry(), entry("C02", 10_255)], "seeds of C01a and C02 overlap at 10255; expected blocks apart, or"),
    "same, not said": ([entry(), entry("C02")], "seeds of C01a and C02 overlap at 10000; expected blocks apart, or"),
    "inside another": ([entry(count=1000), entry("C02", 10_100), entry("C03", 10_900)], "overlap at 10100"),
    "parts overlap": ([entry(), entry("C01b", 10_100)], "expected the same block or blocks apart"),
    "with, other seeds": ([entry(), entry("C02", 20_000, **{"with": "C01"})], "C02 is with C01 and has other seeds"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused_in_one_line(case, tmp_path):
    entries, expected = BAD[case]
    path = written(tmp_path, entries)
    with pytest.raises(ConfigError) as caught:
        confirmation.load(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert expected in text
    assert len(text.splitlines()) == 1


def test_a_missing_file_is_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"confirm\.json: no such file; a confirmation needs it, committed before"):
        confirmation.load(tmp_path / "confirm.json")


def claim(id_="C01", labels="ab", separate=False, **more):
    values = pd.Series(np.linspace(0, 1, 16))
    part = {"statistic": "gap", "values": values, "passed": pd.DataFrame(values > -1), "side": 1, "sesoi": 0.05} | more
    return Claim(id_, "made", "", tuple(Part(label=label, **part) for label in labels), separate=separate)


def test_claims_have_to_be_what_was_written_down(tmp_path):
    entries = confirmation.load(written(tmp_path, GOOD))
    confirmation.check(entries, [claim(), claim("C02", side=-1), claim("C08", separate=True)])
    for made, expected in (
        (claim(side=-1), "C01a: side is -1, confirm.json has 1"),
        (claim(sesoi=0.02), "C01a: margin is 0.02, confirm.json has 0.05"),
        (claim(statistic="other"), 'C01a: statistic is "other", confirm.json has "gap"'),
        (claim(labels="a"), "C01: confirm.json has C01a, C01b, its experiment decides by C01a"),
        (claim(labels=""), "C01: confirm.json has C01a, C01b, its experiment decides by none"),
        (claim("C08"), "C08a: separate is false, confirm.json has true"),
    ):
        with pytest.raises(ConfigError) as caught:
            confirmation.check(entries, [made])
        assert str(caught.value) == expected
    shown = Part("c", "other", pd.Series([1.0]), pd.DataFrame(), 1, 1, kind="shown")
    both = claim()
    confirmation.check(entries, [Claim("C01", "made", "", (*both.parts, shown))])
