"""The probes on activations made elsewhere: planted shares, twins, intervals, hostile tables, the example of BUILD.md."""

import json
import os
import re
import signal
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import zarr
from conftest import ROOT
from looks import assert_readable
from made import probed
from scipy import stats
from sklearn.linear_model import LinearRegression
from test_documents import BUILD, fenced

import repbias_jax
from repbias_jax import external, probe
from repbias_jax.columns import COLUMNS
from repbias_jax.config import ConfigError
from repbias_jax.external import Choices, design, diagnostics, encoding, readouts, rsa
from repbias_jax.external.features import Feature, features_of, read_columns, text_of
from repbias_jax.probes import components, logistic, regression, units, variance
from repbias_jax.probes.balance import balanced_r2, dependence, evenness, natural_r2
from repbias_jax.probes.moments import Measured
from repbias_jax.report import external_page


def feature(name, values, continuous=False):
    """One feature from numbers."""
    return features_of({name: [str(v) for v in values]}, continuous=[name] if continuous else [])[0]


def measured(phi, features, draws=20, split=None):
    """The numbers of `encoding`, by name, of a random half each or of those given."""
    rows = design.halves(len(phi), split)
    sides, scale = design.centred(phi, rows)
    assert scale > 0
    return {name: v for _, name, v in encoding.measure(sides, scale, features, rows, draws)}


def correlated(rng, count, rate, rho):
    """Two binary features of one rate and a given correlation."""
    first = rng.random(count) < rate
    own = np.where(rng.random(count) < rho, first, rng.random(count) < rate)
    return first.astype(int), own.astype(int)


def planted(rng, codes, sizes, noise, width):
    """sum_i size_i (f_i - mean) along orthogonal directions, and noise: activations `[N, D]`; Gram-Schmidt by QR."""
    directions = np.linalg.qr(rng.normal(size=(width, len(codes))))[0].T
    signal_ = sum(a * (f - f.mean())[:, None] * d for f, a, d in zip(codes, sizes, directions, strict=True))
    return signal_ + noise / np.sqrt(width) * rng.normal(size=(len(codes[0]), width)) + 100


def test_planted_shares_are_recovered_at_correlation_three_tenths():
    rng = np.random.default_rng(0)
    a, b = correlated(rng, 24_000, 0.5, 0.3)
    found = measured(planted(rng, (a, b), (2.0, 1.2), 1.0, 12), [feature("a", a), feature("b", b)])
    v, rho = 0.25, 0.3
    whole = 4 * v + 1.44 * v + 1
    expected = {
        Measured("r2", "a"): (4 + 1.44 * rho**2) * v / whole,
        Measured("r2", "b"): (1.44 + 4 * rho**2) * v / whole,
        Measured("unique_r2", "a"): 4 * v * (1 - rho**2) / whole,
        Measured("unique_r2", "b"): 1.44 * v * (1 - rho**2) / whole,
        Measured("joint_r2"): (4 + 1.44) * v / whole,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("rate", [0.5, 0.05])
def test_planted_shares_are_recovered_from_more_units_than_examples(rate):
    """Correlation .3 as exactly as counts of 1,000 examples a half allow, prevalence 1/2 and 1/20, 3,000 units."""
    rng = np.random.default_rng(4)
    both = round(1000 * (rate**2 + 0.3 * rate * (1 - rate)))
    one = round(1000 * rate) - both
    half = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], [both, one, one, 1000 - both - 2 * one], axis=0)
    a, b = np.concatenate([rng.permutation(half), rng.permutation(half)]).T
    v, rho = rate * (1 - rate), np.corrcoef(a, b)[0, 1]
    assert rho == pytest.approx(0.3, abs=0.01)
    phi = planted(rng, (a, b), (np.sqrt(1 / v), np.sqrt(0.36 / v)), 1.0, 3000)  # 1, .36 and 1 of variance 2.36
    found = measured(phi, [feature("a", a), feature("b", b)], split=["fit"] * 1000 + ["score"] * 1000)
    expected = {Measured("joint_r2"): 1.36}
    for name, own, other in (("a", 1, 0.36), ("b", 0.36, 1)):
        expected[Measured("r2", name)] = own + other * rho**2
        expected[Measured("unique_r2", name)] = own * (1 - rho**2)
        expected[Measured("shared_r2", name)] = (own + other) * rho**2
    assert {name: found[name] for name in expected} == pytest.approx({n: x / 2.36 for n, x in expected.items()}, abs=0.01)


def test_planted_shares_of_classes_and_numbers_that_depend_on_each_other():
    """Three classes and a number: x = rho u + sqrt(1 - rho^2) noise, u the standard score of being the first class."""
    rng, rho, count = np.random.default_rng(5), 0.3, 24_000
    c = rng.integers(0, 3, count)
    u = ((c == 0) - 1 / 3) / np.sqrt(2 / 9)
    x = rho * u + np.sqrt(1 - rho**2) * rng.normal(size=count)
    codes, size, slope = [(c == k).astype(float) for k in range(3)], 1.5, 1.0
    found = measured(
        planted(rng, (*codes, x), (size, size, size, slope), 1.0, 12), [feature("c", c), feature("x", x, continuous=True)]
    )
    classes, number = size**2 * 2 / 3, slope**2
    through_x = size**2 * rho**2 / 3  # of the classes' code: sum over k of cov(code_k, x)^2
    expected = {
        Measured("joint_r2"): classes + number,
        Measured("r2", "c"): classes + number * rho**2,
        Measured("r2", "x"): number + through_x,
        Measured("unique_r2", "c"): classes - through_x,
        Measured("unique_r2", "x"): number * (1 - rho**2),
        Measured("shared_r2", "c"): number * rho**2 + through_x,
        Measured("shared_r2", "x"): number * rho**2 + through_x,
    }
    whole = classes + number + 1
    assert {name: found[name] for name in expected} == pytest.approx({n: v / whole for n, v in expected.items()}, abs=0.01)


def test_planted_shares_are_recovered_at_prevalence_one_twentieth():
    """The same code, balanced and rare: r2 differs by the factor, r2_balanced does not."""
    rng = np.random.default_rng(1)
    for rate in (0.5, 0.05):
        f = (rng.random(24_000) < rate).astype(int)
        found = measured(
            planted(rng, (f, rng.integers(0, 2, 24_000)), (2.0, 1.0), 1.0, 12), [feature("f", f), feature("g", f)]
        )
        balanced = 1 / (1 + 0.25 + 1)
        assert found[Measured("r2_balanced", "f")] == pytest.approx(balanced, abs=0.01)
        assert found[Measured("r2", "f")] == pytest.approx(natural_r2(balanced, rate), abs=0.01)
        assert found[Measured("unique_r2", "f")] == pytest.approx(0, abs=1e-4)  # its copy has all of it


def test_correction_for_prevalence_and_back():
    r2, p = np.linspace(0, 0.99, 12)[:, None], np.linspace(0.02, 0.98, 9)
    np.testing.assert_allclose(balanced_r2(natural_r2(r2, p), p), np.broadcast_to(r2, (12, 9)), atol=1e-12)
    np.testing.assert_allclose(balanced_r2(r2, np.array([0.5])), r2)
    assert natural_r2(0.5, 0.05) == pytest.approx(0.19 / 1.19)


@pytest.fixture(scope="module")
def small():
    """400 examples of 10 units that hold a binary, a three-valued and a continuous feature."""
    rng = np.random.default_rng(2)
    a, c, x = rng.integers(0, 2, 400), rng.integers(0, 3, 400), rng.normal(size=400)
    phi = rng.normal(size=(400, 10)) + np.outer(a, rng.normal(size=10)) + rng.normal(size=(3, 10))[c]
    phi = np.maximum(phi + 0.5 * np.outer(x, rng.normal(size=10)), 0)
    return phi, {"a": a, "c": c, "x": x}


def test_classes_agree_with_the_probes_of_classes(small):
    phi, codes = small
    found = measured(phi, [feature("a", codes["a"]), feature("c", codes["c"])])
    rows = design.halves(len(phi))
    split = np.isin(np.arange(len(phi)), rows[1]).astype(int)
    for name in "ac":
        twin = repbias_jax.variance_explained(phi, {name: codes[name]}, split)[name]
        for metric in ("r2", "null", "null_low", "null_high"):
            assert found[Measured(metric, name)] == twin[metric], metric
    sides = [(jnp.asarray(phi[r], jnp.float32), {n: jnp.asarray(codes[n][r]) for n in "ac"}) for r in rows]
    for fn in (variance.partition, units.units, components.components):
        for name, value in probed(fn)(*sides, 3).items():
            if name in found and name.metric != "null":
                assert found[name] == pytest.approx(float(value), abs=1e-4), name


def test_continuous_features_agree_with_linear_regression(small):
    phi, codes = small
    x, rows = codes["x"], design.halves(len(phi))
    found = measured(phi, [feature("x", 1e6 + 1e-3 * x, continuous=True), feature("a", codes["a"])])
    line = LinearRegression().fit(x[rows[0], None], phi[rows[0]])
    off = np.square(phi[rows[1]] - line.predict(x[rows[1], None])).sum()
    r2 = 1 - off / np.square(phi[rows[1]] - phi[rows[0]].mean(0)).sum()
    assert found[Measured("r2", "x")] == pytest.approx(r2, abs=1e-5)
    assert Measured("r2_balanced", "x") not in found
    assert found[Measured("null_low", "x")] < 0 < found[Measured("null_high", "x")] < r2


def test_a_weight_is_a_repeated_example(small):
    phi, codes = small
    rng = np.random.default_rng(3)
    x = np.column_stack([np.ones(400), codes["a"] - 0.5, codes["x"]]).astype(np.float32)
    counts = [rng.multinomial(200, np.full(200, 1 / 200)) for _ in range(2)]
    halves = (slice(0, 200), slice(200, 400))
    phi = (phi - phi.mean(0)).astype(np.float32)

    def shares(repeated):
        sides = []
        for half, count in zip(halves, counts, strict=True):
            each = [np.repeat(x[half], count, 0), np.repeat(phi[half], count, 0)] if repeated else [x[half], phi[half]]
            sides.append([*map(jnp.asarray, each), jnp.asarray(np.ones(200) if repeated else count, jnp.float32)])
        s = regression.sums(*zip(*sides, strict=True))
        return np.concatenate([np.ravel(v) for v in regression.shares(s, regression.inverses(s, ((1,), (2,))))])

    np.testing.assert_allclose(shares(False), shares(True), atol=2e-6)


def test_intervals_are_as_wide_as_other_examples_would_differ():
    """The spread of r2 over independent sets of examples, against the mean width of the intervals of one."""
    values, widths = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        f, g = rng.integers(0, 2, (2, 400))
        phi = planted(np.random.default_rng(9), (f,), (1.5,), 0.0, 10) + rng.normal(size=(400, 10)) / np.sqrt(10)
        found = measured(phi, [feature("a", f), feature("c", g)], draws=100)
        values.append(found[Measured("r2", "a")])
        widths.append(found[Measured("r2_high", "a")] - found[Measured("r2_low", "a")])
    assert np.mean(widths) / (2 * 1.96) / np.std(values) == pytest.approx(1, abs=0.3)


def test_axes_from_the_smaller_side():
    rng = np.random.default_rng(4)
    phi = rng.normal(size=(40, 200)) @ np.diag(np.linspace(1, 3, 200))
    phi = (phi - phi.mean(0)).astype(np.float32)
    axes, right = np.asarray(components.first_axes(jnp.asarray(phi))), np.linalg.svd(phi.astype(np.float64))[2]
    np.testing.assert_allclose(np.abs(np.sum(axes * right[:10].T, axis=0)), 1, atol=1e-4)
    f = np.arange(40) % 2
    lone = measured(np.outer(f + rng.normal(size=40), np.ones(50)), [feature("f", f)])  # one component, and no more
    assert lone[Measured("component_share", at="1")] == pytest.approx(1, abs=1e-5)
    assert np.isnan(lone[Measured("component_r2_low", "f", at="2")])
    few = components.first_axes(jnp.asarray(phi[:, :1] * np.ones((1, 50), np.float32)))
    assert np.isfinite(np.asarray(few)[:, 0]).all()
    assert np.isnan(components.first_axes(jnp.zeros((20, 30)))).all()


def test_similarity_agrees_with_plain_correlations():
    rng = np.random.default_rng(5)
    f, x = np.repeat([0, 1, 2], 20), rng.normal(size=60)
    phi = (rng.normal(size=(60, 4)) + f[:, None] + x[:, None]).astype(np.float32)
    made = [feature("f", f), feature("x", x)]
    found = {name: v for _, name, v in rsa.rsa(jnp.asarray(phi), np.arange(60), made, 50)}
    i, j = np.triu_indices(60, 1)
    own = np.linalg.norm(phi[i] - phi[j], axis=1)
    models = {"f": (f[i] != f[j]).astype(float), "x": np.abs(x[i] - x[j])}
    counts = design.resampled(60, 50, 2).astype(float)
    for name, model in models.items():
        assert found[Measured("rsa", name)] == pytest.approx(np.corrcoef(own, model)[0, 1], abs=1e-4)
        assert found[Measured("rsa_rank", name)] == pytest.approx(stats.spearmanr(own, model)[0], abs=1e-4)
        drawn = [np.cov(own, model, aweights=w[i] * w[j]) for w in counts]
        drawn = [c[0, 1] / np.sqrt(c[0, 0] * c[1, 1]) for c in drawn]
        ends = [found[Measured(f"rsa_{end}", name)] for end in ("low", "high")]
        np.testing.assert_allclose(ends, design.interval(found[Measured("rsa", name)], np.array(drawn)), atol=1e-3)
        assert found[Measured("rsa_null_low", name)] < 0 < found[Measured("rsa_null_high", name)]


def test_dependence_and_evenness_by_hand():
    rng = np.random.default_rng(6)
    f, x = rng.integers(0, 2, 500), rng.normal(size=500)
    hot = (rng.permutation(np.arange(500) % 4)[:, None] == np.arange(1, 4)).astype(float)
    assert dependence(f[:, None] * 1.0, x[:, None]) == pytest.approx(abs(np.corrcoef(f, x)[0, 1]))
    assert dependence(hot, hot[:, :1] * 3 - hot[:, 2:] + 7) == pytest.approx(1)
    assert np.isnan(dependence(np.ones((500, 2)), x[:, None]))
    assert dependence(hot, x[:, None]) < (np.sqrt(3) + 1) / np.sqrt(500)
    assert evenness(np.array([0.05, 0.95])) == pytest.approx(0.19)
    assert evenness(np.full(7, 1 / 7)) == pytest.approx(1)
    assert np.isnan(evenness(np.ones(1)))


def test_offsets_and_sizes_cost_nothing(small):
    """Centring is done in float64: an offset a million times the spread, or a size beyond float32's, changes no share."""
    phi, codes = small
    f = [feature("a", codes["a"]), feature("c", codes["c"])]
    plain = measured(phi, f)
    for other in (phi + 1e6, phi * 1e200, phi * 1e-200):
        found = measured(other, f)
        for name in (Measured("r2", "a"), Measured("unique_r2", "c"), Measured("selective_share", "a")):
            assert found[name] == pytest.approx(plain[name], abs=1e-5)
    rows = design.halves(400)
    rounding = np.full((400, 3), 1e6, np.float32) + np.spacing(np.float32(1e6)) * (np.arange(400) % 2)[:, None]
    assert design.centred(rounding.astype(np.float32), rows)[1] == 0
    assert design.centred(np.zeros((400, 3)), rows)[1] == 0


def test_halves():
    fit, score = design.halves(1001)
    assert sorted([*fit, *score]) == list(range(1001))
    assert not np.array_equal(fit % 2, np.zeros(len(fit)))
    np.testing.assert_array_equal(design.halves(1001)[0], fit)
    assert [list(h) for h in design.halves(40, ["fit"] * 15 + ["score"] * 25)] == [list(range(15)), list(range(15, 40))]
    for count, split in ((19, None), (40, ["fit"] * 35 + ["score"] * 5), (40, ["fit"] * 39 + ["train"])):
        with pytest.raises(ConfigError):
            design.halves(count, split)


def test_what_a_column_is():
    """The rule, and what a caller may say against it."""
    columns = {
        "text": ["x", "y", "z"] * 10, "yes": ["True", "False", "True"] * 10, "whole": ["1", "2", "3.0"] * 10,
        "many": [str(i) for i in range(30)], "number": ["0.5", "-1e3", ".25"] * 10, "sign": ["-1", "+1", "1"] * 10,
    }  # fmt: skip
    kinds = {f.name: (f.kind, f.levels) for f in features_of(columns)}
    assert kinds == {
        "text": ("categorical", ("x", "y", "z")), "yes": ("binary", ("False", "True")), "sign": ("binary", ("-1", "1")),
        "whole": ("categorical", ("1", "2", "3")), "many": ("continuous", ()), "number": ("continuous", ()),
    }  # fmt: skip
    forced = {f.name: f.kind for f in features_of(columns, categorical=["many"], continuous=["whole"])}
    assert (forced["many"], forced["whole"]) == ("categorical", "continuous")
    for asked in ({"continuous": ["text"]}, {"continuous": ["gone"]}, {"categorical": ["many"], "continuous": ["many"]}):
        with pytest.raises(ConfigError):
            features_of(columns, **asked)


GOOD = b"f,x\n" + b"".join(b"%d,%d.5\n" % (i % 2, i) for i in range(30))
BAD_TABLES = {
    "missing value": (GOOD.replace(b"1,3.5", b"1,"), "line 5, column x: missing value ''"),
    "not a number": (GOOD.replace(b"1,3.5", b"1,NaN"), "line 5, column x: missing value 'NaN'"),
    "too large a number": (GOOD.replace(b"1,3.5", b"1,1e999"), "1e999 is no finite number"),
    "too few rows": (GOOD[:-8], "29 rows; expected one for each of 30 examples"),
    "too many rows": (GOOD + b"1,2\n", "more than 30 rows"),
    "ragged": (GOOD.replace(b"1,3.5", b"1,3.5,7"), "line 5: 3 values; expected 2"),
    "blank line": (GOOD.replace(b"1,3.5", b"\n1,3.5"), "line 5: 0 values; expected 2"),
    "zero byte": (GOOD.replace(b"1,3.5", b"1,\0"), "line 5 holds a zero byte"),
    "not UTF-8": (GOOD.replace(b"1,3.5", b"\xff,3"), "cannot be read"),
    "repeated name": (GOOD.replace(b"f,x", b"x,x"), "column x is there 2 times"),
    "empty name": (GOOD.replace(b"f,x", b"f,"), "column 2: name ''"),
    "unsafe name": (GOOD.replace(b"f,x", b"f,<b>"), "column 2: name '<b>'"),
    "path as name": (GOOD.replace(b"f,x", b"../f,x"), "column 1: name '../f'"),
    "nothing": (b"", "f.csv: is empty; features are a csv"),
    "infinite whole number": (GOOD.replace(b"1,3.5", b"1," + b"9" * 9000), "9 is no finite number"),
    "open quote": (GOOD + b'"', "cannot be read"),
    "huge field": (GOOD.replace(b"1,3.5", b"1," + b"9" * 200_000), "cannot be read"),
    "no header": (b"\n" + GOOD, "0 columns"),
    "many columns": (b",".join(b"c%d" % i for i in range(300)) + b"\n", "300 columns; expected 1 to 256"),
    "a class for each": (b"f\n" + b"".join(b"name%d\n" % (i % 51) for i in range(30)), None),
    "control characters": (b'f\n"a\x1bb"\n' + b"c\n" * 29, "class 'a\\x1bb'"),
    "long class": (b"f\n" + b"a" * 65 + b"\n" + b"c\n" * 29, "expected at most 64 printable characters"),
}


PANDAS_MISSING = ["#N/A", "#N/A N/A", "#NA", "N/A", "<NA>", "NULL", "None", "-nan", "-NaN", "n/a", "null", "NA", "NaT"]
PANDAS_MISSING += [f"{sign}1.#{kind}" for sign in ("", "-") for kind in ("IND", "QNAN")]


@pytest.mark.parametrize("value", PANDAS_MISSING)
def test_what_pandas_takes_as_missing_is_no_class(value, tmp_path):
    (tmp_path / "f.csv").write_bytes(GOOD.replace(b"1,3.5", b"1," + value.encode()))
    with pytest.raises(ConfigError, match=re.escape(f"line 5, column x: missing value {value!r}")):
        read_columns(tmp_path / "f.csv", 30)
    with pytest.raises(ConfigError, match="feature f: example 1 has no value"):
        text_of({"f": ["x", value, "y"]})


def test_none_in_lower_case_may_be_a_class(tmp_path):
    (tmp_path / "f.csv").write_text("f\n" + "none\nsome\n" * 15)
    assert features_of(read_columns(tmp_path / "f.csv", 30))[0].levels == ("none", "some")
    assert text_of({"f": ["none", "--"]}) == {"f": ["none", "--"]}


@pytest.mark.parametrize("kind", [Fraction, Decimal])
def test_exact_numbers_follow_the_rule_of_floats(kind):
    for plain in ([k / 8 for k in range(30)], [k % 3 for k in range(30)], list(range(30))):
        exact, floats = (text_of({"f": [make(v) for v in plain]}) for make in (kind, float))
        assert exact == floats
    assert features_of(text_of({"f": [Fraction(1, 3), Fraction(2, 3)] * 15}))[0].kind == "continuous"
    np.testing.assert_array_equal(features_of(text_of({"f": [Fraction(1, 3)] * 30}))[0].values, 1 / 3)


@pytest.mark.parametrize("name", list(BAD_TABLES))
def test_hostile_tables_are_refused_in_one_line(name, tmp_path):
    content, expected = BAD_TABLES[name]
    (tmp_path / "f.csv").write_bytes(content)
    if expected is None:
        assert len(features_of(read_columns(tmp_path / "f.csv", 30))[0].levels) == 30
        return
    with pytest.raises(ConfigError) as caught:
        features_of(read_columns(tmp_path / "f.csv", 30))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_tables_are_bounded(tmp_path):
    with open(tmp_path / "f.csv", "wb") as file:
        file.truncate(2**30)
    with pytest.raises(ConfigError, match="expected at most 67108864"):
        read_columns(tmp_path / "f.csv", 30)
    with pytest.raises(ConfigError, match="60 classes; expected at most 50"):
        features_of({"f": [f"n{i}" for i in range(60)]})
    with pytest.raises(ConfigError, match="33 features; expected 1 to 32"):
        features_of({f"f{i}": ["1", "2"] for i in range(33)})
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ConfigError, match="a pipe"):
        read_columns(tmp_path / "pipe.csv", 30)


def call(*arguments):
    """The command in this process, with its flags as new; returns its exit status."""
    probe.FLAGS.unparse_flags()
    for name in probe.FLAGS:
        probe.FLAGS[name].unparse()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        probe.parse(["probe", *map(str, arguments)])
        return probe.run()
    except SystemExit as exit_:
        return exit_.code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


NASTY = "a.bit0"  # means a bit to the probes of our own sets, as `target` and `twin_` do


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """Files of 400 examples: one feature large, one hidden in an xor, one small, one rare, one constant, one continuous."""
    folder = tmp_path_factory.mktemp("outside")
    rng = np.random.default_rng(7)
    large, xor, target, rare = (*rng.integers(0, 2, (3, 400)), (rng.random(400) < 0.1).astype(int))
    rest = rng.normal(size=400)
    sign = rng.integers(0, 2, 400)
    phi = 0.05 * rng.normal(size=(400, 12))
    phi[:, 0] += 4 * large
    phi[:, 1], phi[:, 2] = phi[:, 1] + sign, phi[:, 2] + (sign ^ xor)
    phi[:, 3] += 0.5 * target
    phi[:, 4] += 2 * rare + rest
    np.savez(folder / "x.npz", hidden=phi.reshape(400, 3, 4), flat=np.ones((400, 2), np.float32))
    np.save(folder / "x.npy", phi)
    zarr.create_array(folder / "x.zarr", data=phi)
    table = {"large": large, "xor": xor, "target": target, NASTY: rare, "rest": rest, "same": "<b>", "id": np.arange(400)}
    pd.DataFrame(table).to_csv(folder / "y.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def written(outside):
    flags = (f"--activations={outside}/x.npz", f"--features={outside}/y.csv", "--ignore=id", "--draws=24")
    assert call(*flags, f"--workdir={outside}/one") == 0
    assert call(*flags, f"--workdir={outside}/two") == 0
    return outside / "one"


def read(folder):
    kinds = dict.fromkeys(set(COLUMNS) - {"seed", "step", "value"}, "str")
    return pd.read_csv(folder / "results.csv", keep_default_na=False, na_values={"value": [""]}, dtype=kinds)


def test_the_same_command_ends_with_the_same_bytes(written):
    files = sorted(p.relative_to(written) for p in written.rglob("*") if p.is_file())
    assert {str(f) for f in files} >= {"results.csv", "report.html", "manifest.json", "figures/variance.png"}
    assert not [f for f in files if f.name.startswith(".")]
    for name in files:
        assert (written / name).read_bytes() == (written.parent / "two" / name).read_bytes(), name
    listed = json.loads((written / "manifest.json").read_text())
    assert set(listed["files"]) == {str(f) for f in files if f.suffix not in (".json", ".pdf")}


@pytest.mark.parametrize("ending", ["npy", "zarr"])
def test_other_kinds_of_files_say_the_same(ending, written, outside):
    folder = outside / ending
    flags = (f"--activations={outside}/x.{ending}", f"--features={outside}/y.csv", "--ignore=id", "--draws=24")
    assert call(*flags, f"--workdir={folder}") == 0
    found, expected = (
        rows[rows["site"] == site].set_index(["metric", "feature", "other", "at"])["value"]
        for rows, site in ((read(folder), "x"), (read(written), "hidden"))
    )
    assert len(expected) > 100
    pd.testing.assert_series_equal(found, expected)


def test_what_was_cut_off_while_writing_is_made_whole_by_the_same_command(written, outside, capsys, monkeypatch):
    flags = (f"--activations={outside}/x.npz", f"--features={outside}/y.csv", "--ignore=id", "--draws=24")
    with monkeypatch.context() as patch:
        full = OSError(28, "No space left on device")
        patch.setattr(probe.external_page, "write", lambda *_: (_ for _ in ()).throw(full))
        assert call(*flags, f"--workdir={outside}/cut") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not (outside / "cut" / "manifest.json").exists()
    (outside / "cut" / "figures").mkdir()
    for leftover in (".results.csv.x.tmp", "figures/.units.png.tmp"):
        (outside / "cut" / leftover).write_text("half")
    assert call(*flags, f"--workdir={outside}/cut") == 0
    names = [{str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()} for f in (written, outside / "cut")]
    assert names[0] == names[1]
    assert (outside / "cut" / "manifest.json").read_bytes() == (written / "manifest.json").read_bytes()


def test_rows_are_those_of_an_experiment(written):
    rows = read(written)
    assert tuple(rows.columns) == COLUMNS
    assert (rows["value"].isna() == (rows["reason"] != "")).all()
    names = set(rows["metric"])
    for metric in ("r2", "unique_r2", "shared_r2", "decode", "decode_nonlinear", "participation", "component_r2", "rsa"):
        assert {metric, f"{metric}_low", f"{metric}_high"} <= names
    again = rows.set_index(["site", "metric", "feature", "other", "at"])["value"]
    assert again.index.is_unique
    assert set(rows[rows["site"] == "flat"]["reason"]) == {"", "constant layer"}
    same = rows[(rows["feature"] == "same") & (rows["site"] == "hidden")]
    assert set(same["reason"]) == {"constant feature"}


def test_what_is_decodable_but_small_is_said(written):
    rows = read(written)
    found = rows[rows["site"] == "hidden"].set_index(["metric", "feature", "at"])["value"].sort_index()
    assert found["decode", "large", ""] > 0.99
    assert found["decode", "xor", ""] < 0.65 < 0.9 < found["decode_nonlinear", "xor", ""]
    assert found["r2", "large", ""] > 0.4
    small = {key for key, value in found["decodable_but_small"].items() if value > 0}
    assert small == {("xor", "nonlinear"), ("target", "linear"), ("target", "nonlinear")}
    for name in ("large", "xor", "target"):
        for metric in ("decode_shuffled", "decode_nonlinear_shuffled"):
            assert found[metric, name, ""] == pytest.approx(0.5, abs=0.12)
        assert found["chance", name, ""] == 0.5
    said = diagnostics.dissociated(rows)
    assert any(s.startswith("hidden: xor is decodable (nonlinear") for s in said)
    assert any(s.startswith(f"{NASTY} is unbalanced") for s in diagnostics.notes(rows))
    assert any("same is constant" in s for s in diagnostics.notes(rows))
    assert not any("converged" in s for s in diagnostics.notes(rows))
    late = rows.assign(value=rows["value"].mask((rows["metric"] == "decode_converged") & (rows["feature"] == "xor"), 0))
    assert sum(s.startswith("hidden: the linear readout of xor has not converged") for s in diagnostics.notes(late)) == 1


def test_the_page_holds_and_does_no_harm(written):
    page = (written / "report.html").read_text()
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert "<b>: 1" not in page
    assert "&lt;b&gt;: 1" in page
    assert "target is decodable (linear" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert page.count("data:image/png") == 5


def test_figures_can_be_read(written):
    drawn = list(external_page.figures(external_page.Numbers(read(written)), 0.9))
    assert [d.name for d in drawn] == ["variance", "readouts", "components", "similarity", "units"]
    for item in drawn:
        assert_readable(item.figure)
        assert len(item.caption) > 80
        assert all(axes.get_xlabel() for axes in item.figure.axes)


def test_from_python_the_same_rows(written, outside):
    table = pd.read_csv(outside / "y.csv").drop(columns="id")
    arrays = dict(np.load(outside / "x.npz"))
    choices = Choices(draws=24)
    rows = repbias_jax.probe_activations(arrays, {n: table[n].tolist() for n in table}, choices=choices)
    np.testing.assert_allclose(rows["value"], read(written)["value"], rtol=1e-6)


def test_arrays_that_do_not_fit_are_refused():
    f = {"f": [0, 1] * 15}
    good = np.random.default_rng(8).normal(size=(30, 2))
    for activations, features in (
        (good[:29], f), (good * np.nan, f), (good.astype(object), f), ({}, f), ({"a b": good}, f),
        ({"a": good[:29].tolist()}, f),
        (good, {"f": [None] * 30}), (good, {**f, "g": [1, 2]}), (good, {}), (np.zeros((30, 0)), f), (np.float64(3), f),
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            repbias_jax.probe_activations(activations, features)


def masked(values, place):
    """A masked array with one masked cell."""
    made = np.ma.array(values)
    made[place] = np.ma.masked
    return made


GOOD_ROWS = np.random.default_rng(8).normal(size=(30, 2))
BAD_ACTIVATIONS = {
    "masked": (masked(GOOD_ROWS, (3, 1)), "activations activations: masked values"),
    "masked in a list": ([masked(row, 0) for row in GOOD_ROWS], "activations activations: masked values"),
    "ragged": ([[1.0, 2.0]] * 29 + [[1.0]], "activations activations: setting an array element"),
}


@pytest.mark.parametrize("name", list(BAD_ACTIVATIONS))
def test_activations_that_are_no_array_are_refused(name):
    activations, expected = BAD_ACTIVATIONS[name]
    for fn in (repbias_jax.variance_explained, repbias_jax.probe_activations):
        with pytest.raises(ConfigError, match=expected) as caught:
            fn(activations, {"f": [0, 1] * 15})
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=expected.replace("activations:", "mine:")):
        repbias_jax.probe_activations({"mine": activations}, {"f": [0, 1] * 15})


def test_a_mask_without_masked_cells_is_no_fault():
    plain, within = (repbias_jax.variance_explained(a, {"f": [0, 1] * 15}) for a in (GOOD_ROWS, np.ma.array(GOOD_ROWS)))
    assert plain == within


class Hashless:
    """Equal to nothing, and without a hash."""

    __hash__ = None  # pyright: ignore[reportAssignmentType]


BAD_ARGUMENTS = {
    "names that collide": ({"features": {1: [0, 1] * 15, "1": [0, 1] * 15}}, "feature 1: two features have this name"),
    "features of unlike shapes": ({"features": {"f": [np.zeros((2, 3)), np.zeros((2, 4))]}}, "feature f: values that make"),
    "a name of two lines": ({"features": {"a\nb": [np.nan] * 30}}, "features: name 'a.nb'"),
    "no categorical": ({"categorical": None}, "categorical: None; expected a list of names"),
    "one categorical": ({"categorical": "f"}, "categorical: 'f'; expected a list of names"),
    "a number as categorical": ({"categorical": 3}, "categorical: 3; expected a list of names"),
    "numbers as continuous": ({"continuous": [1]}, r"continuous: \[1\]; expected a list of names"),
    "lists as continuous": ({"continuous": [["f"]]}, "continuous: .* expected a list of names"),
    "a table as continuous": ({"continuous": np.eye(2)}, "continuous: .* expected a list of names"),
    "no continuous": ({"continuous": None}, "continuous: None; expected a list of names"),
    "a ragged split": ({"split": [[0], [0, 1]] * 15}, "split: values that make no array; expected fit or score"),
    "a split of objects": ({"split": [Hashless()] * 30}, "split: .* expected fit or score"),
    "a split of sets": ({"split": [set()] * 30}, r"split: 'set\(\)'; expected fit or score"),
    "a split in a word": ({"split": "fit"}, r"split: values of shape \(\)"),
    "a masked split": ({"split": masked([0, 1] * 15, 3)}, "split: masked values"),
}


@pytest.mark.parametrize("name", list(BAD_ARGUMENTS))
def test_arguments_of_the_wrong_kind_are_refused(name):
    more, expected = BAD_ARGUMENTS[name]
    for fn in (repbias_jax.variance_explained, repbias_jax.probe_activations):
        with pytest.raises(ConfigError, match=expected) as caught:
            fn(GOOD_ROWS, **{"features": {"f": [0, 1] * 15}, **more})
        assert "\n" not in str(caught.value)


def test_arrays_whose_names_collide_are_refused():
    with pytest.raises(ConfigError, match="two arrays have the same name"):
        repbias_jax.probe_activations({1: GOOD_ROWS, "1": GOOD_ROWS}, {"f": [0, 1] * 15})  # pyright: ignore


BAD_CHOICES = {
    "no choices": (None, "choices: NoneType; expected repbias_jax.external.Choices"),
    "a tuple": ((20, 0.9, 0.05), "choices: tuple"),
    "few draws": (Choices(draws=19), "draws=19; expected a whole number of at least 20"),
    "half a draw": (Choices(draws=20.5), "draws=20.5; expected a whole number"),  # pyright: ignore
    "draws as text": (Choices(draws="20"), "draws='20'; expected a whole number"),  # pyright: ignore
    "decodable NaN": (Choices(20, decodable=np.nan), "decodable=nan; expected a number from 0 to 1"),
    "decodable in percent": (Choices(20, decodable=90), "decodable=90; expected a number from 0 to 1"),
    "small infinite": (Choices(20, small=np.inf), "small=inf; expected a number from 0 to 1"),
    "small below 0": (Choices(20, small=-0.1), "small=-0.1; expected a number from 0 to 1"),
    "small is a table": (Choices(20, small=np.eye(3)), "small=array.* expected a number from 0 to 1"),  # pyright: ignore
    "no small": (Choices(20, small=None), "small=None; expected a number from 0 to 1"),  # pyright: ignore
}


@pytest.mark.parametrize("name", list(BAD_CHOICES))
def test_choices_out_of_range_are_refused(name):
    choices, expected = BAD_CHOICES[name]
    with pytest.raises(ConfigError, match=expected) as caught:
        repbias_jax.probe_activations(GOOD_ROWS, {"f": [0, 1] * 15}, choices=choices)
    assert "\n" not in str(caught.value)


def test_choices_may_be_numbers_of_numpy():
    external.check_choices(Choices(np.int64(20), np.float32(0.5), np.float64(1)))  # pyright: ignore


BAD_FLAGS = {
    "no activations": (("--activations=",), "--activations is missing"),
    "unknown flag": (("--activatons=x",), "Unknown command line flag"),
    "loose argument": (("x.npz",), "unexpected argument x.npz"),
    "no such file": (("--activations=/nowhere/x.npy",), "cannot be read"),
    "another kind of file": (("--activations=x.mat",), "unknown kind of file"),
    "no such site": (("--sites=gone",), "--sites=gone: no such array"),
    "no such column": (("--ignore=gone",), "--ignore=gone: no such column"),
    "no such split": (("--split=gone",), "--split=gone: no such column"),
    "a split of other words": (("--split=large",), "expected fit or score"),
    "nothing left": (("--ignore=large,xor,target,a.bit0,rest,same,id",), "0 features"),
    "no number": (("--draws=many",), "draws"),
    "too few draws": (("--draws=1",), "draws"),
    "above one": (("--decodable=90",), "decodable"),
    "decodable NaN": (("--decodable=nan",), "--decodable=nan: expected a finite number"),
    "small NaN": (("--small=nan",), "--small=nan: expected a finite number"),
    "small infinite": (("--small=inf",), "small"),
    "small above all": (("--small=101",), "small"),
    "continuous text": (("--continuous=same",), "is no number"),
    "an id as a feature": (("--categorical=id",), "400 classes"),
}


@pytest.mark.parametrize("name", list(BAD_FLAGS))
def test_bad_input_is_one_line_and_nothing_is_written(name, outside, tmp_path, capsys):
    more, expected = BAD_FLAGS[name]
    files = (f"--activations={outside}/x.npz", f"--features={outside}/y.csv", f"--workdir={tmp_path}/out")
    assert call(*files, *more) == 2
    printed = capsys.readouterr()
    assert expected in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not (tmp_path / "out").exists()


def test_a_workdir_that_cannot_be_made_is_refused_before_anything_is_measured(outside, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(external, "probe", lambda *_: pytest.fail("measured"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "figures").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    places = {
        tmp_path / "file": "is a file", tmp_path / "file" / "out": "is a file", tmp_path / "half": "is a file",
        tmp_path / "link": "is a link to nothing", tmp_path / "link" / "out": "is a link to nothing",
        tmp_path / ("n" * 300): "cannot be written", "/proc/x": "cannot be written", "/proc/x/y": "cannot be written",
    }  # fmt: skip
    for place, expected in places.items():
        assert call(f"--activations={outside}/x.npz", f"--features={outside}/y.csv", f"--workdir={place}") == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("error: --workdir=")
        assert expected in printed.err
        assert printed.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_help_and_interruption(outside, tmp_path, capsys, monkeypatch):
    assert call("--help") == 0
    assert "--decodable" in capsys.readouterr().out
    monkeypatch.setattr(probe, "catch_signals", lambda: lambda: True)
    files = (f"--activations={outside}/x.npz", f"--features={outside}/y.csv", f"--workdir={tmp_path}/out")
    assert call(*files) == 75
    assert "nothing is written" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_example_of_build_runs(tmp_path, cache):
    """The two blocks as they stand, in a folder of this test: digits through scikit-learn's own network."""
    section = BUILD.partition("## Your own activations")[2]
    (code,), (line,) = fenced(section, "python"), fenced(section, "bash")
    code, line = (text.replace("/tmp/digits", f"{tmp_path}/digits") for text in (code, line))
    more = {"JAX_COMPILATION_CACHE_DIR": f"{cache}/jax-{jax.__version__}"}
    more["PATH"] = f"{sys.prefix}/bin:{os.environ['PATH']}"
    for words in ([sys.executable, "-c", code], ["bash", "-ec", line]):
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ | more)
        assert done.returncode == 0, done.stderr
    assert "digit and odd (1.00)" in done.stdout
    rows = read(tmp_path / "digits")
    found = rows.set_index(["site", "metric", "feature", "at"])["value"].sort_index()
    assert found["trained", "r2", "digit", ""] > found["untrained", "r2", "digit", ""] + 0.1
    assert found["trained", "decode", "digit", ""] > 0.95
    assert found["trained", "unique_r2", "odd", ""] == pytest.approx(0, abs=1e-3)
    assert (tmp_path / "digits" / "report.html").stat().st_size > 1e5


def test_readouts_are_weighted_like_repeated_examples():
    rng = np.random.default_rng(10)
    codes, said = rng.integers(0, 3, (2, 60))
    counts = rng.multinomial(60, np.full(60, 1 / 60), size=5)
    hot = codes[:, None] == np.arange(3)
    found = readouts._balanced(counts, said == codes, hot)
    for own, value in zip(counts, found, strict=True):
        c, s = np.repeat(codes, own), np.repeat(said, own)
        assert value == pytest.approx(np.mean([np.mean(s[c == k] == k) for k in np.unique(c)]))
    skewed = Feature("x", "continuous", np.r_[np.zeros(30), np.arange(10.0)], ())
    codes, number = design.class_codes(skewed, (np.arange(0, 40, 2), np.arange(1, 40, 2)))
    assert (number, codes.sum()) == (2, 9)


def alternating():
    """600 trials in an order with a period: a number, a class that alternates by row, and activations of both."""
    rng = np.random.default_rng(0)
    x, f = rng.normal(size=600), np.arange(600) % 2
    phi = rng.normal(size=(600, 64))
    phi[:, :16] += 0.8 * x[:, None]
    phi[:, 16:32] += 0.8 * f[:, None]
    return phi, {"x": x, "alternating": f, "target": f, "a.bit0": f, "twin_a": rng.integers(0, 3, 600)}


@pytest.mark.parametrize("given", [False, True])
def test_both_public_functions_agree_to_the_bit(given):
    """The same halves, the same kinds of features, the same numbers, whatever the features are called."""
    phi, features = alternating()
    split = np.where(np.arange(600) < 250, "fit", "score") if given else None
    found = repbias_jax.variance_explained(phi, features, split)
    rows = repbias_jax.probe_activations(phi, features, split, choices=Choices(draws=20))
    table = rows[rows["probe"] == "variance"].set_index(["metric", "feature"])["value"]
    for name, values in found.items():
        assert list(values) == ["r2", "variance", "r2_per_unit", "r2_per_example", "null", "null_low", "null_high"]
        for metric, value in values.items():
            assert np.isfinite(value)
            assert value == table[metric, name], (name, metric)
    assert found["target"] == found["a.bit0"] == found["alternating"]
    total = 64 + 16 * 0.64 + 16 * 0.16
    assert found["x"]["r2"] == pytest.approx(16 * 0.64 / total, abs=0.03)
    assert found["alternating"]["r2"] == pytest.approx(16 * 0.16 / total, abs=0.02)
    if given:
        assert repbias_jax.variance_explained(phi, features, (np.arange(600) >= 250).astype(int)) == found


@pytest.mark.parametrize("name", ["x", "twin_a"])
def test_ratios_by_hand(name):
    """r2, the mean of the units' own ratios and that of the examples' own ratios, against scikit-learn in float64."""
    phi, features = alternating()
    found = repbias_jax.variance_explained(phi, features)[name]
    fit, score = design.halves(600)
    values = np.asarray(features[name])
    columns = values[:, None] if name == "x" else (values[:, None] == np.arange(1, 3)).astype(float)
    left = phi[score] - LinearRegression().fit(columns[fit], phi[fit]).predict(columns[score])
    about = phi[score] - phi[fit].mean(0)
    assert found["r2"] == pytest.approx(1 - np.square(left).sum() / np.square(about).sum(), abs=1e-5)
    by_unit, by_example = (1 - np.square(left).sum(a) / np.square(about).sum(a) for a in (0, 1))
    assert found["r2_per_unit"] == pytest.approx(by_unit.mean(), abs=1e-5)
    assert found["r2_per_example"] == pytest.approx(by_example.mean(), abs=1e-5)
    assert found["variance"] == pytest.approx((np.square(about).sum() - np.square(left).sum()) / len(score), rel=1e-4)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.where(np.arange(600) % 7 == 0, np.nan, 1.0), "example 0 has no value"),
        ([None, *range(599)], "example 0 has no value"),
        ([*range(599), np.inf], "example 599 is inf"),
        ([1] * 600, "constant in one half"),
        ([f"word{i}" for i in range(600)], "600 classes; expected at most 50"),
        (np.zeros((600, 2)), "values of shape"),
        (masked(np.arange(600.0), 7), "example 7 has no value"),
        (masked(["a", "b"] * 300, 7), "example 7 has no value"),
        (list(masked(np.arange(600) % 2, 7)), "example 7 has no value"),
        ([0.5, 1 + 2j] * 300, "example 1 is a complex number; expected real numbers"),
        (np.arange(600) % 2 * np.complex64(1), "example 0 is a complex number"),
        ([Decimal(1), Decimal("NaN")] * 300, "example 1 has no value"),
        ([Decimal(1), Decimal("-sNaN")] * 300, "example 1 has no value"),
        ([Decimal(1), Decimal("-Infinity")] * 300, "example 1 is -inf"),
        ([Decimal(1), Decimal("1e400")] * 300, "example 1 is inf"),
        ([1, Fraction(10**400)] * 300, "example 1 is too large a number"),
        ([1, 10**5000] * 300, "example 1 is too large a number"),
    ],
)
def test_features_that_cannot_be_measured_are_named(values, expected):
    phi, features = alternating()
    with pytest.raises(ConfigError, match=expected) as caught:
        repbias_jax.variance_explained(phi, features | {"odd_one": values})
    assert "odd_one" in str(caught.value)


def test_features_without_names_are_refused():
    with pytest.raises(ConfigError, match="features: ndarray; expected a mapping of names to values"):
        repbias_jax.variance_explained(np.ones((40, 3)), np.arange(40) % 2)  # pyright: ignore[reportArgumentType]


def test_a_layer_that_does_not_vary_has_no_number():
    found = repbias_jax.variance_explained(np.ones((40, 3)), {"f": np.arange(40) // 2 % 2})
    assert np.isnan(list(found["f"].values())).all()


@pytest.mark.parametrize(("count", "units", "coding"), [(300, 512, 50), (300, 2000, 50), (300, 8, 4), (400, 3, 0)])
def test_intervals_cover_what_they_promise(count, units, coding):
    """Over 40 data sets: every interval of r2 holds its own estimate, and at least 88 % hold each of two truths.

    These are the r2 of the population, and the one to be expected of a fit to so many examples, which is smaller by
    (C - 1) / N_fit. Of many units the loss is larger than the spread of the estimates.
    """
    truth, within = coding / 4 / (units + coding / 4), []
    reached = truth - (1 - truth) / (count // 2)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        f = rng.permutation(np.arange(count) % 2)
        phi = rng.normal(size=(count, units))
        phi[:, :coding] += f[:, None]
        found = measured(phi.astype(np.float32), [feature("f", f)], draws=100)
        for metric in ("r2", "unique_r2", "joint_r2", "participation", "selective_share"):
            name = Measured(metric, "" if metric == "joint_r2" else "f")
            low, high = (found[name._replace(metric=f"{metric}_{end}")] for end in ("low", "high"))
            assert low <= found[name] <= high, metric
            if metric == "r2":
                within.append((low <= truth <= high, low <= reached <= high, high - low))
    assert np.mean(within, axis=0)[:2] == pytest.approx(1, abs=0.12)
    assert np.mean(within, axis=0)[2] < 0.1 + truth / 2  # and says something


def test_the_figure_draws_the_interval_of_the_table(monkeypatch):
    drawn, axes = [], external_page.draw.grid(1, 1, 3, 2)[1].flat[0]
    monkeypatch.setattr(axes, "errorbar", lambda x, y, xerr, **_: drawn.append((x - xerr[0], x, x + xerr[1])))
    found = np.array([[0.3, 0.1], [0.2, 0.1], [0.35, 0.4]])
    external_page._marks(axes, np.arange(2.0), found, "r2", {"color": "k", "marker": "o"})
    low, value, high = drawn[0]
    np.testing.assert_allclose([value, low, high], found)


def test_wide_layers_are_fitted_in_the_span_of_their_examples(monkeypatch):
    """The same readouts as by solving for every unit."""
    rng = np.random.default_rng(12)
    y = rng.integers(0, 2, (2, 60))
    x = jnp.asarray(rng.normal(size=(60, 120)) + 1.5 * y[0][:, None] * (np.arange(120) < 8), jnp.float32)
    targets = logistic.columns(jnp.asarray(y), 2)

    def fitted():
        l2, converged = logistic.cross_validated(x, targets)
        readout = logistic.readouts(x, targets, l2)
        return l2, converged, readout

    monkeypatch.setattr(logistic, "WIDE", 64)
    assert logistic._basis(jnp.ones((60, 121))).shape == (120, 60)
    span = jax.jit(fitted)()
    monkeypatch.setattr(logistic, "WIDE", 10_000)
    whole = jax.jit(lambda: fitted())()
    np.testing.assert_array_equal(span[0], whole[0])
    assert span[1].all()
    assert span[2].converged.all()
    np.testing.assert_allclose(span[2].weights, whole[2].weights, atol=2e-4)
    np.testing.assert_allclose(span[2].intercept, whole[2].intercept, atol=2e-4)


def test_far_more_units_than_examples_take_little_memory(tmp_path):
    """200 examples of 20,000 units by the command, in under 4 GB: a matrix of units by units alone has 1.6."""
    rng = np.random.default_rng(13)
    f = rng.integers(0, 2, 200)
    phi = rng.normal(size=(200, 20_000)).astype(np.float32)
    phi[:, :50] += 1.5 * f[:, None]
    np.save(tmp_path / "x.npy", phi)
    (tmp_path / "y.csv").write_text("f\n" + "\n".join(map(str, f)) + "\n")
    code = "import sys; from repbias_jax import probe; probe.parse(sys.argv); code = probe.run(); "
    code += "print(*[x.split()[1] for x in open('/proc/self/status') if 'VmHWM' in x]); sys.exit(code)"
    words = [sys.executable, "-c", code, f"--activations={tmp_path}/x.npy", f"--features={tmp_path}/y.csv", "--draws=40"]
    done = subprocess.run([*words, f"--workdir={tmp_path}/out"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 4e6  # kilobytes; ru_maxrss would count what this test's own process had, too
    found = read(tmp_path / "out").set_index(["metric", "feature", "at"])["value"].sort_index()
    assert found["decode_converged", "f", ""] == 1
    assert found["r2", "f", ""] < found["r2_high", "f", ""]
