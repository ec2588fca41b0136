"""Experiments and their options as frozen dataclasses, and the numbers that are mapped over runs.

A setting has two halves. The *static* half (`Config` with its dials reset, `static_half`) is hashable and decides
shapes and code; each distinct one is compiled once. The *dials* (`Dials`) are a pytree of arrays, mapped over runs.

Axis letters used everywhere: S setting, K seed, T snapshot, N probe example, D unit, F feature, O output, C value of a
feature, B batch, L sequence position, P training phase.
"""

import ast
import dataclasses
import difflib
import math
import re
import reprlib
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array


class ConfigError(ValueError):
    """An error in the input; the message is one line: what was wrong, what was expected, and where."""


LARGEST = 2**31 - 1  # examples are counted in int32
Fill = Callable[["Config"], Any]


def option(
    default: Any, doc: str, unit: str = "", dial: bool = False, fill: Fill | None = None, switch: bool = False,
    **bounds: Any,
) -> Any:  # fmt: skip
    """Returns a dataclass field with the metadata that `--help`, the checks and the dials use.

    Args:
      default: the value of an unset option.
      doc: its meaning, for `--help`.
      unit: unit of the value; empty if it has none.
      dial: whether it is mapped over runs (an array) or static (it then determines shapes and code).
      fill: for a dial, computes the number that enters the program, if this is not the option's own value.
      switch: for a dial, whether the program is compiled without it if it has its default value.
      **bounds: the range, as `low`, `high`, `above`, `below`, or `choices`.
    """
    own = {"doc": doc, "unit": unit, "dial": dial, "fill": fill, "switch": switch}
    return dataclasses.field(default=default, metadata={**own, **bounds})


class Factor(NamedTuple):
    """The number of values and the role of a factor of a generator. The name of a factor carries no meaning.

    Attributes:
      values: C, the number of values, 0..C-1.
      role: `feature` (an output can be trained on it), `part` (an intermediate function of a feature's input), `twin`
        (the same function as a feature, of input that no output needs), `bit` (of a crossed design), `latent` (a cause
        of features that is not a function of the input) or `nuisance`.
      of: the feature that a part, a bit or a twin belongs to; empty for the others.
    """

    values: int
    role: str
    of: str = ""


@dataclass(frozen=True)
class Task:
    """The options that every family of data has: features, which of them are outputs, and numbers of examples.

    A family is a subclass beside its generator; its default `name` is its key in `DATA`.
    """

    name: str = option("", "data generator, a key of DATA")
    features: tuple[str, ...] = option((), "features of the input")
    outputs: tuple[str, ...] = option((), "factors the outputs report; empty: the features, in order")
    num_train: int = option(8192, "training set", "examples", low=1, high=LARGEST)
    num_test: int = option(2048, "test set", "examples", low=2, high=LARGEST)
    num_probe: int = option(2048, "probe set, half to fit and half to score", "examples", low=4, high=LARGEST)
    exposure: tuple[float, ...] = option(
        (),
        "share of examples in which an output's label enters the loss; empty: 1",
        "share",
        True,
        fill=lambda config: config.task.exposure or (1.0,) * num_outputs(config.task),
        above=0.0,
        high=1.0,
    )
    output_order: tuple[int, ...] = option(
        (),
        "the reported factor at each output position; empty: as listed",
        "",
        True,
        fill=lambda config: config.task.output_order or tuple(range(num_outputs(config.task))),
        low=0,
    )


@dataclass(frozen=True)
class Model:
    """The options that every family of models has.

    A family is a subclass beside its module; its default `name` is its key in `MODELS`.
    """

    name: str = option("", "architecture, a key of MODELS")
    activation: str = option("relu", "nonlinearity", choices=("relu", "leaky_relu", "tanh", "gelu"))
    dropout: float = option(0.0, "dropout rate", "probability", True, switch=True, low=0.0, below=1.0)
    init_scale: float = option(1.0, "factor on the initial weights", "", True, above=0.0)
    head: str = option(
        "pair",
        "outputs: a logit for each value, or one unit z for each binary feature, with logits (-z/2, z/2)",
        choices=("pair", "unit"),
    )


@dataclass(frozen=True)
class Optimizer:
    """The update rule of the weights and its hyper-parameters."""

    name: str = option("sgd", "update rule", choices=("sgd", "momentum", "adam", "adamw", "rmsprop"))
    learning_rate: float = option(0.1, "step size", "", True, above=0.0)
    momentum: float = option(0.9, "decay of the momentum rule's trace", "", True, low=0.0, below=1.0)
    weight_decay: float = option(
        0.0, "coefficient of the L2 penalty; decoupled from the gradient for adamw", "", True, low=0.0
    )
    reset_phase: int = option(
        0,
        "the optimizer state is re-initialised where this phase begins; phases count from 0; 0: never",
        "",
        True,
        fill=lambda config: config.phase_steps[config.optimizer.reset_phase - 1] if config.optimizer.reset_phase else -1,
        switch=True,
        low=0,
    )
    final_rate: float = option(
        1.0, "step size after the last update, to which it falls linearly", "share of learning_rate", True, switch=True,
        low=0.0, high=1.0,
    )  # fmt: skip


@dataclass(frozen=True)
class Training:
    """The loss, the length of training, and the points of the loss and accuracy curves."""

    loss: str = option("cross_entropy", "loss over [O, C] logits", choices=("cross_entropy", "squared"))
    batch_size: int = option(128, "batch", "examples", low=1, high=LARGEST)
    epochs: int = option(160, "passes over the training set; 0: networks are read as they are initialised", "epochs", low=0)
    observe_every: int = option(128, "distance of points on the loss and accuracy curves", "steps", low=1)
    loss_weights: tuple[tuple[float, ...], ...] = option(
        (),
        "weight of each output's loss, a row for each phase; empty: 1",
        "",
        True,
        fill=lambda config: config.training.loss_weights or ((1.0,) * num_outputs(config.task),),
        low=0.0,
    )
    phase_ends: tuple[float, ...] = option(
        (),
        "where each phase ends, the last at 1; empty: one phase",
        "share of training",
        True,
        fill=lambda config: config.phase_steps,
        above=0.0,
        high=1.0,
    )
    dense: tuple[float, ...] = option(
        (),
        "start and end of a stretch in which points of the curves are `dense_every` apart",
        "share of training",
        low=0.0,
        high=1.0,
    )
    dense_every: int = option(10, "distance of points of the curves within `dense`", "steps", low=1)


@dataclass(frozen=True)
class Keep:
    """The choice of activations to store. Every stored view is kept at the first and the last step."""

    probe_set: str = option(
        "balanced", "examples whose activations are kept", choices=("balanced", "natural", "decorrelated")
    )
    shared: bool = option(False, "all seeds have the same probe set, so that their representations can be compared")
    along: str = option("last_hidden", "view kept along training: a view or one of the model's named places")
    every: int = option(0, "distance of snapshots along training; 0: only first and last", "steps", low=0)
    until: int = option(0, "from this step on, snapshots are `every_late` apart; 0: never", "steps", low=0)
    every_late: int = option(0, "distance of snapshots after `until`; 0: as before", "steps", low=0)
    views: tuple[str, ...] = option((), "views or named places that are stored; empty: all")
    probes: tuple[str, ...] = option((), "probes that are run in addition to those of the experiment")


@dataclass(frozen=True)
class Config:
    """Everything that determines the numbers of one setting, except for its seed."""

    task: Task
    model: Model
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

    @property
    def phase_steps(self) -> tuple[int, ...]:
        """The step at which each phase ends, `[P]`."""
        return tuple(round(share * self.num_steps) for share in self.training.phase_ends or (1.0,))


@dataclass(frozen=True)
class Runtime:
    """Choices that depend on the backend and could change bits. They are made once and stored in the manifest."""

    backend: str = "cpu"
    lanes: int = 4
    precision: str = "float32"


@dataclass(frozen=True)
class Static:
    """The half of a setting that determines shapes and code: each distinct one is compiled once."""

    config: Config
    switches: tuple[str, ...]  # dotted names of the dials that are on
    runtime: Runtime


class Dials(NamedTuple):
    """The half of a setting that is mapped over runs: every option marked as a dial, by its name, float32 or int32.

    Those of this module: task `exposure` [O], `output_order` [O]; model `dropout`, `init_scale` []; optimizer
    `learning_rate`, `momentum`, `weight_decay`, `final_rate` [], `reset_phase` [] (the step before which the state is
    re-initialised, -1: never); training `loss_weights` [P, O], `phase_ends` [P] (steps).
    """

    task: dict[str, Array]
    model: dict[str, Array]
    optimizer: dict[str, Array]
    training: dict[str, Array]


NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def safe_name(name: str, what: str) -> str:
    """Returns `name` if it is valid in tables, pages and file names; else raises ConfigError, which begins with `what`."""
    if not NAME.fullmatch(name):
        limits = "1 to 128 of A-Z a-z 0-9 _ . - and not to start with . or -"
        raise ConfigError(f"{what}: name {reprlib.repr(name)}: expected {limits}")
    return name


Overrides = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Preset:
    """A smaller or larger version of an experiment: number of seeds, chosen settings and conditions, and overrides."""

    num_seeds: int
    settings: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    overrides: Overrides = ()


@dataclass(frozen=True)
class Experiment:
    """Named settings of one base configuration, the probes that measure them, and the sizes in which they can be run.

    Every setting is run in every condition; its full name is `condition.setting`.

    Attributes:
      name: names the folder.
      title: of the page.
      config: the base configuration.
      settings: name and changes of each setting.
      conditions: name and changes of each variation of the whole table, such as the optimizer. The verdicts are those of
        the first condition.
      tuned: length and learning rate of settings that need other values in order to learn, by full name. They were chosen
        by accuracy alone; `overrides` replace them.
      probes: names in PROBES; a setting may have further ones, `keep.probes`.
      presets: sizes by name; `full` is the default.
      num_seeds: seeds of each setting.
      seed_caps: maximum number of seeds of a setting, in every condition.
      seed_blocks: settings with seeds of their own, in every condition: name, first seed and number of seeds.
      seed: the first seed of all other settings.
      verdict_seed: the first seed of the preset `full` as it stands, where one run of it gives the verdicts, as
        `confirm.json` plans it; -1: `seed`. Smaller presets and runs with changes never use the seeds of a verdict.
      gives_verdict: whether this is that run.
      variant: how this differs from the frozen reference settings, or that there are none yet; if it is not empty, the
        verdicts are only illustrations.
      overrides: changes by a preset and by the user, applied last and to every setting.
      confirmed: entries of `confirm.json`, if this is the run of one of its blocks of seeds. Only the claims of that block
        are decided.
    """

    name: str
    title: str
    config: Config
    settings: tuple[tuple[str, Overrides], ...]
    conditions: tuple[tuple[str, Overrides], ...] = (("base", ()),)
    tuned: tuple[tuple[str, Overrides], ...] = ()
    probes: tuple[str, ...] = ("variance",)
    presets: tuple[tuple[str, Preset], ...] = ()
    num_seeds: int = 16
    seed_caps: tuple[tuple[str, int], ...] = ()
    seed_blocks: tuple[tuple[str, int, int], ...] = ()
    seed: int = 0
    verdict_seed: int = -1
    gives_verdict: bool = False
    variant: str = ""
    overrides: Overrides = ()
    confirmed: tuple[Any, ...] = ()

    def check_names(self) -> None:
        """Raises ConfigError if two settings or conditions have one name, or an entry names a setting that there is not."""
        settings, conditions = ([name for name, _ in named] for named in (self.settings, self.conditions))
        full = [f"{condition}.{setting}" for condition in conditions for setting in settings]
        for what, names in (("settings", settings), ("conditions", conditions), ("full names of settings", full)):
            if not names:
                raise ConfigError(f"{what} of the experiment {self.name} is empty: expected at least one")
            if again := sorted({name for name in names if names.count(name) > 1}):
                raise ConfigError(f"{what}: {again[0]} is there {names.count(again[0])} times; expected every name once")
        for what, known, names in (
            ("tuned", full, [name for name, _ in self.tuned]),
            ("seed_caps", settings, [name for name, _ in self.seed_caps]),
            ("seed_blocks", settings, [name for name, *_ in self.seed_blocks]),
        ):
            if unknown := [name for name in names if name not in known]:
                raise ConfigError(f"{what}: unknown setting {unknown[0]}; known: {', '.join(known)}")

    def configs(self) -> dict[str, Config]:
        """Returns the configuration of every setting, by its full name `condition.setting`.

        Raises:
          ConfigError: a setting and a condition change the same field, so that one would silently undo the other.
        """
        tuned, configs = dict(self.tuned), {}
        for condition, changes in self.conditions:
            for setting, own in self.settings:
                name = f"{condition}.{setting}"
                if clash := [field for field, _ in own if changed(field, changes)]:
                    raise ConfigError(
                        f"condition {condition} and setting {setting} both change config.{clash[0]}: expected one"
                    )
                config = override_all(self.config, dict((*own, *changes, *tuned.get(name, ()), *self.overrides)))
                configs[name] = override_all(config, flatten(config))  # checks what was given as a whole part, too
        return configs

    def caps(self) -> dict[str, int]:
        """Returns the maximum number of seeds of each setting that has one, by full name; others have `num_seeds`."""
        own = (*self.seed_caps, *((setting, count) for setting, _, count in self.seed_blocks))
        return {f"{condition}.{setting}": cap for condition, _ in self.conditions for setting, cap in own}

    def first_seeds(self) -> dict[str, int]:
        """Returns the first seed of each setting that has its own seeds, by full name."""
        return {
            f"{condition}.{setting}": first for condition, _ in self.conditions for setting, first, _ in self.seed_blocks
        }


def changed(name: str, changes: Overrides) -> bool:
    """Returns whether changes contain a dotted name, the part that it belongs to, or a field of it if it is a part."""
    return any(name == other or other == name.split(".")[0] or name == other.split(".")[0] for other, _ in changes)


def num_outputs(task: Task) -> int:
    """Returns the number of outputs of the model, O."""
    return len(task.outputs or task.features)


def static_half(config: Config, runtime: Runtime) -> Static:
    """Returns `config` with its dials reset to their defaults; the number of phases is kept, since it is a shape."""
    reset: dict[str, Any] = {}
    for part in dataclasses.fields(config):
        value = getattr(config, part.name)
        dials = {f.name: f.default for f in dataclasses.fields(value) if f.metadata["dial"]}
        reset[part.name] = dataclasses.replace(value, **dials)
    phases = ((),) * config.num_phases
    reset["training"] = dataclasses.replace(reset["training"], loss_weights=phases)
    values = flatten(config)
    switches = tuple(n for n, (_, f) in fields_of(config).items() if f.metadata["switch"] and values[n] != f.default)
    return Static(Config(**reset), switches, runtime)


def dials_of(config: Config) -> Dials:
    """Returns the dials of one setting: all options marked as dials. Args: a checked configuration."""
    parts: dict[str, dict[str, Array]] = {part: {} for part in Dials._fields}
    for name, (_, field) in fields_of(config).items():
        part, leaf = name.split(".")
        if field.metadata["dial"]:
            fill = field.metadata["fill"]
            parts[part][leaf] = _array(fill(config) if fill else getattr(getattr(config, part), leaf))
    return Dials(**parts)


def _array(value: Any) -> Array:
    """Returns whole numbers as int32 and all others as float32."""
    found = np.asarray(value)
    return jnp.asarray(found, jnp.int32 if found.dtype.kind == "i" else jnp.float32)


def sparse(config: Config) -> dict[str, Any]:
    """Returns the options that differ from their defaults, by dotted name, and always the names of the families.

    Digests of the result do not change when an option is added whose default is the old behaviour.
    """
    values = {n: (getattr(getattr(config, n.split(".")[0]), n.split(".")[1]), f) for n, (_, f) in fields_of(config).items()}
    always = ("task.name", "model.name")
    return {name: value for name, (value, field) in values.items() if name in always or value != field.default}


def fields_of(config: Config) -> dict[str, tuple[Any, dataclasses.Field]]:
    """Returns the type and the field of every option, by dotted name."""
    names = {}
    for part in dataclasses.fields(config):
        hints = typing.get_type_hints(type(getattr(config, part.name)))
        for field in dataclasses.fields(getattr(config, part.name)):
            names[f"{part.name}.{field.name}"] = (hints[field.name], field)
    return names


def flatten(config: Config) -> dict[str, Any]:
    """Returns the value of every option, by dotted name."""
    return {name: getattr(getattr(config, name.split(".")[0]), name.split(".")[1]) for name in fields_of(config)}


def override_all(config: Config, changes: Mapping[str, Any]) -> Config:
    """Returns `config` with the values of dotted names replaced, each checked for type and range.

    A name without a dot replaces a whole part (`model`); whole parts are replaced first, so that no change is lost.
    """
    for name in sorted(changes, key=lambda name: "." in name):  # stable
        config = override(config, name, changes[name]) if "." in name else _replace_part(config, name, changes[name])
    return config


def _replace_part(config: Config, name: str, value: Any) -> Config:
    kinds = {"task": Task, "model": Model, "optimizer": Optimizer, "training": Training, "keep": Keep}
    if name not in kinds or not isinstance(value, kinds[name]):
        raise ConfigError(f"config.{name}={value!r}: expected one of {', '.join(kinds)} and options of that kind")
    return dataclasses.replace(config, **{name: value})


def override(config: Config, name: str, value: Any) -> Config:
    """Returns `config` with the value of one dotted name replaced.

    Args:
      config: the configuration to change.
      name: a dotted name such as `model.widths`.
      value: the value, or text that is parsed (`256,128`).

    Raises:
      ConfigError: unknown name, wrong type or value out of range.
    """
    known = fields_of(config)
    if name not in known:
        near = "".join(f"did you mean config.{other}? " for other in difflib.get_close_matches(name, known, 1, 0.8))
        raise ConfigError(f"unknown name config.{name}; {near}known: {', '.join(known)}")
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
    """Returns how a value of a type is written on a command line, such as `int,int,...` for `tuple[int, ...]`."""
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
    if re.search(r"\b0[xXbBoO]|\d_", text):
        raise ConfigError(f"config.{name}={text}: expected {describe_type(kind)}, in decimal digits without separators")
    try:
        value = ast.literal_eval(text) if text else ()
    except (ValueError, SyntaxError) as error:
        raise ConfigError(f"config.{name}={text}: expected {describe_type(kind)}") from error
    return value


def _typed(name: str, kind: Any, value: Any) -> Any:
    """Returns `value` as `kind`; converts whole numbers to floats, lists and single values to tuples; rounds nothing."""
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
    for number in (value, _single(value)) if isinstance(value, float) else (value,):
        if not (math.isfinite(number) and low <= number <= high and above < number < below):
            limits = " and ".join(
                f"{sign} {bounds[key]:g}"
                for key, sign in (("low", ">="), ("above", ">"), ("high", "<="), ("below", "<"))
                if key in bounds
            )
            in_single = "" if number == value or math.isnan(value) else f", which it is not in float32 ({number:g})"
            raise ConfigError(f"config.{name}={value!r}: expected a finite number {limits}".rstrip() + in_single)


def _single(value: float) -> float:
    """Returns a number as programs see it: in float32, where subnormal numbers count as zero."""
    with np.errstate(over="ignore"):
        found = np.float32(value)
    return float(found) if abs(found) >= np.finfo(np.float32).tiny or math.isnan(value) else 0.0
