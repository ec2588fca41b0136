"""Decoders against scikit-learn, on random and on trained representations, and what they say of planted ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made import acting, probed, roles_of
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

import repbias_jax
from repbias_jax.probes import decoding, logistic
from repbias_jax.probes.moments import Measured, orders
from repbias_jax.probes.readout import balanced_accuracy

EXAMPLE = 1 / 500  # of a class, about, where accuracies may differ by one example


@pytest.fixture(autouse=True)
def _strict_dtypes():
    """No number changes its type unasked."""
    with jax.numpy_dtype_promotion("strict"):
        yield


def sides(phi, factors):
    half = len(phi) // 2
    return [
        (jnp.asarray(phi[s], jnp.float32), {n: jnp.asarray(v[s], jnp.int32) for n, v in factors.items()})
        for s in (slice(half), slice(half, None))
    ]


def planted(n=1024, d=16, seed=0, strengths=(0.7, 0.3), values=2):
    """Units that hold `a` with one strength and `b` with another, in noise; `c` is not there."""
    rng = np.random.default_rng(seed)
    factors = {name: rng.integers(0, values, 2 * n) for name in "abc"}
    code = rng.normal(size=(2, values, d))
    phi = sum(s * code[i][factors[name]] for i, (s, name) in enumerate(zip(strengths, "ab", strict=True)))
    return phi + rng.normal(size=(2 * n, d)) * np.linspace(0.5, 20, d) + 5, factors


@pytest.fixture(scope="module")
def representations(smoke):
    """Random activations, and those of a network before and after a little training: phi `[N, D]`, factors by name."""
    _, trained, factors = next(repbias_jax.load(smoke).activations("sgd.joint", "hidden_0"))
    own = {n: factors[n].astype(np.int32) for n in ("parity1", "parity4")}
    return {"random": planted(), "untrained": (trained[0], own), "trained": (trained[-1], own)}


def scaled(phi, rows):
    """Standardised with the mean and deviation of some rows; what is constant there is left out."""
    deviation = phi[rows].std(0)
    return (phi - phi[rows].mean(0)) / np.where(deviation > 1e-6, deviation, np.inf)


def sklearn_fit(x, y, l2):
    return LogisticRegression(C=1 / l2, solver="newton-cholesky", tol=1e-10, max_iter=1000).fit(x, y)


run_readouts = jax.jit(logistic.readouts)
run_choice = jax.jit(logistic.cross_validated)
run_decode = probed(decoding.decode)
run_nonlinear = probed(decoding.decode_nonlinear)
run_transfer = probed(decoding.transfer)


@pytest.mark.parametrize("kind", ["random", "untrained", "trained"])
@pytest.mark.parametrize("l2", [1.0, 30.0])
def test_logistic_equals_scikit_learn(representations, kind, l2):
    phi, factors = representations[kind]
    half, names = len(phi) // 2, list(factors)
    codes = np.stack([factors[n][:half] for n in names])
    x = jnp.asarray(phi[:half], jnp.float32)
    found = run_readouts(x, logistic.columns(jnp.asarray(codes), 2), jnp.full(len(names), l2))
    said = np.asarray(logistic.predict(found, jnp.asarray(phi[half:], jnp.float32)))
    z = scaled(np.asarray(phi, np.float64), slice(half))
    assert np.asarray(found.converged).tolist() == [1.0] * len(names)
    for f, name in enumerate(names):
        theirs = sklearn_fit(z[:half], codes[f], l2)
        np.testing.assert_allclose(found.weights[f, 0], theirs.coef_[0], atol=1e-3)
        assert found.intercept[f, 0] == pytest.approx(theirs.intercept_[0], abs=1e-3)
        assert abs(int(np.sum(said[f] != theirs.predict(z[half:])))) <= 1, name


def twin(phi, code, rows, score):
    """Cross-validation and last fit by scikit-learn: l2, and what it says of the score rows."""
    losses = []
    for l2 in logistic.GRID:
        total = 0.0
        for train, held in zip(*logistic.folds(len(rows)), strict=True):
            z = scaled(phi, rows[train])
            fitted = sklearn_fit(z[rows[train]], code[rows[train]], l2)
            said = fitted.predict_log_proba(z[rows[held]])
            total -= said[np.arange(len(held)), np.searchsorted(fitted.classes_, code[rows[held]])].sum()
        losses.append(total)
    best = logistic.GRID[int(np.argmin(losses))]
    z = scaled(phi, rows)
    return best, sklearn_fit(z[rows], code[rows], best).predict(z[score])


@pytest.mark.parametrize("kind", ["random", "trained"])
def test_decode_equals_a_slow_twin(representations, kind):
    phi, factors = representations[kind]
    half, phi = len(phi) // 2, np.asarray(phi, np.float64)
    order = orders(half, 0)[1]
    found = run_decode(*sides(phi, factors), 2)
    for name, code in factors.items():
        best, said = twin(phi, code, order, np.arange(half, 2 * half))
        chosen, _ = run_choice(jnp.asarray(phi[order], jnp.float32), logistic.columns(jnp.asarray(code[order])[None], 2))
        assert chosen.tolist() == [best]
        right = balanced_accuracy_score(code[half:], said)
        assert found[Measured("decode", name)] == pytest.approx(right, abs=1.1 / (code[half:].sum() or 1))
        assert found[Measured("decode_converged", name)] == 1


def test_folds_are_disjoint_and_leave_nothing_out():
    train, held = logistic.folds(1026)
    assert train.shape == (4, 770)
    assert np.unique(held).size == held.size == 1024
    for a, b in zip(train, held, strict=True):
        assert sorted([*a, *b]) == list(range(1026))


@pytest.mark.parametrize("l2", [1.0, 100.0])
def test_several_values_are_read_by_one_multinomial_readout(l2):
    """Three values, and a largest number of four: the fourth is never said, and its weights stay zero."""
    phi, factors = planted(values=3, strengths=(2.0, 1.0), seed=1)
    half, code = len(phi) // 2, factors["a"]
    x, z = jnp.asarray(phi[:half], jnp.float32), scaled(phi, slice(half))
    found = run_readouts(x, logistic.columns(jnp.asarray(code[:half])[None], 4), jnp.full(1, l2))
    theirs = sklearn_fit(z[:half], code[:half], l2)
    assert found.converged.tolist() == [1.0]
    np.testing.assert_allclose(found.weights[0, :3], theirs.coef_, atol=1e-3)
    centred = found.intercept[0, :3] - found.intercept[0, :3].mean()
    np.testing.assert_allclose(centred, theirs.intercept_ - theirs.intercept_.mean(), atol=1e-3)
    assert not found.weights[0, 3].any()
    present = jnp.asarray([[True, True, True, False]])
    said = np.asarray(logistic.predict(found, jnp.asarray(phi[half:], jnp.float32), present))[0]
    assert np.sum(said != theirs.predict(z[half:])) <= 1


def test_several_values_are_decoded():
    phi, factors = planted(values=3, strengths=(2.0, 1.0), seed=1)
    half, order = len(phi) // 2, orders(len(phi) // 2, 0)[1]
    found = run_decode(*sides(phi, factors), 4)
    assert 0.5 < found[Measured("decode", "a")] < 1
    for name in "abc":
        assert found[Measured("decode_shuffled", name)] == pytest.approx(1 / 3, abs=0.06)
        assert found[Measured("decode_converged", name)] == 1
    assert found[Measured("decode", "c")] == pytest.approx(1 / 3, abs=0.06)
    best, said = twin(np.asarray(phi, np.float64), factors["a"], order, np.arange(half, 2 * half))
    targets = logistic.columns(jnp.asarray(factors["a"][order])[None], 4)
    assert run_choice(jnp.asarray(phi[order], jnp.float32), targets)[0].tolist() == [best]
    right = balanced_accuracy_score(factors["a"][half:], said)
    assert found[Measured("decode", "a")] == pytest.approx(right, abs=0.005)


@pytest.mark.parametrize("run", [run_decode, run_nonlinear])
def test_perfect_random_and_missing(run):
    metric = "decode" if run is run_decode else "decode_nonlinear"
    phi, factors = planted(seed=2)
    phi[:, 0] = 10 * factors["a"]
    found = run(*sides(phi, factors), 2)
    assert found[Measured(metric, "a")] > 0.99
    for name in "abc":
        assert found[Measured(metric + "_shuffled", name)] == pytest.approx(0.5, abs=0.09)
        assert found[Measured(metric + "_converged", name)] == 1
    assert found[Measured(metric, "c")] == pytest.approx(0.5, abs=0.09)
    factors["b"] = np.ones_like(factors["b"])
    flat = run(*sides(phi, factors), 2)
    assert np.isnan(flat[Measured(metric, "b")])
    assert np.isfinite(flat[Measured(metric, "a")])
    assert np.isnan(run(*sides(np.full_like(phi, 0.1), factors), 2)[Measured(metric, "a")])


def test_more_units_than_examples_find_nothing_where_nothing_is():
    rng = np.random.default_rng(3)
    factors = {"a": rng.integers(0, 2, 512)}
    found = run_decode(*sides(rng.normal(size=(512, 400)), factors), 2)
    assert found[Measured("decode", "a")] == pytest.approx(0.5, abs=0.11)
    assert found[Measured("decode_converged", "a")] == 1


def test_too_few_steps_are_said(monkeypatch):
    monkeypatch.setattr(logistic, "STEPS", 1)
    found = probed(decoding.decode)(*sides(*planted(n=256)))
    assert found[Measured("decode_converged", "a")] == 0


def test_kernel_ridge_equals_scikit_learn(representations):
    for kind in ("random", "trained"):
        phi, factors = representations[kind]
        phi, half = np.asarray(phi, np.float64)[:1024], 512
        targets = np.stack([2.0 * code[:half] - 1 for code in factors.values()], 1)
        found, left = jax.jit(decoding._kernel_ridge)(
            *(jnp.asarray(a, jnp.float32) for a in (phi[:half], targets, phi[half:]))
        )
        z = scaled(phi, slice(half))
        gamma = 1 / (2 * np.median(np.square(z[: half // 2] - z[half // 2 : half]).sum(1)))
        for r, ridge in enumerate(decoding.RIDGES):
            middle = targets.mean(0)
            theirs = KernelRidge(alpha=ridge, kernel="rbf", gamma=gamma).fit(z[:half], targets - middle)
            np.testing.assert_allclose(found[r], theirs.predict(z[half:]) + middle, atol=2e-3)
        assert left.max() < 1e-2


def test_nonlinear_finds_what_no_line_can_part():
    rng = np.random.default_rng(4)
    phi = np.tile(rng.normal(size=(2048, 2)), 8)
    factors = dict.fromkeys("abc", (phi[:, 0] > 0) ^ (phi[:, 1] > 0))
    assert run_nonlinear(*sides(phi, factors), 2)[Measured("decode_nonlinear", "a")] > 0.9
    assert run_decode(*sides(phi, factors), 2)[Measured("decode", "a")] < 0.6


def two(factors):
    """Two features, and a twin and a part, which are not asked about."""
    return {"a": factors["a"], "b": factors["b"], "twin_a": factors["a"][::-1], "b.part": factors["b"][::-1]}


def follows(phi, factors):
    found = run_transfer(*sides(phi, factors), 2)
    assert {k.at for k in found} == {f"{size}{l2}" for size in decoding.SIZES for l2 in ("", " strong", " weak")}
    for at in ("64", "256"):
        assert found[Measured("follow_converged", "a", "b", at)] == 1
    return {at: float(found[Measured("follow", "a", "b", at)]) for at in ("64", "256", "256 strong", "256 weak")}


def test_transfer_follows_the_stronger_and_neither_of_two_alike():
    bits = (
        np.random.default_rng(5).permuted(np.arange(2048).reshape(2, 1024) % 4, axis=1).reshape(-1, 1) >> np.arange(2) & 1
    )
    noise = np.random.default_rng(6).normal(size=(2048, 14))
    factors = two({"a": bits[:, 0], "b": bits[:, 1]})
    for first, second, low, high in ((9.0, 0.3, 0.95, 1), (0.3, 9.0, 0, 0.05), (3.0, 3.0, 0.25, 0.75)):
        held = bits * np.array([first, second]) + 0.5 * noise[:, :2]
        phi = np.concatenate([held, noise], 1)
        for at, share in follows(phi, factors).items():
            assert low <= share <= high, (first, at)
    found = run_transfer(*sides(phi, factors), 2)
    assert found[Measured("follow_accuracy", "a", "b", "256")] > 0.95
    assert {(k.feature, k.other) for k in found} == {("a", "b")}


def test_transfer_equals_a_slow_twin():
    """The rows it trains on agree, are balanced and lie in the fit half; the rest is scikit-learn's."""
    phi, factors = planted(seed=7, strengths=(3.0, 2.0))
    half, a, b = len(phi) // 2, factors["a"], factors["b"]
    rows, enough = jax.jit(decoding._agreeing, static_argnums=(2, 3))(jnp.asarray(a[:half]), jnp.asarray(b[:half]), 256, 2)
    rows = np.asarray(rows)
    assert enough
    assert len(set(rows.tolist())) == 256
    assert (a[rows] == b[rows]).all()
    assert a[rows].reshape(-1, 2).tolist() == [[0, 1]] * 128
    conflict = half + np.flatnonzero((a != b)[half:])
    _, said = twin(phi, a, rows, conflict)
    expected = balanced_accuracy_score(a[conflict], said)
    found = run_transfer(*sides(phi, two(factors)), 2)
    assert found[Measured("follow", "a", "b", "256")] == pytest.approx(expected, abs=2 / len(conflict) * 1.1)
    weak = sklearn_fit(scaled(phi, rows)[rows], a[rows], decoding.WEAK).predict(scaled(phi, rows)[conflict])
    assert found[Measured("follow", "a", "b", "256 weak")] == pytest.approx(
        balanced_accuracy_score(a[conflict], weak), abs=2 / len(conflict) * 1.1
    )


def test_transfer_of_shuffled_labels_leans_to_neither_side():
    """Over runs that share their factors, as the seeds of a crossed probe set do: luck with them is luck in all runs."""
    bits = np.arange(1024) % 32
    factors = two({"a": np.tile(bits & 1, 2), "b": np.tile(np.bitwise_count(bits >> 1) & 1, 2)})
    block = np.tile([bits >> i & 1 for i in range(1, 5)], 2).T - 0.5
    runs = [np.random.default_rng(s).normal(size=(2048, 16)) for s in range(8)]
    for phi in runs:
        phi[:, :5] += 3 * np.column_stack([factors["a"], block])
    found = [run_transfer(*sides(phi, factors), 2) for phi in runs]
    for size in decoding.SIZES:
        shares = [f[Measured("follow_shuffled", "a", "b", str(size))] for f in found]
        assert np.mean(shares) == pytest.approx(0.5, abs=0.1), size


def test_controls_are_balanced_against_the_label():
    for values in (2, 3):
        control = decoding._controls(24 * values, values)
        for label in range(values):
            counts = [np.bincount(row[label::values], minlength=values).tolist() for row in control]
            assert counts == [[24 // values] * values] * decoding.NUM_CONTROLS


def test_transfer_without_enough_examples_has_no_value():
    phi, factors = planted()
    factors["b"] = np.where(np.arange(2048) % 8 == 0, factors["a"], 1 - factors["a"])
    found = run_transfer(*sides(phi, two(factors)), 2)
    assert np.isnan(found[Measured("follow", "a", "b", "256")])


def test_agreement_of_outputs_is_balanced_over_the_feature():
    rng = np.random.default_rng(8)
    factors = {"a": rng.random(2000) < 0.1, "b": rng.integers(0, 2, 2000), "c": np.zeros(2000)}
    phi = np.stack([factors["a"], factors["b"], rng.random(2000) < 0.1], 1) * 1.0

    def finish(x):
        hot = lambda unit: jax.nn.one_hot((x[:, unit] > 0.5).astype(jnp.int32), 2)  # noqa: E731
        return {"first": hot(0), "never": jnp.zeros((len(x), 2))}

    found = acting(decoding.reliance, finish)(*sides(phi, factors))
    assert found[Measured("agreement", "a", "first")] == 1
    assert found[Measured("agreement", "b", "first")] == pytest.approx(0.5, abs=0.05)
    assert found[Measured("agreement", "a", "never")] == 0.5
    assert np.isnan(found[Measured("agreement", "c", "first")])


def test_agreement_is_counted_where_features_are_equal_and_where_they_differ():
    """The output follows `a` in conflicts of even examples and `b` in those of odd ones."""
    count = np.arange(1800)
    a, b = count // 2 % 3, count // 6 % 3
    said = np.where(count % 2 == 0, a, b)
    found = acting(decoding.reliance, lambda x: {"label": x})(*sides(np.eye(3)[said], {"a": a, "b": b}))
    where = {(m.feature, m.at): float(value) for m, value in found.items() if m.metric == "agreement_where"}
    assert where == pytest.approx(
        {("a", "equals b"): 1.0, ("b", "equals a"): 1.0, ("a", "differs from b"): 0.5, ("b", "differs from a"): 0.5}
    )
    never = acting(decoding.reliance, lambda x: {"label": x})(*sides(np.eye(3)[said], {"a": a, "b": a}))
    assert np.isnan(never[Measured("agreement_where", "a", "label", "differs from b")])


@pytest.mark.parametrize("function", [decoding.decode, decoding.decode_nonlinear, decoding.transfer])
def test_bits_do_not_depend_on_the_neighbours(function):
    runs = [sides(*planted(n=256, d=8, seed=s, strengths=(1.0 + s, 0.2))) for s in range(4)]
    many = jax.jit(jax.vmap(lambda fit, score: function(fit, score, roles_of(fit[1]))))
    stack = lambda chosen: jax.tree.map(lambda *x: jnp.stack(x), *chosen)  # noqa: E731
    among, alone = many(*stack(runs)), many(*stack([runs[0]] * 4))
    for key, values in alone.items():
        np.testing.assert_array_equal([among[key][0], *values[1:]], [values[0]] * 4, err_msg=str(key))


def test_a_fit_without_an_answer_takes_none_from_the_next(monkeypatch):
    """Of two features that agree on every scored example nothing is said; of a third what is said without them."""
    monkeypatch.setattr(decoding, "SIZES", (64,))
    phi, factors = planted(n=512, strengths=(3.0, 1.0))
    alone = run_transfer(*sides(phi, {n: factors[n] for n in "ac"}))
    copied = {**factors, "b": np.where(np.arange(1024) < 512, factors["b"], factors["a"])}
    found = run_transfer(*sides(phi, {n: copied[n] for n in "abc"}))
    assert np.isnan(found[Measured("follow", "a", "b", "64")])
    for metric in ("follow", "follow_accuracy", "follow_shuffled"):
        key = Measured(metric, "a", "c", "64")
        assert found[key] == alone[key], metric
    assert found[Measured("follow", "a", "c", "64")] > 0.6


def test_a_constant_label_is_nobody_elses(monkeypatch):
    monkeypatch.setattr(decoding, "SIZES", (64,))
    phi, factors = planted(n=512)
    alone = run_transfer(*sides(phi, {n: factors[n] for n in "bc"}))
    found = run_transfer(*sides(phi, {**factors, "a": np.zeros(1024, int)}))
    for other in "bc":
        assert np.isnan([v for k, v in found.items() if k.feature == "a" and k.other == other]).all()
    for key, value in alone.items():
        np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_order_lets_no_value_through(bad):
    value = jnp.asarray([1.5, -0.25, 1e-30], jnp.float32)
    for earlier in ((jnp.asarray([bad, 1.0]),), (jnp.asarray(3e38), jnp.asarray(3e38)), (jnp.arange(4),), ()):
        np.testing.assert_array_equal(jax.jit(logistic.after)(value, *earlier), value)


def test_no_number_says_no_code():
    logits = jnp.asarray([[[1.0, jnp.nan, -1.0]]])
    said = logistic.decided(logits)
    np.testing.assert_array_equal(said, [[1, -1, 0]])
    assert np.isnan(balanced_accuracy(said, jnp.asarray([[1, 0, 0]]), 2)).all()
    np.testing.assert_array_equal(logistic.decided(jnp.asarray([[[0.0, jnp.nan], [1.0, 0.0]]])), [[1, -1]])
