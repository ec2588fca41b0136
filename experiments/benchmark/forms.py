"""The parts `transformer` and `convnet` of the benchmark on the CPU: speed, ratios and accuracies for each of their forms.

The forms are settings of experiments, see `networks`. The rivals are PyTorch's: a tuned loop, and an ensemble that is
batched by hand, each in the fastest of several ways that are measured first. Before anything is timed, each must have our
loss on our weights. Accuracies of Transformers are greedy: a prediction is the answer that the next output sees.
"""

import contextlib
import itertools
from collections.abc import Iterable, Mapping

from experiments.benchmark.contest import (
    CORES,
    US,
    Bench,
    Contender,
    Way,
    compete,
    ensemble_settings,
    fastest,
    is_product,
)
from experiments.benchmark.profiled import KINDS
from experiments.benchmark.workers import Team, installed, paired, rounds_of

# Ways to train an ensemble, by part.
WAYS = {
    "transformer": (
        Way("bmm", "parts", 2, 2, True),
        Way("bmm", "parts", 4, 2, True),
        Way("bmm", "parts", 8, 2, True),
        Way("bmm", "parts", 8, 1, True),
        Way("bmm", "parts", 4, 2, False),
        Way("bmm", "whole", 4, 2, True),
    ),
    "convnet": tuple(
        Way(batching, "parts", models, 2, is_compiled)
        for batching, models, is_compiled in itertools.product(("grouped", "grouped channels-last"), (2, 4), (False, True))
    ),
}
SMOKE_WAYS = {
    "transformer": (Way("bmm", "parts", 2, 1, False),),
    "convnet": (Way("grouped channels-last", "parts", 2, 1, False),),
}
UPDATES = 25  # of an epoch in the rounds that choose a way
CHECKED_MODELS = 2  # per process, in the ensemble whose accuracies are reported
LIMIT = 1e-4  # on the relative difference of losses
CONVOLUTIONS = "plain"  # the form whose convolutions are compared
TIMED = {"our convolutions": (False, 16), "XLA's own": (True, 2)}  # whether they are XLA's own; updates per call


def report(bench: Bench, forms: Iterable[str]) -> None:
    """Adds the rows of some forms."""
    for form in forms:
        own = bench.of(form)
        compete(own, contenders, lambda teams, own=own: check_losses(own, teams))
        own.append_missing("torch", "PyTorch", ("tuned", "ensemble"))
        report_profile(own)
        if form == CONVOLUTIONS:
            report_convolutions(own)


def report_convolutions(bench: Bench) -> None:
    """Adds rows with the time of a run-step in our training loop, by our convolutions and by XLA's own."""
    with contextlib.ExitStack() as stack:
        jobs = {}
        for name, (native, updates) in TIMED.items():
            settings = bench.ours(native=native, updates=1 if bench.smoke else updates)
            team = stack.enter_context(bench.team("ours", settings))
            jobs[name] = (team, "advance", {"epochs": team.warm(bench.size.seconds)})
        samples = rounds_of(jobs, bench.rounds)
    walls = {name: [s.wall for s in found] for name, found in samples.items()}
    for name, found in walls.items():
        bench.add("speed", f"ours, by {name}", "wall", US, found)
    ours, native = walls.values()
    bench.add("ratio", "XLA's own convolutions / ours", "wall", "", paired(native, ours))


def report_profile(bench: Bench) -> None:
    """Adds the rows of `profile`: the share of each kind of operation in the time of our training steps."""
    with bench.team("ours", bench.ours()) as team:
        rounds = [team.call("profile")[0] for _ in range(bench.rounds)]
    for kind in KINDS[bench.part]:
        bench.add("profile", "ours", kind, "share", [found[kind] for found in rounds])


def contenders(bench: Bench) -> dict[str, Contender]:
    """Returns the matrix product, whose rate is the limit, and the contenders in PyTorch if it is installed, by name."""
    product = {"matrix product, JAX": Contender("product", [{"size": bench.size.product, "threads": CORES}])}
    if not installed("torch"):
        return product
    compiled = (False,) if bench.smoke else (False, True)
    loops = {f"PyTorch tuned ({'compiled' if way else 'eager'})": _tuned(bench, way) for way in compiled}
    ways = (SMOKE_WAYS if bench.smoke else WAYS)[bench.part]
    ensembles = {way.label: _ensemble(bench, way) for way in ways}
    return dict((_fastest(bench, loops), _fastest(bench, ensembles))) | product


def _tuned(bench: Bench, is_compiled: bool) -> Contender:
    """Returns the tuned loop: two pinned processes, each with one network at a time."""
    seeds = [(i, i + CORES) for i in range(CORES)]
    settings = [bench.rival(*s, **bench.pinned(i), compile=is_compiled) for i, s in enumerate(seeds)]
    return Contender(f"{bench.part} tuned", settings)


def _ensemble(bench: Bench, way: Way) -> Contender:
    """Returns an ensemble; accuracies are those of a smaller one, which is trained to the end in less time."""
    fewer = None if bench.smoke else ensemble_settings(bench, way._replace(models=CHECKED_MODELS, processes=CORES))
    return Contender(f"{bench.part} ensemble", ensemble_settings(bench, way), fewer)


def _fastest(bench: Bench, tried: Mapping[str, Contender]) -> tuple[str, Contender]:
    """Returns the fastest contender and its name, chosen in epochs of a few updates."""
    updates = min(UPDATES, bench.config.steps_per_epoch)
    short = {n: c._replace(settings=[{**s, "updates": updates} for s in c.settings]) for n, c in tried.items()}
    name = fastest(bench, short)
    return name, tried[name]


def check_losses(bench: Bench, teams: Mapping[str, Team]) -> None:
    """Checks that all contenders have our loss on the same weights and examples, and adds a row for each.

    Args:
      bench: its rows are added.
      teams: by name; `ours` saves weights that differ from the initial ones in every number, biases included.

    Raises:
      RuntimeError: a loss differs by LIMIT or more of its value.
    """
    others = {name: team for name, team in teams.items() if name != "ours" and not is_product(name)}
    if not others:
        return
    path = str(bench.folder / "weights.npz")
    (ours,) = teams["ours"].call("losses", path=path)
    for name, team in others.items():
        found = team.call("loss_of", path=path)
        expected = [sum(ours[seed] for seed in settings["seeds"]) for settings in team.settings]
        apart = max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))
        bench.add("check", name, "largest relative difference of the loss from ours", "", [apart])
        if not apart < LIMIT:
            raise RuntimeError(f"{name}: its loss and ours differ by {apart:g} of ours; expected less than {LIMIT:g}")
