"""The benchmark: its smoke size whole, and the arithmetic behind its rows. No test asks for a speed."""

import csv
import json
import math
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT
from flax.traverse_util import flatten_dict

from experiments.benchmark import (
    contenders,
    contest,
    forms,
    networks,
    profiled,
    speed,
    targets,
    torch_convnet,
    torch_transformer,
    workers,
)
from experiments.benchmark.speed import COLUMNS
from repbias_jax import layout, training
from repbias_jax.data import reported
from repbias_jax.models import convnet

TRANSFORMERS, CONVNETS = (networks.FORMS[part] for part in ("transformer", "convnet"))
ROUNDS = 2
PARTS = {"speed", "ratio", "accuracy", "start", "lanes", "runs", "checkpoint", "probe"}


def measure(folder, cache, table, *more):
    """Rows, manifest and print of one smoke run, as a user would start it."""
    line = ["-m", "experiments.benchmark", "--smoke", f"--rounds={ROUNDS}", f"--output={folder}", f"--cache={cache}", *more]
    done = subprocess.run([sys.executable, *line], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in folder.iterdir()} == {f"{table}.csv", f"{table}_manifest.json"}
    with open(folder / f"{table}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, json.loads((folder / f"{table}_manifest.json").read_text()), done.stdout


@pytest.fixture(scope="module")
def measured(tmp_path_factory, cache):
    """The parts of the MLP."""
    return measure(tmp_path_factory.mktemp("benchmark"), cache, "benchmark")


@pytest.fixture(scope="module")
def transformers(tmp_path_factory, cache):
    """Rows of the part `transformer`."""
    return measure(tmp_path_factory.mktemp("transformer"), cache, "transformer", "--part=transformer")[0]


@pytest.fixture(scope="module")
def convnets(tmp_path_factory, cache):
    """Rows of the part `convnet`."""
    return measure(tmp_path_factory.mktemp("convnet"), cache, "convnet", "--part=convnet")[0]


def numbers(row) -> list[float]:
    return [float(row[name]) for name in ("min", "median", "max")]


def find(rows, part, name, quantity):
    return next(numbers(r) for r in rows if (r["part"], r["name"], r["quantity"]) == (part, name, quantity))


def test_every_part_is_there(measured):
    rows, manifest, printed = measured
    assert tuple(rows[0]) == COLUMNS
    assert PARTS | ({"calibration"} if workers.installed("torch") else set()) == {row["part"] for row in rows}
    assert len({(row["part"], row["name"], row["quantity"]) for row in rows}) == len(rows)
    assert all(f"\n{part} " in printed for part in PARTS)
    assert {"jax", "jaxlib", "numpy", "python"} <= set(manifest["versions"])
    assert manifest["rounds"] == ROUNDS
    assert manifest["smoke"]
    assert manifest["seconds"]["all"] > 0


def test_numbers_are_in_order(measured, transformers, convnets):
    for row in [*measured[0], *transformers, *convnets]:
        if row["rounds"] == "0":
            assert row["quantity"].startswith("skipped: ")
            assert row["median"] == ""
            continue
        low, middle, high = numbers(row)
        assert 0 <= low <= middle <= high, row
        may_be_zero = row["part"] == "accuracy" or any(s in row["name"] for s in ("break-even", "accuracy: ", "check: "))
        assert low > 0 or may_be_zero, row
        assert row["part"] not in ("speed", "lanes", "ratio") or int(row["rounds"]) in (1, ROUNDS)


def test_missing_libraries_are_said(measured):
    rows, _, printed = measured
    for module, library in (("torch", "PyTorch"), ("sklearn", "scikit-learn")):
        said = [row for row in rows if row["quantity"] == f"skipped: {library} is not installed"]
        assert bool(said) != workers.installed(module)
        assert any(row["name"].startswith(library) and row["rounds"] != "0" for row in rows) == workers.installed(module)
        assert all(row["name"] in printed for row in said)


def test_ratios_are_ours_to_theirs(measured):
    """Paired ratios lie between what the extremes of both sides allow."""
    rows = measured[0]
    seen = 0
    for row in rows:
        ours, _, other = row["name"].partition(" / ")
        if row["part"] != "ratio" or ours != "ours":
            continue
        a, b = (find(rows, "speed", name, row["quantity"]) for name in (ours, other))
        low, _, high = numbers(row)
        assert a[0] / b[2] * 0.999 <= low <= high <= a[2] / b[0] * 1.001, row
        seen += 1
    assert seen >= 3


def test_accuracies_summarise_their_runs(measured):
    rows = measured[0]
    for row in [r for r in rows if r["part"] == "accuracy" and r["name"] == "ours" and "," not in r["quantity"]]:
        low, _, high = numbers(row)
        mean = find(rows, "accuracy", "ours", f"{row['quantity']}, mean")[1]
        assert 0 <= low <= mean <= high <= 1
        assert int(row["rounds"]) == 4  # runs


def test_probe_agrees_with_scikit_learn(measured):
    if workers.installed("sklearn"):
        assert find(measured[0], "probe", "r2", "largest difference")[1] < 1e-5


@pytest.mark.parametrize("form", TRANSFORMERS)
def test_transformers_have_their_rows(transformers, form):
    check_rows(transformers, form)


@pytest.mark.parametrize("form", CONVNETS)
def test_convnets_have_their_rows(convnets, form):
    check_rows(convnets, form)
    native = [row for row in convnets if row["name"] == f"{form}, ratio: XLA's own convolutions / ours"]
    assert len(native) == (1 if form == "plain" else 0)


def check_rows(rows, form):
    part, rows = networks.part_of(form), [row for row in rows if row["name"].startswith(f"{form}, ")]
    assert {row["part"] for row in rows} == {part}
    assert all(find(rows, part, f"{form}, speed: ours", quantity)[0] > 0 for quantity in ("wall", "cpu", "rate"))
    for output in reported(networks.config_of(True, form).task):
        assert 0 <= find(rows, part, f"{form}, accuracy: ours", output)[0] <= 1
    rivals = [row for row in rows if row["name"].startswith(f"{form}, ratio: ours / PyTorch")]
    checks = [numbers(row)[1] for row in rows if row["name"].startswith(f"{form}, check: ")]
    assert len(rivals) == (4 if workers.installed("torch") else 0)  # wall and CPU time of a loop and an ensemble
    assert len(checks) == len(rivals) / 2
    assert all(apart < forms.LIMIT for apart in checks)
    parts = [find(rows, part, f"{form}, profile: ours", kind)[1] for kind in profiled.KINDS[part]]
    assert all(share > 0 for share in parts)
    assert abs(sum(parts) - 1) < 0.1  # medians over rounds


PROGRAM = """\
HloModule made

%wide (a: f32[8,4], b: f32[4,2]) -> f32[8,2] {
  %a = f32[8,4]{1,0} parameter(0)
  %b = f32[4,2]{1,0} parameter(1)
  ROOT %inner = f32[8,2]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%mean (x: f32[8,4]) -> f32[8] {
  %x = f32[8,4]{1,0} parameter(0)
  ROOT %sum = f32[8]{0} reduce(%x), metadata={op_name="model/block_0/within_norm/reduce_sum"}
}

ENTRY %main (x: f32[8,4]) -> f32[8,2] {
  %x = f32[8,4]{1,0} parameter(0)
  %fusion.1 = f32[8,2]{1,0} fusion(%x), kind=kCustom, calls=%wide
  %fusion.2 = f32[8]{0} fusion(%x), kind=kLoop, calls=%mean
  %dot.3 = f32[3,2,4,4]{3,2,1,0} dot(%x, %x), lhs_batch_dims={0,1}, lhs_contracting_dims={3}, rhs_batch_dims={0,1}
  %dot.4 = f32[3,4,4]{2,1,0} dot(%x, %x), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}
  %copy.5 = f32[4,8]{1,0} copy(%x), metadata={op_name="model/block_0/block_0._attend/transpose"}
  %exponential.6 = f32[8,4]{1,0} exponential(%x), metadata={op_name="model/block_0/block_0._attend/exp"}
  ROOT %add.7 = f32[8,2]{1,0} add(%fusion.1, %fusion.1), metadata={op_name="model/block_0/add"}
}
"""


def test_a_profile_knows_each_operation_by_the_program():
    seconds = {
        "fusion.1": 1,
        "fusion.2": 2,
        "dot.3": 4,
        "dot.4": 8,
        "copy.5": 16,
        "exponential.6": 32,
        "add.7": 64,
        "new": 1,
    }
    found = profiled.shares(PROGRAM, seconds, "transformer")
    assert [round(found[kind] * 128) for kind in profiled.KINDS["transformer"]] == [9, 4, 2, 32, 16, 65]


def test_a_profile_of_convolutions_has_products_and_windows():
    program = """\
ENTRY %main (x: f32[8,4]) -> f32[8,2] {
  %dot.1 = f32[8,2]{1,0} dot(%x, %x), metadata={op_name="body/stage_0_conv/dot_general"}
  %dot.2 = f32[8,2]{1,0} dot(%x, %x)
  %pad.3 = f32[8,4]{1,0} pad(%x, %x), metadata={op_name="body/stage_0_conv/slice"}
  ROOT %sum = f32[8]{0} reduce(%x), metadata={op_name="body/stage_0_norm/reduce_sum"}
}
"""
    found = profiled.shares(program, {"dot.1": 1, "dot.2": 2, "pad.3": 4, "sum": 8, "copy.4": 16, "new": 1}, "convnet")
    assert [round(found[kind] * 32) for kind in profiled.KINDS["convnet"]] == [3, 4, 8, 16, 1]


@pytest.mark.parametrize("smoke", [True, False])
@pytest.mark.parametrize("form", TRANSFORMERS)
def test_weights_in_pytorch_are_ours_by_name_and_shape(form, smoke):
    config = networks.config_of(smoke, form)
    group = layout.groups_of({"base": config}, "cpu")[0]
    params, *_ = training.shapes_of_batch(group.static, group.dials["base"])
    options = networks.rival_settings(config, ROOT, [0])["options"]
    ours = {name: x.shape for name, x in flatten_dict(params["params"], sep=".").items()}
    assert torch_transformer.shapes_of(options) == ours


@pytest.mark.parametrize("smoke", [True, False])
@pytest.mark.parametrize("form", CONVNETS)
def test_weights_of_convolutions_in_pytorch_are_ours(form, smoke):
    """Kernels have their axes in PyTorch's order."""
    config = networks.config_of(smoke, form)
    group = layout.groups_of({"base": config}, "cpu", lanes=1)[0]
    params, *_ = training.shapes_of_batch(group.static, group.dials["base"])
    ours = {name: np.zeros((1, *x.shape), bool) for name, x in flatten_dict(params["params"], sep=".").items()}
    ours = {name: torch_convnet.Images.laid_out(x).shape[1:] for name, x in ours.items()}
    assert torch_convnet.shapes_of(networks.rival_settings(config, ROOT, [0])["options"]) == ours


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (4, 3)])
def test_padding_in_pytorch_is_that_of_jax(size, stride):
    for side in range(2, 33):
        expected = jax.lax.padtype_to_pads((side,), (size,), (stride,), "SAME")
        assert [torch_convnet.padding_of(side, size, stride)] == expected


@pytest.mark.parametrize("form", CONVNETS)
@pytest.mark.parametrize("kind", ["convnet tuned", "convnet ensemble", "grouped"])
def test_convolutions_in_pytorch_have_our_loss(tmp_path, form, kind):
    """For two networks, on weights that differ from the initial ones in every number."""
    pytest.importorskip("torch")
    config, rng = networks.config_of(True, form), np.random.default_rng(0)
    group = layout.groups_of({"base": config}, "cpu", lanes=1)[0]
    params, inputs, labels, orders = training.shapes_of_batch(group.static, group.dials["base"])
    params = jax.tree.map(lambda x: 0.3 * rng.normal(size=(2, *x.shape)).astype(x.dtype), params)
    images = rng.integers(0, 256, (2, *inputs.shape), dtype=np.uint8)
    answers = rng.integers(0, 4, (2, *labels.shape)).astype(np.int32)
    order = np.arange(orders.shape[0])
    loss = [
        training.loss_of_batch(group.static, group.dials["base"], jax.tree.map(lambda x, i=i: x[i], params), *batch, order)
        for i, batch in enumerate(zip(images, answers, strict=True))
    ]
    for split in ("train", "test"):
        np.save(tmp_path / f"{split}_inputs.npy", images)
        np.save(tmp_path / f"{split}_labels.npy", answers)
    np.savez(tmp_path / "weights.npz", **flatten_dict(params["params"], sep="."))
    more = {"compile": False, "step": "parts", "batching": "grouped" if kind == "grouped" else torch_convnet.CHANNELS_LAST}
    made = torch_convnet.KINDS[kind if kind in torch_convnet.KINDS else "convnet ensemble"]
    rival = made(networks.rival_settings(config, tmp_path, [0, 1]) | more)
    assert rival.loss_of(str(tmp_path / "weights.npz")) == pytest.approx(float(sum(loss)), rel=1e-5)
    assert np.shape(rival.train(1)) == (2, 2)


def test_the_benchmark_can_train_with_the_convolution_of_xla(monkeypatch):
    config = networks.config_of(True, "plain")
    group = layout.groups_of({"base": config}, "cpu", lanes=1)[0]
    arrays = training.shapes_of_batch(group.static, group.dials["base"])

    def program():
        return (
            jax.jit(lambda *own: training.loss_of_batch(group.static, *own)).lower(group.dials["base"], *arrays).as_text()
        )

    assert "stablehlo.convolution" not in program()
    monkeypatch.setattr(convnet, "convolve", contenders.native_convolution)
    assert "stablehlo.convolution" in program()


@pytest.mark.parametrize("form", ["", *networks.SETTINGS])
def test_products_are_most_of_the_flops_that_xla_counts(form):
    config = networks.config_of(False, form)
    group = layout.groups_of({"base": config}, "cpu")[0]
    params, *_ = training.shapes_of_batch(group.static, group.dials["base"])
    stacked = jax.tree.map(lambda x: np.zeros((1, 1, *x.shape), x.dtype), params)
    assert 0.95 < networks.step_flops(config, stacked) / layout.step_flops(group) <= 1.001


class Losses:
    """Stands in for a team that answers with losses."""

    def __init__(self, found, *seeds):
        self.found, self.settings = found, [{"seeds": own} for own in seeds]

    def call(self, method, path):
        assert method in ("losses", "loss_of")
        return self.found


def test_losses_are_compared_by_process(tmp_path):
    """Each process answers with the sum over its seeds."""
    bench = contest.Bench(1, True, tmp_path, "")
    ours = Losses([[1.0, 2.0, 3.0, 4.0]])
    forms.check_losses(bench, {"ours": ours, "PyTorch": Losses([4.0, 6.00006], [0, 2], [1, 3])})
    assert bench.rows[-1].max == pytest.approx(1e-5)
    with pytest.raises(RuntimeError, match=r"PyTorch: its loss and ours differ by 0\.01"):
        forms.check_losses(bench, {"ours": ours, "PyTorch": Losses([4.0, 6.06], [0, 2], [1, 3])})


def test_targets_of_transformers_are_against_the_fastest_rival():
    rows, what = targets.read("benchmark.csv"), targets.TRANSFORMER.format("decoder-only")
    own = dict.fromkeys(COLUMNS, "0.5") | {"part": "transformer", "quantity": "wall"}
    names = (f"{form}, ratio: ours / PyTorch {rival}" for form in TRANSFORMERS for rival in ("tuned", "ensemble"))
    new = [own | {"name": name, "median": "0.6"} for name in names]
    new[-1]["median"] = "0.8"  # against the fastest of several rivals the ratio is the highest
    table = targets.targets([*rows, *new])
    assert f"| {what} | at most 0.7 | 0.8 [0.5, 0.5] | **no** |" in table
    assert f"| {targets.TRANSFORMER.format('encoder-decoder')} | at most 0.7 | 0.6 [0.5, 0.5] | yes |" in table
    assert f"| {what} | at most 0.7 | not measured yet | |" in targets.targets([*rows, new[0]])


def test_parts_that_are_not_measured_are_said():
    rows = targets.read("benchmark.csv")
    assert f"| {targets.CONVNET.format('plain')} | at most 0.9 | not measured yet | |" in targets.targets(rows)
    own = {"part": "convnet", "quantity": "wall", "rounds": "2", "min": "0.5", "max": "30", "median": "0.95"}
    names = [*(f"{form}, ratio: ours / PyTorch tuned" for form in CONVNETS), "plain, ratio: XLA's own convolutions / ours"]
    new = [own | {"name": name} for name in names]
    table = targets.targets([*rows, *new[:-1], new[-1] | {"median": "25"}])
    assert f"| {targets.CONVNET.format('residual')} | at most 0.9 | 0.95 [0.5, 30] | **no** |" in table
    assert "XLA's own convolutions / ours | at least 20 | 25 [0.5, 30] | yes |" in table


def test_a_form_that_is_measured_again_leaves_the_others_alone(tmp_path):
    def row(form, value):
        return ["transformer", f"{form}, speed: ours", "wall", "us/run-step", 1, value, value, value]

    speed.write_forms(
        tmp_path, ("encoder_decoder", "decoder"), [row("encoder_decoder", 1), row("decoder", 2)], {"rounds": 1}
    )
    speed.write_forms(tmp_path, ("decoder",), [row("decoder", 3)], {"rounds": 2})
    found = {own["name"].split(",")[0]: own["median"] for own in targets.read("transformer.csv", tmp_path)}
    assert found == {"encoder_decoder": "1", "decoder": "3"}
    entries = json.loads((tmp_path / "transformer_manifest.json").read_text())["forms"]
    assert {form: own["rounds"] for form, own in entries.items()} == {"encoder_decoder": 1, "decoder": 2}


@pytest.mark.parametrize("more", [["--form=decoder"], ["--form=decoder", "--part=convnet"]])
def test_a_form_without_its_part_is_refused(more):
    line = [sys.executable, "-m", "experiments.benchmark", "--smoke", *more]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert "--form=decoder: expected --part=transformer beside it" in done.stderr


def test_paired_ratios_are_by_round():
    assert workers.paired([1.0, 4.0], [2.0, 2.0]) == [0.5, 2.0]
    slow = workers.paired([2.0, 20.0], [4.0, 40.0])  # the machine was ten times slower in the second round
    assert slow == [0.5, 0.5]
    with pytest.raises(ValueError):
        workers.paired([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ((5.0, 1.0), (1.0, 2.0), 4.0),  # 5 + n = 1 + 2 n
        ((1.0, 1.0), (1.0, 1.0), 0.0),
        ((1.0, 1.0), (5.0, 2.0), 0.0),  # better from the start
        ((5.0, 2.0), (1.0, 2.0), math.inf),
        ((1.0, 3.0), (5.0, 2.0), math.inf),
    ],
)
def test_break_even(ours, theirs, expected):
    assert workers.break_even(*ours, *theirs) == expected


def test_summary_has_order_statistics():
    assert workers.summary("speed", "a", "wall", "s", [3.0, 1.0, 2.0])[4:] == (3, 1.0, 2.0, 3.0)
    assert "skipped" in workers.table([workers.missing("speed", "a", "b")])


class Recorder:
    """Stands in for a team, and notes whose turn it was."""

    def __init__(self, name, turns):
        self.name, self.turns = name, turns

    def sample(self, method, **arguments):
        self.turns.append(self.name)
        return workers.Sample(float(len(self.turns)), arguments["epochs"])


def test_teams_take_turns():
    turns = []
    jobs = {name: (Recorder(name, turns), "advance", {"epochs": 1.0}) for name in "abc"}
    found = workers.rounds_of(jobs, 3)
    assert "".join(turns) == "abcbcacab"
    assert [s.wall for s in found["a"]] == [1.0, 6.0, 8.0]
    assert workers.rounds_of({}, 3) == {}


def test_worker_failures_show_their_reason(tmp_path):
    team = workers.Team(tmp_path, "loop", {"learning_rate": 0.1, "batch": 1, "folder": str(tmp_path), "seeds": [0]})
    try:
        with pytest.raises(RuntimeError, match=r"train_inputs\.npy"):
            team.call("advance", epochs=1)
    finally:
        team.close()


def test_worker_that_hangs_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 0.2)
    team = workers.Team(tmp_path, "loop")
    team.workers = [subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)]
    try:
        with pytest.raises(RuntimeError, match=f"no answer from process {team.workers[0].pid}"):
            team.call("advance", epochs=1)
    finally:
        team.workers[0].kill()
        team.close()


def accelerator(folder, *more):
    line = [sys.executable, "-m", "experiments.benchmark", "--accelerator", f"--output={folder}", *more]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_accelerator_refuses_a_cpu_in_one_line(tmp_path):
    done = accelerator(tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "expected a GPU or TPU" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("correct", "same fingerprints as uninterrupted"),
        ("lanes", "2 lanes, the package's options, rate"),
        ("rivals", "PyTorch"),
        ("transformer", "decoder, 2 lanes, the package's options, rate"),
        ("convnet", "plain, 2 lanes, the package's options, rate"),
        ("memory", "2 lanes, predicted"),
    ],
)
def test_accelerator_parts_run_tiny(tmp_path, part, expected):
    """Each leaves its rows; what is compared with the CPU agrees with it, here trivially."""
    done = accelerator(tmp_path, "--allow_cpu", f"--part={part}", "--seconds=400")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "accelerator.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == {part}
    assert any(f"{row['name']}, {row['quantity']}".startswith(expected) or row["quantity"] == expected for row in rows) or (
        part == "rivals" and workers.installed("torch")
    )
    assert not any(row["value"] == "NO" or row["quantity"].startswith(("failed", "stopped")) for row in rows), rows
    manifest = json.loads((tmp_path / "accelerator_manifest.json").read_text())
    assert manifest["tiny"]
    assert {"device", "versions", "commit", "seconds"} <= set(manifest)


def test_accelerator_stops_in_time(tmp_path):
    """A process that is not done when the time is over is ended, and a row says so."""
    done = accelerator(tmp_path, "--allow_cpu", "--part=paper", "--seconds=12")
    assert done.returncode == 0, done.stderr
    assert "stopped: the time of this part is over" in (tmp_path / "accelerator.csv").read_text()


def test_scale_counts_files_memory_and_disk(tmp_path):
    line = [sys.executable, "-m", "experiments.benchmark", "--part=scale", "--smoke", f"--output={tmp_path}"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "scale.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row.pop("activations") for row in rows] == ["keep", "discard"]
    assert len(json.loads((tmp_path / "scale_manifest.json").read_text())["load_before"]) == len(rows)
    for row in rows:
        assert int(row["run_steps"]) == 4 * int(row["runs"])
        assert all(float(row[name]) > 0 for name in row)
