"""The main measure against slow twins, its invariances, and the traps on the way to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import acting, probed, roles_of
from sklearn.linear_model import LinearRegression

import repbias_jax
from repbias_jax.config import ConfigError, Factor
from repbias_jax.probes import PROBES, decoding, readout
from repbias_jax.probes.moments import Measured, whole_factors
from repbias_jax.probes.variance import partition, variance, walsh


@pytest.fixture(autouse=True)
def _strict_dtypes():
    """No number changes its type unasked."""
    with jax.numpy_dtype_promotion("strict"):
        yield


RNG = np.random.default_rng(7)
run_variance = probed(variance)
run_walsh, run_partition = probed(walsh), probed(partition)


def planted(n=1024, d=24, values=2, offset=0.0, rate=0.5, rng=RNG):
    """Activations in which `a` explains a lot, `b` little and `c` nothing; half to fit, half to score."""
    factors = {name: rng.choice(values, 2 * n, p=_rates(values, rate)) for name in "abc"}
    code = {name: rng.normal(size=(values, d)) for name in "ab"}
    phi = 2 * code["a"][factors["a"]] + 0.4 * code["b"][factors["b"]] + rng.normal(size=(2 * n, d)) + offset
    return phi.astype(np.float32), {k: v.astype(np.int32) for k, v in factors.items()}


def _rates(values, rate):
    return [1 - rate, rate] if values == 2 else np.full(values, 1 / values)


def sides(phi, factors):
    half = len(phi) // 2
    return [
        (jnp.asarray(phi[s]), {n: jnp.asarray(v[s]) for n, v in factors.items()}) for s in (slice(half), slice(half, None))
    ]


def twin_r2(phi, code):
    """r2 by the book, in float64: the fit set's class means predict the score set, both about the fit set's mean."""
    phi, half = np.asarray(phi, np.float64), len(phi) // 2
    middle = phi[:half].mean(0)
    guess = np.stack([phi[:half][code[:half] == c].mean(0) for c in np.unique(code)])
    rank = {c: i for i, c in enumerate(np.unique(code))}
    sse = sum(np.square(x - guess[rank[c]]).sum() for x, c in zip(phi[half:], code[half:], strict=True))
    return 1 - sse / np.square(phi[half:] - middle).sum()


def oracle_r2(phi, code):
    """scikit-learn's LinearRegression on one-hot columns, and our own ratio."""
    phi, half = np.asarray(phi, np.float64), len(phi) // 2
    hot = (code[:, None] == np.unique(code)[None]).astype(float)[:, 1:]
    model = LinearRegression().fit(hot[:half], phi[:half])
    sse = np.square(phi[half:] - model.predict(hot[half:])).sum()
    return 1 - sse / np.square(phi[half:] - phi[:half].mean(0)).sum()


@pytest.mark.parametrize(("values", "rate", "offset"), [(2, 0.5, 0), (2, 0.05, 0), (2, 0.95, 0), (5, 0, 0), (2, 0.5, 300)])
def test_equals_a_float64_twin_and_scikit_learn(values, rate, offset):
    phi, factors = planted(values=values, rate=rate, offset=offset, rng=np.random.default_rng(1))
    found = run_variance(*sides(phi, factors), values)
    for name, code in factors.items():
        assert found[Measured("r2", name)] == pytest.approx(twin_r2(phi, code), abs=1e-5)
        assert found[Measured("r2", name)] == pytest.approx(oracle_r2(phi, code), abs=1e-5)


def test_equals_the_twin_on_trained_activations(smoke):
    results = repbias_jax.load(smoke)
    checked = 0
    for setting in ("sgd.joint", "sgd.ladder", "sgd.composed"):
        for seed, phi, factors in results.activations(setting):
            for name in results.outputs(setting):
                stored = results.values(setting, "r2", name)[seed]
                assert stored == pytest.approx(twin_r2(phi[-1], factors[name]), abs=1e-5)
                assert stored == pytest.approx(oracle_r2(phi[-1], factors[name]), abs=1e-5)
                checked += 1
    assert checked == 2 * (2 + 4 + 2)


def test_binary_formula():
    """In sample, r2 of a binary feature is p (1 - p) |d|^2 / tr(S)."""
    phi, factors = planted(rate=0.2, rng=np.random.default_rng(2))
    half, code = len(phi) // 2, factors["a"]
    fit = sides(phi, factors)[0]
    p, x = code[:half].mean(), phi[:half].astype(np.float64)
    d = x[code[:half] == 1].mean(0) - x[code[:half] == 0].mean(0)
    expected = p * (1 - p) * d @ d / np.square(x - x.mean(0)).sum() * half
    assert run_variance(fit, fit, 2)[Measured("r2", "a")] == pytest.approx(expected, abs=1e-5)


def rotation(d, rng):
    return np.linalg.qr(rng.normal(size=(d, d)))[0].astype(np.float32)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6), st.floats(0.01, 100))
def test_r2_is_invariant_to_rotation_shift_and_scale_and_to_nothing_else(seed, scale):
    rng = np.random.default_rng(seed)
    phi, factors = planted(n=256, d=8, rng=np.random.default_rng(3))
    before = run_variance(*sides(phi, factors), 2)
    moved = (phi @ rotation(8, rng) * scale + rng.normal(size=8) * scale).astype(np.float32)
    after = run_variance(*sides(moved, factors), 2)
    for name in "abc":
        assert after[Measured("r2", name)] == pytest.approx(float(before[Measured("r2", name)]), abs=2e-4)
        ratio = after[Measured("variance", name)] / before[Measured("variance", name)]
        assert ratio == pytest.approx(scale**2, rel=2e-2 if name == "c" else 1e-3)
    stretched = phi * np.linspace(1, 10, 8, dtype=np.float32)
    other = run_variance(*sides(stretched, factors), 2)
    assert abs(other[Measured("r2", "a")] - before[Measured("r2", "a")]) > 0.01
    assert other[Measured("r2_per_unit", "a")] == pytest.approx(float(before[Measured("r2_per_unit", "a")]), abs=1e-4)


def test_perfect_is_one_and_random_is_the_null():
    rng = np.random.default_rng(4)
    code = rng.integers(0, 2, 2048)
    perfect = np.where(code[:, None] == 1, 3.0, -1.0) * np.ones((1, 6)) + 5
    found = run_variance(*sides(perfect.astype(np.float32), {"f": code.astype(np.int32)}), 2)
    assert found[Measured("r2", "f")] == pytest.approx(1, abs=1e-5)
    values, nulls = [], []
    for _ in range(40):
        noise = rng.normal(size=(1024, 64)).astype(np.float32)
        found = run_variance(*sides(noise, {"f": rng.integers(0, 4, 1024).astype(np.int32)}), 4)
        values.append(float(found[Measured("r2", "f")]))
        nulls.append(float(found[Measured("null", "f")]))
    assert nulls[0] == pytest.approx(-3 / 512)
    assert np.mean(values) == pytest.approx(-3 / 512, abs=4 * np.std(values) / np.sqrt(40))


def test_the_permutation_band_holds_random_labels():
    rng = np.random.default_rng(5)
    phi, _ = planted(rng=rng)
    inside = []
    for _ in range(60):
        code = rng.integers(0, 2, len(phi)).astype(np.int32)
        found = run_variance(*sides(phi, {"f": code}), 2)
        inside.append(found[Measured("null_low", "f")] <= found[Measured("r2", "f")] <= found[Measured("null_high", "f")])
    assert 0.8 <= np.mean(inside) <= 1


@pytest.mark.parametrize("p", [0.05, 0.19, 0.95])
def test_trap_missing_intercept(p):
    """Without an intercept 0/1 coding 'finds' 1-p and +/-0.5 coding 4p(1-p) of a perfect code; ours finds all of it."""
    rng = np.random.default_rng(6)
    code = np.zeros(4000, np.int32)
    code[rng.permutation(4000)[: int(p * 4000)]] = 1
    phi = np.repeat(code[:, None].astype(float), 3, 1)
    centred = phi - phi.mean(0)
    for coded, share in ((code.astype(float), 1 - p), (code - 0.5, 4 * p * (1 - p))):
        weights = coded @ centred / (coded @ coded)
        without = 1 - np.square(centred - coded[:, None] * weights).sum() / np.square(centred).sum()
        assert without == pytest.approx(share, abs=0.01)
    mixed = rng.permutation(4000)
    found = run_variance(*sides(phi[mixed].astype(np.float32), {"f": code[mixed]}), 2)
    assert found[Measured("r2", "f")] == pytest.approx(1, abs=1e-4)


def test_trap_natural_sets_carry_p_times_one_minus_p():
    """The same code at prevalence .05 and .5: natural r2 falls by the arithmetic factor, the balanced one does not."""
    rng, r2 = np.random.default_rng(8), {}
    for p in (0.05, 0.5):
        code = (rng.random(20_000) < p).astype(np.int32)
        phi = (code[:, None] + rng.normal(size=(20_000, 4))).astype(np.float32)
        r2[p] = float(run_variance(*sides(phi, {"f": code}), 2)[Measured("r2", "f")])
    assert r2[0.05] == pytest.approx(0.05 * 0.95 / (0.05 * 0.95 + 1), abs=0.01)
    assert r2[0.5] == pytest.approx(0.25 / 1.25, abs=0.01)


def test_trap_constant_layer_or_feature_has_no_value():
    phi, factors = planted(n=64, d=4)
    found = run_variance(*sides(np.full_like(phi, 0.1), factors), 2)
    assert np.isnan(found[Measured("r2", "a")])
    assert found[Measured("total_variance")] < 1e-9
    assert np.isnan(run_partition(*sides(np.full_like(phi, 0.1), factors), 2)[Measured("joint_r2")])
    found = run_variance(*sides(phi, factors | {"a": np.ones_like(factors["a"])}), 2)
    assert np.isnan(found[Measured("r2", "a")])
    assert np.isfinite(found[Measured("r2", "b")])


def crossed(seed=0, bits=5, repeats=8):
    rng = np.random.default_rng(seed)
    table = (np.arange(2**bits)[:, None] >> np.arange(bits)) & 1
    rows = np.concatenate([np.tile(table, (repeats, 1))] * 2)
    factors = {"e.bit0": rows[:, 0], **{f"h.bit{i}": rows[:, i + 1] for i in range(bits - 1)}}
    factors |= {"e": rows[:, 0], "h": rows[:, 1:].sum(1) % 2}
    phi = rng.normal(size=(len(rows), 12)) * 0.5
    for weight, code in (
        (1.0, factors["e"]),
        (0.7, factors["h"]),
        (0.5, rows[:, 1] ^ rows[:, 2]),
        (0.6, rows[:, 0] ^ rows[:, 3]),
    ):
        phi += weight * code[:, None] * rng.normal(size=(1, 12))
    return phi.astype(np.float32), {k: v.astype(np.int32) for k, v in factors.items()}


def test_walsh_partition_adds_up_and_agrees_with_the_features():
    phi, factors = crossed()
    found = run_walsh(*sides(phi, factors))
    shares = {k: float(v) for k, v in found.items() if k.metric == "walsh_r2"}
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    single = run_variance(*sides(phi, factors), 2)
    assert shares[Measured("walsh_r2", "h", at="4")] == pytest.approx(float(single[Measured("r2", "h")]), abs=1e-5)
    assert shares[Measured("walsh_r2", "e", at="1")] == pytest.approx(float(single[Measured("r2", "e")]), abs=1e-5)
    assert shares[Measured("walsh_r2", "h", at="2")] > 0.02
    assert shares[Measured("walsh_r2", "across", at="2")] > 0.02
    assert found[Measured("walsh_null", "h", at="2")] == pytest.approx(-6 / 256)
    assert run_walsh(*sides(phi, {"h": factors["h"]})) == {}


def test_walsh_equals_a_float64_twin():
    phi, factors = crossed(seed=3)
    half, x = len(phi) // 2, phi.astype(np.float64)
    names = sorted(n for n in factors if ".bit" in n)
    signs = 1.0 - 2.0 * np.stack([factors[n] for n in names], 1)
    centred, total = x - x[:half].mean(0), 0.0
    for subset in range(1, 2**5):
        chosen = [i for i in range(5) if subset >> i & 1]
        if all(names[i].startswith("h") for i in chosen) and len(chosen) == 2:
            w = np.prod(signs[:, chosen], axis=1)
            weights = w[:half] @ centred[:half] / half
            left = centred[half:] - w[half:, None] * weights
            total += 1 - np.square(left).sum() / np.square(centred[half:]).sum()
    assert run_walsh(*sides(phi, factors))[Measured("walsh_r2", "h", at="2")] == pytest.approx(total, abs=1e-5)


def test_partition_of_independent_and_of_copied_features():
    phi, factors = crossed()
    plain = {n: v for n, v in factors.items() if ".bit" not in n}
    single, joint = run_variance(*sides(phi, plain), 2), run_partition(*sides(phi, plain), 2)
    for name in plain:
        assert joint[Measured("unique_r2", name)] == pytest.approx(float(single[Measured("r2", name)]), abs=1e-5)
        assert abs(joint[Measured("shared_r2", name)]) < 1e-5
    copied = run_partition(*sides(phi, {"e": plain["e"], "copy": plain["e"]}), 2)
    assert abs(copied[Measured("unique_r2", "e")]) < 1e-4
    assert copied[Measured("shared_r2", "e")] == pytest.approx(float(single[Measured("r2", "e")]), abs=1e-4)


def test_joint_regression_equals_scikit_learn_where_features_correlate():
    rng = np.random.default_rng(9)
    a = rng.integers(0, 3, 2000)
    b = np.where(rng.random(2000) < 0.6, a > 0, rng.random(2000) < 0.3).astype(int)
    phi = (rng.normal(size=(3, 9))[a] + rng.normal(size=(2, 9))[b] + rng.normal(size=(2000, 9))).astype(np.float32)
    found = run_partition(*sides(phi, {"a": a.astype(np.int32), "b": b.astype(np.int32)}), 3)

    def r2(*codes):
        hot = np.concatenate([(c[:, None] == np.unique(c)[None])[:, 1:] for c in codes], 1).astype(float)
        fit = LinearRegression().fit(hot[:1000], phi[:1000])
        return 1 - np.square(phi[1000:] - fit.predict(hot[1000:])).sum() / np.square(phi[1000:] - phi[:1000].mean(0)).sum()

    assert found[Measured("joint_r2")] == pytest.approx(r2(a, b), abs=1e-5)
    assert found[Measured("unique_r2", "a")] == pytest.approx(r2(a, b) - r2(b), abs=1e-5)
    assert found[Measured("shared_r2", "b")] == pytest.approx(r2(b) - (r2(a, b) - r2(a)), abs=1e-5)


def test_sums_of_single_r2_exceed_one_where_features_correlate():
    code = np.random.default_rng(1).integers(0, 2, 1000).astype(np.int32)
    found = run_variance(*sides(code[:, None].astype(np.float32), {"a": code, "b": code}), 2)
    assert found[Measured("r2", "a")] + found[Measured("r2", "b")] > 1.9


def test_readout_norm_is_that_of_the_weights():
    rng = np.random.default_rng(10)
    w = rng.normal(size=(2, 6, 2)).astype(np.float32)
    phi = rng.normal(size=(64, 6)).astype(np.float32)
    factors = {"e": rng.integers(0, 2, 64), "h": rng.integers(0, 2, 64)}
    finish = lambda x: {"e": x @ w[0], "h": x @ w[1]}  # noqa: E731
    found = acting(readout.readout, finish)(*sides(phi, factors))
    for o, name in enumerate("eh"):
        assert found[Measured("readout_norm", name)] == pytest.approx(np.linalg.norm(w[o, :, 1] - w[o, :, 0]), rel=1e-5)
        logits, label = phi[32:] @ w[o], factors[name][32:]
        expected = np.mean(logits[np.arange(32), label] - logits[np.arange(32), 1 - label])
        assert found[Measured("margin", name)] == pytest.approx(expected, rel=1e-4)


def test_public_function_agrees_and_refuses():
    phi, factors = planted(offset=1000.0, rng=np.random.default_rng(11))
    split = np.repeat([0, 1], len(phi) // 2)
    words = {"a": np.asarray(["no", "yes"])[factors["a"]]}
    found = repbias_jax.variance_explained(phi, words, split)
    assert found["a"]["r2"] == pytest.approx(twin_r2(phi, factors["a"]), abs=1e-5)
    assert found["a"]["null_low"] < 0 < found["a"]["null_high"] < 0.02
    assert repbias_jax.variance_explained(phi, words)["a"]["r2"] == pytest.approx(found["a"]["r2"], abs=0.03)
    with pytest.raises(ConfigError, match="finite"):
        repbias_jax.variance_explained(np.full((len(phi), 2), np.nan), words)
    with pytest.raises(ConfigError, match=r"expected real numbers \[25"):
        repbias_jax.variance_explained(phi, {"a": factors["a"][:25]})
    with pytest.raises(ConfigError, match="split"):
        repbias_jax.variance_explained(phi, words, np.zeros(len(phi)))


def test_r2_per_example_equals_a_float64_twin():
    """The mean over examples of each example's own ratio, about the fit set's mean."""
    phi, factors = planted(n=400, d=6, rng=np.random.default_rng(3))
    found = run_variance(*sides(phi, factors), 2)
    x, half = np.asarray(phi, np.float64), len(phi) // 2
    x = x - x[:half].mean(0)
    for name, code in factors.items():
        means = np.stack([x[:half][code[:half] == c].mean(0) for c in (0, 1)])
        ratios = 1 - np.square(x[half:] - means[code[half:]]).sum(1) / np.square(x[half:]).sum(1)
        assert found[Measured("r2_per_example", name)] == pytest.approx(ratios.mean(), abs=1e-5)


def test_roles_decide_and_names_do_not():
    phi, factors = crossed(seed=8)
    plain = {n: v for n, v in factors.items() if ".bit" not in n}
    odd = dict(zip(("target", "a.bit0"), plain.values(), strict=False))
    roles = {name: Factor(2, "feature") for name in odd}
    fit, score = sides(phi, odd)
    named = variance(fit, score, roles)
    usual = run_variance(*sides(phi, plain), 2)
    for name, other in zip(odd, plain, strict=False):
        assert named[Measured("r2", name)] == pytest.approx(float(usual[Measured("r2", other)]), abs=1e-6)
    assert walsh(fit, score, roles) == {}
    latent = variance(fit, score, {**roles, "target": Factor(2, "latent")})
    assert Measured("r2", "target") not in latent


def test_factors_have_each_their_own_number_of_values():
    rng = np.random.default_rng(9)
    factors = {"three": rng.integers(0, 3, 600).astype(np.int32), "two": rng.integers(0, 2, 600).astype(np.int32)}
    phi = (np.eye(3)[factors["three"]] @ rng.normal(size=(3, 5)) + factors["two"][:, None] * rng.normal(size=5)).astype(
        np.float32
    )
    roles = {"three": Factor(3, "feature"), "two": Factor(2, "feature")}
    fit, score = sides(phi, factors)
    for probe in (variance, partition, decoding.decode):
        found = jax.jit(lambda f, s, p=probe: p(f, s, roles))(fit, score)
        assert all(np.isfinite(v) for v in found.values())
    for name, code in factors.items():
        assert variance(fit, score, roles)[Measured("r2", name)] == pytest.approx(twin_r2(phi, code), abs=1e-5)
    assert decoding.decode(fit, score, roles)[Measured("decode", "three")] == 1


@pytest.mark.parametrize("name", [n for n, p in PROBES.items() if p.kind == "representation"])
def test_contract_every_probe_of_a_representation(name):
    """Under jit and vmap, of one run as of many; finite on random input; documented."""
    function = PROBES[name].function
    phi, factors = crossed(seed=5)
    fit, score = sides(phi, factors)
    alone = probed(function)(fit, score, 2)
    stack = lambda x: jnp.stack([x, x])  # noqa: E731
    many = jax.jit(jax.vmap(lambda f, s: function(f, s, roles_of(f[1]))))(
        jax.tree.map(stack, fit), jax.tree.map(stack, score)
    )
    for key, value in alone.items():
        assert isinstance(key, Measured)
        assert value.shape == ()
        assert np.isfinite(value), key
        np.testing.assert_allclose(many[key], [value, value], atol=1e-5)
    for word in ("Range", "irection", "perfect", "random", "Source"):
        assert word.lower() in function.__doc__.lower(), f"{name} does not say: {word}"


@pytest.mark.parametrize("name", [n for n, p in PROBES.items() if p.kind == "intervention"])
def test_contract_every_intervention(name):
    """Under jit and vmap, of one run as of many; finite on the factors that `measure` passes, no bits; documented."""
    function = PROBES[name].function
    phi, factors = crossed(seed=6)
    factors = {factor: factors[factor] for factor in whole_factors(roles_of(factors))}
    weights = np.random.default_rng(0).normal(size=(2, 12, 2)).astype(np.float32)

    one = acting(function, lambda x: {n: jnp.matmul(x, w) for n, w in zip("eh", weights, strict=True)})

    fit, score = sides(phi, factors)
    alone = jax.jit(one)(fit, score)
    many = jax.jit(jax.vmap(one))(*(jax.tree.map(lambda x: jnp.stack([x, x]), side) for side in (fit, score)))
    assert alone
    for key, value in alone.items():
        assert isinstance(key, Measured)
        assert np.isfinite(value), key
        np.testing.assert_allclose(many[key], [value, value], rtol=1e-5)
    for word in ("Range", "direction", "perfect", "random", "Source"):
        assert word.lower() in function.__doc__.lower(), f"{name} does not say: {word}"


@pytest.mark.parametrize("function", [walsh, partition])
def test_shares_are_invariant_to_rotation_shift_and_scale(function):
    phi, factors = crossed(seed=7)
    factors = factors if function is walsh else {n: v for n, v in factors.items() if ".bit" not in n}
    moved = (7 * phi @ rotation(12, np.random.default_rng(1)) + 3).astype(np.float32)
    before, after = (probed(function)(*sides(x, factors), 2) for x in (phi, moved))
    for key, value in before.items():
        assert after[key] == pytest.approx(float(value), abs=1e-4), key
