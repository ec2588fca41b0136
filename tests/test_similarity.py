"""Similarity of models: measures against rsatoolbox and slow twins, pairs on disk, and the claims by hand."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from conftest import DEVICES
from made import SEEDS, Made
from rsatoolbox.data import Dataset
from rsatoolbox.inference import boot_noise_ceiling
from rsatoolbox.rdm import calc_rdm, concat
from rsatoolbox.rdm import compare as compare_rdms
from rsatoolbox.rdm.transform import sqrt_transform
from scipy.linalg import orthogonal_procrustes
from scipy.stats import rankdata

from experiments.claims import similarity as experiment
from experiments.command import assemble
from repbias_jax import measure, pairs, planning, training
from repbias_jax.columns import COLUMNS
from repbias_jax.config import Config, ConfigError, Keep, Runtime, dials_of, static_half
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.models.mlp import MLPOptions
from repbias_jax.population import Interrupted
from repbias_jax.probes import PROBES
from repbias_jax.probes import similarity as probe
from repbias_jax.probes.moments import Measured
from repbias_jax.report import contrasts, tables
from repbias_jax.results import Results
from repbias_jax.statistics import judge, pseudo_values, summarise

XOR = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], bool)
AND_OR = np.stack([XOR[:, 0] & XOR[:, 1], XOR[:, 0] | XOR[:, 1]], 1).astype(np.float32)
ONE_HOT = np.stack([XOR[:, 0] & ~XOR[:, 1], ~XOR[:, 0] & XOR[:, 1]], 1).astype(np.float32)
ROTATABLE = [name for name in probe.MEASURES if "correlation" not in name]


def matrices(*models):
    with jax.numpy_dtype_promotion("strict"):
        return {key.metric: value for key, value in probe.similarity(models).items()}


def between(a, b):
    return {name: float(value[0, 1]) for name, value in matrices(a, b).items()}


def random_models(count=3, n=128, d=16, seed=0):
    """Rectified mixtures of the same sources, each with noise of its own."""
    rng = np.random.default_rng(seed)
    sources = rng.normal(size=(n, 8))
    mixed = [sources @ rng.normal(size=(8, d)) + 0.5 * rng.normal(size=(n, d)) for _ in range(count)]
    return [np.maximum(x, -0.5).astype(np.float32) for x in mixed]


@pytest.fixture(scope="module")
def trained():
    """The penultimate layer of three networks after 40 steps, on probe examples that all three share."""
    task, keep = BinaryOptions(num_train=256, num_test=64, num_probe=128), Keep(shared=True)
    config = Config(task, MLPOptions(widths=(32, 16)), keep=keep)
    static = static_half(config, Runtime())
    dials = dials_of(config)

    @jax.jit
    def run(seed):
        data = training.make_data(task, "balanced", dials, seed, shared=True)
        state = training.init(static, dials, seed)
        state = training.segment(static, dials, seed, data, state, jnp.int32(0), jnp.int32(40))
        return training.represent(static, dials, data, state)

    found = [run(jnp.int32(k)) for k in range(3)]
    for other in found[1:]:
        np.testing.assert_array_equal(other["input"], found[0]["input"])
    return [np.asarray(sites["hidden_1"]) for sites in found]


def rsatoolbox_rdms(models, distance):
    """rsatoolbox's `euclidean` is squared and divided by the number of units, which no correlation sees."""
    method = "correlation" if distance == "correlation" else "euclidean"
    rdms = concat([calc_rdm(Dataset(x.astype(np.float64)), method) for x in models])
    return sqrt_transform(rdms) if distance == "euclidean" else rdms


def test_golden_the_two_solutions_of_xor():
    """-.795 is that of Euclidean distances compared by Pearson: the primary measure; others call the two opposites."""
    found = between(AND_OR, ONE_HOT)
    assert found["rsa"] == pytest.approx(-0.7947168, abs=1e-6)
    assert found["rsa_squared"] == pytest.approx(-1, abs=1e-6)
    assert found["rsa_rank"] == pytest.approx(-1, abs=1e-6)
    oracle = compare_rdms(*rsatoolbox_rdms([AND_OR, ONE_HOT], "euclidean"), method="corr")
    assert found[experiment.PRIMARY] == pytest.approx(oracle[0, 0], abs=1e-6)
    assert experiment.PRIMARY == "rsa"


@pytest.mark.parametrize("kind", ["random", "trained"])
@pytest.mark.parametrize("distance", ["euclidean", "squared", "correlation"])
def test_equals_rsatoolbox(kind, distance, trained):
    models = random_models() if kind == "random" else trained
    oracle = rsatoolbox_rdms(models, distance)
    own = {"euclidean": probe.euclidean, "squared": probe.squared_distances, "correlation": probe.correlation}[distance]
    metric = {"euclidean": "rsa", "squared": "rsa_squared", "correlation": "rsa_correlation"}[distance]
    for x, expected in zip(models, oracle.dissimilarities, strict=True):
        scale = {"euclidean": x.shape[1] ** 0.5, "squared": x.shape[1], "correlation": 1}[distance]
        np.testing.assert_allclose(own(jnp.asarray(x)), expected * scale, atol=1e-5 * scale)
    found = matrices(*models)
    np.testing.assert_allclose(found[metric], compare_rdms(oracle, oracle, method="corr"), atol=1e-5)
    ranks = found[{"squared": "rsa_rank", "euclidean": "rsa_rank"}.get(distance, "rsa_correlation_rank")]
    np.testing.assert_allclose(ranks, compare_rdms(oracle, oracle, method="spearman"), atol=1e-4)


def twins(x, y):
    """CKA and Procrustes in float64 by their definitions, with N x N kernels."""
    x, y = (a.astype(np.float64) - a.mean(0, dtype=np.float64) for a in (x, y))
    n = len(x)
    middle = np.eye(n) - 1 / n

    def hsic(k, l):  # noqa: E741
        return np.trace(k @ middle @ l @ middle)

    def unbiased(k, l):  # noqa: E741
        k, l = (m - np.diag(np.diag(m)) for m in (k, l))  # noqa: E741
        whole = np.trace(k @ l) + k.sum() * l.sum() / (n - 1) / (n - 2) - 2 / (n - 2) * (k @ l).sum()
        return whole / n / (n - 3)

    k, l = x @ x.T, y @ y.T  # noqa: E741
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    distance = np.linalg.norm(x @ orthogonal_procrustes(x, y)[0] - y)
    return {
        "cka": hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l)),
        "cka_debiased": unbiased(k, l) / np.sqrt(unbiased(k, k) * unbiased(l, l)),
        "procrustes": 1 - distance**2 / 2,
    }


def test_equals_float64_twins(trained):
    for a, b in (random_models(2), trained[:2], [x + 300 for x in random_models(2, seed=4)]):
        found, expected = between(a, b), twins(a, b)
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=2e-5), name


def test_ranks_share_ties():
    values = np.random.default_rng(1).integers(0, 40, 500).astype(np.float32) / 7
    np.testing.assert_array_equal(jax.jit(probe.ranks)(values), rankdata(values) - 1)


def test_invariances_hold_where_they_are_promised_and_nowhere_else():
    rng = np.random.default_rng(2)
    a, b = random_models(2)
    before = between(a, b)
    turned = a @ np.linalg.qr(rng.normal(size=(16, 16)))[0].astype(np.float32)
    moved, scaled = a + rng.normal(size=16).astype(np.float32), 37 * a
    raised = a + rng.normal(size=(128, 1)).astype(np.float32)
    for changed in (turned, moved):
        after = between(changed, b)
        for name in probe.MEASURES:
            same = after[name] == pytest.approx(before[name], abs=1e-4)
            assert same == (name in ROTATABLE), name
    assert between(scaled, b) == pytest.approx(before, abs=1e-4)
    after = between(raised, b)
    for name in probe.MEASURES:
        assert (after[name] == pytest.approx(before[name], abs=1e-4)) == (name not in ROTATABLE), name


def test_perfect_and_random_values():
    a, _ = random_models(2)
    assert between(a, 3 * a) == pytest.approx(dict.fromkeys(probe.MEASURES, 1.0), abs=1e-5)
    rng = np.random.default_rng(3)
    independent = [between(*rng.normal(size=(2, 128, 16)).astype(np.float32)) for _ in range(10)]
    mean = pd.DataFrame(independent).mean()
    for name in probe.MEASURES:
        assert (abs(mean[name]) < 0.08) == (name not in ("cka", "procrustes")), name
    assert mean["cka"] == pytest.approx(16 / 128, abs=0.02)


def test_one_number_whatever_the_number_of_models_and_units():
    models = [*random_models(3), *random_models(1, d=24, seed=5)]
    many = matrices(*models)
    for i, j in ((0, 1), (0, 2), (1, 3)):
        for name, value in matrices(models[i], models[j]).items():
            assert value[0, 1] == many[name][i, j] == many[name][j, i], name
    with pytest.raises(ValueError, match="same number of examples"):
        probe.similarity([models[0], models[1][:50]])


def test_missing_is_nan_and_touches_no_other_pair():
    a, b, c = random_models(3)
    whole = matrices(a, b, c)
    for spoiled in (np.full_like(c, 0.3), np.where(np.arange(16) == 3, np.nan, c)):
        found = matrices(a, b, spoiled)
        for name, value in found.items():
            assert np.isnan([*value[2], *value[:, 2]]).all(), name
            assert value[0, 1] == whole[name][0, 1]
    dead = c.copy()
    dead[5] = 0  # one example whose units are all equal
    missing = {name for name, value in between(a, dead).items() if np.isnan(value)}
    assert missing == {"rsa_correlation", "rsa_correlation_rank"}


def test_noise_ceiling_is_that_of_rsatoolbox():
    models = random_models(5)
    found = probe.noise_ceiling(matrices(*models)["rsa"])
    assert found == pytest.approx(boot_noise_ceiling(rsatoolbox_rdms(models, "euclidean"), "corr"), abs=1e-5)
    assert found[0] < found[1] < 1
    assert np.isnan(probe.noise_ceiling(np.ones((1, 1)))).all()


@pytest.mark.parametrize("name", [n for n, p in PROBES.items() if p.kind == "pair"])
def test_contract_every_probe_of_a_pair(name):
    """Symmetric, finite on random input, documented, and read where it says."""
    found = PROBES[name].function(random_models(4))
    assert PROBES[name].views
    for key, value in found.items():
        assert isinstance(key, Measured)
        assert value.shape == (4, 4)
        np.testing.assert_array_equal(value, value.T)
        assert np.isfinite(value).all()
        np.testing.assert_allclose(np.diag(value), 1, atol=1e-5)
    for word in ("Range", "irection", "perfect", "random", "Source"):
        assert word.lower() in PROBES[name].function.__doc__.lower(), f"{name} does not say: {word}"


def test_pseudo_values_of_known_statistics():
    x = pd.Series(np.random.default_rng(6).normal(size=9), index=range(100, 109))
    np.testing.assert_allclose(pseudo_values(lambda s: x[s].mean(), x.index), x)
    n, variance = 9, x.var()
    expected = (n * np.square(x - x.mean()) - variance) / (n - 2)
    found = pseudo_values(lambda s: x[s].var(), x.index)
    np.testing.assert_allclose(found, expected)
    assert found.mean() == pytest.approx(variance)
    assert pseudo_values(lambda s: float(len(s)), []).empty


def test_a_seed_counts_once_however_many_pairs_it_is_in():
    """Similarities a_i + b_j have the pseudo-values a_i + b_i: the interval is that of K seeds, not of K (K - 1) pairs."""
    a, b = np.random.default_rng(7).normal(size=(2, 12))
    own = experiment.Similarities(frame({("both", "easy_only"): a[:, None] + b[None]}, range(12)), KINDS)
    found = pseudo_values(lambda s: own.mean("both", "easy_only", s), range(12))
    np.testing.assert_allclose(found, a + b)
    assert summarise(found.to_numpy()).ci_high - summarise(found.to_numpy()).effect == pytest.approx(
        2.201 * (a + b).std(ddof=1) / np.sqrt(12), rel=1e-3
    )


KINDS = {kind: (f"sgd.{kind}", 100) for kind in ("both", "easy_only", "hard_only")} | {"untrained": ("sgd.both", 0)}


def frame(blocks, seeds):
    """Similarities as `contrasts.similarities` gives them, from blocks `[K, K]` of two kinds."""
    models = pd.MultiIndex.from_tuples(sorted((*KINDS[kind], k) for kind in KINDS for k in seeds))
    made = pd.DataFrame(np.nan, index=models, columns=models)
    for (one, other), block in blocks.items():
        for i, k in enumerate(seeds):
            for j, m in enumerate(seeds):
                if k != m:
                    first, second = (*KINDS[one], k), (*KINDS[other], m)
                    made.loc[first, second] = made.loc[second, first] = block[i, j]
    return made


SIMILARITIES = {
    ("both", "both"): 0.6, ("easy_only", "easy_only"): 0.9, ("hard_only", "hard_only"): 0.4, ("both", "easy_only"): 0.8,
    ("both", "hard_only"): 0.3, ("easy_only", "hard_only"): 0.1, ("easy_only", "untrained"): 0.35,
    ("hard_only", "untrained"): 0.25, ("both", "untrained"): 0.3, ("untrained", "untrained"): 0.2,
}  # fmt: skip


def made_results(odd=None):
    """Known similarities; those of the seed `odd` are all 0, and its easy-only model fails."""
    both, one = "parity1 parity4", {"easy_only": "parity1", "hard_only": "parity4"}
    made = Made({"both": both} | one, 100)
    made.settings["column"] = "sgd"
    rng = np.random.default_rng(8)
    for name, outputs in ({"both": both} | one).items():
        for output in outputs.split():
            made.learn(name, output, [100], 1.0)
    if odd is not None:
        made.learn("easy_only", "parity1", [100], 0.9, seeds=[odd])
    made.put("both", "r2", "parity1", 0.5 + 0.02 * rng.normal(size=16))
    made.put("both", "r2", "parity4", 0.2 + 0.05 * rng.normal(size=16))
    for metric in (experiment.PRIMARY, experiment.SECONDARY):
        for (one, other), value in SIMILARITIES.items():
            for i in SEEDS:
                for j in SEEDS:
                    if i == j or (one == other and i > j):
                        continue
                    own = 0.0 if odd in (i, j) else value + 0.01 * (i % 2 - 0.5) + 0.01 * (j % 2 - 0.5)
                    label = f"{KINDS[other][0]}/{j}" + ("/0" if other == "untrained" else "")
                    made.records.append(
                        dict.fromkeys(COLUMNS, "")
                        | {"setting": KINDS[one][0], "seed": i, "step": KINDS[one][1], "site": "hidden_1"}
                        | {"metric": metric, "other": label, "value": own}
                    )
    return made.done()


def test_claims_by_hand():
    made = made_results()
    found = {c.id + p.label: p for c in experiment.claims(made, "sgd") for p in c.parts}
    means = {name: part.values.mean() for name, part in found.items()}
    spread = means.pop("C35")
    assert means == pytest.approx({"C26": 0.5, "C27a": -0.2, "C27b": 0.5, "C32": 0.2}, abs=1e-9)
    assert {name: part.side for name, part in found.items()} == {"C26": 1, "C27a": -1, "C27b": 1, "C32": 1, "C35": -1}
    assert {part.sesoi for name, part in found.items() if name != "C35"} == {0.05}
    assert found["C35"].sesoi == pytest.approx(np.log(1.1))
    r2 = {f: made.values("sgd.both", "r2", f) for f in ("parity1", "parity4")}
    expected = np.log(r2["parity1"].std() / r2["parity1"].mean()) - np.log(r2["parity4"].std() / r2["parity4"].mean())
    assert spread == pytest.approx(expected, abs=0.1)  # but for the bias that the jackknife takes away
    verdicts = {r["id"]: r["verdict"] for r in judge(experiment.claims(made, "sgd"), "sgd", False)}
    assert set(verdicts.values()) == {"reproduced"}
    made.settings = made.settings.drop("sgd.hard_only")
    assert [bool(c.parts) for c in experiment.claims(made, "sgd")] == [False, False, False, True]


def test_a_seed_that_fails_is_in_no_pair():
    made = made_results(odd=5)
    claims = {c.id: c.parts for c in experiment.claims(made, "sgd")}
    part = claims["C26"][0]
    assert np.isnan(part.values[5])
    assert part.values.drop(5).mean() == pytest.approx(0.5, abs=1e-9)  # its pairs would have pulled this down
    assert part.secondary.drop(5).mean() == pytest.approx(0.5, abs=1e-9)
    assert part.everyone.mean() == pytest.approx(0.5 * 14 / 16, abs=1e-9)
    row = next(r for r in judge([c for c in experiment.claims(made, "sgd") if c.id == "C26"], "sgd", False))
    assert (row["runs"], row["left_out"]) == (15, 1)
    assert np.isfinite(claims["C35"][0].values[5])  # there it is in no compared cell


def test_settings_that_cannot_be_compared_are_refused():
    sound = experiment.EXPERIMENT
    planning.check(sound, "cpu")
    apart = dataclasses.replace(sound, config=Config(BinaryOptions(), MLPOptions()))
    with pytest.raises(ConfigError, match=r"keep\.shared=false"):
        planning.check(apart, "cpu")
    other = (*sound.settings, ("odd", (("task.features", ("parity1", "parity3")),)))
    with pytest.raises(ConfigError, match="different probe examples"):
        planning.check(dataclasses.replace(sound, settings=other), "cpu")


@pytest.fixture(scope="module")
def folder(smokes):
    return smokes / "similarity"


@pytest.fixture(scope="module")
def chunks(folder):
    smoke = assemble(experiment, "smoke", None, 0, [])
    return planning.place(smoke, planning.check(smoke, "cpu"), folder, DEVICES).chunks


def test_pairs_on_disk_are_the_probe_of_their_activations(folder):
    results = Results(folder)
    rows = results.rows[results.rows["probe"] == "similarity"]
    assert len(rows) == len(probe.MEASURES) * 4 * 4  # four kinds of models of one seed meet four of the other
    assert set(rows["feature"]) == {""}
    assert set(rows["site"]) == {"hidden_1"}
    assert not rows["value"].isna().any()
    phi, inputs = {}, []
    for kind in ("both", "easy_only", "hard_only"):
        for seed, found, _ in results.activations(f"sgd.{kind}"):
            phi[f"sgd.{kind}", 32, seed] = found[-1, 1024:]
            if kind == "both":
                phi["sgd.both", 0, seed] = found[0, 1024:]
        inputs += [found for _, found, _ in results.activations(f"sgd.{kind}", "input")]
    for other in inputs[1:]:
        np.testing.assert_array_equal(other, inputs[0])
    expected = matrices(*phi.values())
    for name in probe.MEASURES:
        found = contrasts.similarities(results, "sgd", name).loc[list(phi), list(phi)].to_numpy()
        seeds = np.array([key[2] for key in phi])
        apart = seeds[:, None] != seeds[None]
        np.testing.assert_allclose(found[apart], expected[name][apart], rtol=1e-6)
        assert np.isnan(found[~apart]).all()


def test_merging_again_gives_the_same_file_and_stops_when_asked(folder, chunks, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    before = (copy / "results.csv").read_bytes()
    probes = experiment.EXPERIMENT.probes
    with pytest.raises(Interrupted, match="pairs of sgd"):
        measure.merge(copy, "similarity", chunks, probes, lambda: True)
    assert (copy / "results.csv").read_bytes() == before
    measure.merge(copy, "similarity", chunks, probes, lambda: False)
    assert (copy / "results.csv").read_bytes() == before
    measure.merge(copy, "similarity", chunks, ("variance",), lambda: True)  # nothing to compare, nothing to stop
    kept = [x for x in before.decode().splitlines(keepends=True) if x.split(",")[6] != "similarity"]
    assert (copy / "results.csv").read_bytes().decode() == "".join(kept)


def test_models_that_are_there_are_compared_when_others_are_missing(folder, chunks):
    found = list(pairs.compare(folder, chunks[:-1], ("similarity",), lambda: False))
    whole = list(pairs.compare(folder, chunks, ("similarity",), lambda: False))
    missing = {setting for setting, _ in chunks[-1].runs}
    assert missing == {"sgd.hard_only"}
    assert found == [row for row in whole if not {row[0], row[7].split("/")[0]} & missing]
    assert 0 < len(found) < len(whole)


def test_reference_files_keep_pairs_apart_by_what_is_compared(folder, tmp_path):
    results = Results(folder)
    tables.reference(results, tables.read_claims(folder), tmp_path)
    written = pd.read_csv(tmp_path / "measures.csv", keep_default_na=False)
    own = written[(written["metric"] == "rsa") & (written["setting"] == "sgd.both")]
    assert set(own["step"]) == {0, 32}
    own = own[own["step"] == 32].set_index("other")
    assert set(own.index) == {"sgd.both", "sgd.both/0", "sgd.easy_only", "sgd.hard_only"}
    found = contrasts.similarities(results, "sgd", "rsa").loc[("sgd.both", 32)]
    for name, other in (("sgd.easy_only", ("sgd.easy_only", 32)), ("sgd.both/0", ("sgd.both", 0))):
        assert own.loc[name, "mean"] == pytest.approx(np.nanmean(found[other]), rel=1e-4)
