"""Truth tables, their inverses, and the data made from them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repbias_jax.config import Config, ConfigError, dials_of, override_all
from repbias_jax.data import DATA, binary, output_values, reported
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.features import FEATURES, look_up
from repbias_jax.models.mlp import MLPOptions


@pytest.fixture(autouse=True)
def _strict_dtypes():
    """No number changes its type unasked."""
    with jax.numpy_dtype_promotion("strict"):
        yield


ALL = sorted(FEATURES)


def rows(arity):
    return jnp.asarray(list(itertools.product((0, 1), repeat=arity)), jnp.int32)


@pytest.mark.parametrize("arity", [1, 2, 3, 4])
def test_parity_is_the_sum_modulo_two(arity):
    bits = rows(arity)
    np.testing.assert_array_equal(FEATURES[f"parity{arity}"].value(bits), np.asarray(bits).sum(1) % 2)


def test_majorities_by_hand():
    assert FEATURES["majority3"].table == (0, 0, 0, 1, 0, 1, 1, 1)
    whole = FEATURES["majority3_xor"]
    bits = rows(6)
    inner = [look_up(table, bits) for _, table in whole.parts]
    np.testing.assert_array_equal(whole.value(bits), np.asarray(inner[0]) ^ np.asarray(inner[1]))
    np.testing.assert_array_equal(inner[0], (np.asarray(bits)[:, :3].sum(1) >= 2).astype(int))
    np.testing.assert_array_equal(inner[1], (np.asarray(bits)[:, 3:].sum(1) >= 2).astype(int))


@pytest.mark.parametrize("name", ALL)
def test_bits_given_inverts_value_and_is_uniform(name):
    feature = FEATURES[name]
    assert feature.base_rate == pytest.approx(np.mean(np.asarray(feature.value(rows(feature.arity))) == 1))
    draw = jax.jit(jax.vmap(feature.bits_given, in_axes=(None, 0)))
    for value in range(feature.num_values):
        bits = np.asarray(draw(value, jax.random.split(jax.random.key(value), 4000)))
        assert (np.asarray(feature.value(jnp.asarray(bits))) == value).all()
        codes, counts = np.unique(bits @ 2 ** np.arange(feature.arity), return_counts=True)
        expected = feature.table.count(value)
        assert len(codes) == expected
        if expected > 1:  # chi-square with a bound that chance passes once in 10^6
            assert np.square(counts - 4000 / expected).sum() / (4000 / expected) < expected + 8 * np.sqrt(2 * expected) + 20


def config(**changes) -> Config:
    return override_all(Config(BinaryOptions(), MLPOptions()), {k.replace("__", "."): v for k, v in changes.items()})


def draw(config, number=4096, key=0, dials=None):
    task = config.task
    dials = dials or dials_of(config)
    return jax.jit(jax.vmap(lambda k: binary.sample(task, dials, None, k)))(jax.random.split(jax.random.key(key), number))


def test_labels_are_functions_of_the_bits_and_twins_read_others():
    made = config(task__features=("parity1", "parity4", "majority3_xor"))
    example = draw(made)
    bits, read = np.asarray(example.inputs), set()
    for block in binary.blocks(made.task):
        places = range(block.places.start, block.places.stop)
        assert not read & set(places)
        read |= set(places)
        value = block.feature.value(jnp.asarray(bits[:, block.places]))
        np.testing.assert_array_equal(value, example.factors[block.name])
    for o, name in enumerate(binary.feature_names(made.task)):
        np.testing.assert_array_equal(example.labels[:, o], example.factors[name])


@pytest.mark.parametrize("features", [("parity1", "parity4"), ("majority3", "parity3")])
def test_factors_are_independent_and_half(features):
    example = draw(config(task__features=features), 20_000)
    names = [n for n in example.factors if "." not in n]
    values = np.stack([np.asarray(example.factors[n]) for n in names]).astype(float)
    np.testing.assert_allclose(values.mean(1), 0.5, atol=5 * 0.5 / np.sqrt(20_000))
    correlation = np.corrcoef(values) - np.eye(len(names))
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)


def test_every_bit_is_uniform_and_pairwise_independent():
    bits = np.asarray(draw(config(), 20_000).inputs)
    np.testing.assert_allclose(bits.mean(0), 0.5, atol=5 * 0.5 / np.sqrt(20_000))
    assert np.abs(np.corrcoef(bits.T) - np.eye(32)).max() < 5.5 / np.sqrt(20_000)


def test_prevalence_exposure_and_predictivity_are_dials():
    made = config(task__prevalence=(0.1, 0.5), task__exposure=(1.0, 0.25))
    example = draw(made, 20_000)
    assert abs(np.mean(example.factors["parity1"]) - 0.1) < 0.01
    assert abs(np.mean(np.asarray(example.labels)[:, 1] == binary.UNSEEN) - 0.75) < 0.02
    assert not (np.asarray(example.labels)[:, 0] == binary.UNSEEN).any()
    other = draw(config(task__predictivity=(0.9, 0.8), task__outputs=("target",)), 20_000)
    target = np.asarray(other.factors["target"])
    for name, expected in (("parity1", 0.9), ("parity4", 0.8), ("twin_parity4", 0.5)):
        assert abs(np.mean(np.asarray(other.factors[name]) == target) - expected) < 0.015
    np.testing.assert_array_equal(other.labels[:, 0], target)
    fair = binary.fair(made.task, dials_of(made))
    assert abs(np.mean(draw(made, 20_000, dials=fair).factors["parity1"]) - 0.5) < 0.02


def test_output_order_moves_labels():
    example, moved = draw(config(), 64), draw(config(task__output_order=(1, 0)), 64)
    np.testing.assert_array_equal(example.inputs, moved.inputs)
    np.testing.assert_array_equal(np.asarray(example.labels)[:, ::-1], moved.labels)


@pytest.mark.parametrize(
    "features", [("parity1", "parity4"), ("parity1", "parity2", "parity3", "parity4"), ("majority3_xor",)]
)
def test_balanced_halves_cross_all_bits_exactly(features):
    task = config(task__features=features).task
    dials = dials_of(config(task__features=features))
    _, factors, _ = jax.jit(lambda k: binary.probe_set(task, dials, None, "balanced", k))(jax.random.key(1))
    bits = np.stack([np.asarray(v) for n, v in factors.items() if ".bit" in n], 1)
    assert bits.shape[1] == sum(FEATURES[f].arity for f in features)
    for half in (bits[:1024], bits[1024:]):
        _, counts = np.unique(half @ 2 ** np.arange(bits.shape[1]), return_counts=True)
        assert len(counts) == 2 ** bits.shape[1]
        assert len(set(counts)) == 1
    for name, values in factors.items():  # the twins are balanced too
        assert np.asarray(values)[:1024].mean() == 0.5, name


def test_many_features_are_crossed_by_value():
    features = ("parity4",) * 4
    task = config(task__features=features).task
    dials = dials_of(config(task__features=features))
    _, factors, _ = jax.jit(lambda k: binary.probe_set(task, dials, None, "balanced", k))(jax.random.key(1))
    values = np.stack([np.asarray(factors[f"parity4_{i}"]) for i in range(1, 5)], 1)
    _, counts = np.unique(values[:1024] @ 2 ** np.arange(4), return_counts=True)
    assert list(counts) == [64] * 16
    assert not any(".bit" in n for n in factors)


def test_natural_and_decorrelated_sets():
    made = config(task__prevalence=(0.1, 0.5))
    dials = dials_of(made)
    names = ("natural", "decorrelated")
    sets = {n: binary.probe_set(made.task, dials, None, n, jax.random.key(3))[1]["parity1"] for n in names}
    assert abs(np.mean(sets["natural"]) - 0.1) < 0.03
    assert abs(np.mean(sets["decorrelated"]) - 0.5) < 0.05


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from(ALL), min_size=1, max_size=6), st.integers(4, 64), st.booleans())
def test_any_task_is_refused_or_has_disjoint_blocks(features, num_bits, twins):
    task = BinaryOptions(features=tuple(features), num_bits=num_bits, twins=twins, num_probe=2**14)
    needed = sum(FEATURES[f].arity for f in features) * (1 + twins)
    if needed > num_bits:
        with pytest.raises(ConfigError, match="num_bits"):
            binary.check(task)
        return
    binary.check(task)
    taken = [bit for b in binary.blocks(task) for bit in range(b.places.start, b.places.stop)]
    assert len(taken) == len(set(taken)) == needed
    assert max(taken) < num_bits


@pytest.mark.parametrize("name", list(DATA))
def test_contract_every_dataset(name):
    """Under jit and vmap: one example as many; labels are factors; every probe set by name; the same key, the same data."""
    source, task = DATA[name], DATA[name].OPTIONS()
    source.check(task)
    dials, keys = dials_of(Config(task, MLPOptions())), jax.random.split(jax.random.key(0), 6)
    spec, known = source.input_spec(task), source.factors(task)
    one = jax.jit(lambda k: source.sample(task, dials, source.draw(task, dials, keys[1]), k))
    every = jax.jit(jax.vmap(lambda k: source.sample(task, dials, source.draw(task, dials, keys[1]), k)))
    with jax.debug_key_reuse(False):  # the same keys on purpose
        alone, many, again = one(keys[0]), every(keys), every(keys)
        drawn = source.draw(task, dials, keys[1])
        sets = {n: source.probe_set(task, dials, drawn, n, keys[2]) for n in ("balanced", "natural", "decorrelated")}
    jax.tree.map(np.testing.assert_array_equal, many, again)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[0]), alone, many)
    assert (alone.inputs.shape, alone.inputs.dtype) == (spec.shape, spec.dtype)
    assert set(many.factors) == set(known)  # jit sorts names
    assert [n for n, f in known.items() if f.role == "feature"] == list(reported(task))  # by default the features, in order
    for factor, values in many.factors.items():
        assert values.dtype == jnp.int32
        assert 0 <= int(values.min()) <= int(values.max()) < known[factor].values
    for n, order in enumerate(np.asarray(many.order)):
        assert sorted(order) == list(range(len(output_values(task))))
        for position, listed in enumerate(order):
            assert int(many.labels[n, position]) == int(many.factors[reported(task)[listed]][n])
    common = source.order_of(task, dials, drawn)
    if common is not None:
        np.testing.assert_array_equal(many.order, np.broadcast_to(common, many.order.shape))
    for own, (inputs, factors, order) in sets.items():
        assert (inputs.shape, inputs.dtype) == ((task.num_probe, *spec.shape), spec.dtype)
        assert set(factors) == set(source.probe_factors(task, own))
        assert set(reported(task)) <= set(factors)
        assert order.shape[-1] == len(output_values(task))
