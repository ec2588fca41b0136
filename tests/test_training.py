"""One run and many: contracts, keys, layouts, compilations, and one golden step."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from repbias_jax import layout, population, run, store, training
from repbias_jax.config import Config, Experiment, Runtime, dials_of, override_all, static_half
from repbias_jax.data import DATA
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.data.images import ImageOptions
from repbias_jax.data.sequences import SequenceOptions
from repbias_jax.layout import Layout
from repbias_jax.models import MODELS
from repbias_jax.models.convnet import ConvNetOptions
from repbias_jax.models.mlp import MLPOptions
from repbias_jax.models.transformer import TransformerOptions
from repbias_jax.models.vit import ViTOptions

BASE = Config(BinaryOptions(), MLPOptions())
SMALL = {
    "model.widths": (16, 8),
    "task.num_train": 256,
    "task.num_test": 128,
    "task.num_probe": 64,
    "training.batch_size": 32,
    "training.epochs": 4,
    "training.observe_every": 8,
}


def small(**changes) -> Config:
    return override_all(BASE, SMALL | {k.replace("__", "."): v for k, v in changes.items()})


def halves(config, lanes=2):
    return static_half(config, Runtime(lanes=lanes)), dials_of(config)


@functools.cache
def programs_of(static):
    return (
        jax.jit(lambda d: training.make_data(static.config.task, "balanced", d, jnp.int32(0))),
        jax.jit(lambda d: training.init(static, d, jnp.int32(0))),
        jax.jit(lambda d, x, s, a, b: training.segment(static, d, jnp.int32(0), x, s, a, b)),
    )


def one_run(config, cuts=(0, 32), static=None, dials=None):
    if static is None:
        static, dials = halves(config)
    make, init, step = programs_of(static)
    data, state = make(dials), init(dials)
    for a, b in itertools.pairwise(cuts):
        state = step(dials, data, state, jnp.int32(a), jnp.int32(b))
    return data, state


def test_golden_run():
    """32 steps of the smallest run, against stored numbers.

    They may be updated when a change is meant to alter data, initial weights, batches or the update rule, and for no other
    reason; say so in the commit.
    """
    static, dials = halves(small())
    data, state = one_run(small())
    curve = np.asarray(jax.jit(lambda d, x, s: training.observe(static, d, x, s))(dials, data, state))
    assert int(np.asarray(data.train_inputs).sum()) == GOLDEN["ones"]
    np.testing.assert_allclose(curve[..., 0], GOLDEN["loss"], rtol=2e-4)


GOLDEN = {"ones": 4059, "loss": [[0.661376, 0.687014], [0.670668, 0.690313]]}


@pytest.mark.parametrize("cuts", [(0, 8, 32), (0, 3, 5, 31, 32), (0, 16, 24, 32)])
def test_cutting_a_run_into_segments_changes_no_bit(cuts):
    whole, parts = one_run(small())[1], one_run(small(), cuts=cuts)[1]
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_epoch_visits_every_example_once_and_epochs_differ():
    keys = training.keys_of(jnp.int32(3))
    orders = [np.asarray(training.shuffled(jax.random.fold_in(keys.batches, e), 256)) for e in range(2)]
    assert sorted(orders[0]) == list(range(256))
    assert (orders[0] != orders[1]).any()


def test_keys_are_one_a_role_and_of_the_seed_alone():
    words = {}
    for seed in (0, 1):
        for role, key in training.keys_of(jnp.int32(seed))._asdict().items():
            words[seed, role] = tuple(np.asarray(jax.random.key_data(key)).tolist())
    assert len(set(words.values())) == len(words)
    plain, other = one_run(small()), one_run(small(optimizer__learning_rate=0.02, training__loss="squared"))
    np.testing.assert_array_equal(plain[0].train_inputs, other[0].train_inputs)
    first = [one_run(small(**c), cuts=(0,))[1].params for c in ({}, {"optimizer__learning_rate": 0.3})]
    jax.tree.map(np.testing.assert_array_equal, *first)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw", "rmsprop"])
def test_every_rule_is_optax_with_our_numbers(name):
    """Two updates with traced numbers against optax built outside with plain ones."""
    _, dials = halves(small(optimizer__learning_rate=0.05, optimizer__momentum=0.8, optimizer__weight_decay=0.01))
    plain = {
        "sgd": lambda: optax.sgd(0.05),
        "momentum": lambda: optax.sgd(0.05, momentum=0.8),
        "adam": lambda: optax.adam(0.05),
        "rmsprop": lambda: optax.rmsprop(0.05),
    }
    chosen = (
        optax.adamw(0.05, weight_decay=0.01)
        if name == "adamw"
        else optax.chain(optax.add_decayed_weights(0.01), plain[name]())
    )
    start, gradient = {"w": jnp.asarray([1.0, -2.0, 0.5])}, {"w": jnp.asarray([0.3, -0.1, 2.0])}

    def two(rule, params):
        memory = rule.init(params)
        for _ in range(2):
            updates, memory = rule.update(gradient, memory, params)
            params = optax.apply_updates(params, updates)
        return params["w"]

    ours = jax.jit(lambda d: two(training.make_optimizer(name, d), start))(dials)
    np.testing.assert_allclose(ours, two(chosen, start), rtol=1e-6)
    assert not np.allclose(ours, start["w"])


def test_losses_by_hand():
    logits, labels = jnp.asarray([[[2.0, 0.0], [0.5, -0.5]]]), jnp.asarray([[0, 1]])
    found = training.losses("cross_entropy", logits, labels)
    np.testing.assert_allclose(found, [[np.log(1 + np.exp(-2)), np.log(1 + np.exp(1))]], rtol=1e-6)
    found = training.losses("squared", logits, labels)
    np.testing.assert_allclose(found, [[(1 + 1) / 2, (1.5**2 + 1.5**2) / 2]], rtol=1e-6)
    np.testing.assert_array_equal(training.losses("squared", logits, jnp.asarray([[-1, -1]])), 0)
    np.testing.assert_array_equal(training.losses("cross_entropy", logits, jnp.asarray([[-1, -1]])), 0)


def test_phases_switch_outputs_on_and_off():
    """Only easy for 16 steps, then only hard: hard's head does not move before, easy's not after."""
    config = small(training__loss_weights=((1.0, 0.0), (0.0, 1.0)), training__phase_ends=(0.5, 1.0))
    heads = [
        np.asarray(one_run(config, cuts=cuts)[1].params["params"]["readout"]["kernel"])
        for cuts in ((0,), (0, 16), (0, 16, 32))
    ]
    assert (heads[0][:, 2:] == heads[1][:, 2:]).all()
    assert (heads[0][:, :2] != heads[1][:, :2]).any()
    assert (heads[1][:, :2] == heads[2][:, :2]).all()
    assert (heads[1][:, 2:] != heads[2][:, 2:]).any()


def test_the_rules_memory_is_made_anew_where_a_phase_begins():
    """As if training had been begun again there, with the same weights."""
    shared = {"optimizer__name": "adam", "training__loss_weights": ((1.0, 1.0),) * 2, "training__phase_ends": (0.5, 1.0)}
    config = small(optimizer__reset_phase=1, **shared)
    (data, half), carried = one_run(small(**shared), cuts=(0, 16)), one_run(small(**shared))[1]
    static, dials = halves(small(**shared))
    fresh = training.make_optimizer("adam", dials).init(half.params)
    step = programs_of(static)[2]
    again = step(dials, data, half._replace(opt_state=fresh), jnp.int32(16), jnp.int32(32))
    found = one_run(config)[1]

    def apart(one, other):
        leaves = zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True)
        return max(float(jnp.abs(a - b).max()) for a, b in leaves)

    assert apart(found, again) < 1e-3  # two programs, and Adam divides small numbers
    assert apart(found, carried) > 1e-2


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw", "rmsprop"])
def test_the_rate_falls_linearly(name):
    """Against optax's own schedule, also where training is cut."""
    config = small(optimizer__name=name, optimizer__learning_rate=3e-3, optimizer__final_rate=0.1)
    (data, found), (_, cut) = one_run(config), one_run(config, cuts=(0, 3, 32))
    jax.tree.map(np.testing.assert_array_equal, found.params, cut.params)
    static, dials = halves(config)
    falling = optax.linear_schedule(3e-3, 3e-4, config.num_steps)
    rules = {
        "sgd": optax.sgd(falling), "momentum": optax.sgd(falling, momentum=0.9), "adam": optax.adam(falling),
        "adamw": optax.adamw(falling, weight_decay=0.0), "rmsprop": optax.rmsprop(falling),
    }  # fmt: skip
    model, weights = training.build_model(static), training.weights_at(dials, data.train_order)[0]
    keys, batch = training.keys_of(jnp.int32(0)), config.training.batch_size
    state = training.init(static, dials, jnp.int32(0))
    params, memory = state.params, rules[name].init(state.params)

    @jax.jit
    def step(params, memory, examples):
        gradient = training.gradient_of(static, model, dials, params, examples, weights)
        updates, memory = rules[name].update(gradient, memory, params)
        return optax.apply_updates(params, updates), memory

    for i in range(config.num_steps):
        epoch, place = divmod(i, config.steps_per_epoch)
        order = training.shuffled(jax.random.fold_in(keys.batches, epoch), len(data.train_labels))
        chosen = order[place * batch : (place + 1) * batch]
        examples = training.Examples(data.train_inputs[chosen], data.train_labels[chosen], data.train_order, None)
        params, memory = step(params, memory, examples)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found.params, params)


def dropping(dials, rate):
    return dials._replace(model={**dials.model, "dropout": jnp.float32(rate)})


def test_dropout_is_a_dial_and_off_when_looking():
    config = small(model__dropout=0.4)
    static, dials = halves(config)
    assert "model.dropout" in static.switches
    data, state = one_run(config)
    looks = [training.represent(static, d, data, state) for d in (dials, dropping(dials, 0.0))]
    jax.tree.map(np.testing.assert_array_equal, *looks)
    other = one_run(config, static=static, dials=dropping(dials, 0.1))[1]
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True))


def test_init_scale_scales_the_first_weights():
    plain, twice = (one_run(small(model__init_scale=s), cuts=(0,))[1].params["params"] for s in (1.0, 2.0))
    for layer in plain:
        np.testing.assert_allclose(2 * plain[layer]["kernel"], twice[layer]["kernel"], rtol=1e-6)


# Of each family a small model and a task that it can read. A decoder's answers would change what follows an edit.
STRING = SequenceOptions(features=("parity1", "parity2"), length=6, num_probe=64)
IMAGE = ImageOptions(size=24, shapes=("square", "circle"), colors=("red", "green"), num_probe=64)
READERS = {
    "mlp": small(),
    "transformer": Config(STRING, TransformerOptions(form="encoder", width=8, heads=2)),
    "convnet": Config(IMAGE, ConvNetOptions(widths=(8, 8))),
    "vit": Config(IMAGE, ViTOptions(patch=8, width=8, heads=2, layers=2)),
}


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "gelu"])
def test_contract_every_model(name, activation):
    """Under jit and vmap: deterministic without a key; a zero edit changes nothing, an edit no earlier site."""
    config = override_all(READERS[name], {"model.activation": activation, "model.dropout": 0.5})
    static, dials = halves(config)
    model = training.build_model(static)
    spec = DATA[config.task.name].input_spec(config.task)
    inputs = jax.random.bernoulli(jax.random.key(1), 0.5, (5, *spec.shape)).astype(spec.dtype)
    params = model.init(jax.random.key(0), inputs[0], dials)
    run = jax.jit(jax.vmap(lambda x, e: model.apply(params, x, dials, edits=e), in_axes=(0, None)))
    logits, sites = run(inputs, {})
    assert logits.shape == (5, 2, 2)
    alone, _ = model.apply(params, inputs[0], dials)
    np.testing.assert_allclose(alone, logits[0], rtol=1e-5, atol=1e-5)
    names = list(dict.fromkeys(view.site for view in training.views_of(static).values()))
    assert set(names) <= set(sites)
    assert names[0] in ("input", "embedding")
    assert names[-1] == "logits"
    for i, site in enumerate(names):
        same, _ = run(inputs, {site: jnp.zeros(sites[site].shape[1:])})
        np.testing.assert_allclose(same, logits, rtol=1e-5, atol=1e-6)  # the two are compiled apart
        moved, seen = run(inputs, {site: jnp.full(sites[site].shape[1:], 0.7)})
        for earlier in names[:i]:
            np.testing.assert_allclose(seen[earlier], sites[earlier], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(seen[site], sites[site] + 0.7, rtol=1e-5, atol=1e-6)
        assert (np.asarray(moved) != np.asarray(logits)).any()
    dropped = [model.apply(params, inputs[0], dials, key=jax.random.key(k))[0] for k in (0, 0, 1)]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert (np.asarray(dropped[0]) != np.asarray(dropped[2])).any()


def test_site_names_are_pinned():
    static, dials = halves(BASE)
    shapes = training.view_sizes(static, dials)
    assert {n: u for n, (_, u) in shapes.items()} == {
        "input": 32, "hidden_0": 256, "hidden_1": 128, "hidden_2": 64, "hidden_3": 64, "logits": 4,
    }  # fmt: skip
    assert training.places_of(static) == {
        "all": tuple(shapes), "layers": tuple(shapes)[1:-1], "last_hidden": ("hidden_3",), "before_last": ("hidden_2",),
    }  # fmt: skip


def chunk_state(rows, lanes, devices, runs, config):
    """Final state of `runs` seeds, laid out as given. Returns leaves `[runs, ...]` and the data."""
    static, dials = halves(config, lanes)
    mesh = jax.make_mesh((devices,), ("runs",), devices=jax.devices()[:devices], axis_types=(jax.sharding.AxisType.Auto,))
    programs, shape = population.Programs(static, mesh), (rows, lanes)
    found = []
    for first in range(0, runs, rows * lanes):
        seeds = jnp.arange(first, first + rows * lanes, dtype=jnp.int32).reshape(shape)
        stacked = jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *x.shape)), dials)
        data = programs.data(stacked, seeds)
        state = programs.segment(stacked, seeds, data, programs.init(stacked, seeds), np.int32(0), np.int32(32))
        found.append(jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), (data, state)))
    return jax.tree.map(lambda *x: np.concatenate(x), *found)


def test_bits_depend_on_lanes_and_on_nothing_else():
    config = small(optimizer__name="adam", optimizer__learning_rate=1e-3)
    data, state = chunk_state(4, 2, 4, 8, config)
    for rows, devices in ((4, 2), (2, 2)):  # fewer devices than rows, more chunks: equal lanes, equal bits
        other_data, other = chunk_state(rows, 2, devices, 8, config)
        jax.tree.map(np.testing.assert_array_equal, data, other_data)
        jax.tree.map(np.testing.assert_array_equal, state, other)
    more_data, more = chunk_state(2, 4, 2, 8, config)  # other lanes: the same data, weights up to rounding
    jax.tree.map(np.testing.assert_array_equal, data, more_data)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.05), state.params, more.params)


@pytest.mark.parametrize(("name", "rounding"), [("sgd", 0), ("adam", 1e-6)])
def test_one_device_has_the_same_data_and_the_weights_up_to_the_last_bit(name, rounding):
    """XLA simplifies a program for one device in another order, which touches Adam's bias correction (see BUILD.md)."""
    config = small(optimizer__name=name, optimizer__learning_rate=1e-3)
    (data, state), (one_data, one) = chunk_state(2, 2, 2, 4, config), chunk_state(2, 2, 1, 4, config)
    jax.tree.map(np.testing.assert_array_equal, data, one_data)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=rounding), state.params, one.params)


def test_a_diverging_run_changes_no_bit_of_its_neighbours():
    config = small()
    static, dials = halves(config)
    stack = lambda *x: jnp.stack(x)  # noqa: E731

    def final(rates):
        many = jax.tree.map(
            stack, *[dials._replace(optimizer={**dials.optimizer, "learning_rate": jnp.float32(r)}) for r in rates]
        )

        def run(d):
            data = training.make_data(static.config.task, "balanced", d, jnp.int32(0))
            state = training.segment(static, d, jnp.int32(0), data, training.init(static, d, jnp.int32(0)), 0, 32)
            return state, training.observe(static, d, data, state)

        return jax.jit(jax.vmap(run))(many)

    sound, curve = final((0.1, 0.1))
    mixed, bad = final((0.1, 1e30))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), sound, mixed)
    assert np.isfinite(curve).all()
    assert np.isnan(bad[1]).all()


def experiment_chunks(seeds, rows=2, lanes=2):
    configs = {f"a.{n}": small(optimizer__learning_rate=r) for n, r in (("x", 0.1), ("y", 0.05), ("z", 0.02))}
    groups = layout.groups_of(configs, "cpu", lanes)
    return groups, layout.chunks_of(groups, Layout(rows, 0, seeds, {}, rows))


def test_three_settings_two_chunks_and_a_ragged_one_compile_once(tmp_path, monkeypatch):
    made = []

    class Watched(population.Programs):
        def __init__(self, *a):
            super().__init__(*a)
            made.append(self)

    monkeypatch.setattr(population, "Programs", Watched)
    groups, chunks = experiment_chunks((3,))
    assert len(groups) == 1
    assert [len(c.runs) for c in chunks] == [4, 4, 1]
    population.train(tmp_path, chunks, lambda: False, 0.0)
    assert len(made) == 1
    for name in ("init", "segment", "observe", "represent", "fingerprint"):
        times = 2 if name == "fingerprint" else 1  # of states and of curves
        assert getattr(made[0], name).program._cache_size() == times, name
    for chunk in chunks:
        done = store.read_json(tmp_path / chunk.path / "done.json", "train")
        assert [(r["setting"], r["seed"]) for r in done["runs"]] == list(chunk.runs)  # what fills up is not there
        arrays = store.Activations(tmp_path / chunk.path / "activations.zarr")
        assert arrays.shape("hidden_1")[0] == len(chunk.runs)
        assert np.isfinite(arrays.read("hidden_1")).all()


def test_more_seeds_leave_the_first_chunks_as_they_are():
    before = experiment_chunks((3,))[1]
    after = experiment_chunks((3, 7))[1]
    assert [(c.name, c.runs) for c in after[: len(before)]] == [(c.name, c.runs) for c in before]
    runs = [r for c in after for r in c.runs]
    assert len(runs) == len(set(runs)) == 21


def test_points_are_dense_where_asked():
    config = small(training__observe_every=16, training__dense=(0.5, 0.75), training__dense_every=3)
    assert layout.points_of(config) == (0, 16, 19, 22, 32)


def test_settings_are_grouped_by_their_static_half():
    configs = {
        "a.x": small(), "a.y": small(optimizer__learning_rate=0.3), "a.z": small(model__widths=(8,)),
        "a.w": small(training__loss_weights=((1.0, 0.0),)), "a.d": small(model__dropout=0.1),
    }  # fmt: skip
    groups = layout.groups_of(configs, "cpu")
    assert [g.settings for g in groups] == [("a.x", "a.y", "a.w"), ("a.z",), ("a.d",)]


@pytest.mark.parametrize("lanes", [1, 3])
def test_fingerprint_catches_every_single_bit(lanes):
    rng = np.random.default_rng(lanes)
    state = {"a": rng.normal(size=(lanes, 7)).astype(np.float32), "b": np.arange(lanes, dtype=np.int32)}
    fingerprint = jax.jit(store.fingerprint)
    before = int(fingerprint(state))
    for _ in range(200):
        flipped = {k: v.copy() for k, v in state.items()}
        raw = flipped[rng.choice(["a", "b"])].view(np.uint32).reshape(-1)
        raw[rng.integers(len(raw))] ^= np.uint32(1 << int(rng.integers(32)))
        assert int(fingerprint(flipped)) != before


def test_a_head_of_units_gives_the_shares_of_an_independent_implementation(tmp_path):
    """One hidden layer of 128, Adam 1e-3, 60 epochs, 8 seeds.

    An implementation that shares no code with this one measured 0.208 for easy, mean of its 8 seeds. With the standard
    deviation over seeds of both (0.0106) two standard errors of the difference are 0.0106.
    """
    changes = {"model.head": "unit", "model.widths": (128,), "optimizer.name": "adam", "optimizer.learning_rate": 1e-3}
    config = override_all(Config(BinaryOptions(), MLPOptions()), changes | {"training.epochs": 60})
    results = run(Experiment("shares", "shares", config, (("unit", ()),), num_seeds=8), tmp_path)
    easy = results.values("base.unit", "r2", "parity1")
    assert len(easy) == 8
    assert abs(easy.mean() - 0.208) < 0.0106


@pytest.mark.parametrize("name", ["convnet", "transformer of orders"])
def test_many_inputs_are_represented_in_blocks(name, monkeypatch):
    """The same activations, also with an order for each example and a block that is not full; and in less memory."""
    config = READERS["convnet"]
    if name != "convnet":
        config = Config(dataclasses.replace(STRING, order="example"), TransformerOptions(form="decoder", width=8, heads=2))
    static, dials = halves(override_all(config, {"task.num_probe": 128, "task.num_train": 64, "task.num_test": 32}))
    data = jax.jit(lambda d: training.make_data(static.config.task, "balanced", d, jnp.int32(3)))(dials)
    state = jax.jit(lambda d: training.init(static, d, jnp.int32(3)))(dials)

    def represented():
        program = jax.jit(lambda own, now: training.represent(static, dials, own, now)).lower(data, state).compile()
        return program(data, state), program.memory_analysis().temp_size_in_bytes

    own = static.config.model.name
    monkeypatch.setitem(MODELS, own, MODELS[own]._replace(block=0))
    whole, much = represented()
    held = training.kept_bytes(static, dials) // (4 * static.config.training.batch_size)
    monkeypatch.setattr(training, "MOST_HELD", 12 * (1 + held))
    assert training.read_at_once(static, dials) == 12
    blocks, little = represented()
    assert whole.keys() == blocks.keys()
    for view, value in whole.items():
        np.testing.assert_allclose(blocks[view], value, rtol=0, atol=1e-5, err_msg=view)
    assert name != "convnet" or little < much / 2


def test_fewer_long_strings_are_read_at_once():
    """What attention computes for one of them grows with the square of its length."""
    task = SequenceOptions(features=("contains_token",), vocabulary=8, length=1024, order="listed")
    config = Config(task, TransformerOptions(form="encoder"))
    static, dials = halves(config)
    weights = static.config.model.heads * static.config.model.layers * task.length**2
    assert 1 <= training.read_at_once(static, dials) <= training.MOST_HELD // weights
    short = halves(override_all(config, {"task.length": 16}))
    assert training.read_at_once(*short) > task.num_probe
