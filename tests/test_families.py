"""Contracts of families of data and models, on those that are registered and on a small decoder of tokens."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import toy_data
import toy_model
from made import Made

import repbias_jax
from repbias_jax import measure, planning, report, training
from repbias_jax.config import Config, ConfigError, Experiment, Keep, Runtime, Training, dials_of, override_all, static_half
from repbias_jax.data import DATA, output_values, reported
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.data.images import ImageOptions
from repbias_jax.models import MODELS
from repbias_jax.models.convnet import ConvNetOptions
from repbias_jax.models.family import IMPOSSIBLE
from repbias_jax.models.mlp import MLPOptions
from repbias_jax.models.vit import ViTOptions
from repbias_jax.probes import PROBES, Probe
from repbias_jax.probes.moments import Measured
from repbias_jax.report import page
from repbias_jax.statistics import gate


@pytest.fixture(autouse=True)
def _toys(monkeypatch):
    monkeypatch.setitem(DATA, toy_data.NAME, toy_data)
    monkeypatch.setitem(MODELS, toy_model.NAME, toy_model.FAMILY)


SIZES = {"num_train": 64, "num_test": 48, "num_probe": 48}
TRAINING = Training(batch_size=16, epochs=2, observe_every=4)
TASKS = {
    "binary": BinaryOptions(features=("parity1", "parity2"), num_bits=8, output_order=(1, 0), **SIZES),
    "images": ImageOptions(
        size=24, shapes=("square", "circle"), colors=("red", "green"), output_order=(1, 0), **SIZES | {"num_probe": 64}
    ),
    **{order: toy_data.ToyTask(order=order, output_order=(1, 0), **SIZES) for order in ("listed", "run", "example")},
}
OPTIONS = {
    "mlp": MLPOptions(widths=(8, 6)),
    "decoder": toy_model.ToyModel(),
    "convnet": ConvNetOptions(widths=(4, 8), groups=2),
    "vit": ViTOptions(patch=8, width=8, heads=2, layers=1),
}
BY_HAND = [("binary", "mlp"), ("run", "mlp"), ("listed", "decoder"), ("run", "decoder"), ("example", "decoder")]
CASES = [*BY_HAND, ("images", "convnet"), ("images", "vit")]
each_case = pytest.mark.parametrize(("task", "model"), CASES)


def config_of(task, model, **changes) -> Config:
    made = Config(TASKS[task], OPTIONS[model], training=TRAINING)
    return override_all(made, {k.replace("__", "."): v for k, v in changes.items()})


@functools.cache
def _making(config):
    """A program that makes the data and the first state of a run from its dials and seed, traced once."""
    static, task, name = static_half(config, Runtime()), config.task, config.keep.probe_set
    return jax.jit(lambda d, s: (training.make_data(task, name, d, s), training.init(static, d, s)))


def made_of(config, seed=0):
    """Static half, dials, data and first state of one run."""
    static, dials = static_half(config, Runtime()), dials_of(config)
    data, state = _making(config)(dials, jnp.int32(seed))
    return static, dials, data, state


@each_case
def test_models_are_deterministic_without_a_key(task, model):
    static, dials, data, state = made_of(config_of(task, model))
    run = jax.jit(lambda d, x, o: training.forward(static, d, state.params, x, o))
    first, second = (run(dials, data.probe.inputs, data.probe.order) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    fresh = made_of(config_of(task, model))
    jax.tree.map(np.testing.assert_array_equal, (data, state), fresh[2:])


@each_case
def test_only_label_fed_views_change_with_labels(task, model):
    static, dials, data, state = made_of(config_of(task, model))
    module, views = training.build_model(static), training.views_of(static)

    @jax.jit
    def readings(labels):
        _, sites = jax.vmap(lambda x, y: module.apply(state.params, x, dials, y))(data.test_inputs, labels)
        return {name: jax.vmap(view.read)(sites[view.site]) for name, view in views.items()}

    real, other, unseen = (
        readings(y) for y in (data.test_labels, 1 - data.test_labels % 2, -jnp.ones_like(data.test_labels))
    )
    for name, view in views.items():
        for changed in (other, unseen):
            assert (np.asarray(real[name]) != np.asarray(changed[name])).any() == view.label_fed, name
    for place, names in training.places_of(static).items():
        assert not [name for name in names if views[name].label_fed], place


@each_case
def test_every_view_spreads_back_and_reaches_the_logits(task, model):
    static, dials, data, state = made_of(config_of(task, model))
    module, x = training.build_model(static), data.probe.inputs[0]
    _, sites = module.apply(state.params, x, dials)
    for name, view in training.views_of(static).items():
        reading = view.read(sites[view.site])
        assert reading.ndim == 1
        zero = jnp.zeros(sites[view.site].shape)
        slope = jax.jacrev(lambda e, v=view: module.apply(state.params, x, dials, edits={v.site: e})[0])(zero)
        assert np.abs(slope).max() > 0, name
        if view.spread is not None:
            change = jnp.linspace(-1.0, 1.0, reading.shape[0])
            np.testing.assert_allclose(
                view.read(sites[view.site] + view.spread(change)), reading + change, rtol=1e-5, atol=1e-6
            )


@each_case
def test_stored_readings_are_vectors_of_floats(task, model):
    """Tokens, too: a store holds numbers."""
    static, dials, data, state = made_of(config_of(task, model))
    found = training.represent(static, dials, data, state)
    for name, shape in training.view_sizes(static, dials).items():
        assert (found[name].shape, found[name].dtype) == (shape, jnp.float32), name


def decoder_by_hand(params, tokens, change, counts):
    """The toy decoder in NumPy, for one example: `change` `[D]` is added to the branch of every token.

    `counts`: how many values each output has; an answer that is fed back is one of them.
    """
    p = jax.tree.map(np.asarray, params["params"])

    def dense(name, x):
        return x @ p[name]["kernel"] + p[name]["bias"]

    def relu(x):
        return np.maximum(x, 0)

    x = p["embed"]["embedding"][tokens]
    stream = x + dense("outer", relu(dense("inner", x))) + change
    pooled = relu(dense("pool", stream.reshape(-1)))
    before, answers = toy_model.START, []
    for position in range(2):
        state = relu(dense("decode", np.concatenate([pooled, p["answered"]["embedding"][before]])))
        answers.append(dense("head", state) + p["offset"][position])
        before = int(np.argmax(answers[-1][: counts[position]])) + toy_model.FIRST
    return np.stack(answers)


def mlp_by_hand(params, x, change, counts):
    """The MLP in NumPy: `change` `[D]` is added to the last hidden layer. `counts` says nothing here."""
    del counts
    p = jax.tree.map(np.asarray, params["params"])
    for i in range(len(OPTIONS["mlp"].widths)):
        x = np.maximum(x @ p[f"dense_{i}"]["kernel"] + p[f"dense_{i}"]["bias"], 0)
    return ((x + change) @ p["readout"]["kernel"] + p["readout"]["bias"]).reshape(2, -1)


@pytest.mark.parametrize(("task", "model"), BY_HAND)
def test_interventions_are_edited_passes_of_real_inputs(task, model, monkeypatch):
    """Against a network written by hand, and by the names of features whatever their order."""
    static, dials, data, state = made_of(config_of(task, model), seed=1)
    view, by_hand = {"mlp": ("hidden_1", mlp_by_hand), "decoder": ("branch.mean", decoder_by_hand)}[model]
    phi = training.represent(static, dials, data, state)[view]
    change = np.random.default_rng(0).normal(size=phi.shape[1]).astype(np.float32)
    half = len(phi) // 2

    def spy(fit, score, outputs):
        assert fit[0].shape == score[0].shape == (half, len(change))
        found = {}
        for side in ("fit", "score"):
            for n, c in (("one", jnp.asarray(change)), ("each", jnp.broadcast_to(change, (half, len(change))))):
                found |= {Measured(f"{side}.{n}", name): x for name, x in outputs(side, c).items()}
        return found

    monkeypatch.setitem(PROBES, "spy", Probe(spy, "intervention"))
    lift = functools.partial(jax.tree.map, lambda x: x[None])
    found = measure._intervention("spy", static, view)(
        *map(lift, (phi, data.probe.factors, data.probe, state.params, dials))
    )
    orders = np.broadcast_to(data.probe.order, (len(phi), 2))
    values = output_values(static.config.task)
    for side, first in (("fit", 0), ("score", half)):
        for n in range(first, first + half):
            counts = [values[listed] for listed in orders[n]]
            expected = by_hand(state.params, np.asarray(data.probe.inputs[n]), change, counts)
            for position, listed in enumerate(orders[n]):
                name = reported(static.config.task)[listed]
                for how in ("one", "each"):
                    got = found[Measured(f"{side}.{how}", name)][0, n - first]
                    assert got.shape == (values[listed],)
                    np.testing.assert_allclose(got, expected[position, : values[listed]], rtol=1e-4, atol=1e-5)


def test_an_answer_that_is_fed_back_is_one_the_output_has():
    """Whatever the logit of a third value, an output of two values does not feed it to the next."""
    static, dials, data, state = made_of(config_of("listed", "decoder"), seed=3)
    order = jnp.asarray([1, 0])  # the binary output first
    assert output_values(static.config.task) == (3, 2)
    tempted = jax.tree.map(lambda x: x, state.params)
    tempted["params"]["offset"] = tempted["params"]["offset"].at[0, 2].add(1e3)
    plain, _ = training.forward(static, dials, state.params, data.test_inputs, order)
    other, _ = training.forward(static, dials, tempted, data.test_inputs, order)
    np.testing.assert_array_equal(plain, other)


@each_case
def test_curves_are_of_features_whatever_their_order(task, model):
    """Scores of a listed output are those of its position, found by hand; values it does not have never win."""
    static, dials, data, state = made_of(config_of(task, model), seed=2)
    module = training.build_model(static)
    curve = np.asarray(training.observe(static, dials, data, state))
    values = output_values(static.config.task)
    orders = np.broadcast_to(data.test_order, (len(data.test_inputs), len(values)))
    run = jax.vmap(lambda x, v: module.apply(state.params, x, dials, values=v)[0])
    raw = np.asarray(run(data.test_inputs, jnp.asarray(values)[orders]))
    seen, _ = training.forward(static, dials, state.params, data.test_inputs, data.test_order)
    for listed in range(2):
        position = np.argmax(orders == listed, axis=1)
        logits = raw[np.arange(len(raw)), position]
        labels = np.asarray(data.test_labels)[np.arange(len(raw)), position]
        np.testing.assert_allclose(seen[:, listed, : values[listed]], logits[:, : values[listed]], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(seen[:, listed, values[listed] :], IMPOSSIBLE)
        own = logits[:, : values[listed]].astype(np.float64)
        loss = np.mean(np.log(np.exp(own).sum(1)) - own[np.arange(len(own)), labels])
        right = [np.mean(own[labels == c].argmax(1) == c) for c in range(values[listed])]
        np.testing.assert_allclose(curve[1, listed], [loss, np.mean(right), np.min(right)], rtol=1e-4)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize(("task", "model"), [("binary", "mlp"), ("listed", "decoder"), ("run", "decoder")])
def test_loss_weights_belong_to_features(task, model, order):
    """One step's gradient of the loss of the second feature alone is that of its own position."""
    own = {"task__output_order": order, "training__loss_weights": ((0.0, 1.0),)}
    static, dials, data, state = made_of(config_of(task, model, **own), seed=3)
    module, weights = training.build_model(static), training.weights_at(dials, data.train_order)[0]
    x, y = data.train_inputs[:16], data.train_labels[:16]

    def by_hand(params):
        logits = jax.vmap(lambda a, b: module.apply(params, a, dials, b)[0])(x, y)
        position = int(np.flatnonzero(np.asarray(data.train_order) == 1)[0])
        kept = logits[:, position, : output_values(static.config.task)[1]]
        return optax.softmax_cross_entropy_with_integer_labels(kept, y[:, position]).mean()

    examples = training.Examples(x, y, data.train_order, None)
    found = training.gradient_of(static, module, dials, state.params, examples, weights)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, jax.grad(by_hand)(state.params)
    )


@each_case
def test_the_gradient_by_blocks_is_that_of_the_batch(task, model, monkeypatch):
    """Also of what differs by example: its noise and the order of its outputs."""
    static, dials, data, state = made_of(config_of(task, model, model__dropout=0.3), seed=4)
    module, weights = training.build_model(static), training.weights_at(dials, data.train_order)[0]
    orders = data.train_order if data.train_order.ndim == 1 else data.train_order[:16]

    def gradient(block, backend="cpu"):
        """In blocks, and whether it is computed in a loop over them."""
        name = static.config.model.name
        monkeypatch.setitem(MODELS, name, MODELS[name]._replace(block=block))
        own = dataclasses.replace(static, runtime=Runtime(backend=backend))

        def of(params):
            keys = jax.random.split(jax.random.key(2), 16)
            examples = training.Examples(data.train_inputs[:16], data.train_labels[:16], orders, keys)
            return training.gradient_of(own, module, dials, params, examples, weights)

        return of(state.params), "scan" in str(jax.make_jaxpr(of)(state.params))

    whole, looped = gradient(0)
    assert not looped
    for block, backend, expected in ((4, "cpu", True), (5, "cpu", False), (16, "cpu", False), (4, "gpu", False)):
        found, looped = gradient(block, backend)
        assert looped == expected, (block, backend)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, whole)


@each_case
def test_reading_by_blocks_is_reading_all(task, model, monkeypatch):
    """Also where blocks do not divide the number of examples, and with edits and orders that differ by example."""
    static, dials, data, state = made_of(config_of(task, model), seed=5)
    order = data.probe.order
    _, sites = training.forward(static, dials, state.params, data.probe.inputs, order)
    view = next(view for view in training.views_of(static).values() if view.spread is not None)
    edits = {view.site: jax.random.normal(jax.random.key(1), sites[view.site].shape)}

    def readings(block):
        """In blocks, and whether they are read in a loop."""
        name = static.config.model.name
        monkeypatch.setitem(MODELS, name, MODELS[name]._replace(block=block))

        def read(data, state, edits):
            found = training.forward(static, dials, state.params, data.probe.inputs, order, edits)
            return found, training.represent(static, dials, data, state), training.observe(static, dials, data, state)

        program = jax.jit(read).trace(data, state, edits)
        return program.lower().compile()(data, state, edits), "scan" in str(program.jaxpr)

    whole, looped = readings(0)
    assert not looped
    for block in (5, 16):
        found, looped = readings(block)
        assert looped
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, whole)


def test_every_run_draws_an_order_of_its_own():
    config = config_of("run", "decoder")
    draws = jax.jit(jax.vmap(lambda s: training.make_data(config.task, "balanced", dials_of(config), s)))
    data = draws(jnp.arange(16, dtype=jnp.int32))
    assert {tuple(x) for x in np.asarray(data.train_order).tolist()} == {(0, 1), (1, 0)}
    np.testing.assert_array_equal(data.train_order, data.test_order)
    np.testing.assert_array_equal(data.train_order, data.probe.order)


def experiment(config, settings, probes) -> Experiment:
    made = dataclasses.replace(config, keep=Keep(every=8))
    return Experiment("toy", "Contracts of families", made, settings, probes=probes, num_seeds=2)


LEARNS = {"training.epochs": 60, "training.observe_every": 60, "optimizer.name": "adam", "optimizer.learning_rate": 0.02}


@pytest.mark.parametrize(("task", "model"), [("binary", "mlp"), ("run", "decoder")])
def test_gate_finds_the_feature_that_was_learned(task, model, tmp_path):
    """Only the second of the features, or only the first, has a weight in the loss, under both orders of the outputs."""
    settings = tuple(
        (f"{listed}_order{order[0]}{order[1]}", (("training.loss_weights", (row,)), ("task.output_order", order)))
        for order in ((0, 1), (1, 0))
        for listed, row in (("first", (1.0, 0.0)), ("second", (0.0, 1.0)))
    )
    whole = experiment(override_all(config_of(task, model), LEARNS), settings, ("variance",))
    results = repbias_jax.run(whole, tmp_path)
    features = reported(whole.config.task)
    assert set(results.curves["output"]) == set(features)
    for setting, _ in settings:
        full = f"base.{setting}"
        passed = gate(results, [(full, (name,), [results.last_step(full)]) for name in features])
        assert passed.all().tolist() == [setting.startswith("first"), setting.startswith("second")], setting
        assert passed.any().tolist() == passed.all().tolist(), setting


def test_a_decoder_of_tokens_is_trained_and_measured(tmp_path):
    """All kinds of order; representation probes at every view of claims, interventions where changes can be spread."""
    settings = tuple((order, (("task.order", order),)) for order in ("listed", "run", "example"))
    probes = ("variance", "readout", "steering", "truncation", "reliance")
    whole = experiment(override_all(config_of("run", "decoder"), LEARNS), settings, probes)
    configs, groups, _ = planning.check(whole, "cpu")
    assert len(groups) == len(configs) == 3
    results = repbias_jax.run(whole, tmp_path)
    rows, claimed = results.rows, {"branch.mean", "branch", "stream.last", "pooled", "decoder.out0"}
    assert set(rows[rows["probe"] == "variance"]["site"]) == claimed
    assert set(rows[rows["probe"] == "steering"]["site"]) == {"branch.mean", "pooled"}
    assert set(rows[rows["probe"] == "readout"]["site"]) == {"pooled"}
    for order, _ in settings:
        full = f"base.{order}"
        assert set(results.sites(full)) == claimed
        assert results.site(full, "last_hidden") == "pooled"
        assert (results.settings.loc[full, "label_fed"]) == "decoder.out1 logits"
        assert gate(results, [(full, ("colour", "size"), [results.last_step(full)])]).to_numpy().all()
        for feature in ("colour", "size"):
            own = rows[(rows["setting"] == full) & (rows["feature"] == feature) & (rows["step"] == results.last_step(full))]
            agreed = own[(own["metric"] == "agreement") & (own["other"] == feature)]["value"]
            assert len(agreed) == 2
            assert (agreed > 0.95).all(), (order, feature)
            assert (own[own["metric"] == "margin"]["value"] > 0).all()
            kept = own[(own["metric"] == "kept_accuracy") & (own["at"] == "12")]["value"]
            assert (kept > 0.95).all()
        for _, phi, factors in results.activations(full, "branch.mean"):
            assert np.isfinite(phi).all()
            assert set(factors) == {"colour", "size", "noise"}


def test_no_claim_may_read_what_depends_on_labels(tmp_path):
    """By name a figure may; a claim is refused in one line when the report is written, and nothing of it is kept."""
    whole = experiment(config_of("listed", "decoder"), (("a", ()),), ("variance",))
    results = repbias_jax.run(whole, tmp_path)
    assert results.site("base.a", "decoder.out1") == "decoder.out1"
    results.claiming = True
    assert results.site("base.a", "last_hidden") == "pooled"
    with pytest.raises(
        ConfigError, match=r"^a claim reads decoder\.out1 of base\.a, which depends on labels; expected one of"
    ):
        results.values("base.a", "r2", "colour", site="decoder.out1")

    def claims(results, condition):
        results.values(f"{condition}.a", "r2", "colour", site="logits")

    module = types.SimpleNamespace(claims=claims, figures=lambda results: [])
    with pytest.raises(ConfigError, match=r"^a claim reads logits of base\.a"):
        report.write(results.folder, whole, module)
    assert not (results.folder / "claims.csv").exists()


def test_positions_of_outputs_are_stored_for_each_run(tmp_path):
    """The order that a run drew, by feature; none where every example has its own."""
    settings = tuple((order, (("task.order", order),)) for order in ("run", "example"))
    whole = dataclasses.replace(experiment(config_of("run", "decoder"), settings, ("variance",)), num_seeds=4)
    results = repbias_jax.run(whole, tmp_path)
    config = whole.configs()["base.run"]
    for seed, row in results.order("base.run").iterrows():
        made = training.make_data(config.task, "balanced", dials_of(config), jnp.int32(seed))
        assert list(row) == [reported(config.task)[i] for i in np.asarray(made.train_order)]
    with pytest.raises(ConfigError, match=r"^base\.example has no common order"):
        results.order("base.example")


def test_a_setting_may_have_probes_of_its_own(tmp_path):
    settings = (("plain", ()), ("more", (("keep.probes", ("readout", "variance")),)))
    whole = experiment(config_of("binary", "mlp"), settings, ("variance",))
    rows = repbias_jax.run(whole, tmp_path).rows
    found = {setting: set(own["probe"]) for setting, own in rows.groupby("setting")}
    assert found == {"base.plain": {"variance"}, "base.more": {"variance", "readout"}}
    assert not rows.duplicated(["setting", "seed", "step", "site", "metric", "feature", "other", "at"]).any()
    with pytest.raises(ConfigError, match=r"^config\.keep\.probes=none \(setting base\.a\): unknown"):
        planning.check(
            experiment(config_of("binary", "mlp"), (("a", (("keep.probes", ("none",)),)),), ("variance",)), "cpu"
        )


def test_interventions_need_views_that_spread():
    """Said before anything runs, for a place whose changes cannot be brought about at its site."""
    whole = experiment(config_of("run", "decoder"), (("a", ()),), ("readout",))
    own = toy_model.FAMILY._replace(places=lambda *a: toy_model.places(*a) | {"last_hidden": ("stream.last",)})
    MODELS[toy_model.NAME] = own  # the fixture restores it
    with pytest.raises(ConfigError, match=r"readout.*stream\.last"):
        planning.check(whole, "cpu")
    planning.check(dataclasses.replace(whole, probes=("variance",)), "cpu")


def test_only_probes_that_read_labels_need_them_in_the_probe_set():
    """A crossed set has no latent target: what outputs go with is still known, their margins are not."""
    config = override_all(config_of("binary", "mlp"), {"task.outputs": ("target",), "task.output_order": ()})
    planning.check(experiment(config, (("a", ()),), ("reliance",)), "cpu")
    for probe in ("readout", "steering", "truncation"):
        with pytest.raises(ConfigError, match=f"{probe}.*target"):
            planning.check(experiment(config, (("a", ()),), (probe,)), "cpu")


@pytest.mark.parametrize("first_release", [False, True])
def test_runs_that_are_left_out_are_named_by_feature(first_release):
    made = Made({"joint": "parity1 parity4"}, 10)
    made.learn("joint", "parity1", [10])
    made.learn("joint", "parity4", [10], 0.5, seeds=[3])
    made.settings["training.loss_weights"] = "[]"
    made.done()
    if first_release:
        made.curves["output"] = made.curves["output"].map({"parity1": "0", "parity4": "1"})
    assert isinstance(made.curves, pd.DataFrame)
    (found,) = page.left_out(made)
    assert (found["seed"], found["why"]) == (3, "worst class not over 0.95: parity4 at 0.500")


def test_a_head_of_units_is_a_sigmoid():
    """One unit for each output; its logits have the sigmoid's cross-entropy, and the squared loss is of the unit itself."""
    static, dials, data, state = made_of(config_of("binary", "mlp", model__head="unit"))
    assert state.params["params"]["readout"]["kernel"].shape == (6, 2)
    logits, _ = training.forward(static, dials, state.params, data.test_inputs, jnp.arange(2))
    z, labels = logits[..., 1] - logits[..., 0], data.test_labels
    np.testing.assert_array_equal(logits, jnp.stack([-z / 2, z / 2], axis=-1))
    found = training.losses("cross_entropy", logits, labels, "unit")
    np.testing.assert_allclose(
        found, optax.sigmoid_binary_cross_entropy(z, labels.astype(jnp.float32)), rtol=1e-5, atol=1e-6
    )
    by_hand = np.square(np.asarray(z, np.float64) - (2 * np.asarray(labels) - 1))
    np.testing.assert_allclose(training.losses("squared", logits, labels, "unit"), by_hand, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(training.losses("squared", logits, -jnp.ones_like(labels), "unit"), 0)
    with pytest.raises(ConfigError, match="head=unit"):
        planning.check(experiment(config_of("run", "mlp", model__head="unit"), (("a", ()),), ("variance",)), "cpu")


def test_squared_loss_averages_over_the_values_that_an_output_has():
    logits = jnp.asarray([[[0.5, -1.0, 2.0], [1.0, 0.0, IMPOSSIBLE]]])
    found = training.losses("squared", logits, jnp.asarray([[2, 0]]), values=jnp.asarray([3, 2]))
    np.testing.assert_allclose(found, [[(1.5**2 + 0 + 1) / 3, (0 + 1) / 2]], rtol=1e-6)
    slope = jax.grad(lambda x: training.losses("squared", x, jnp.asarray([[2, 0]]), values=jnp.asarray([3, 2])).sum())(
        logits
    )
    assert np.isfinite(slope).all()
    assert slope[0, 1, 2] == 0
