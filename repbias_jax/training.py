"""One run, as pure functions of (static half, dials, seed).

Batching over runs belongs to the caller: everything here is written for one run and works under `jit` and `vmap`. A run
is `make_data`, `init`, then `segment` from step to step; `observe` and `represent` evaluate it in between.
"""

import functools
import math
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from repbias_jax.config import Dials, Runtime, Static, Task, num_outputs
from repbias_jax.data import DATA, output_values
from repbias_jax.data.binary import draw_each
from repbias_jax.models import MODELS
from repbias_jax.models.family import View, possible, resolve

METRICS = ("loss", "accuracy", "worst_class")  # of an output; accuracy is the mean over classes, in [0, 1]
SPLITS = ("train", "test")
SHARED_SEED = 2**31 - 1  # the seed of a probe set that all seeds share; no run has it
MOST_HELD = 2**28  # numbers that a gradient of what is read at once would keep; without one fewer are there at once


class Keys(NamedTuple):
    """One key per role. They depend on the seed alone, so effects are paired within a seed across settings.

    A new role goes to the end, so that the keys of the others do not change.
    """

    train: Array
    test: Array
    probe: Array
    init: Array
    batches: Array
    dropout: Array
    drawn: Array


class Data(NamedTuple):
    """The data of one run: its training set, test set and probe set."""

    train_inputs: Array  # [num_train, ...]
    train_labels: Array  # [num_train, O], by output position
    train_order: Array  # [O], the listed output at each position; [num_train, O] if each example has its own order
    test_inputs: Array  # [num_test, ...]
    test_labels: Array  # [num_test, O]
    test_order: Array  # [O] or [num_test, O]
    probe: "Probe"


class Probe(NamedTuple):
    """The probe set: the examples on which representations are measured."""

    inputs: Array  # [N, ...]
    factors: dict[str, Array]  # [N] each
    order: Array  # [O] or [N, O]


class Examples(NamedTuple):
    """The examples of one batch, or of a block of it."""

    inputs: Array  # [B, ...]
    labels: Array  # [B, O], by output position
    orders: Array  # [O] or [B, O], the listed output at each position
    keys: Array | None  # [B], for dropout


class State(NamedTuple):
    """The state of one run, which training changes: its weights and the optimizer state."""

    params: Any
    opt_state: Any


def keys_of(seed: Array) -> Keys:
    """Returns the keys of a seed. Args: seed, int32 `[]`."""
    run = jax.random.fold_in(jax.random.key(0, impl="threefry2x32"), seed)
    train, test, probe, init_, batches, dropout = jax.random.split(run, 6)
    return Keys(train, test, probe, init_, batches, dropout, drawn=jax.random.fold_in(run, 6))


def build_model(static: Static) -> nn.Module:
    """Returns the Linen module of a static half."""
    config = static.config
    values = max(2, *output_values(config.task))
    return MODELS[config.model.name].build(config.model, config.task, values, static.switches)


def views_of(static: Static) -> dict[str, View]:
    """Returns the views of a model, in layer order."""
    return MODELS[static.config.model.name].views(static.config.model, static.config.task)


def places_of(static: Static) -> dict[str, tuple[str, ...]]:
    """Returns the views that each named place of a model stands for."""
    return MODELS[static.config.model.name].places(static.config.model, static.config.task)


def make_data(task: Task, probe_set: str, dials: Dials, seed: Array, shared: bool = False) -> Data:
    """Draws the finite training set, the independent test set and the probe set of one run.

    If `shared`, the probe set is the same for all seeds.
    """
    source, keys = DATA[task.name], keys_of(seed)
    train, fair = task.num_train, source.fair(task, dials)
    drawn = source.draw(task, dials, keys.drawn)

    def one(key: Array, is_train: Array) -> Any:
        return source.sample(task, jax.tree.map(lambda a, b: jnp.where(is_train, a, b), dials, fair), drawn, key)

    # Both sets are drawn in one call, because the drawing takes long to compile.
    each = jnp.concatenate([jax.random.split(keys.train, train), jax.random.split(keys.test, task.num_test)])
    found = draw_each(source.input_spec(task), one, each, jnp.arange(len(each)) < train)
    common = source.order_of(task, dials, drawn)
    orders = (found.order[:train], found.order[train:]) if common is None else (common, common)
    return Data(
        found.inputs[:train], found.labels[:train], orders[0], found.inputs[train:], found.labels[train:], orders[1],
        make_probe(task, probe_set, dials, seed, shared),
    )  # fmt: skip


def make_probe(task: Task, probe_set: str, dials: Dials, seed: Array, shared: bool = False) -> Probe:
    """Draws only the probe set of one run. Args: as in `make_data`."""
    source, keys = DATA[task.name], keys_of(seed)
    key = keys_of(jnp.int32(SHARED_SEED)).probe if shared else keys.probe
    return Probe(*source.probe_set(task, dials, source.draw(task, dials, keys.drawn), probe_set, key))


def make_optimizer(name: str, dials: Dials) -> optax.GradientTransformation:
    """Returns the optimizer, built from traced hyper-parameters inside the mapped function."""
    own = dials.optimizer
    rate, decay = own["learning_rate"], own["weight_decay"]
    rules = {
        "sgd": lambda: optax.sgd(rate),
        "momentum": lambda: optax.sgd(rate, momentum=own["momentum"]),  # pyright: ignore[reportArgumentType]
        "adam": lambda: optax.adam(rate),
        "rmsprop": lambda: optax.rmsprop(rate),
    }
    if name == "adamw":
        return optax.adamw(rate, weight_decay=decay)  # pyright: ignore[reportArgumentType]
    return optax.chain(optax.add_decayed_weights(decay), rules[name]())


def init(static: Static, dials: Dials, seed: Array) -> State:
    """Returns the initial weights and optimizer state of one run."""
    params = build_model(static).init(keys_of(seed).init, blank_input(static), dials)
    return State(params, make_optimizer(static.config.optimizer.name, dials).init(params))


def blank_input(static: Static) -> Array:
    """Returns an input of zeros, from which shapes are inferred."""
    spec = DATA[static.config.task.name].input_spec(static.config.task)
    return jnp.zeros(spec.shape, spec.dtype)


def segment(static: Static, dials: Dials, seed: Array, data: Data, state: State, start: Array, stop: Array) -> State:
    """Trains one run from step `start` to step `stop`.

    Every random number depends only on the seed and the step, so the result does not depend on how a run is cut into
    segments. The bounds are traced, so one compilation serves every length. Each epoch visits the training set once, in
    its own order.

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
    weights = weights_at(dials, data.train_order)

    def one_epoch(epoch: Array, state: State) -> State:
        order = shuffled(jax.random.fold_in(keys.batches, epoch), len(data.train_labels))

        def one_step(step: Array, state: State) -> State:
            chosen = jax.lax.dynamic_slice_in_dim(order, (step - epoch * per_epoch) * batch, batch)
            noise = jax.random.fold_in(keys.dropout, step) if "model.dropout" in static.switches else None
            phase = jnp.searchsorted(dials.training["phase_ends"][:-1], step, side="right")
            orders = data.train_order if data.train_order.ndim == 1 else data.train_order[chosen]
            examples = Examples(
                data.train_inputs[chosen], data.train_labels[chosen], orders,
                None if noise is None else jax.random.split(noise, batch),
            )  # fmt: skip
            gradient = gradient_of(static, model, dials, state.params, examples, weights[phase])
            opt_state = state.opt_state
            if "optimizer.reset_phase" in static.switches:
                fresh, now = optimizer.init(state.params), step == dials.optimizer["reset_phase"]
                opt_state = jax.tree.map(lambda new, old: jnp.where(now, new, old), fresh, opt_state)
            updates, opt_state = optimizer.update(gradient, opt_state, state.params)
            if "optimizer.final_rate" in static.switches:
                share = jnp.minimum(step / static.config.num_steps, 1)  # a benchmark may go on after the end
                left = 1 - (1 - dials.optimizer["final_rate"]) * share
                updates = jax.tree.map(lambda x: left * x, updates)  # every rule is linear in the rate
            return State(optax.apply_updates(state.params, updates), opt_state)

        first = jnp.maximum(start, epoch * per_epoch)
        last = jnp.minimum(stop, (epoch + 1) * per_epoch)
        return jax.lax.fori_loop(first, last, one_step, state)

    with jax.default_matmul_precision(static.runtime.precision):
        return jax.lax.fori_loop(start // per_epoch, -(-stop // per_epoch), one_epoch, state)


def shuffled(key: Array, count: int) -> Array:
    """Returns the numbers 0..count-1 in random order, int32 `[count]`.

    They are sorted by one random word each; numbers with equal words stay in order. Word and number are sorted as ONE
    integer, which on CPU takes a fraction of the time of sorting pairs.
    """
    words = jax.random.bits(key, (count,))
    with jax.enable_x64(True):
        both = words.astype(jnp.uint64) << 32 | jnp.arange(count, dtype=jnp.uint64)
        return jnp.sort(both).astype(jnp.uint32).astype(jnp.int32)


def gradient_of(static: Static, model: nn.Module, dials: Dials, params: Any, examples: Examples, weights: Array) -> Any:
    """Returns the gradient of the loss of a batch, by parameter.

    It is the mean over the blocks of examples that a family asks for, if they have equal sizes. Args: as in `_total_loss`.
    """
    inputs, labels, orders, keys = examples
    size = _block(static) or len(inputs)
    count, rest = divmod(len(inputs), size)
    if count <= 1 or rest:
        return jax.grad(_total_loss)(params, model, static, dials, examples, weights)

    def add(total: Any, own: tuple[Array, Array | None]) -> tuple[Any, None]:
        def cut(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, own[0], size)

        block = Examples(cut(inputs), cut(labels), orders if orders.ndim == 1 else cut(orders), own[1])
        return jax.tree.map(jnp.add, total, jax.grad(_total_loss)(params, model, static, dials, block, weights)), None

    starts = jnp.arange(0, len(inputs), size)
    each = (starts, None if keys is None else keys.reshape(count, size))
    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), each)
    return jax.tree.map(lambda x: x / count, total)


def _block(static: Static) -> int:
    """Returns how many examples a family asks to be read at once; 0: all."""
    return MODELS[static.config.model.name].block if static.runtime.backend == "cpu" else 0


def read_at_once(static: Static, dials: Dials) -> int:
    """Returns how many examples are read at once without a gradient: as the family asks, or as memory allows."""
    return _block(static) or max(1, MOST_HELD // (1 + kept_bytes(static, dials) // (4 * static.config.training.batch_size)))


def kept_bytes(static: Static, dials: Dials) -> int:
    """Returns the bytes that the gradient of a batch keeps of its forward pass, if the batch is read at once."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda: dials))
    return _kept_bytes(Static(static.config, static.switches, Runtime(static.runtime.backend)), tree, tuple(leaves))


@functools.lru_cache(maxsize=1024)
def _kept_bytes(static: Static, tree: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]) -> int:
    """As `kept_bytes`, for the shapes of the dials; it traces the network, and several ask for it."""
    dials, loss = jax.tree.unflatten(tree, leaves), functools.partial(loss_of_batch, static)
    params, *batch = shapes_of_batch(static, dials)
    kept = jax.eval_shape(lambda d, p, *b: jax.vjp(lambda q: loss(d, q, *b), p)[1], dials, params, *batch)
    return 4 * (count(kept) - count(params))


def count(tree: Any) -> int:
    """Returns how many numbers the arrays of a tree have."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _total_loss(params: Any, model: nn.Module, static: Static, dials: Dials, examples: Examples, weights: Array) -> Array:
    """Returns the teacher-forced loss of a batch: the weighted SUM over outputs of the mean over examples.

    Args: weights `[O]`, by position if all examples have the same order, else by listed output.
    """
    inputs, labels, orders, keys = examples
    values = values_at(static, orders)
    axes = (0, 0, None if keys is None else 0, _axis(values))
    run = jax.vmap(lambda x, y, k, v: model.apply(params, x, dials, y, k, values=v), in_axes=axes)
    logits = possible(run(inputs, labels, keys, values)[0], values)
    own = losses(static.config.training.loss, logits, labels, static.config.model.head, values)
    if orders.ndim == 1:
        return jnp.sum(own.mean(axis=0) * weights)
    return jnp.sum((own * weights[orders]).mean(axis=0))


def loss_of_batch(static: Static, dials: Dials, params: Any, inputs: Array, labels: Array, orders: Array) -> Array:
    """Returns the loss of a batch without dropout, weighted as in the first phase. Args: as in `Examples`."""
    examples, weights = Examples(inputs, labels, orders, None), weights_at(dials, orders)[0]
    return _total_loss(params, build_model(static), static, dials, examples, weights)


def shapes_of_batch(static: Static, dials: Dials) -> tuple[Any, ...]:
    """Returns the shapes of the arrays that `loss_of_batch` takes: weights, inputs, labels and orders."""
    task, batch = static.config.task, static.config.training.batch_size
    spec, outputs = DATA[task.name].input_spec(task), num_outputs(task)
    params = jax.eval_shape(lambda d, s: init(static, d, s), dials, jax.ShapeDtypeStruct((), np.int32)).params
    shapes = ((batch, *spec.shape), spec.dtype), ((batch, outputs), np.int32), ((outputs,), np.int32)
    return params, *(jax.ShapeDtypeStruct(*shape) for shape in shapes)


def weights_at(dials: Dials, orders: Array) -> Array:
    """Returns loss weights `[P, O]`: by position if all examples have the order `orders` `[O]`, else by listed output."""
    weights = dials.training["loss_weights"]
    return weights[:, orders] if orders.ndim == 1 else weights


def values_at(static: Static, orders: Array) -> Array | None:
    """Returns the number of values of the output at each position, shaped as `orders`; None if it is the same for all."""
    values = output_values(static.config.task)
    return None if len(set(values)) == 1 else jnp.asarray(values, jnp.int32)[orders]


def _axis(values: Array | None) -> int | None:
    """Returns the axis over which values are mapped: 0 for `[N, O]`, None for `[O]` or no values."""
    return 0 if values is not None and values.ndim == 2 else None


def losses(name: str, logits: Array, labels: Array, head: str = "pair", values: Array | None = None) -> Array:
    """Returns the loss of each output.

    `cross_entropy`: softmax cross-entropy in nats. `squared`: mean over values of (logit - target)^2, targets +1 for
    the label and -1 for the other values; with the head `unit`, (z - t)^2 with t = +1 or -1. A label outside 0..C-1 costs
    nothing.

    Args:
      name: `cross_entropy` or `squared`.
      logits: `[..., O, C]`.
      labels: int `[..., O]`.
      head: `pair` or `unit`; for `unit`, z = logits[1] - logits[0].
      values: int `[O]` or `[..., O]`, how many of the C values an output has; None: all of them.

    Returns:
      `[..., O]`, at least zero.
    """
    chex.assert_shape(labels, logits.shape[:-1])
    hot = jax.nn.one_hot(labels, logits.shape[-1])
    seen = jnp.sum(hot, axis=-1)
    if name == "cross_entropy":
        return -jnp.sum(hot * jax.nn.log_softmax(logits), axis=-1)
    if head == "unit":
        return jnp.square(logits[..., 1] - logits[..., 0] - (2 * hot[..., 1] - 1)) * seen
    squares = jnp.square(logits - (2 * hot - 1))
    if values is None:
        return jnp.mean(squares, axis=-1) * seen
    counts = jnp.broadcast_to(values, labels.shape)
    real = jnp.expand_dims(jnp.arange(logits.shape[-1]), tuple(range(counts.ndim))) < counts[..., None]
    return jnp.sum(jnp.where(real, squares, 0), axis=-1) / counts * seen


def forward(
    static: Static, dials: Dials, params: Any, inputs: Array, order: Array, edits: dict[str, Array] | None = None
) -> tuple[Array, dict[str, Array]]:  # fmt: skip
    """Returns the deterministic outputs of a model without labels, by LISTED output, and its sites.

    Args:
      static: the static half.
      dials: of the run.
      params: of the model.
      inputs: `[N, ...]`.
      order: `[O]` or `[N, O]`, the listed output at each position.
      edits: changes that are added to sites, by name, `[N, ...]` each.

    Returns:
      logits `[N, O, C]`, and sites `[N, ...]` by name.
    """
    model, values = build_model(static), values_at(static, order)
    own_values = {"values": values} if _axis(values) == 0 else {}
    each, block = {"inputs": inputs, "edits": edits or {}} | own_values, read_at_once(static, dials)

    def one(own: dict[str, Any]) -> Any:
        return model.apply(params, own["inputs"], dials, edits=own["edits"], values=own.get("values", values))

    with jax.default_matmul_precision(static.runtime.precision):
        found = jax.lax.map(one, each, batch_size=block) if block < len(inputs) else jax.vmap(one)(each)
    return by_listed(possible(found[0], values), order), found[1]


def by_listed(values: Array, order: Array) -> Array:
    """Returns values `[N, O, ...]`, reordered from output position to listed output. Args: order `[O]` or `[N, O]`."""
    place = jnp.argsort(order, axis=-1)
    if order.ndim == 1:
        return values[:, place]
    return jnp.take_along_axis(values, place.reshape(*place.shape, *(1,) * (values.ndim - 2)), axis=1)


def observe(static: Static, dials: Dials, data: Data, state: State) -> Array:
    """Returns one point on the loss and accuracy curves of one run.

    Returns:
      float32 `[2, O, 3]`: SPLITS x outputs as listed x METRICS. The split `train` is the first `num_test` examples of the
      training set. A class that does not occur is left out of its output's accuracy.
    """
    size = len(data.test_labels)
    train_order = data.train_order if data.train_order.ndim == 1 else data.train_order[:size]
    return jnp.stack(
        [
            _scores(static, dials, state, data.train_inputs[:size], data.train_labels[:size], train_order),
            _scores(static, dials, state, data.test_inputs, data.test_labels, data.test_order),
        ]
    )


def _scores(static: Static, dials: Dials, state: State, inputs: Array, labels: Array, order: Array) -> Array:
    logits, _ = forward(static, dials, state.params, inputs, order)
    labels, listed = by_listed(labels, order), jnp.arange(labels.shape[1], dtype=jnp.int32)
    seen = jnp.sum(labels >= 0, axis=0)
    config = static.config
    loss = losses(config.training.loss, logits, labels, config.model.head, values_at(static, listed)).sum(axis=0) / seen
    hot = jax.nn.one_hot(labels, logits.shape[-1])  # [N, O, C]
    right = (jnp.argmax(logits, axis=-1) == labels)[..., None]
    by_class = jnp.sum(hot * right, axis=0) / jnp.sum(hot, axis=0)  # NaN where a class does not occur
    # A diverged run has no predictions: its argmax is arbitrary, so its scores are missing, not zero.
    sound = jnp.all(jnp.isfinite(logits))
    scores = jnp.stack([loss, jnp.nanmean(by_class, axis=-1), jnp.nanmin(by_class, axis=-1)], axis=-1)
    return jnp.where(sound, scores, jnp.nan)


def represent(static: Static, dials: Dials, data: Data, state: State) -> dict[str, Array]:
    """Returns the activations of one run on its probe set, without labels: float32 `[N, D]` for each stored view.

    They are read in blocks, as in `forward`, since the sites of a probe set would need far more memory than its views.
    """
    views, (inputs, order) = views_of(static), (data.probe.inputs, data.probe.order)

    def read(inputs: Array, order: Array) -> dict[str, Array]:
        _, sites = forward(static, dials, state.params, inputs, order)
        found = {name: jax.vmap(views[name].read)(sites[views[name].site]) for name in stored_views(static)}
        return {name: value.astype(jnp.float32) for name, value in found.items()}  # an input may be tokens

    block = read_at_once(static, dials)
    if block >= len(inputs):
        return read(inputs, order)

    def one(own: tuple[Array, ...]) -> dict[str, Array]:
        found = read(own[0][None], own[1][None] if len(own) > 1 else order)
        return {name: value[0] for name, value in found.items()}

    each = (inputs,) if order.ndim == 1 else (inputs, order)
    return jax.lax.map(one, each, batch_size=block)


def stored_views(static: Static) -> tuple[str, ...]:
    """Returns the views whose activations are stored, in layer order."""
    views, places, keep = views_of(static), places_of(static), static.config.keep
    wanted = {v for name in (*keep.views, keep.along) for v in resolve(name, places, views)}
    return tuple(name for name in views if name in wanted) if keep.views else tuple(views)


def along_view(static: Static) -> str:
    """Returns the view whose activations are kept along training."""
    return resolve(static.config.keep.along, places_of(static), views_of(static))[0]


def view_sizes(static: Static, dials: Dials) -> dict[str, tuple[int, int]]:
    """Returns examples and units `(N, D)` of every stored view, in layer order, without running the model."""

    def look(dials: Dials, seed: Array) -> dict[str, Array]:
        params = init(static, dials, seed).params
        found: Any = build_model(static).apply(params, blank_input(static), dials)
        views = views_of(static)
        return {name: views[name].read(found[1][views[name].site]) for name in stored_views(static)}

    shapes = jax.eval_shape(look, dials, jax.ShapeDtypeStruct((), np.int32))
    return {name: (static.config.task.num_probe, shapes[name].shape[0]) for name in stored_views(static)}
