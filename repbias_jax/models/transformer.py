"""A Transformer that reads a string of tokens and reports its features, one after the other or all at once.

Three forms, all pre-norm with learned positions; f is attention, then a dense layer of `expand x width` units and back:

  encoder_decoder   memory = norm(encoder(string));  logits_p = head(norm(decoder(answers before p, memory))_p)
  decoder           one causal stack reads the string and then the answers before p
  encoder           memory as above;  logits = heads(mean of memory over the string), one head for each output

In the decoders, the token at output position p is the answer at p - 1 (a label when teacher-forced; an unseen label has a
token of its own), plus the query token of p if the input has queries. Around each block of the encoder, the dial `skips`
gives y = (s x + f(x)) / sqrt(1 + s^2); without it y = x + f(x). With `band`, the first block attends only to tokens nearby.

Sites: `embedding`, `encoder_0`, ... (the last one after the norm: the memory) and `decoder_0`, ..., or `block_0`, ...;
`logits`. Views: `X.mean` over the tokens of the string, `X.flat`, and `X.out0`, ... by output position. Views that see an
answer are label-fed. In the form `decoder`, the last block is computed, and is a site, for the answers alone: nothing reads
its tokens of the string.

Source: Vaswani et al. 2017; pre-norm after Xiong et al. 2020; `skips` and `band` are ours.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from repbias_jax.config import ConfigError, Dials, Model, Task, num_outputs, option
from repbias_jax.data import DATA
from repbias_jax.data.sequences import Tokens
from repbias_jax.models.family import Family, View, flatten, possible
from repbias_jax.models.layers import ACTIVATIONS, dense, drop, embedding, readout, skips_option, weighted_skip
from repbias_jax.models.sites import site

Record = Callable[[str, Array], Array]
START, UNSEEN, FIRST = 0, 1, 2  # tokens of the answer before: there is none; its label is not seen; its value 0


@dataclass(frozen=True)
class TransformerOptions(Model):
    """Options of Transformers; dropout follows attention and the dense layers of every block."""

    name: str = option("transformer", "architecture", choices=("transformer",))
    form: str = option("encoder_decoder", "stacks", choices=("encoder_decoder", "decoder", "encoder"))
    width: int = option(64, "residual stream", "units", low=1, high=65536)
    heads: int = option(4, "attention heads; must divide the width", low=1)
    layers: int = option(2, "blocks in each stack", low=1, high=256)
    expand: int = option(4, "hidden units of a block's dense layers, as a multiple of the width", low=1, high=64)
    band: int = option(0, "the first block attends to tokens at most this far away; 0: to all", "tokens", low=0, high=4096)
    skips: tuple[float, ...] = skips_option("each block of the encoder", lambda own: own.layers)


class Block(nn.Module):
    """A block of a stack: attention within a stream `[L, D]`, attention to a memory if there is one, dense layers."""

    options: TransformerOptions

    @nn.compact
    def __call__(
        self, x: Array, seen: Array | None, dials: Dials, key: Array | None, memory: Array | None = None, first: int = 0
    ) -> Array:  # fmt: skip
        """Returns the change of the stream, f(x) `[L - first, D]`; tokens before `first` are read, but not changed.

        Args: seen, boolean `[L, L]`, the tokens that each one attends to (None: all); key, for dropout; memory, `[M, D]`.
        """
        width, stream = self.options.width, x[first:]
        keys = [None] * 3 if key is None else list(jax.random.split(key, 3))

        def add(change: Array, key: Array | None) -> Array:
            return stream + (change if key is None else drop(change, dials.model["dropout"], key))

        q, k, v = jnp.split(dense(3 * width, dials, "within")(nn.LayerNorm(name="within_norm")(x)), 3, axis=-1)
        read = self._attend(q[first:], k, v, None if seen is None else seen[first:])
        stream = add(dense(width, dials, "within_out")(read), keys[0])
        if memory is not None:
            q = dense(width, dials, "across_query")(nn.LayerNorm(name="across_norm")(stream))
            k, v = jnp.split(dense(2 * width, dials, "across")(memory), 2, axis=-1)
            stream = add(dense(width, dials, "across_out")(self._attend(q, k, v, None)), keys[1])
        hidden = dense(self.options.expand * width, dials, "hidden")(nn.LayerNorm(name="hidden_norm")(stream))
        return add(dense(width, dials, "hidden_out")(ACTIVATIONS[self.options.activation](hidden)), keys[2]) - x[first:]

    def _attend(self, q: Array, k: Array, v: Array, seen: Array | None) -> Array:
        """Returns what each token of q `[L, D]` reads from k and v `[M, D]`, all heads side by side, `[L, D]`.

        Args: seen, boolean `[L, M]`, or None for all.
        """
        q, k, v = (x.reshape(len(x), self.options.heads, -1) for x in (q, k, v))
        scores = jnp.einsum("lhd,mhd->hlm", q, k) / math.sqrt(q.shape[-1])
        weights = nn.softmax(scores if seen is None else jnp.where(seen[None], scores, -1e9))
        return jnp.einsum("hlm,mhd->lhd", weights, v).reshape(len(q), -1)


class Stack(nn.Module):
    """Blocks, each of which changes the stream. The stream is a site after each block; after the last one it is normed.

    The last block only changes the tokens from `first` on, since no other token is read after it.
    """

    options: TransformerOptions
    sites: str  # the beginning of their names
    skips: bool = False
    first: int = 0

    @nn.compact
    def __call__(
        self, x: Array, seen: Array | None, dials: Dials, key: Array | None, record: Record, memory: Array | None = None
    ) -> Array:  # fmt: skip
        """Returns the normed stream `[L - first, D]`. Args: as for `Block`; record, `site` of one pass."""
        last = self.options.layers - 1
        for i in range(self.options.layers):
            own = None if key is None else jax.random.fold_in(key, i)
            near = _near(len(x), self.options.band) if i == 0 and self.options.band and memory is None else seen
            first = self.first if i == last else 0
            change = Block(self.options, name=f"block_{i}")(x, near, dials, own, memory, first)
            x = weighted_skip(x[first:], change, dials.model["skips"][i] if self.skips else None)
            x = record(f"{self.sites}_{i}", nn.LayerNorm(name="norm")(x) if i == last else x)
        return x


class Transformer(nn.Module):
    """See the module's docstring; the contract is in `repbias_jax.models`."""

    options: TransformerOptions
    tokens: Tokens
    num_outputs: int
    num_values: int
    dropout: bool
    skips: bool

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
        """Returns logits `[O, C]` and sites of one example, teacher-forced if there are labels, else greedy."""
        options, length, outputs = self.options, self.tokens.length, self.num_outputs
        keys = list(jax.random.split(key)) if self.dropout and key is not None else [None, None]
        table = functools.partial(embedding, width=options.width, dials=dials)
        string = table(self.tokens.values, name="tokens")(inputs[:length])
        string = string + table(length, name="places")(_count(length))
        encoded: dict[str, Array] = {}  # sites of the encoder
        memory = None
        if options.form != "decoder":
            record = functools.partial(site, encoded, edits or {})
            encoder = Stack(options, "encoder", self.skips, name="encoder")
            memory = encoder(record("embedding", string), None, dials, keys[0], record)
            if options.form == "encoder":
                logits = readout(memory.mean(axis=0), outputs, self.num_values, options.head, dials)
                return record("logits", logits).reshape(outputs, self.num_values), encoded

        first = length if memory is None else 0
        decoder = Stack(options, "block" if memory is None else "decoder", first=first, name="decoder")
        answers, head = table(FIRST + self.num_values, name="answers"), dense(self.num_values, dials, "readout")
        asked = table(outputs, name="output_places")(_count(outputs))
        if self.tokens.queries:
            asked = asked + table(self.tokens.queries, name="queries")(inputs[length:] - self.tokens.values)

        def forward(before: Array) -> tuple[Array, dict[str, Array]]:
            """Returns logits and sites, given the token of the answer before each output, `[O]`."""
            sites = dict(encoded)
            record = functools.partial(site, sites, edits or {})
            x = answers(before) + asked
            x = record("embedding", jnp.concatenate([string, x])) if memory is None else x
            state = decoder(x, _earlier(len(x)), dials, keys[1], record, memory)
            return record("logits", head(state).reshape(-1)).reshape(outputs, self.num_values), sites

        before = jnp.full((outputs,), START, jnp.int32)
        if labels is not None:
            given = jnp.where(labels < 0, UNSEEN, labels + FIRST).astype(jnp.int32)
            return forward(before.at[1:].set(given[:-1]))
        logits, sites = forward(before)
        for p in range(1, outputs):
            answer = jnp.argmax(possible(logits, values)[p - 1]).astype(jnp.int32)
            logits, sites = forward(before := before.at[p].set(answer + FIRST))
        return logits, sites


def _count(size: int) -> Array:
    return jnp.arange(size, dtype=jnp.int32)


def _near(length: int, band: int) -> Array:
    """Returns which tokens are at most `band` away from each one, boolean `[L, L]`."""
    return jnp.abs(_count(length)[:, None] - _count(length)[None]) <= band


def _earlier(length: int) -> Array:
    """Returns which tokens are not later than each one, boolean `[L, L]`."""
    return _count(length)[None] <= _count(length)[:, None]


def build(options: TransformerOptions, task: Task, num_values: int, switches: tuple[str, ...]) -> Transformer:
    """Returns a Transformer for the task. Args: as in `Family`."""
    tokens = DATA[task.name].tokens_of(task)
    return Transformer(
        options, tokens, num_outputs(task), num_values, "model.dropout" in switches, "model.skips" in switches
    )


def check(options: TransformerOptions, task: Task) -> None:
    """Raises ConfigError, naming the option, if the options do not fit together or the input is not tokens."""
    if not hasattr(DATA[task.name], "tokens_of"):
        raise ConfigError(f"config.task.name={task.name}: expected strings of tokens, such as sequences")
    tokens = DATA[task.name].tokens_of(task)
    if options.width % options.heads:
        raise ConfigError(f"config.model.heads={options.heads}: expected a divisor of config.model.width={options.width}")
    if options.skips and len(options.skips) != options.layers:
        raise ConfigError(f"config.model.skips={options.skips}: expected {options.layers} values, one for each block")
    if options.form == "decoder" and (options.skips or options.band):
        raise ConfigError("config.model.skips and band are of the encoder: expected neither, or another config.model.form")
    if options.form != "encoder" and options.head != "pair":
        raise ConfigError(f"config.model.head={options.head}: expected pair, since a decoder feeds answers back as tokens")
    if options.form == "encoder" and tokens.queries:
        raise ConfigError("config.task.order=example: expected listed or run, since the form encoder reads no query tokens")


def views(options: TransformerOptions, task: Task) -> dict[str, View]:
    """Returns the views in layer order: means and whole sites over the string, then each output position."""
    tokens, outputs = DATA[task.name].tokens_of(task), num_outputs(task)
    length = tokens.length
    after = outputs if options.form == "decoder" else 0  # positions that follow the string in the same site

    def spread(change: Array) -> Array:
        return jnp.pad(jnp.broadcast_to(change, (length, options.width)), ((0, after), (0, 0)))

    found = {}
    stack = {"encoder": "encoder", "encoder_decoder": "encoder", "decoder": "block"}[options.form]
    for name in ("embedding", *(f"{stack}_{i}" for i in range(options.layers - (options.form == "decoder")))):
        found[f"{name}.mean"] = View(name, lambda x: x[:length].mean(axis=0), spread)
        found[f"{name}.flat"] = View(name, lambda x: flatten(x[:length]), lambda c: spread(c.reshape(length, -1)))
    if options.form != "encoder":
        stack = "decoder" if options.form == "encoder_decoder" else "block"
        for i, p in itertools.product(range(options.layers), range(outputs)):
            at = length + p if options.form == "decoder" and i < options.layers - 1 else p  # the last block has no string
            found[f"{stack}_{i}.out{p}"] = View(f"{stack}_{i}", lambda x, at=at: x[at], None, label_fed=p > 0)
    found["logits"] = View("logits", flatten, lambda c: c, label_fed=options.form != "encoder" and outputs > 1)
    return found


def places(options: TransformerOptions, task: Task) -> dict[str, tuple[str, ...]]:
    """Returns the views of each place.

    Besides, `flat` is the site of which `last_hidden` is the mean, and `answers` the last block at each output position.
    """
    known = views(options, task)
    means = tuple(name for name in known if name.endswith(".mean"))
    return {
        "all": tuple(name for name, view in known.items() if not view.label_fed),
        "layers": means,
        "last_hidden": means[-1:],
        "before_last": means[-2:-1],
        "flat": tuple(name.replace(".mean", ".flat") for name in means[-1:]),
        "answers": tuple(name for name in known if f"_{options.layers - 1}.out" in name),
    }


FAMILY = Family(TransformerOptions, build, check, views, places)
