"""Strings of tokens: their features, shortcuts that they must not have, their probe sets and orders, and refused tasks."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from repbias_jax import training
from repbias_jax.config import Config, ConfigError, dials_of
from repbias_jax.data import output_values, reported, sequences
from repbias_jax.data.binary import UNSEEN, feature_names
from repbias_jax.data.sequences import STRINGS, SequenceOptions
from repbias_jax.features import FEATURES
from repbias_jax.models.transformer import TransformerOptions


@pytest.fixture(autouse=True)
def _strict_dtypes():
    """No number changes its type unasked."""
    with jax.numpy_dtype_promotion("strict"):
        yield


NUMBER = 20_000
ERROR = 0.5 / np.sqrt(NUMBER)  # the standard error of the mean of a fair coin
CHANCE = 0.5 + 5 * 0.5 / np.sqrt(NUMBER / 2)  # classifiers are scored on one half

BITS = SequenceOptions(features=("parity1", "parity2", "parity3", "majority3"), length=20)
WORDS = SequenceOptions(features=("contains_token", "contains_phrase", "first_equals_last"), length=26, vocabulary=12)
FOUR = SequenceOptions()  # four features of the same kind, in an order of the run
QUERIED = dataclasses.replace(WORDS, order="example", twins=False)
each_kind = pytest.mark.parametrize("task", [BITS, WORDS], ids=["bits", "words"])


def dials_for(task):
    return dials_of(Config(task, TransformerOptions()))


def to_numpy(tree):
    return jax.tree.map(np.asarray, tree)


@functools.cache
def _drawing(task):
    return jax.jit(lambda key: sequences.draw(task, dials_for(task), key))


def draw(task, seed=0):
    """What the run of a seed drew."""
    return _drawing(task)(jax.random.key(seed))


@functools.cache
def _sampling(task):
    """Compiled once for a kind of task, whatever its dials."""
    every = jax.vmap(lambda d, s, k: sequences.sample(task, d, s, k), in_axes=(None, None, 0))
    return jax.jit(every)


@functools.cache
def strings(task):
    """What the run drew, and NUMBER strings."""
    return to_numpy(draw(task)), strings_under(task, dials_for(task))


def strings_under(task, dials):
    keys = jax.random.split(jax.random.key(1), NUMBER)
    return to_numpy(_sampling(task)(dials, draw(task), keys))


@functools.cache
def probe_set(task, name="balanced", seed=0):
    """What the run drew, and its probe set."""
    drawn, dials = draw(task), dials_for(task)
    found = jax.jit(lambda k: sequences.probe_set(task, dials, drawn, name, k))
    return to_numpy(drawn), *to_numpy(found(jax.random.key(seed)))


def _value_of_bits(name, bits):
    if name == "majority3_xor":
        return _value_of_bits("majority3", bits[:3]) ^ _value_of_bits("majority3", bits[3:])
    return sum(bits) % 2 if name.startswith("parity") else int(2 * sum(bits) > len(bits))


def _value_of_words(name, own, string, end):
    """A feature that has no slow reading here is read by its own definition."""
    if name == "contains_token":
        return int(own[0] in string)
    if name == "contains_phrase":
        return int(any(string[i : i + len(own)] == own for i in range(len(string))))
    if name == "first_equals_last":
        return int(string[end] == string[-1 - end])
    return int(STRINGS[name].read(jnp.array(string), jnp.array(own)))


def names_of(task):
    """The features, then their twins."""
    return [*feature_names(task), *(f"twin_{name}" for name in feature_names(task) if task.twins)]


def read_slowly(task, drawn, string):
    """The features and twins of one string, read from its definition in plain Python."""
    kinds = task.features * (1 + task.twins)
    string, found, first, ends = [int(x) for x in string], {}, 0, 0
    for i, (name, kind) in enumerate(zip(names_of(task), kinds, strict=True)):
        if kind in FEATURES:
            arity = FEATURES[kind].arity
            found[name] = _value_of_bits(kind, [string[drawn.places[bit]] for bit in range(first, first + arity)])
            first += arity
        else:
            own = [int(token) for token in sequences._parts(task)[i].own(drawn)]
            found[name] = _value_of_words(kind, own, string, ends)
            ends += kind == "first_equals_last"
    return found


def assert_read(task, drawn, inputs, factors):
    """The factors of these strings are those that the slow reading finds."""
    for n, string in enumerate(inputs):
        found = read_slowly(task, drawn, string[: task.length])
        assert found == {name: int(factors[name][n]) for name in found}


def assert_equally_frequent(values):
    """Every combination of two values per column `[N, columns]` is there, each as often as the others."""
    codes, counts = np.unique(np.asarray(values) @ 2 ** np.arange(np.shape(values)[1]), return_counts=True)
    assert len(codes) == 2 ** np.shape(values)[1]
    assert len(set(counts)) == 1


# What a string contains.


@pytest.mark.parametrize("kind", STRINGS)
def test_each_feature_of_strings_is_read_back_and_there_in_half_of_them(kind):
    """Whatever else the string holds; its unused twin too. Every entry of STRINGS is held to this."""
    task = SequenceOptions(features=(kind, "contains_token"), length=24, vocabulary=16)
    assert refusal_of(task) is None
    drawn, example = strings(task)
    first = {name: values[:200] for name, values in example.factors.items()}
    assert_read(task, drawn, example.inputs[:200], first)
    for name in names_of(task):
        assert abs(np.mean(example.factors[name]) - 0.5) < 5 * ERROR, name


@each_kind
def test_features_and_twins_are_fair_and_independent(task):
    """The product of any set of signs has mean zero, exactly where signs are fair and jointly independent."""
    _, example = strings(task)
    signs = 1 - 2 * np.stack([example.factors[name] for name in names_of(task)]).astype(float)
    for size in range(1, len(signs) + 1):
        for chosen in itertools.combinations(range(len(signs)), size):
            assert abs(signs[list(chosen)].prod(axis=0).mean()) < 2 * 5 * ERROR, [names_of(task)[i] for i in chosen]


@pytest.mark.parametrize(
    "task",
    [BITS, WORDS, FOUR, SequenceOptions(features=("majority3_xor", "parity4"), twins=False)],
    ids=["bits", "words", "repeated", "parts"],
)
def test_factors_are_those_of_a_slow_reading(task):
    drawn, example = strings(task)
    assert_read(task, drawn, example.inputs[:300], example.factors)
    assert set(names_of(task)) <= set(example.factors) == set(sequences.factors(task))


@pytest.mark.parametrize("task", [BITS, WORDS, FOUR, QUERIED], ids=["bits", "words", "repeated", "queried"])
def test_labels_are_the_factors_in_the_order_of_the_example(task):
    _, example = strings(task)
    for n in range(300):
        names = [reported(task)[listed] for listed in example.order[n]]
        assert example.labels[n].tolist() == [example.factors[name][n] for name in names]


@pytest.mark.parametrize("phrase", [2, 3, 4])
def test_a_string_has_the_values_that_it_was_written_for(phrase):
    """All combinations of features and twins, in the shortest string and with the smallest vocabulary for them."""
    own = {"length": 4 + 4 * (phrase + 2), "vocabulary": 4 + 2 * phrase}
    task = dataclasses.replace(WORDS, phrase=phrase, **own)
    sequences.check(task)
    drawn = draw(task, phrase)
    values = np.array(list(itertools.product((0, 1), repeat=6)) * 8, np.int32)
    keys = jax.random.split(jax.random.key(phrase), len(values))
    write = jax.jit(jax.vmap(lambda v, k: sequences._write(task, drawn, v, k)))
    for string, expected in zip(np.asarray(write(jnp.asarray(values), keys)), values, strict=True):
        assert list(read_slowly(task, to_numpy(drawn), string).values()) == expected.tolist()


def test_bits_stand_in_the_places_of_the_run():
    """The crossed bits of the probe set are tokens of the string, at places that another seed does not share."""
    drawn, inputs, factors, _ = probe_set(BITS)
    bits = [name for name in factors if ".bit" in name]
    assert len(bits) == sum(FEATURES[name].arity for name in BITS.features)
    for bit, name in enumerate(bits_in_order(BITS)):
        np.testing.assert_array_equal(factors[name], inputs[:, drawn.places[bit]])


def bits_in_order(task):
    return [f"{name}.bit{i}" for name in feature_names(task) for i in range(FEATURES[name].arity)]


def test_places_and_tokens_are_permutations_that_differ_between_seeds():
    draws = [draw(WORDS, seed) for seed in range(8)]
    for size, field in ((WORDS.length, "places"), (WORDS.vocabulary, "tokens")):
        found = {tuple(getattr(drawn, field).tolist()) for drawn in draws}
        assert len(found) == 8
        assert {tuple(sorted(own)) for own in found} == {tuple(range(size))}


def test_tokens_of_a_feature_occur_nowhere_else():
    """The token is there as often as the feature is 1; each token of a phrase stands once in every string."""
    drawn, example = strings(WORDS)
    for part in sequences._parts(WORDS):
        for token in part.own(drawn):
            count = np.sum(example.inputs == token, axis=1)
            expected = example.factors[part.name] if "contains_token" in part.name else 1
            np.testing.assert_array_equal(count, np.broadcast_to(expected, count.shape))


# Shortcuts.


def halves_of(task, feature):
    """Strings and values, to fit on and to score on."""
    _, example = strings(task)
    tokens, values = example.inputs[:, : task.length], example.factors[feature]
    return (tokens[::2], values[::2]), (tokens[1::2], values[1::2])


def accuracy_of_bag(task, feature):
    """How well a logistic regression on the number of each token reads a feature of strings that it was not fitted on."""

    def count(tokens):
        return np.stack([np.sum(tokens == token, axis=1) for token in range(task.vocabulary)], axis=1)

    fit, score = halves_of(task, feature)
    return LogisticRegression(max_iter=1000).fit(count(fit[0]), fit[1]).score(count(score[0]), score[1])


def accuracy_of_best_place(task, feature):
    """How well the token at one place reads a feature: its more frequent value, given the token, at the best place."""
    (fit, fitted), (score, scored) = halves_of(task, feature)
    found = []
    for place in range(task.length):
        ones = np.bincount(fit[:, place], fitted, minlength=task.vocabulary)
        likely = 2 * ones > np.bincount(fit[:, place], minlength=task.vocabulary)
        found.append(np.mean(likely[score[:, place]] == scored))
    return max(found)


nonlinear = pytest.mark.parametrize(
    ("task", "feature"),
    [(BITS, "parity2"), (BITS, "parity3"), (WORDS, "contains_phrase"), (WORDS, "first_equals_last")],
    ids=["parity2", "parity3", "contains_phrase", "first_equals_last"],
)


@nonlinear
def test_no_bag_of_tokens_reads_a_nonlinear_feature(task, feature):
    assert accuracy_of_bag(task, feature) < CHANCE


@nonlinear
def test_no_single_place_reads_a_nonlinear_feature(task, feature):
    assert accuracy_of_best_place(task, feature) < CHANCE


def test_a_bag_of_tokens_reads_whether_a_token_is_there():
    """So the bag could have read the others."""
    assert accuracy_of_bag(WORDS, "contains_token") > 0.99


def test_a_single_place_reads_the_feature_of_one_bit():
    """So a single place could have read the others."""
    assert accuracy_of_best_place(BITS, "parity1") > 0.99


@pytest.mark.parametrize("phrase", [2, 3])
def test_each_token_of_a_phrase_is_equally_often_at_each_of_its_places(phrase):
    """In strings with the phrase as in those without it, where the phrase is all that a string has."""
    task = SequenceOptions(features=("contains_phrase",), length=8, vocabulary=8, phrase=phrase, twins=False)
    drawn, example = strings(task)
    starts = task.length - phrase + 1
    for value in (0, 1):
        own = example.inputs[example.factors["contains_phrase"] == value]
        for i, token in enumerate(sequences._parts(task)[0].own(drawn)):
            expected = [1 / starts if i <= place < i + starts else 0 for place in range(task.length)]
            np.testing.assert_allclose(np.mean(own == token, axis=0), expected, atol=5 * 0.5 / np.sqrt(len(own)))


def test_a_token_is_equally_often_at_each_place():
    task = SequenceOptions(features=("contains_token",), length=8, vocabulary=6, twins=False)
    drawn, example = strings(task)
    own = example.inputs[example.factors["contains_token"] == 1]
    (token,) = sequences._parts(task)[0].own(drawn)
    np.testing.assert_allclose(np.mean(own == token, axis=0), 1 / 8, atol=5 * 0.5 / np.sqrt(len(own)))


def test_strings_without_a_phrase_have_its_tokens_at_all_other_distances():
    """From five tokens before each other to six after: only the pairs of places that the phrase cannot have are missing."""
    task = SequenceOptions(features=("contains_phrase",), length=8, vocabulary=8, twins=False)
    drawn, example = strings(task)
    first, second = (np.argmax(example.inputs == token, axis=1) for token in sequences._parts(task)[0].own(drawn))
    is_there = example.factors["contains_phrase"] == 1
    assert set((second - first)[is_there]) == {1}
    assert set((second - first)[~is_there]) == {*range(-5, 0), *range(2, 7)}


def test_ends_that_differ_are_equally_often_any_two_tokens():
    task = SequenceOptions(features=("first_equals_last",), length=4, vocabulary=5, twins=False)
    _, example = strings(task)
    own = example.inputs[example.factors["first_equals_last"] == 0]
    pairs, counts = np.unique(own[:, [0, -1]], axis=0, return_counts=True)
    assert pairs.tolist() == [list(pair) for pair in itertools.permutations(range(5), 2)]
    np.testing.assert_allclose(counts / len(own), 1 / 20, atol=5 * np.sqrt(1 / 20 / len(own)))


# Dials.


@each_kind
def test_prevalence_and_exposure_are_dials(task):
    """One program draws them all, and each belongs to the feature or the output that is listed there."""
    features, plain = len(task.features), strings(task)[1]
    rates = (0.1, *(0.5,) * (features - 2), 0.8)
    seen = (0.8, 0.25, *(1.0,) * (features - 2))
    dials = dials_for(dataclasses.replace(task, prevalence=rates, exposure=seen))
    example = strings_under(task, dials)
    assert _sampling(task)._cache_size() == 1
    for name, rate in zip(feature_names(task), rates, strict=True):
        assert abs(np.mean(example.factors[name]) - rate) < 5 * ERROR
    unseen = np.mean(example.labels == UNSEEN, axis=0)
    for position, listed in enumerate(example.order[0]):
        assert abs(unseen[position] - (1 - seen[listed])) < 5 * ERROR
    assert not (plain.labels == UNSEEN).any()


@each_kind
def test_fair_dials_undo_prevalence_and_exposure(task):
    changed = dataclasses.replace(
        task, prevalence=(0.1,) * len(task.features), exposure=(0.5,) * len(task.features), output_order=reverse(task)
    )
    fair = sequences.fair(changed, dials_for(changed))
    np.testing.assert_array_equal(fair.task["output_order"], reverse(task))
    example = strings_under(task, fair)
    assert not (example.labels == UNSEEN).any()
    for name in feature_names(task):
        assert abs(np.mean(example.factors[name]) - 0.5) < 5 * ERROR


def reverse(task):
    return tuple(reversed(range(len(task.features))))


# Probe sets.


def halves_of_probe_set(task):
    _, _, factors, _ = probe_set(task)
    half = task.num_probe // 2
    return [{name: x[own] for name, x in factors.items()} for own in (slice(half), slice(half, None))]


def test_balanced_halves_cross_all_bits_of_features_of_bits():
    for half in halves_of_probe_set(BITS):
        assert_equally_frequent(np.stack([half[name] for name in bits_in_order(BITS)], axis=1))


VALUES = SequenceOptions(features=("parity4",) * 3, length=24, num_probe=512)  # a half is too small to cross 12 bits


@pytest.mark.parametrize("task", [WORDS, VALUES], ids=["words", "many bits"])
def test_balanced_halves_cross_the_values_of_other_features(task):
    for half in halves_of_probe_set(task):
        assert_equally_frequent(np.stack([half[name] for name in feature_names(task)], axis=1))
        assert not [name for name in half if ".bit" in name]


@pytest.mark.parametrize("task", [BITS, WORDS, VALUES], ids=["bits", "words", "many bits"])
def test_twins_are_balanced_in_each_half_and_take_an_order_of_their_own(task):
    for half in halves_of_probe_set(task):
        twins = np.stack([half[f"twin_{name}"] for name in feature_names(task)], axis=1)
        assert_equally_frequent(twins)
        assert (twins != np.stack([half[name] for name in feature_names(task)], axis=1)).any(axis=0).all()


@pytest.mark.parametrize("task", [BITS, WORDS, VALUES], ids=["bits", "words", "many bits"])
def test_factors_of_a_probe_set_are_those_of_a_slow_reading(task):
    drawn, inputs, factors, _ = probe_set(task)
    assert set(factors) == set(sequences.probe_factors(task, "balanced"))
    assert_read(task, drawn, inputs, factors)


@each_kind
def test_only_the_natural_set_has_the_prevalence_of_training(task):
    made = dataclasses.replace(task, prevalence=(0.1,) * len(task.features), twins=False)
    error = 0.5 / np.sqrt(task.num_probe)
    for name, expected in (("natural", 0.1), ("decorrelated", 0.5)):
        _, _, factors, _ = probe_set(made, name)
        for feature in feature_names(task):
            assert abs(factors[feature].mean() - expected) < 5 * error, (name, feature)


# Orders.

WILLIAMS = ((0, 1, 3, 2), (1, 2, 0, 3), (2, 3, 1, 0), (3, 0, 2, 1))  # every ordered pair is adjacent once


def orders_of(task, seed):
    """The order of outputs under each row of the square, in runs of one seed."""
    found = []
    for row in WILLIAMS:
        dials = dials_for(dataclasses.replace(task, output_order=row))
        found.append(tuple(np.asarray(sequences.order_of(task, dials, draw(task, seed))).tolist()))
    return found


def test_a_listed_order_is_that_of_every_seed():
    task = dataclasses.replace(FOUR, order="listed")
    assert [orders_of(task, seed) for seed in range(4)] == [list(WILLIAMS)] * 4


def test_a_square_of_orders_stays_one_after_relabelling():
    """Every ordered pair of outputs stands side by side once, and every output once in each position."""
    for seed in range(8):
        orders = orders_of(FOUR, seed)
        pairs = [pair for order in orders for pair in itertools.pairwise(order)]
        assert sorted(pairs) == sorted(itertools.permutations(range(4), 2))
        assert [sorted(position) for position in zip(*orders, strict=True)] == [[0, 1, 2, 3]] * 4


def test_runs_are_relabelled_at_random():
    labels = {tuple(draw(FOUR, seed).labels.tolist()) for seed in range(8)}
    assert len(labels) > 4
    assert {tuple(sorted(own)) for own in labels} == {(0, 1, 2, 3)}


@pytest.mark.parametrize(
    "changes",
    [
        {"output_order": (3, 2, 1, 0)},
        {"prevalence": (0.1,) * 4},
        {"features": ("parity1", "parity2", "parity3", "parity1")},
        {"num_train": 64},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_all_settings_of_a_seed_are_relabelled_alike(changes):
    other = dataclasses.replace(FOUR, **changes)
    for seed in range(4):
        np.testing.assert_array_equal(draw(FOUR, seed).labels, draw(other, seed).labels)


def test_the_examples_of_a_run_share_its_order():
    """In training, test and probe set, through the functions that a run calls."""
    task = dataclasses.replace(FOUR, num_train=64, num_test=64, num_probe=512, output_order=WILLIAMS[1])
    data = jax.jit(lambda d, s: training.make_data(task, "balanced", d, s))(dials_for(task), jnp.int32(3))
    drawn = sequences.draw(task, dials_for(task), training.keys_of(jnp.int32(3)).drawn)
    for order in (data.train_order, data.test_order, data.probe.order):
        np.testing.assert_array_equal(order, np.asarray(drawn.labels)[list(WILLIAMS[1])])


def test_query_tokens_name_the_outputs_in_the_order_of_the_example():
    drawn, example = strings(QUERIED)
    assert sequences.order_of(QUERIED, dials_for(QUERIED), drawn) is None
    assert sequences.tokens_of(QUERIED) == (26, 12, 3)
    np.testing.assert_array_equal(example.inputs[:, 26:] - 12, example.order)
    assert example.inputs[:, :26].max() < 12


def test_all_orders_of_examples_are_equally_frequent():
    orders, counts = np.unique(strings(QUERIED)[1].order, axis=0, return_counts=True)
    assert orders.tolist() == [list(order) for order in itertools.permutations(range(3))]
    np.testing.assert_allclose(counts / NUMBER, 1 / 6, atol=5 * ERROR)


def test_query_tokens_of_a_probe_set_name_the_order_of_each_example():
    _, inputs, _, order = probe_set(QUERIED)
    assert order.shape == (QUERIED.num_probe, 3)
    np.testing.assert_array_equal(inputs[:, 26:] - 12, order)
    assert len(np.unique(order, axis=0)) == 6


# Tasks that are refused.


def refusal_of(task):
    """The message with which a task is refused; None if it is not."""
    try:
        sequences.check(task)
    except ConfigError as error:
        return str(error)
    return None


REFUSED = [
    (BITS, "features", {"features": ()}),
    (BITS, "features", {"features": ("parity9",)}),
    (BITS, "features", {"features": ("parity2", "contains_token")}),
    (WORDS, "features", {"features": ("contains_token", "parity2")}),
    (BITS, "length", {"length": 17}),
    (WORDS, "length", {"length": 19}),
    (WORDS, "phrase", {"features": ("contains_phrase",), "twins": False, "phrase": 4, "length": 3}),
    (BITS, "vocabulary", {"vocabulary": 3}),
    (WORDS, "vocabulary", {"vocabulary": 7}),
    (BITS, "num_probe", {"num_probe": 2050}),
    (BITS, "num_probe", {"num_probe": 2047}),
    (WORDS, "num_probe", {"num_probe": 2056}),
    (WORDS, "num_probe", {"num_probe": 2047}),
    (BITS, "outputs", {"outputs": ("parity5",)}),
    (BITS, "outputs", {"outputs": ("twin_parity1", "parity2")}),
    (WORDS, "outputs", {"outputs": ("twin_contains_token",)}),
    (BITS, "outputs", {"outputs": ("target",)}),  # a latent cause that no string shows
    (WORDS, "outputs", {"outputs": ("contains_token", "parity2")}),
]
for _task in (BITS, WORDS):
    _count = len(_task.features)
    REFUSED += [
        (_task, "output_order", {"output_order": (*range(_count - 1),)}),
        (_task, "output_order", {"output_order": (0,) * _count}),
        (_task, "output_order", {"outputs": _task.features[:2], "output_order": (*range(_count),)}),
        (_task, "prevalence", {"prevalence": (0.5,) * (_count + 1)}),
        (_task, "exposure", {"exposure": (0.5,) * (_count - 1)}),
    ]


@pytest.mark.parametrize(("task", "named", "changes"), REFUSED, ids=[f"{n}-{c}" for _, n, c in REFUSED])
def test_a_task_that_cannot_be_generated_is_refused_in_one_line(task, named, changes):
    assert refusal_of(task) is None
    message = refusal_of(dataclasses.replace(task, **changes))
    assert message is not None
    assert message.startswith(f"config.task.{named}")
    assert "\n" not in message


@pytest.mark.parametrize(
    "changes",
    [{"length": 20}, {"vocabulary": 8}, {"features": ("first_equals_last",), "twins": False, "length": 2}],
    ids=["length", "vocabulary", "ends"],
)
def test_the_smallest_task_that_has_room_is_not_refused(changes):
    assert refusal_of(dataclasses.replace(WORDS, **changes)) is None


@st.composite
def tasks(draw_):
    """Any task; most of them of one kind of features, so that many are not refused."""
    known = draw_(st.sampled_from(([*FEATURES], [*STRINGS], [*STRINGS], [*FEATURES, *STRINGS])))
    features = draw_(st.lists(st.sampled_from(known), min_size=1, max_size=3))
    return SequenceOptions(
        features=tuple(features),
        length=draw_(st.integers(2, 30)),
        vocabulary=2 if features[0] in FEATURES else draw_(st.integers(3, 24)),
        phrase=draw_(st.integers(2, 4)),
        twins=draw_(st.booleans()),
        order=draw_(st.sampled_from(("listed", "run", "example"))),
        num_probe=draw_(st.sampled_from((64, 64, 50))),
    )


@settings(deadline=None, max_examples=25)
@given(tasks(), st.integers(0, 2**20))
def test_any_task_is_refused_or_its_strings_have_their_features(task, seed):
    """A balanced set is written for all values; the slow reading finds that it has them."""
    message = refusal_of(task)
    if message is not None:
        assert message.startswith("config.task.")
        assert "\n" not in message
        return
    assert output_values(task) == (2,) * len(task.features)
    dials = dials_for(task)

    def one(key):
        drawn_key, own = jax.random.split(key)
        drawn = sequences.draw(task, dials, drawn_key)
        return drawn, sequences.probe_set(task, dials, drawn, "balanced", own)

    found = jax.jit(one)(jax.random.key(seed))
    drawn, (inputs, factors, _) = to_numpy(found)
    assert_read(task, drawn, inputs, factors)
    for half in (slice(32), slice(32, None)):
        assert_equally_frequent(np.stack([factors[name][half] for name in feature_names(task)], axis=1))


@pytest.mark.parametrize("twins", [True, False])
def test_features_stand_at_their_distances(twins):
    """Both tokens of a feature, and of its twin, in every run; all places are taken once and differ between runs."""
    task = SequenceOptions(features=("parity2", "parity2", "parity3"), length=16, distances=(1, 8, 0), twins=twins)
    sequences.check(task)
    dials = dials_of(Config(task, TransformerOptions()))
    places = np.asarray(jax.vmap(lambda s: sequences.draw(task, dials, jax.random.key(s)).places)(jnp.arange(64)))
    assert (np.sort(places, axis=1) == np.arange(16)).all()
    blocks = sequences.binary.blocks(sequences.as_bits(task))
    for i, block in enumerate(blocks):
        if distance := task.distances[i % 3]:
            assert (np.abs(places[:, block.first] - places[:, block.first + 1]) == distance).all(), block.name
    assert len(np.unique(places, axis=0)) == 64


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ({"features": ("parity2", "parity3"), "distances": (1, 2)}, "distances.*parity3"),
        ({"features": ("parity2",), "distances": (1, 2)}, "distances.*expected 1 values"),
        ({"features": ("parity2", "parity2"), "distances": (1, 8), "length": 64}, "distances.*placements"),
        ({"features": ("parity2", "parity2"), "distances": (9, 9), "length": 10}, "length.*do not fit"),
        ({"features": ("contains_token",), "vocabulary": 8, "distances": (1,)}, "distances.*expected none"),
    ],
)
def test_distances_that_cannot_be_are_refused_in_one_line(own, named):
    with pytest.raises(ConfigError, match=f"^config.task.{named}") as error:
        sequences.check(SequenceOptions(**{"length": 16, **own}))
    assert "\n" not in str(error.value)


def test_a_feature_defined_anew_changes_the_definitions(monkeypatch):
    """So that neither a workdir nor a compiled program mixes two meanings of one name."""
    task = SequenceOptions(features=("contains_token",), length=8, vocabulary=8)
    built_in = STRINGS["contains_token"]

    def token_at(place):
        return lambda tokens, own: tokens[place] == own[0]

    typed = {}
    exec("first = lambda tokens, own: tokens[0] == 2\nsecond = lambda tokens, own: tokens[0] == 3", typed)
    found = []
    for changes in (
        {}, {"read": lambda tokens, own: tokens[0] == own[0]}, {"read": lambda tokens, own: tokens[1] == own[0]},
        {"ends": not built_in.ends}, {"read": token_at(0)}, {"read": token_at(1)}, {"read": typed["first"]},
        {"read": typed["second"]}, {"read": functools.partial(token_at(0), own=1)},
    ):  # fmt: skip
        monkeypatch.setitem(STRINGS, "contains_token", built_in._replace(**changes))
        found.append(sequences.definitions(task))
    assert len(set(found)) == len(found)
    assert not [text for text in found if " at 0x" in text]
