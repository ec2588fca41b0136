"""A small family of models for contract tests: a residual block over tokens, and a decoder of one output after the other.

  x = embedding [L, D];  stream = residual * x + branch(x);  pooled = act(W stream) [D]
  state_p = act(V [pooled, token of the output before]);  logits_p = head(state_p) + offset_p

Sites: `branch`, `stream` [L, D], `pooled` [D], `decoder` [O, D], `logits` [O * C].
"""

from collections.abc import Mapping
from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from toy_data import LENGTH, VOCABULARY

from repbias_jax.config import ConfigError, Dials, Model, Task, num_outputs, option
from repbias_jax.models.family import Family, View, flatten, possible
from repbias_jax.models.layers import ACTIVATIONS, drop
from repbias_jax.models.sites import site

NAME = "toy_decoder"
START, UNSEEN, FIRST = 0, 1, 2  # tokens of the output before: there is none; its label is not seen; its value 0


@dataclass(frozen=True)
class ToyModel(Model):
    """Options of the decoder."""

    name: str = option(NAME, "architecture", choices=(NAME,))
    width: int = option(12, "residual stream", "units", low=1)
    residual: float = option(1.0, "factor on the skip connection", "", True, low=0.0)


class ToyDecoder(nn.Module):
    """See the module's docstring; the contract is in `repbias_jax.models`."""

    width: int
    activation: str
    num_outputs: int
    num_values: int
    dropout: bool

    @nn.compact
    def __call__(
        self,
        inputs: Array,
        dials: Dials,
        labels: Array | None = None,
        key: Array | None = None,
        edits: Mapping[str, Array] | None = None,
        values: Array | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Logits `[O, C]` and sites of one example, teacher-forced where there are labels."""
        edits, act = edits or {}, ACTIVATIONS[self.activation]
        embed = nn.Embed(VOCABULARY, self.width, name="embed")
        answered = nn.Embed(self.num_values + FIRST, self.width, name="answered")
        inner, outer = nn.Dense(self.width, name="inner"), nn.Dense(self.width, name="outer")
        pool, decode = nn.Dense(self.width, name="pool"), nn.Dense(self.width, name="decode")
        head = nn.Dense(self.num_values, name="head")
        offset = self.param("offset", nn.initializers.normal(0.1), (self.num_outputs, self.num_values))

        def forward(before: Array) -> tuple[Array, dict[str, Array]]:
            """One pass. Args: before `[O]`, the token of the output before each output."""
            sites: dict[str, Array] = {}
            x = embed(inputs)
            branch = site(sites, edits, "branch", outer(act(inner(x))))
            stream = site(sites, edits, "stream", dials.model["residual"] * x + branch)
            pooled = site(sites, edits, "pooled", act(pool(stream.reshape(-1))))
            if self.dropout and key is not None:
                pooled = drop(pooled, dials.model["dropout"], key)
            repeated = jnp.broadcast_to(pooled, (self.num_outputs, self.width))
            state = act(decode(jnp.concatenate([repeated, answered(before)], axis=-1)))
            state = site(sites, edits, "decoder", state)
            logits = site(sites, edits, "logits", (head(state) + offset).reshape(-1))
            return logits.reshape(self.num_outputs, self.num_values), sites

        start = jnp.full((self.num_outputs,), START, jnp.int32)
        if labels is not None:
            given = jnp.where(labels < 0, UNSEEN, labels + FIRST).astype(jnp.int32)
            return forward(start.at[1:].set(given[:-1]))
        logits, sites = forward(start)
        for p in range(1, self.num_outputs):
            start = start.at[p].set(jnp.argmax(possible(logits, values)[p - 1]).astype(jnp.int32) + FIRST)
            logits, sites = forward(start)
        return logits, sites


def build(options: ToyModel, task: Task, num_values: int, switches: tuple[str, ...]) -> ToyDecoder:
    """A decoder of the given shape."""
    return ToyDecoder(options.width, options.activation, num_outputs(task), num_values, "model.dropout" in switches)


def check(options: ToyModel, task: Task) -> None:
    """Raises ConfigError where a head or data is asked for that the decoder does not have."""
    if options.head != "pair":
        raise ConfigError(f"config.model.head={options.head}: expected pair")
    if task.name != "toy_tokens":
        raise ConfigError(f"config.task.name={task.name}: expected tokens")


def views(options: ToyModel, task: Task) -> dict[str, View]:
    """In layer order; what follows the first output is fed its label."""
    del task
    every = (LENGTH, options.width)
    return {
        "branch.mean": View("branch", lambda x: x.mean(axis=0), lambda c: jnp.broadcast_to(c, every)),
        "branch": View("branch", flatten, lambda c: c.reshape(every)),
        "stream.last": View("stream", lambda x: x[-1]),
        "pooled": View("pooled", flatten, lambda c: c),
        "decoder.out0": View("decoder", lambda x: x[0], lambda c: jnp.zeros((2, options.width)).at[0].set(c)),
        "decoder.out1": View("decoder", lambda x: x[1], None, label_fed=True),
        "logits": View("logits", flatten, None, label_fed=True),
    }


def places(options: ToyModel, task: Task) -> dict[str, tuple[str, ...]]:
    """The named places; none is fed labels."""
    own = tuple(name for name, view in views(options, task).items() if not view.label_fed)
    return {"all": own, "layers": ("branch.mean", "pooled"), "last_hidden": ("pooled",), "before_last": ("branch.mean",)}


FAMILY = Family(ToyModel, build, check, views, places)
