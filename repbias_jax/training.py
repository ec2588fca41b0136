"""One run, as pure functions of (static half, dials, key).

Batching over runs belongs to the caller: everything here is written for one run and works under `jit` and `vmap`. A run
is `data`, `init`, then `segment` from step to step; `observe` and `represent` look at it in between.
"""

from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from repbias_jax.config import Dials, Static, Task, num_outputs
from repbias_jax.data import DATA
from repbias_jax.models import MODELS

METRICS = ("loss", "accuracy", "worst_class")  # of an output; accuracy is the mean over classes, in [0, 1]
SPLITS = ("train", "test")
SHARED_SEED = 2**31 - 1  # whose probe examples all seeds see where they share them; no run has it


class Keys(NamedTuple):
    """One key per role. They depend on the seed alone, so effects are paired within a seed across settings."""

    train: Array
    test: Array
    probe: Array
    init: Array
    batches: Array
    dropout: Array


class Data(NamedTuple):
    """What one run is trained, tested and probed on."""

    train_inputs: Array  # [num_train, ...]
    train_labels: Array  # [num_train, O]
    test_inputs: Array  # [num_test, ...]
    test_labels: Array  # [num_test, O]
    probe_inputs: Array  # [N, ...]
    probe_factors: dict[str, Array]  # [N] each


class State(NamedTuple):
    """What changes during training."""

    params: Any
    optimizer: Any


def keys_of(seed: Array) -> Keys:
    """The keys of a seed. Args: seed, int32 `[]`."""
    run = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), seed)
    return Keys(*jax.random.split(run, len(Keys._fields)))


def build_model(static: Static) -> nn.Module:
    """The Linen module of a static half."""
    config = static.config
    values = DATA[config.task.name].num_values(config.task)
    return MODELS[config.model.name](config.model, num_outputs(config.task), values, static.dropout)


def make_data(task: Task, probe_set: str, dials: Dials, seed: Array, shared: bool = False) -> Data:
    """Draws the finite training set, the independent test set and the probe set of one run.

    `shared`: the probe set is the same for all seeds.
    """
    source, keys = DATA[task.name], keys_of(seed)
    train, fair = task.num_train, source.decorrelated(task, dials)

    def one(key: Array, is_train: Array) -> Any:
        return source.sample(task, jax.tree.map(lambda a, b: jnp.where(is_train, a, b), dials, fair), key)

    # One call for both sets: it is the drawing that takes long to compile.
    each = jnp.concatenate([jax.random.split(keys.train, train), jax.random.split(keys.test, task.num_test)])
    drawn = jax.vmap(one)(each, jnp.arange(len(each)) < train)
    probe_key = keys_of(jnp.int32(SHARED_SEED)).probe if shared else keys.probe
    probe, factors = source.probe_set(task, dials, probe_set, probe_key)
    return Data(drawn.inputs[:train], drawn.labels[:train], drawn.inputs[train:], drawn.labels[train:], probe, factors)


def make_optimizer(name: str, dials: Dials) -> optax.GradientTransformation:
    """The update rule, built from traced numbers inside the mapped function."""
    rate, decay = dials.learning_rate, dials.weight_decay
    rules = {
        "sgd": lambda: optax.sgd(rate),
        "momentum": lambda: optax.sgd(rate, momentum=dials.momentum),  # pyright: ignore[reportArgumentType]
        "adam": lambda: optax.adam(rate),
        "rmsprop": lambda: optax.rmsprop(rate),
    }
    if name == "adamw":
        return optax.adamw(rate, weight_decay=decay)  # pyright: ignore[reportArgumentType]
    return optax.chain(optax.add_decayed_weights(decay), rules[name]())


def init(static: Static, dials: Dials, seed: Array) -> State:
    """Initial weights and optimizer state of one run."""
    task = static.config.task
    blank = jnp.zeros(DATA[task.name].input_shape(task), jnp.float32)
    params = build_model(static).init(keys_of(seed).init, blank, dials)
    return State(params, make_optimizer(static.config.optimizer.name, dials).init(params))


def segment(static: Static, dials: Dials, seed: Array, data: Data, state: State, start: Array, stop: Array) -> State:
    """Trains one run from step `start` to step `stop`.

    Every number drawn depends on (seed, step) only, so a run cut into other segments is the same run. The bounds are
    traced: one compilation serves every length. Each epoch visits the training set once, in an order of its own.

    Args:
      static: the static half.
      dials: the dials of this run.
      seed: int32 `[]`.
      data: from `make_data`.
      state: at step `start`.
      start: first step, int32 `[]`.
      stop: the step to stop before, int32 `[]`.

    Returns:
      The state at step `stop`.
    """
    keys, per_epoch = keys_of(seed), static.config.steps_per_epoch
    model, batch = build_model(static), static.config.training.batch_size
    optimizer = make_optimizer(static.config.optimizer.name, dials)

    def one_epoch(epoch: Array, state: State) -> State:
        order = shuffled(jax.random.fold_in(keys.batches, epoch), len(data.train_labels))

        def one_step(step: Array, state: State) -> State:
            chosen = jax.lax.dynamic_slice_in_dim(order, (step - epoch * per_epoch) * batch, batch)
            dropout = jax.random.fold_in(keys.dropout, step) if static.dropout else None
            weights = dials.loss_weights[jnp.searchsorted(dials.phase_ends[:-1], step, side="right")]
            gradient = jax.grad(_total_loss)(
                state.params, model, static, dials, data.train_inputs[chosen], data.train_labels[chosen], weights, dropout
            )
            memory = state.optimizer
            if static.reset:
                fresh = optimizer.init(state.params)
                memory = jax.tree.map(lambda new, old: jnp.where(step == dials.reset_step, new, old), fresh, memory)
            updates, memory = optimizer.update(gradient, memory, state.params)
            return State(optax.apply_updates(state.params, updates), memory)

        first = jnp.maximum(start, epoch * per_epoch)
        last = jnp.minimum(stop, (epoch + 1) * per_epoch)
        return jax.lax.fori_loop(first, last, one_step, state)

    with jax.default_matmul_precision(static.runtime.precision):
        return jax.lax.fori_loop(start // per_epoch, -(-stop // per_epoch), one_epoch, state)


def shuffled(key: Array, count: int) -> Array:
    """The numbers 0..count-1 in random order, int32 `[count]`: by one random word each, equal words in order.

    Word and number are sorted as ONE integer, which on CPU takes a fraction of the time of sorting pairs.
    """
    words = jax.random.bits(key, (count,))
    with jax.enable_x64(True):
        both = words.astype(jnp.uint64) << 32 | jnp.arange(count, dtype=jnp.uint64)
        return jnp.sort(both).astype(jnp.uint32).astype(jnp.int32)


def _total_loss(params, model, static, dials, inputs, labels, weights, key) -> Array:
    """Loss of a batch: the weighted SUM over outputs of the mean over examples."""
    if key is None:
        logits, _ = jax.vmap(lambda x: model.apply(params, x, dials))(inputs)
    else:
        keys = jax.random.split(key, len(inputs))
        logits, _ = jax.vmap(lambda x, k: model.apply(params, x, dials, k))(inputs, keys)
    return jnp.sum(losses(static.config.training.loss, logits, labels).mean(axis=0) * weights)


def losses(name: str, logits: Array, labels: Array) -> Array:
    """Loss of each output.

    `cross_entropy`: softmax cross-entropy in nats. `squared`: mean over values of (logit - target)^2, targets +1 for
    the label and -1 for the other values. A label outside 0..C-1 costs nothing.

    Args:
      name: `cross_entropy` or `squared`.
      logits: `[..., O, C]`.
      labels: int `[..., O]`.

    Returns:
      `[..., O]`, at least zero.
    """
    chex.assert_shape(labels, logits.shape[:-1])
    hot = jax.nn.one_hot(labels, logits.shape[-1])
    if name == "cross_entropy":
        return -jnp.sum(hot * jax.nn.log_softmax(logits), axis=-1)
    return jnp.mean(jnp.square(logits - (2 * hot - 1)), axis=-1) * jnp.sum(hot, axis=-1)


def forward(static: Static, dials: Dials, params: Any, inputs: Array) -> tuple[Array, dict[str, Array]]:
    """Deterministic outputs. Args: inputs `[N, ...]`. Returns: logits `[N, O, C]` and sites `[N, ...]` by name."""
    model = build_model(static)
    with jax.default_matmul_precision(static.runtime.precision):
        found: Any = jax.vmap(lambda x: model.apply(params, x, dials))(inputs)
    return found


def observe(static: Static, dials: Dials, data: Data, state: State) -> Array:
    """A point on the curves of one run.

    Returns:
      float32 `[2, O, 3]`: SPLITS x outputs x METRICS. Train is the first `num_test` examples of the training set.
      A class that does not occur is left out of its output's accuracy.
    """
    size = len(data.test_labels)
    pairs = ((data.train_inputs[:size], data.train_labels[:size]), (data.test_inputs, data.test_labels))
    return jnp.stack([_scores(static, dials, state, inputs, labels) for inputs, labels in pairs])


def _scores(static: Static, dials: Dials, state: State, inputs: Array, labels: Array) -> Array:
    logits, _ = forward(static, dials, state.params, inputs)
    seen = jnp.sum(labels >= 0, axis=0)
    loss = losses(static.config.training.loss, logits, labels).sum(axis=0) / seen
    hot = jax.nn.one_hot(labels, logits.shape[-1])  # [N, O, C]
    right = (jnp.argmax(logits, axis=-1) == labels)[..., None]
    by_class = jnp.sum(hot * right, axis=0) / jnp.sum(hot, axis=0)  # NaN where a class does not occur
    # A diverged run has no predictions: its argmax is arbitrary, so its scores are missing, not zero.
    sound = jnp.all(jnp.isfinite(logits))
    scores = jnp.stack([loss, jnp.nanmean(by_class, axis=-1), jnp.nanmin(by_class, axis=-1)], axis=-1)
    return jnp.where(sound, scores, jnp.nan)


def represent(static: Static, dials: Dials, data: Data, state: State) -> dict[str, Array]:
    """Activations of one run on its probe set. Returns: float32 `[N, D]` by site, flattened."""
    _, sites = forward(static, dials, state.params, data.probe_inputs)
    return {name: value.reshape(len(value), -1) for name, value in sites.items()}
