"""What an experiment is, as frozen dataclasses, and the numbers that are mapped over.

A setting has two halves. The *static* half (`Config` with its dials reset, `static_half`) is hashable and decides
shapes and code: one compilation each. The *dials* (`Dials`) are a pytree of arrays, mapped over runs.

Axis letters used everywhere: S setting, K seed, T snapshot, N probe example, D unit, F feature, O output, C value of a
feature, B batch, L sequence position, P training phase.
"""

import ast
import dataclasses
import math
import re
import reprlib
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array


class ConfigError(ValueError):
    """Input that can never work; the message is one line that says what, what was expected and where."""


def _field(default: Any, doc: str, unit: str = "", dial: bool = False, **bounds: Any) -> Any:
    """A dataclass field with its documentation, unit, range (`low`, `high`, `above`, `below`) and `choices`."""
    return dataclasses.field(default=default, metadata={"doc": doc, "unit": unit, "dial": dial, **bounds})


@dataclass(frozen=True)
class Task:
    """Which features an input has and which of them are asked for."""

    name: str = _field("binary", "data generator, a key of DATA")
    features: tuple[str, ...] = _field(("parity1", "parity4"), "features of the input, keys of FEATURES")
    outputs: tuple[str, ...] = _field((), "factors the outputs report; empty: the features, in order")
    num_bits: int = _field(32, "length of the input", "bits", low=1, high=4096)
    first_bits: tuple[int, ...] = _field((), "where each feature's block starts; empty: one after the other", "bits", low=0)
    twins: bool = _field(True, "give every feature an unused twin: the same function of bits nobody asks for")
    num_train: int = _field(8192, "training set", "examples", low=1)
    num_test: int = _field(2048, "test set", "examples", low=2)
    num_probe: int = _field(2048, "probe set, half to fit and half to score", "examples", low=4)
    prevalence: tuple[float, ...] = _field(
        (), "P(feature = 1) in training; empty: its base rate", "probability", True, above=0.0, below=1.0
    )
    predictivity: tuple[float, ...] = _field(
        (), "P(feature = target) at prevalence 1/2; empty: 1/2, independent", "probability", True, low=0.5, high=1.0
    )
    exposure: tuple[float, ...] = _field(
        (), "share of examples in which an output's label enters the loss; empty: 1", "share", True, above=0.0, high=1.0
    )
    output_order: tuple[int, ...] = _field((), "position of the reported factors; empty: as listed", "", True, low=0)


@dataclass(frozen=True)
class Model:
    """Which network."""

    name: str = _field("mlp", "architecture, a key of MODELS")
    widths: tuple[int, ...] = _field((256, 128, 64, 64), "hidden layers", "units", low=1, high=65536)
    activation: str = _field("relu", "nonlinearity", choices=("relu", "leaky_relu", "tanh", "gelu"))
    dropout: float = _field(0.0, "dropout rate after every hidden layer", "probability", True, low=0.0, below=1.0)
    init_scale: float = _field(1.0, "factor on the LeCun-normal initial weights", "", True, above=0.0)


@dataclass(frozen=True)
class Optimizer:
    """How weights are updated."""

    name: str = _field("sgd", "update rule", choices=("sgd", "momentum", "adam", "adamw", "rmsprop"))
    learning_rate: float = _field(0.1, "step size", "", True, above=0.0)
    momentum: float = _field(0.9, "decay of the momentum rule's trace", "", True, low=0.0, below=1.0)
    weight_decay: float = _field(0.0, "L2 penalty's gradient; decoupled for adamw", "", True, low=0.0)
    reset_phase: int = _field(
        0, "the rule's memory is made anew where this phase begins; phases count from 0; 0: never", "", True, low=0
    )


@dataclass(frozen=True)
class Training:
    """What is minimised, for how long, and where it is looked at."""

    loss: str = _field("cross_entropy", "loss over [O, C] logits", choices=("cross_entropy", "squared"))
    batch_size: int = _field(128, "batch", "examples", low=1)
    epochs: int = _field(160, "passes over the training set", "epochs", low=1)
    observe_every: int = _field(128, "distance of points on the loss and accuracy curves", "steps", low=1)
    loss_weights: tuple[tuple[float, ...], ...] = _field(
        (), "weight of each output's loss, a row a phase; empty: 1", "", True, low=0.0
    )
    phase_ends: tuple[float, ...] = _field(
        (), "where each phase ends, the last at 1; empty: one phase", "share of training", True, above=0.0, high=1.0
    )
    dense: tuple[float, ...] = _field(
        (), "from where to where points of the curves are `dense_every` apart", "share of training", low=0.0, high=1.0
    )
    dense_every: int = _field(10, "distance of those points", "steps", low=1)


@dataclass(frozen=True)
class Keep:
    """Which activations are stored. Every site is kept at the first and the last step."""

    probe_set: str = _field(
        "balanced", "examples whose activations are kept", choices=("balanced", "natural", "decorrelated")
    )
    shared: bool = _field(False, "all seeds see the same probe examples, so that their representations can be compared")
    along: str = _field("last_hidden", "site kept along training")
    every: int = _field(0, "distance of snapshots along training; 0: only first and last", "steps", low=0)
    until: int = _field(0, "from this step on, snapshots are `every_late` apart; 0: never", "steps", low=0)
    every_late: int = _field(0, "distance of snapshots after `until`; 0: as before", "steps", low=0)


@dataclass(frozen=True)
class Config:
    """Everything that decides the numbers of one setting, but for its seed."""

    task: Task = Task()
    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    training: Training = Training()
    keep: Keep = Keep()

    @property
    def steps_per_epoch(self) -> int:
        """Updates in one pass; an incomplete last batch is dropped."""
        return self.task.num_train // self.training.batch_size

    @property
    def num_steps(self) -> int:
        """Updates in the whole training."""
        return self.steps_per_epoch * self.training.epochs

    @property
    def num_phases(self) -> int:
        """Training phases, P."""
        return max(1, len(self.training.loss_weights))


@dataclass(frozen=True)
class Runtime:
    """What depends on the backend and could change bits; resolved once, stored in the manifest."""

    backend: str = "cpu"
    lanes: int = 4
    precision: str = "float32"


@dataclass(frozen=True)
class Static:
    """The half of a setting that decides shapes and code: one compilation each."""

    config: Config
    dropout: bool
    reset: bool  # of the optimizer's memory
    runtime: Runtime


class Dials(NamedTuple):
    """The half of a setting that is mapped over. Scalars `[]` unless said."""

    learning_rate: Array
    momentum: Array
    weight_decay: Array
    reset_step: Array  # step before which the optimizer's memory is made anew, int32; -1: never
    dropout: Array
    init_scale: Array
    prevalence: Array  # [F]
    predictivity: Array  # [F]
    exposure: Array  # [O]
    output_order: Array  # [O]
    loss_weights: Array  # [P, O]
    phase_ends: Array  # [P]


NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def safe_name(name: str, what: str) -> str:
    """`name` if it can stand in a table, a page and a file name; else ConfigError, opening with `what`."""
    if not NAME.fullmatch(name):
        limits = "1 to 128 of A-Z a-z 0-9 _ . - and not to start with . or -"
        raise ConfigError(f"{what}: name {reprlib.repr(name)}: expected {limits}")
    return name


Overrides = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Preset:
    """A smaller or larger version of an experiment: seeds, a choice of settings and columns, and overrides."""

    num_seeds: int
    settings: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    overrides: Overrides = ()


@dataclass(frozen=True)
class Experiment:
    """One claim family: a base configuration, named settings (overrides of it), and what is measured.

    `columns` are whole-table variations (the optimizers compared); every setting is run in every column, and its full
    name is `column.setting`. The first column carries the verdicts. `tuned` holds length and rate where a setting needs
    its own to be learned, by full name; they were chosen by accuracy alone and give way to what a user asks for.
    `seed_caps` are the numbers of seeds that settings have at most, in every column: a map needs few where no claim reads.
    `variant` says what differs from frozen reference settings, or that there are none yet: verdicts are then illustrations.
    """

    name: str
    title: str
    config: Config
    settings: tuple[tuple[str, Overrides], ...]
    columns: tuple[tuple[str, Overrides], ...] = (("base", ()),)
    tuned: tuple[tuple[str, Overrides], ...] = ()
    probes: tuple[str, ...] = ("variance",)
    presets: tuple[tuple[str, Preset], ...] = ()
    num_seeds: int = 16
    seed_caps: tuple[tuple[str, int], ...] = ()
    seed: int = 0
    variant: str = ""

    def configs(self) -> dict[str, Config]:
        """The configuration of every setting, by its full name `column.setting`."""
        tuned, configs = dict(self.tuned), {}
        for column, changes in self.columns:
            for setting, own in self.settings:
                name = f"{column}.{setting}"
                configs[name] = override_all(self.config, dict((*own, *changes, *tuned.get(name, ()))))
        return configs

    def caps(self) -> dict[str, int]:
        """The number of seeds that a setting has at most, by full name; a setting without one has `num_seeds`."""
        return {f"{column}.{setting}": cap for column, _ in self.columns for setting, cap in self.seed_caps}


def num_outputs(task: Task) -> int:
    """Outputs of the model, O."""
    return len(task.outputs or task.features)


def static_half(config: Config, runtime: Runtime) -> Static:
    """`config` with its dials reset to their defaults; the number of phases stays, as a shape."""
    reset: dict[str, Any] = {}
    for part in dataclasses.fields(config):
        value = getattr(config, part.name)
        dials = {f.name: f.default for f in dataclasses.fields(value) if f.metadata["dial"]}
        reset[part.name] = dataclasses.replace(value, **dials)
    phases = ((),) * config.num_phases
    reset["training"] = dataclasses.replace(reset["training"], loss_weights=phases)
    return Static(Config(**reset), config.model.dropout > 0, config.optimizer.reset_phase > 0, runtime)


def dials_of(config: Config, base_rates: tuple[float, ...]) -> Dials:
    """The dials of one setting.

    Args:
      config: a checked configuration.
      base_rates: P(feature = 1) under uniform inputs, for each feature.

    Returns:
      float32 and int32 arrays, F features, O outputs, P phases.
    """
    task, training, outputs = config.task, config.training, num_outputs(config.task)
    real, whole = jnp.float32, jnp.int32
    ends = [round(share * config.num_steps) for share in training.phase_ends or (1.0,)]
    reset_phase = config.optimizer.reset_phase
    return Dials(
        learning_rate=jnp.asarray(config.optimizer.learning_rate, real),
        momentum=jnp.asarray(config.optimizer.momentum, real),
        weight_decay=jnp.asarray(config.optimizer.weight_decay, real),
        reset_step=jnp.asarray(ends[reset_phase - 1] if reset_phase else -1, whole),
        dropout=jnp.asarray(config.model.dropout, real),
        init_scale=jnp.asarray(config.model.init_scale, real),
        prevalence=jnp.asarray(task.prevalence or base_rates, real),
        predictivity=jnp.asarray(task.predictivity or (0.5,) * len(task.features), real),
        exposure=jnp.asarray(task.exposure or (1.0,) * outputs, real),
        output_order=jnp.asarray(task.output_order or tuple(range(outputs)), whole),
        loss_weights=jnp.asarray(training.loss_weights or ((1.0,) * outputs,), real),
        phase_ends=jnp.asarray(ends, whole),
    )


def fields_of(config: Config) -> dict[str, tuple[Any, dataclasses.Field]]:
    """Every dotted name of a configuration with its type and its field."""
    names = {}
    for part in dataclasses.fields(config):
        hints = typing.get_type_hints(type(getattr(config, part.name)))
        for field in dataclasses.fields(getattr(config, part.name)):
            names[f"{part.name}.{field.name}"] = (hints[field.name], field)
    return names


def flatten(config: Config) -> dict[str, Any]:
    """Every dotted name of a configuration with its value."""
    return {name: getattr(getattr(config, name.split(".")[0]), name.split(".")[1]) for name in fields_of(config)}


def override_all(config: Config, changes: Mapping[str, Any]) -> Config:
    """`config` with dotted names replaced, each checked for type and range."""
    for name, value in changes.items():
        config = override(config, name, value)
    return config


def override(config: Config, name: str, value: Any) -> Config:
    """`config` with one dotted name replaced.

    Args:
      config: where to start.
      name: a dotted name such as `model.widths`.
      value: the value, or text to be read as one (`256,128`).

    Raises:
      ConfigError: unknown name, wrong type or value out of range.
    """
    known = fields_of(config)
    if name not in known:
        raise ConfigError(f"unknown name config.{name}; known: {', '.join(known)}")
    kind, field = known[name]
    if isinstance(value, str) and kind is not str:
        value = _read(name, kind, value)
    value = _typed(name, kind, value)
    _check_range(name, value, field.metadata)
    part, leaf = name.split(".")
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **{leaf: value})})


def check_types(config: Config) -> None:
    """Checks every field of `config` for type and range, as `override` does for one."""
    for name, value in flatten(config).items():
        override(config, name, value)


def describe_type(kind: Any) -> str:
    """`tuple[int, ...]` as `int,int,...`, and so on: how a value is written on a command line."""
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        return "(row),(row),..." if typing.get_origin(inner) is tuple else f"{inner.__name__},{inner.__name__},..."
    return kind.__name__


def _read(name: str, kind: Any, text: str) -> Any:
    """Reads command-line text as a value of `kind`; strings in tuples need no quotes."""
    text = text.strip()
    if kind == tuple[str, ...]:
        return tuple(item.strip() for item in text.split(",") if item.strip())
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind is float and text.lower() in ("nan", "inf", "-inf"):
        return float(text)
    try:
        value = ast.literal_eval(text) if text else ()
    except (ValueError, SyntaxError) as error:
        raise ConfigError(f"config.{name}={text}: expected {describe_type(kind)}") from error
    return value


def _typed(name: str, kind: Any, value: Any) -> Any:
    """`value` as `kind`: whole numbers serve as floats, lists and single values as tuples; nothing is rounded."""
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        items = value if isinstance(value, tuple | list) else (value,)
        if typing.get_origin(inner) is tuple and items and not isinstance(items[0], tuple | list):
            items = (items,)
        return tuple(_typed(name, inner, item) for item in items)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"config.{name}={value!r}: expected {describe_type(kind)}, not {type(value).__name__}")
    return value


def _check_range(name: str, value: Any, bounds: Mapping[str, Any]) -> None:
    if isinstance(value, tuple):
        for item in value:
            _check_range(name, item, bounds)
        return
    if "choices" in bounds and value not in bounds["choices"]:
        raise ConfigError(f"config.{name}={value!r}: unknown; known: {', '.join(bounds['choices'])}")
    if isinstance(value, str | bool):
        return
    low, high = bounds.get("low", -math.inf), bounds.get("high", math.inf)
    above, below = bounds.get("above", -math.inf), bounds.get("below", math.inf)
    if not (math.isfinite(value) and low <= value <= high and above < value < below):
        limits = " and ".join(
            f"{sign} {bounds[key]:g}"
            for key, sign in (("low", ">="), ("above", ">"), ("high", "<="), ("below", "<"))
            if key in bounds
        )
        raise ConfigError(f"config.{name}={value!r}: expected a finite number {limits}".rstrip())
