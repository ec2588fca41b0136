"""Components, truncation, single units and steering: scikit-learn and slow twins, planted codes, invariances."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from made import Made, acting, probed
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import balanced_accuracy_score
from test_experiments import parts_of, values
from test_probes import planted, rotation, sides

import repbias_jax
from experiments.claims import components as components_experiment
from experiments.claims import steering as steering_experiment
from repbias_jax.probes.components import SIZES, components, truncation
from repbias_jax.probes.moments import Measured
from repbias_jax.probes.readout import balanced_accuracy
from repbias_jax.probes.steering import DOSES, random_directions, steering
from repbias_jax.probes.units import units
from repbias_jax.statistics import judge

run_components, run_units = probed(components), probed(units)


def test_components_are_those_of_scikit_learn(smoke):
    rng = np.random.default_rng(0)
    stretched = planted(n=512, d=12, rng=rng)
    trained = next(iter(repbias_jax.load(smoke).activations("sgd.joint")))[1:]
    factors = {n: v for n, v in trained[1].items() if n in ("parity1", "parity4")}
    for phi, codes in ((stretched[0] * np.linspace(1, 3, 12, dtype=np.float32), stretched[1]), (trained[0][-1], factors)):
        found, half = run_components(*sides(phi, codes), 2), len(phi) // 2
        model = PCA(n_components=6).fit(phi[:half].astype(np.float64))
        scores = model.transform(phi.astype(np.float64))
        total = np.square(phi[half:] - phi[:half].mean(0, dtype=np.float64)).sum()
        for k in range(6):
            spread = np.square(scores[half:, k]).sum()
            if spread < 1e-6 * total:
                break
            assert found[Measured("component_share", at=str(k + 1))] == pytest.approx(spread / total, abs=1e-5)
            for name, code in codes.items():
                left = LinearRegression().fit(code[:half, None], scores[:half, k]).predict(code[half:, None])
                r2 = 1 - np.square(scores[half:, k] - left).sum() / spread
                assert found[Measured("component_r2", name, at=str(k + 1))] == pytest.approx(r2, abs=2e-4), (name, k)
        for name, code in codes.items():
            left = LinearRegression().fit(code[:half, None], scores[:half, :2]).predict(code[half:, None])
            r2 = 1 - np.square(scores[half:, :2] - left).sum() / np.square(scores[half:, :2]).sum()
            assert found[Measured("top_r2", name, at="2")] == pytest.approx(r2, abs=2e-4)


def test_components_perfect_random_and_without_variance():
    rng = np.random.default_rng(1)
    code = rng.integers(0, 2, 2048).astype(np.int32)
    line = (code[:, None] * np.ones((1, 12)) * 2 + 1).astype(np.float32)
    found = run_components(*sides(line, {"f": code}), 2)
    assert found[Measured("component_r2", "f", at="1")] == pytest.approx(1, abs=1e-4)
    assert found[Measured("component_share", at="1")] == pytest.approx(1, abs=1e-4)
    assert np.isnan(found[Measured("component_r2", "f", at="5")])
    noise = run_components(*sides(rng.normal(size=(2048, 12)).astype(np.float32), {"f": code}), 2)
    assert abs(noise[Measured("top_r2", "f", at="2")]) < 0.02
    assert -1 / 1024 < noise[Measured("top_null_high", "f", at="2")] < 5 / 1024  # above the null level
    assert noise[Measured("component_share", at="1")] == pytest.approx(1 / 12, abs=0.03)


def heads(width, rng):
    """A linear rest of the network that reports `a` from unit 0 and `b` from unit 1; a far stronger unit says nothing."""
    weights = np.zeros((2, width, 2), np.float32)
    weights[0, 0], weights[1, 1] = (-1, 1), (-1, 1)
    turn = rotation(width, rng)
    return turn, lambda x: {n: jnp.matmul(x, turn.T @ w, precision="highest") for n, w in zip("ab", weights, strict=True)}


def coded(rng, width=8):
    """a stands on unit 0 with size 2, b on unit 1 with size 1, both at +/-; unit 2 varies most; the rest are quiet."""
    codes = {n: rng.integers(0, 2, 1024).astype(np.int32) for n in "ab"}
    phi = 0.05 * rng.normal(size=(1024, width))
    phi[:, 0] += 4.0 * codes["a"] - 2
    phi[:, 1] += 2.0 * codes["b"] - 1
    phi[:, 2] += 5 * rng.normal(size=1024)
    return phi.astype(np.float32), codes


def test_truncation_keeps_what_the_first_components_hold():
    rng = np.random.default_rng(2)
    (phi, codes), (turn, finish) = coded(rng), heads(8, rng)
    found = jax.jit(acting(truncation, finish))(*sides(phi @ turn, codes))
    kept = {n: [float(found[Measured("kept_accuracy", n, at=str(k))]) for k in (1, 2, 3, 4, 6, 8)] for n in "ab"}
    np.testing.assert_allclose(kept["a"], [0.5, 1, 1, 1, 1, 1], atol=0.08)
    np.testing.assert_allclose(kept["b"], [0.5, 0.5, 1, 1, 1, 1], atol=0.08)
    for name in "ab":
        area, log_area = (
            np.trapezoid(kept[name], [1, 2, 3, 4, 6, 8]) / 7,
            np.trapezoid(kept[name], np.log2([1, 2, 3, 4, 6, 8])) / 3,
        )
        assert found[Measured("kept_area", name)] == pytest.approx(area, abs=1e-5)
        assert found[Measured("kept_area_log2", name)] == pytest.approx(log_area, abs=1e-5)
    assert found[Measured("kept_area", "a")] > found[Measured("kept_area", "b")]
    assert set(SIZES) >= {1, 2, 3, 4, 6}


def test_balanced_accuracy_is_scikit_learns():
    rng = np.random.default_rng(3)
    code, guess = rng.choice(3, 200, p=[0.8, 0.15, 0.05]), rng.integers(0, 3, 200)
    expected = balanced_accuracy_score(code, guess)
    assert balanced_accuracy(jnp.asarray(guess), jnp.asarray(code), 5) == pytest.approx(expected, abs=1e-6)


def test_units_selective_spread_dead_and_sparse():
    rng = np.random.default_rng(4)
    codes = {n: rng.integers(0, 2, 2048).astype(np.int32) for n in "ab"}
    phi = 0.1 * np.abs(rng.normal(size=(2048, 10)))
    phi[:, :6] += codes["a"][:, None]  # dense
    phi[:, 6] += 2 * codes["b"]  # sparse
    phi[:, 9] = 0.3  # constant
    found = run_units(*sides(phi.astype(np.float32), codes), 2)
    assert found[Measured("living_share")] == pytest.approx(0.9)
    assert found[Measured("selective_share", "a")] == pytest.approx(6 / 9)
    assert found[Measured("selective_share", "b")] == pytest.approx(1 / 9)
    half, x = 1024, phi.astype(np.float64)
    for name, code in codes.items():
        d = x[:half][code[:half] == 1].mean(0) - x[:half][code[:half] == 0].mean(0)
        ratio = np.square(np.square(d).sum()) / np.sum(d**4) / 9
        assert found[Measured("participation", name)] == pytest.approx(ratio, rel=1e-3)
    assert found[Measured("participation", "a")] == pytest.approx(6 / 9, rel=0.05)
    sparse = [1 - np.abs(c).mean() ** 2 / np.square(c).mean() for c in x[half:, :9].T]
    assert found[Measured("sparsity")] == pytest.approx(np.mean(sparse), abs=1e-5)


def test_units_of_noise_and_of_nothing():
    rng = np.random.default_rng(5)
    codes = {"f": rng.integers(0, 2, 2048).astype(np.int32), "g": np.ones(2048, np.int32)}
    found = run_units(*sides(rng.normal(size=(2048, 256)).astype(np.float32), codes), 2)
    assert found[Measured("selective_share", "f")] == 0
    assert found[Measured("participation", "f")] == pytest.approx(1 / 3, abs=0.08)
    assert np.isnan(found[Measured("participation", "g")])
    assert np.isnan(found[Measured("selective_share", "g")])
    nothing = run_units(*sides(np.full((2048, 4), 0.5, np.float32), codes), 2)
    assert np.isnan(nothing[Measured("participation", "f")])
    assert nothing[Measured("living_share")] == 0


def test_steering_flips_its_own_output_at_the_dose_that_crosses_the_boundary():
    rng = np.random.default_rng(6)
    (phi, codes), (turn, finish) = coded(rng), heads(8, rng)
    found = jax.jit(acting(steering, finish))(*sides(phi @ turn, codes))
    score = phi[512:].astype(np.float64) - phi[:512].mean(0)
    rms = np.sqrt(np.square(score).sum(1).mean())
    for name, half, own in (("a", 2, 4), ("b", 1, 2)):
        other = "b" if name == "a" else "a"
        assert found[Measured("own_dose", name)] == pytest.approx(own / rms, rel=0.1)
        assert found[Measured("flips", name, name, "own")] == pytest.approx(1, abs=0.01)
        assert found[Measured("flips", name, other, "own")] < 0.02
        assert found[Measured("random_flips", name, name, "own")] < 0.5
        for dose in DOSES:
            share = found[Measured("flips", name, name, str(dose))]
            if dose * rms < 0.8 * half:
                assert share < 0.02
            elif 1.3 * half < dose * rms < 8 * half:
                assert share > 0.98
    assert found[Measured("own_dose", "a")] > found[Measured("own_dose", "b")]


@pytest.fixture(scope="module", params=["random", "trained"])
def representation(request, smoke):
    """Random activations, or those of a trained network, with two binary factors; and a linear head for each factor."""
    rng = np.random.default_rng(10)
    if request.param == "trained":
        _, activations, factors = next(repbias_jax.load(smoke).activations("sgd.joint"))
        phi, codes = activations[-1], {n: factors[n].astype(np.int32) for n in ("parity1", "parity4")}
    else:
        phi, codes = planted(n=512, d=12, rng=rng)
        codes = dict(list(codes.items())[:2])
    return phi, codes, {n: rng.normal(size=(phi.shape[1], 2)).astype(np.float32) for n in codes}


def finished(weights):
    return lambda x: {n: jnp.matmul(x, w, precision="highest") for n, w in weights.items()}


def test_truncation_equals_scikit_learns_components(representation):
    phi, codes, weights = representation
    found = jax.jit(acting(truncation, finished(weights)))(*sides(phi, codes))
    half = len(phi) // 2
    for k in (1, 2, 4):
        model = PCA(n_components=k, svd_solver="full").fit(phi[:half].astype(np.float64))
        kept = model.inverse_transform(model.transform(phi[half:].astype(np.float64)))
        for name, w in weights.items():
            expected = balanced_accuracy_score(codes[name][half:], (kept @ w).argmax(1))
            assert found[Measured("kept_accuracy", name, at=str(k))] == pytest.approx(expected, abs=2 / half), (name, k)


def test_units_equal_a_slow_twin(representation):
    phi, codes, _ = representation
    found, half, x = run_units(*sides(phi, codes), 2), len(phi) // 2, phi.astype(np.float64)
    total = np.square(x[half:] - x[:half].mean(0)).sum(0)
    living = total > 1e-6 * total.max()
    assert found[Measured("living_share")] == pytest.approx(living.mean())
    size = [np.abs(c).mean() ** 2 / np.square(c).mean() for c in x[half:, living].T]
    assert found[Measured("sparsity")] == pytest.approx(1 - np.mean(size), abs=1e-5)
    for name, code in codes.items():
        left = LinearRegression().fit(code[:half, None], x[:half]).predict(code[half:, None])
        r2 = 1 - np.square(x[half:] - left).sum(0)[living] / total[living]
        assert found[Measured("selective_share", name)] == pytest.approx(np.mean(r2 > 0.1), abs=1e-6)
        d = (x[:half][code[:half] == 1].mean(0) - x[:half][code[:half] == 0].mean(0))[living]
        assert found[Measured("participation", name)] == pytest.approx(
            np.square(np.square(d).sum()) / np.sum(d**4) / living.sum(), rel=2e-3
        )


def test_steering_equals_a_slow_twin(representation):
    phi, codes, weights = representation
    found = jax.jit(acting(steering, finished(weights)))(*sides(phi, codes))
    half, x = len(phi) // 2, phi.astype(np.float64)
    rms = np.sqrt(np.square(x[half:] - x[:half].mean(0)).sum(1).mean())
    reported = {n: (x[half:] @ w).argmax(1) for n, w in weights.items()}
    for name, code in codes.items():
        vector = x[:half][code[:half] == 1].mean(0) - x[:half][code[:half] == 0].mean(0)
        assert found[Measured("own_dose", name)] == pytest.approx(np.linalg.norm(vector) / rms, rel=1e-3)
        ways = {"flips": [vector / np.linalg.norm(vector)], "random_flips": random_directions(phi.shape[1])}
        for (metric, directions), dose in itertools.product(ways.items(), (DOSES[5], DOSES[15])):
            for other, w in weights.items():
                pushes = [dose * rms * (1 - 2 * reported[name])[:, None] * way for way in directions]
                share = np.mean([((x[half:] + push) @ w).argmax(1) != reported[other] for push in pushes])
                assert found[Measured(metric, name, other, str(dose))] == pytest.approx(share, abs=2 / half), (metric, dose)


def test_steering_of_many_values_equals_a_slow_twin():
    """Two factors of three and of four values: each example is pushed towards every other value in turn."""
    rng = np.random.default_rng(11)
    counts = {"three": 3, "four": 4}
    codes = {name: np.tile(np.arange(count), 240 // count).astype(np.int32) for name, count in counts.items()}
    codes["four"] = np.repeat(codes["four"][:60], 4)
    places = {name: rng.normal(size=(count, 9)) for name, count in counts.items()}
    phi = sum(places[name][codes[name]] for name in counts) + 0.3 * rng.normal(size=(240, 9))
    order = rng.permutation(240)
    phi, codes = phi[order].astype(np.float32), {name: own[order] for name, own in codes.items()}
    weights = {name: rng.normal(size=(9, count)).astype(np.float32) for name, count in counts.items()}
    found = jax.jit(acting(steering, finished(weights)))(*sides(phi, codes))
    half, x = len(phi) // 2, phi.astype(np.float64)
    rms = np.sqrt(np.square(x[half:] - x[:half].mean(0)).sum(1).mean())
    reported = {n: (x[half:] @ w).argmax(1) for n, w in weights.items()}
    for name, count in counts.items():
        means = np.array([x[:half][codes[name][:half] == c].mean(0) for c in range(count)])
        apart = [np.linalg.norm(means[b] - means[a]) for a, b in itertools.permutations(range(count), 2)]
        assert found[Measured("own_dose", name)] == pytest.approx(np.mean(apart) / rms, rel=1e-3)
        for dose, other in itertools.product((DOSES[8], DOSES[15], "own"), counts):
            changed = {"flips": [], "random_flips": []}
            for i, a in enumerate(reported[name]):
                for b in set(range(count)) - {a}:
                    own = means[b] - means[a]
                    size = np.linalg.norm(own) if dose == "own" else dose * rms
                    ways = {"flips": [own / np.linalg.norm(own)], "random_flips": np.sign(b - a) * random_directions(9)}
                    for metric, directions in ways.items():
                        after = ((x[half + i] + size * np.asarray(directions)) @ weights[other]).argmax(-1)
                        changed[metric] += list(after != reported[other][i])
            for metric, each in changed.items():
                share = found[Measured(metric, name, other, str(dose))]
                assert share == pytest.approx(np.mean(each), abs=2 / half), (metric, name, other, dose)


def test_steering_is_invariant_to_rotation_and_scale_and_random_directions_are_fixed():
    rng = np.random.default_rng(7)
    (phi, codes), (turn, finish) = coded(rng), heads(8, rng)
    here = jax.jit(acting(steering, finish))(*sides(phi @ turn, codes))
    again = rotation(8, rng)
    moved = jax.jit(lambda f, s: acting(steering, lambda x: finish(jnp.matmul(x / 3, again.T, precision="highest")))(f, s))(
        *sides(3 * phi @ turn @ again, codes)
    )
    for key, value in here.items():
        if key.metric != "random_flips":
            assert moved[key] == pytest.approx(float(value), abs=0.01), key
    directions = random_directions(64)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(directions, random_directions(64))
    assert np.abs(directions @ directions.T - np.eye(5)).max() < 0.5


def joint():
    """Frames of both features learned by all seeds, without a measure yet."""
    made = Made({"joint": "parity1 parity4"}, 100)
    for output in ("parity1", "parity4"):
        made.learn("joint", output, [100])
    return made


def test_components_and_units_by_hand():
    made = joint()
    for metric, at, easy, hard in (
        ("top_r2", "2", 0.6, 0.2), ("kept_area", "", 0.9, 0.8), ("kept_area_log2", "", 0.9, 0.7),
        ("selective_share", "", 0.5, 0.1), ("participation", "", 0.6, 0.3),
    ):  # fmt: skip
        made.put("joint", metric, "parity1", easy, at=at)
        made.put("joint", metric, "parity4", [hard] * 16, at=at)
    found = parts_of(components_experiment, made.done())
    assert values(found) == pytest.approx({"C19": 0.4, "C20": 0.1, "C21a": 0.4, "C21b": 0.3}, abs=1e-6)
    assert found["C19"].secondary.mean() == pytest.approx(np.log(3), abs=1e-3)
    assert found["C20"].secondary.mean() == pytest.approx(0.2, abs=1e-3)
    assert found["C21b"].secondary.mean() == pytest.approx(np.log(2), abs=1e-3)
    assert [p.sesoi for p in found.values()] == [0.02, 0.05, 0.05, 0.05]
    assert {r["verdict"] for r in judge(components_experiment.claims(made, "sgd"), "sgd", False)} == {"reproduced"}
    made.learn("joint", "parity4", [100], 0.9, seeds=[4])
    for claim in components_experiment.claims(made.done(), "sgd"):
        for part in claim.parts:
            assert list(part.passed.index[~part.passed.all(axis=1)]) == [4]


def test_steering_by_hand():
    """Easy flips at dose 1, hard at 2; the other output follows neither, but for hard's vector a little."""
    made = joint()
    for feature, other, place, off in (("parity1", "parity4", 1, 0.02), ("parity4", "parity1", 2, 0.1)):
        for dose in DOSES:
            own = [np.clip(0.5 + 0.5 * np.log(dose / place), 0, 1)] * 16
            for output, metric, shares in (
                (feature, "flips", own), (other, "flips", [off] * 16), (feature, "random_flips", [0.01] * 16),
                (other, "random_flips", [0.01] * 16),
            ):  # fmt: skip
                made.put("joint", metric, feature, shares, at=str(dose), other=output, site="hidden_0")
        made.put("joint", "flips", feature, 0.9, at="own", other=feature, site="hidden_0")
        made.put("joint", "random_flips", feature, [0.1] * 16, at="own", other=feature, site="hidden_0")
    found = parts_of(steering_experiment, made.done())
    expected = {"C22a": 0.8, "C22b": 0.8, "C23a": 0.01, "C23b": 0.09, "C24": np.log(2)}
    assert values(found) == pytest.approx(expected, abs=2e-3)
    assert [p.side for p in found.values()] == [1, 1, 0, 0, -1]
    verdicts = {r["id"]: r["verdict"] for r in judge(steering_experiment.claims(made, "sgd"), "sgd", False)}
    assert verdicts["C22"] == "reproduced"
    assert (verdicts["C23a"], verdicts["C23b"], verdicts["C24"]) == ("reproduced", "opposite", "opposite")


def test_doses_that_are_not_reached_are_missing_and_count_as_the_largest():
    curve = pd.DataFrame({0: [0.0, 0.5, 1.0], 1: [0.0, 0.2, 0.4], 2: [0.6, 0.7, 1.0]}, index=[1.0, 2.0, 4.0])
    reached = steering_experiment.dose_reaching(curve, 0.5)
    assert reached[0] == pytest.approx(2)
    assert np.isnan(reached[1])
    assert reached[2] == 1
    assert steering_experiment.dose_reaching(curve, 0.75)[0] == pytest.approx(2 * np.sqrt(2))
    read = steering_experiment.at_dose(curve, reached)
    assert read[0] == pytest.approx(0.5)
    assert np.isnan(read[1])
    made = joint()
    for dose in DOSES:
        for feature, size in (("parity1", 1.0), ("parity4", 0.4)):
            made.put("joint", "flips", feature, [size * (dose > 1)] * 16, at=str(dose), other=feature, site="hidden_0")
    part = next(c for c in steering_experiment.claims(_with_the_rest(made), "sgd") if c.id == "C24").parts[0]
    assert "16 curves" in part.statistic
    assert part.values.mean() == pytest.approx(np.log(max(DOSES)) - np.log(1), abs=0.2)


def _with_the_rest(made):
    """What C22 and C23 read, so that all claims can be asked for."""
    for feature, other in (("parity1", "parity4"), ("parity4", "parity1")):
        for metric in ("flips", "random_flips"):
            made.put("joint", metric, feature, 0.5, at="own", other=feature, site="hidden_0")
            for dose in DOSES:
                made.put("joint", metric, feature, 0.1, at=str(dose), other=other, site="hidden_0")
    return made.done()
