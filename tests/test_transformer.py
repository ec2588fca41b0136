"""Transformers, against slow twins; what their answers may depend on; their views, dropout and refused options."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repbias_jax.config import Config, ConfigError, Dials, Runtime, dials_of, static_half
from repbias_jax.data import sequences
from repbias_jax.data.binary import UNSEEN, BinaryOptions
from repbias_jax.data.sequences import SequenceOptions
from repbias_jax.models import transformer
from repbias_jax.models.layers import drop
from repbias_jax.models.transformer import Block, TransformerOptions

WIDTH, LENGTH, VOCABULARY, OUTPUTS, VALUES, EXAMPLES = 8, 7, 5, 3, 3, 4

PLAIN = SequenceOptions(features=("contains_token",) * OUTPUTS, length=LENGTH, vocabulary=VOCABULARY, twins=False)
QUERIED = SequenceOptions(**{**vars(PLAIN), "order": "example"})


def options(form, **changes) -> TransformerOptions:
    return TransformerOptions(form=form, width=WIDTH, heads=2, layers=2, expand=2, **changes)


CASES = {
    "encoder_decoder": (options("encoder_decoder"), PLAIN),
    "decoder": (options("decoder"), PLAIN),
    "encoder": (options("encoder"), PLAIN),
    "band": (options("encoder_decoder", band=2, activation="tanh"), PLAIN),
    "skips": (options("encoder", skips=(0.5, 2.0), head="unit"), PLAIN),
    "queries": (options("encoder_decoder", skips=(0.0, 1.0)), QUERIED),
    "queries of decoder": (options("decoder"), QUERIED),
}
FORMS, DECODERS = ("encoder_decoder", "decoder", "encoder"), ("encoder_decoder", "decoder")
each_case, each_form, each_decoder = (pytest.mark.parametrize("case", list(names)) for names in (CASES, FORMS, DECODERS))


class Made(NamedTuple):
    """A model with random weights, biases and norms, and examples for it."""

    module: transformer.Transformer
    dials: Dials
    params: Any
    inputs: np.ndarray  # [EXAMPLES, tokens]
    labels: np.ndarray  # [EXAMPLES, OUTPUTS], some of them unseen


def values_of(case) -> int:
    return 2 if CASES[case][0].head == "unit" else VALUES


@functools.cache
def made(case, dropout=0.0) -> Made:
    own, task = CASES[case]
    config = Config(task, TransformerOptions(**{**vars(own), "dropout": dropout}))
    static, dials = static_half(config, Runtime()), dials_of(config)
    module = transformer.build(static.config.model, task, values_of(case), static.switches)
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, VOCABULARY, (EXAMPLES, LENGTH))
    if task.order == "example":
        queries = VOCABULARY + rng.permuted(np.tile(np.arange(OUTPUTS), (EXAMPLES, 1)), axis=1)
        inputs = np.concatenate([inputs, queries], axis=1)
    inputs = inputs.astype(np.int32)
    shapes = jax.eval_shape(lambda k: module.init(k, jnp.asarray(inputs[0]), dials), jax.random.key(0))
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) / np.sqrt(x.shape[0]) if x.ndim > 1 else rng.normal(size=x.shape)),
        shapes,
    )
    labels = rng.integers(UNSEEN, values_of(case), (EXAMPLES, OUTPUTS)).astype(np.int32)
    return Made(module, dials, params, inputs, labels)


@functools.cache
def _forced(case):
    module, dials, *_ = made(case)
    every = jax.vmap(lambda p, x, y, e: module.apply(p, x, dials, y, edits=e), in_axes=(None, 0, 0, None))
    return jax.jit(every)


@functools.cache
def no_edits(case):
    """Zeros for every site, so that one program serves all edits."""
    module, dials, params, inputs, labels = made(case)
    sites = jax.eval_shape(lambda x, y: module.apply(params, x, dials, y)[1], inputs[0], labels[0])
    return jax.tree.map(lambda site: np.zeros(site.shape, np.float32), sites)


def forced(case, inputs=None, labels=None, edits=None):
    """Logits and sites of all examples, given labels; those of the case by default."""
    own = made(case)
    inputs, labels = own.inputs if inputs is None else inputs, own.labels if labels is None else labels
    return jax.tree.map(np.asarray, _forced(case)(own.params, inputs, labels, no_edits(case) | (edits or {})))


@functools.cache
def _greedy(case):
    module, dials, *_ = made(case)
    every = jax.vmap(lambda p, x, v: module.apply(p, x, dials, values=v), in_axes=(None, 0, None))
    return jax.jit(every)


def greedy(case, params=None, values=None):
    """Logits and sites of all examples, without labels."""
    own = made(case)
    params = own.params if params is None else params
    return jax.tree.map(np.asarray, _greedy(case)(params, own.inputs, values))


# A slow twin in float64, one head and one token at a time.


def dense_by_hand(p, x):
    return x @ p["kernel"] + p["bias"]


def norm_by_hand(p, x):
    """Over the units of each token; Flax adds 1e-6 to the variance."""
    scaled = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-6)
    return scaled * p["scale"] + p["bias"]


def attend_by_hand(queries, keys, values, heads, seen):
    """What each token reads from those that it sees: `seen[l]` are their numbers."""
    read, size = np.zeros_like(queries), queries.shape[1] // heads
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        for token in range(len(queries)):
            scores = np.array([queries[token, own] @ keys[m, own] for m in seen[token]]) / np.sqrt(size)
            weights = np.exp(scores - scores.max())
            for m, weight in zip(seen[token], weights / weights.sum(), strict=True):
                read[token, own] += weight * values[m, own]
    return read


def block_by_hand(p, x, own, seen, memory):
    """The stream after a block with a plain skip."""
    act = {"relu": lambda z: np.maximum(z, 0), "tanh": np.tanh}[own.activation]
    both = dense_by_hand(p["within"], norm_by_hand(p["within_norm"], x))
    x = x + dense_by_hand(p["within_out"], attend_by_hand(*np.split(both, 3, axis=1), own.heads, seen))
    if memory is not None:
        query = dense_by_hand(p["across_query"], norm_by_hand(p["across_norm"], x))
        both, everything = dense_by_hand(p["across"], memory), [range(len(memory))] * len(x)
        x = x + dense_by_hand(p["across_out"], attend_by_hand(query, *np.split(both, 2, axis=1), own.heads, everything))
    return x + dense_by_hand(p["hidden_out"], act(dense_by_hand(p["hidden"], norm_by_hand(p["hidden_norm"], x))))


def stack_by_hand(p, x, own, seen, site, name, memory=None):
    for i in range(own.layers):
        near = [[m for m in seen[t] if abs(m - t) <= own.band] if own.band else seen[t] for t in range(len(x))]
        is_banded = i == 0 and name == "encoder"
        after = block_by_hand(p[f"block_{i}"], x, own, near if is_banded else seen, memory)
        if own.skips and name == "encoder":
            s = own.skips[i]
            after = (s * x + (after - x)) / np.sqrt(1 + s**2)
        if name == "block" and i == own.layers - 1:
            after = after[LENGTH:]  # nothing reads the string after the last block
        x = site(f"{name}_{i}", norm_by_hand(p["norm"], after) if i == own.layers - 1 else after)
    return x


def by_hand(case, params, x, labels=None, edits=None):
    """The logits `[OUTPUTS, C]` of one example, teacher-forced if there are labels."""
    (own, task), count = CASES[case], values_of(case)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)["params"]
    everything = [range(LENGTH)] * LENGTH
    earlier = [range(t + 1) for t in range(LENGTH + OUTPUTS)]

    def site(name, value):
        return value + (edits or {}).get(name, 0)

    def table(name, rows):
        return p[name]["embedding"][rows]

    string = table("tokens", x[:LENGTH]) + table("places", range(LENGTH))
    memory = None
    if own.form != "decoder":
        memory = stack_by_hand(p["encoder"], site("embedding", string), own, everything, site, "encoder")
    if own.form == "encoder":
        found = dense_by_hand(p["readout"], memory.mean(axis=0))
        if own.head == "unit":
            found = np.stack([-found / 2, found / 2], axis=1)
        return site("logits", found.reshape(-1)).reshape(OUTPUTS, count)

    def forward(before):
        """Given the token of the answer before each output: 0 for none, 1 for an unseen one, 2 + value else."""
        asked = table("answers", before) + table("output_places", range(OUTPUTS))
        if task.order == "example":
            asked = asked + table("queries", x[LENGTH:] - VOCABULARY)
        if memory is None:
            asked, name = site("embedding", np.concatenate([string, asked])), "block"
        else:
            name = "decoder"
        state = stack_by_hand(p["decoder"], asked, own, earlier[: len(asked)], site, name, memory)
        return site("logits", dense_by_hand(p["readout"], state).reshape(-1)).reshape(OUTPUTS, count)

    if labels is not None:
        return forward([0, *(int(label) + 2 if label >= 0 else 1 for label in labels[:-1])])
    before = [0]
    while len(before) < OUTPUTS:
        padded = [*before, *(0,) * (OUTPUTS - len(before))]
        before.append(2 + int(np.argmax(forward(padded)[len(before) - 1])))
    return forward(before)


@each_case
def test_teacher_forced_logits_are_those_of_the_twin(case):
    own, (logits, _) = made(case), forced(case)
    expected = [by_hand(case, own.params, x, y) for x, y in zip(own.inputs, own.labels, strict=True)]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


@each_case
def test_greedy_logits_are_those_of_the_twin(case):
    own, (logits, _) = made(case), greedy(case)
    np.testing.assert_allclose(logits, [by_hand(case, own.params, x) for x in own.inputs], rtol=0, atol=1e-5)


@each_case
def test_an_edit_of_a_site_is_added_before_the_layers_that_follow(case):
    """At every site in turn, against the twin."""
    own, (_, sites) = made(case), forced(case)
    rng = np.random.default_rng(1)
    for name, value in sites.items():
        change = {name: rng.normal(size=value.shape[1:]).astype(np.float32)}
        logits, edited = forced(case, edits=change)
        expected = by_hand(case, own.params, own.inputs[0], own.labels[0], change)
        np.testing.assert_allclose(logits[0], expected, rtol=0, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(edited[name], value + change[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", [*FORMS, "skips"])
def test_gradients_are_those_of_the_twin(case):
    """Along a random direction in each array of weights, by central differences in float64."""
    own, rng = made(case), np.random.default_rng(2)
    x, y, weights = own.inputs[0], own.labels[0], rng.normal(size=(OUTPUTS, values_of(case)))

    def loss(params):
        logits, _ = own.module.apply(params, x, own.dials, y)
        return jnp.sum(logits * jnp.asarray(weights, jnp.float32))

    slopes, tree = jax.tree.flatten(jax.jit(jax.grad(loss))(own.params))
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(own.params)]
    found, expected = [], []
    for i, slope in enumerate(slopes):
        direction = rng.normal(size=slope.shape)
        ends = [
            np.sum(
                weights * by_hand(case, tree.unflatten([*leaves[:i], leaves[i] + e * direction, *leaves[i + 1 :]]), x, y)
            )
            for e in (1e-6, -1e-6)
        ]
        found.append(np.sum(np.asarray(slope, np.float64) * direction))
        expected.append((ends[0] - ends[1]) / 2e-6)
    assert np.min(np.abs(expected)) > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-3)


# Flax's own attention.


@pytest.mark.parametrize("is_decoder", [False, True])
def test_a_block_is_one_of_flax_with_the_same_weights(is_decoder):
    """Attention within the stream, causal in a decoder, then to a memory; both by Flax's module of attention."""
    block, dials, rng = Block(options("decoder")), made("decoder").dials, np.random.default_rng(3)
    x, memory = (jnp.asarray(rng.normal(size=(length, WIDTH)), jnp.float32) for length in (5, LENGTH))
    memory, seen = (memory, jnp.tril(jnp.ones((5, 5), bool))) if is_decoder else (None, None)
    shapes = jax.eval_shape(lambda k: block.init(k, x, seen, dials, None, memory), jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)
    p = params["params"]
    attention = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=WIDTH)

    def attend(query, key, value, out, x, memory, seen):
        """Kernels of Flax have an axis for heads."""
        inner = {
            name: {"kernel": one["kernel"].reshape(WIDTH, 2, WIDTH // 2), "bias": one["bias"].reshape(2, WIDTH // 2)}
            for name, one in (("query", query), ("key", key), ("value", value))
        }
        outer = {"kernel": out["kernel"].reshape(2, WIDTH // 2, WIDTH), "bias": out["bias"]}
        return attention.apply({"params": {**inner, "out": outer}}, x, memory, memory, mask=seen)

    def split(one, parts):
        return [
            {"kernel": kernel, "bias": bias}
            for kernel, bias in zip(
                jnp.split(one["kernel"], parts, axis=1), jnp.split(one["bias"], parts), strict=True
            )
        ]  # fmt: skip

    def norm(name, x):
        return nn.LayerNorm().apply({"params": p[name]}, x)

    def dense(name, x):
        return nn.Dense(p[name]["bias"].shape[0]).apply({"params": p[name]}, x)

    normed = norm("within_norm", x)
    stream = x + attend(*split(p["within"], 3), p["within_out"], normed, normed, None if seen is None else seen[None])
    if is_decoder:
        normed = norm("across_norm", stream)
        stream = stream + attend(p["across_query"], *split(p["across"], 2), p["across_out"], normed, memory, None)
    stream = stream + dense("hidden_out", nn.relu(dense("hidden", norm("hidden_norm", stream))))
    found = block.apply(params, x, seen, dials, None, memory)
    np.testing.assert_allclose(x + found, stream, rtol=1e-5, atol=1e-5)


# What states and answers may depend on.


def with_other(array, place, count):
    """A copy in which column `place` has other values, of 0..count-1."""
    changed = array.copy()
    changed[:, place] = (np.maximum(changed[:, place], 0) + 1) % count
    return changed


@pytest.mark.parametrize("place", range(LENGTH))
def test_a_later_token_changes_no_earlier_state_of_a_decoder(place):
    own = made("decoder")
    _, before = forced("decoder")
    _, after = forced("decoder", inputs=with_other(own.inputs, place, VOCABULARY))
    for name in ("embedding", "block_0"):
        np.testing.assert_array_equal(before[name][:, :place], after[name][:, :place])
        assert (before[name][:, place] != after[name][:, place]).any(axis=1).all(), name
    assert (before["block_1"] != after["block_1"]).any(axis=2).all()  # of the answers, which all read the string
    assert (before["logits"] != after["logits"]).any(axis=1).all()


@each_decoder
@pytest.mark.parametrize("place", range(OUTPUTS))
def test_a_later_answer_changes_no_earlier_state_or_logits(case, place):
    """The answer at an output position is read from the next one on."""
    own, stack = made(case), {"decoder": "block", "encoder_decoder": "decoder"}[case]
    logits, before = forced(case)
    other, after = forced(case, labels=with_other(own.labels, place, VALUES))
    np.testing.assert_array_equal(logits[:, : place + 1], other[:, : place + 1])
    assert (logits[:, place + 1 :] != other[:, place + 1 :]).any(axis=2).all()
    for name in before:
        if name.startswith(stack):
            first = place + 1 + (LENGTH if name == "block_0" else 0)
            np.testing.assert_array_equal(before[name][:, :first], after[name][:, :first])
            assert (before[name][:, first:] != after[name][:, first:]).any(axis=2).all(), name
        elif name.startswith("encoder"):
            np.testing.assert_array_equal(before[name], after[name])


def test_every_state_of_an_encoder_depends_on_every_token():
    """So that a mask of the encoder would be seen; with a band, only on the tokens nearby in the first block."""
    for case, far in (("encoder", LENGTH), ("band", 2)):
        own, (_, before) = made(case), forced(case)
        for place in range(LENGTH):
            _, after = forced(case, inputs=with_other(own.inputs, place, VOCABULARY))
            changed = (before["encoder_0"] != after["encoder_0"]).any(axis=2)
            near = np.abs(np.arange(LENGTH) - place) <= far
            np.testing.assert_array_equal(changed, np.broadcast_to(near, changed.shape))


@each_decoder
def test_greedy_logits_are_teacher_forced_with_the_greedy_answers(case):
    logits, sites = greedy(case)
    again, states = forced(case, labels=logits.argmax(axis=2).astype(np.int32))
    np.testing.assert_allclose(logits, again, rtol=0, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), sites, states)


@each_decoder
def test_greedy_logits_are_others_than_with_other_answers(case):
    """From the second output on."""
    logits, _ = greedy(case)
    other, _ = forced(case, labels=((logits.argmax(axis=2) + 1) % VALUES).astype(np.int32))
    np.testing.assert_allclose(logits[:, 0], other[:, 0], rtol=0, atol=1e-6)
    assert (np.abs(logits[:, 1:] - other[:, 1:]).max(axis=2) > 1e-3).all()


@each_decoder
def test_an_answer_that_is_fed_back_is_a_value_that_its_output_has(case):
    """However large the logit of another value is."""
    params = jax.tree.map(lambda x: x, made(case).params)
    params["params"]["readout"]["bias"] = params["params"]["readout"]["bias"].at[2].add(1e3)
    logits, _ = greedy(case, params, jnp.asarray([2, 3, 2]))
    answers = np.stack([logits[:, 0, :2].argmax(axis=1), *logits[:, 1:].argmax(axis=2).T], axis=1)
    for n, x in enumerate(made(case).inputs):
        np.testing.assert_allclose(logits[n], by_hand(case, params, x, answers[n]), rtol=1e-5, atol=1e-5)


@each_form
def test_an_unseen_label_is_a_token_of_its_own(case):
    """A decoder tells it from every value; an encoder reads no labels."""
    unseen, _ = forced(case, labels=np.full((EXAMPLES, OUTPUTS), UNSEEN, np.int32))
    for value in range(VALUES):
        seen, _ = forced(case, labels=np.full((EXAMPLES, OUTPUTS), value, np.int32))
        np.testing.assert_array_equal(unseen[:, 0], seen[:, 0])
        changed = (unseen[:, 1:] != seen[:, 1:]).any(axis=2)
        assert not changed.any() if case == "encoder" else changed.all()


# Dropout.


@functools.cache
def _first_logits(case, dropout, has_key):
    """The logits of the first example as a function of a key, which is given to the model or not."""
    own = made(case, dropout)

    def run(key):
        given = key if has_key else None
        return own.module.apply(own.params, own.inputs[0], own.dials, own.labels[0], given)[0]

    return jax.jit(run)


@each_form
def test_dropout_varies_with_the_key_and_only_with_the_key(case):
    run = _first_logits(case, 0.5, True)
    first, again, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (np.abs(first - other) > 1e-3).all()


@each_form
def test_without_a_key_a_model_with_dropout_is_the_model_without(case):
    found, expected = _first_logits(case, 0.5, False)(jax.random.key(0)), forced(case)[0][0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert (np.abs(expected - _first_logits(case, 0.5, True)(jax.random.key(0))) > 1e-3).all()


def test_a_key_does_nothing_without_the_switch():
    """Whatever the dial is: a model without the switch has no dropout in its program."""
    own, dials = made("decoder"), made("decoder", 0.5).dials
    assert dials.model["dropout"] == 0.5
    run = jax.jit(lambda k: own.module.apply(own.params, own.inputs[0], dials, own.labels[0], k)[0])
    np.testing.assert_allclose(run(jax.random.key(0)), forced("decoder")[0][0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.75])
def test_what_is_kept_is_scaled_so_that_the_mean_stays(rate):
    x, number = jnp.asarray([-2.0, 0.5, 1.0, 3.0]), 20_000
    every = jax.jit(jax.vmap(drop, in_axes=(None, None, 0)))
    found = np.asarray(every(x, jnp.float32(rate), jax.random.split(jax.random.key(0), number)))
    assert abs(np.mean(found == 0) - rate) < 5 * 0.5 / np.sqrt(number)
    np.testing.assert_allclose(found[found != 0], np.broadcast_to(x, found.shape)[found != 0] / (1 - rate), rtol=1e-6)
    error = np.abs(x) * np.sqrt(rate / (1 - rate) / number)
    assert (np.abs(found.mean(axis=0) - x) <= 5 * error + 1e-5).all()


# Views.


def views(case):
    return transformer.views(*CASES[case])


def readings(case, sites):
    """Each view's reading of the sites of all examples, `[EXAMPLES, D]`."""
    return {name: np.asarray(jax.vmap(view.read)(jnp.asarray(sites[view.site]))) for name, view in views(case).items()}


@each_case
def test_a_view_is_label_fed_exactly_if_labels_change_it(case):
    own = made(case)
    seen = np.maximum(own.labels, 0)
    first = readings(case, forced(case, labels=seen)[1])
    second = readings(case, forced(case, labels=(seen + 1) % values_of(case))[1])
    for name, view in views(case).items():
        assert (first[name] != second[name]).any() == view.label_fed, name


@each_case
def test_spread_undoes_read(case):
    """A change of the reading, spread over the site, changes the reading by as much."""
    _, sites = forced(case)
    before = readings(case, sites)
    spreads = {name: view for name, view in views(case).items() if view.spread is not None}
    assert {name.split(".")[0] for name in spreads} >= {"embedding", "logits"}
    for name, view in spreads.items():
        change = jnp.linspace(-1.0, 1.0, before[name].shape[1])
        after = [view.read(value + view.spread(change)) for value in jnp.asarray(sites[view.site])]
        np.testing.assert_allclose(after, before[name] + np.asarray(change), rtol=0, atol=1e-5, err_msg=name)


@each_form
def test_a_spread_change_leaves_the_output_positions_alone(case):
    """What a steered string adds to the site is nothing where the model answers."""
    _, sites = forced(case)
    for name, view in views(case).items():
        if name != "logits" and view.spread is not None:
            size = view.read(jnp.asarray(sites[view.site][0])).shape
            change = np.asarray(view.spread(jnp.ones(size)))
            assert (change[:LENGTH] == 1).all(), name
            assert (change[LENGTH:] == 0).all(), name


@functools.cache
def slopes_of_sites(case):
    """How a random mixture of the logits changes with each site, by edits of them."""
    own, (logits, sites) = made(case), forced(case)
    weights = jnp.asarray(np.random.default_rng(4).normal(size=logits.shape[1:]), jnp.float32)

    def mixture(edits):
        return jnp.sum(weights * own.module.apply(own.params, own.inputs[0], own.dials, own.labels[0], edits=edits)[0])

    return jax.jit(jax.grad(mixture))({name: jnp.zeros(value.shape[1:]) for name, value in sites.items()})


@pytest.mark.parametrize("case", [*FORMS, "queries of decoder"])
def test_the_logits_depend_on_every_view_that_is_not_label_fed(case):
    slopes = slopes_of_sites(case)
    for name, view in views(case).items():
        if not view.label_fed:
            assert np.abs(view.read(slopes[view.site])).max() > 1e-4, name


@pytest.mark.parametrize("case", ["decoder", "queries of decoder"])
def test_the_last_block_of_a_decoder_is_computed_for_the_answers_alone(case):
    slope = np.asarray(slopes_of_sites(case)["block_1"])
    assert slope.shape == (OUTPUTS, WIDTH)
    assert (np.abs(slope).max(axis=1) > 1e-4).all()
    assert [name for name in views(case) if name.startswith("block_1")] == [f"block_1.out{p}" for p in range(OUTPUTS)]
    assert {"block_0.mean", "block_0.flat"} <= set(views(case))


@each_case
def test_every_site_has_a_view(case):
    assert {view.site for view in views(case).values()} == set(forced(case)[1])


@each_case
def test_only_the_place_of_answers_has_views_that_are_label_fed(case):
    known, places = views(case), transformer.places(*CASES[case])
    for place, names in places.items():
        assert set(names) <= set(known), place
        assert place == "answers" or not [name for name in names if known[name].label_fed], place
    stack = {"encoder_decoder": "decoder", "decoder": "block", "encoder": "encoder"}[CASES[case][0].form]
    outputs = 0 if stack == "encoder" else OUTPUTS
    assert places["answers"] == tuple(f"{stack}_1.out{p}" for p in range(outputs))


@each_form
def test_the_last_hidden_place_is_the_last_mean_that_the_logits_depend_on(case):
    places = transformer.places(*CASES[case])
    last, before = {"decoder": ("block_0", "embedding")}.get(case, ("encoder_1", "encoder_0"))
    assert (places["last_hidden"], places["before_last"]) == ((f"{last}.mean",), (f"{before}.mean",))


def test_answers_are_of_the_last_block_however_many_blocks_there_are():
    own = TransformerOptions(width=WIDTH, heads=2, layers=12)
    assert transformer.places(own, PLAIN)["answers"] == tuple(f"decoder_11.out{p}" for p in range(OUTPUTS))


# Options that are refused.

REFUSED = [
    ("heads", "encoder_decoder", {"heads": 3}, PLAIN),
    ("heads", "encoder", {"heads": 16}, PLAIN),
    ("skips", "encoder_decoder", {"skips": (1.0,)}, PLAIN),
    ("skips", "encoder", {"skips": (1.0, 1.0, 1.0)}, PLAIN),
    ("skips", "decoder", {"skips": (1.0, 1.0)}, PLAIN),
    ("band", "decoder", {"band": 2}, PLAIN),
    ("head", "encoder_decoder", {"head": "unit"}, PLAIN),
    ("head", "decoder", {"head": "unit"}, PLAIN),
    ("task.name", "encoder", {}, BinaryOptions()),
    ("task.order", "encoder", {}, QUERIED),
]


@pytest.mark.parametrize(("named", "form", "changes", "task"), REFUSED, ids=[f"{n}-{f}-{c}" for n, f, c, _ in REFUSED])
def test_options_that_do_not_fit_together_are_refused_in_one_line(named, form, changes, task):
    own = TransformerOptions(**{**vars(options(form)), **changes})
    with pytest.raises(ConfigError) as caught:
        transformer.check(own, task)
    assert str(caught.value).startswith("config.")
    assert named in str(caught.value).split(":")[0]
    assert "\n" not in str(caught.value)


@each_case
def test_the_options_of_these_tests_are_not_refused(case):
    sequences.check(CASES[case][1])
    transformer.check(*CASES[case])
