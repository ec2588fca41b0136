"""Many machines: shares of independent processes, one job of several processes, schedulers, and no collective anywhere."""

import ast
import dataclasses
import importlib.util
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from conftest import ROOT
from jax.sharding import PartitionSpec as P

from experiments.command import share_of
from repbias_jax import devices, layout, pipeline, planning, population, store
from repbias_jax.config import Config, ConfigError, Runtime, dials_of, override_all, static_half
from repbias_jax.data.binary import BinaryOptions
from repbias_jax.data.images import ImageOptions
from repbias_jax.data.sequences import SequenceOptions
from repbias_jax.layout import Layout
from repbias_jax.models import MODELS
from repbias_jax.results import Results
from tests.faults import tiny

CLUSTER = ROOT / "experiments" / "cluster"
COLLECTIVES = re.compile(
    r"all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast|partition-id"
)


class Started:
    """The tiny experiment in a process of its own; five chunks of eight runs."""

    def __init__(self, cache, workdir, *more, **environment):
        words = [*ARGUMENTS, f"--workdir={workdir}", f"--compilation_cache={cache}", *more]
        line = [sys.executable, "-m", "tests.faults.one", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(line, cwd=ROOT, env=os.environ | environment, **pipes)

    def end(self):
        """Exit status and what was printed."""
        printed = self.process.communicate(timeout=300)[0]
        return self.process.returncode, printed


ARGUMENTS = ("--experiment=tiny", "--num_seeds=20", "--devices=2", "--checkpoint_seconds=0")
CHUNKS = 5


@pytest.fixture(scope="module")
def alone(cache, tmp_path_factory):
    """The same experiment by one process with four devices' worth of runs in each of its chunks, or with two."""
    found = {}

    def of(rows=2):
        if rows not in found:
            folder = tmp_path_factory.mktemp(f"alone{rows}")
            status, printed = Started(cache, folder, f"--devices={rows}").end()
            assert status == 0, printed
            found[rows] = folder / "tiny"
        return found[rows]

    return of


def same(folder, reference):
    for name in ("results.csv", "claims.csv", "claim_values.csv", "settings.csv"):
        assert (folder / name).read_bytes() == (reference / name).read_bytes(), name


def test_shares_are_a_partition_and_balanced(monkeypatch):
    configs = tiny.EXPERIMENT.configs()
    long = override_all(tiny.CONFIG, {"training.epochs": 40, "model.widths": (16, 8)})
    groups = layout.groups_of(configs | {"long": long}, "cpu", lanes=8)
    chunks = layout.chunks_of(groups, Layout(2, 0, (40,)))
    for count in (1, 2, 3, 7, 40):
        shares = [layout.shard_of(chunks, i, count) for i in range(count)]
        paths = [chunk.path for share in shares for chunk in share]
        assert sorted(paths) == sorted(c.path for c in chunks)
    counted, count_ = [], layout.step_flops
    monkeypatch.setattr(layout, "step_flops", lambda group: counted.append(group.name) or count_(group))
    layout.shard_of(chunks, 0, 2)
    assert sorted(counted) == sorted(group.name for group in groups)  # once each, however many chunks there are
    dear = [sum(chunk.group.settings == ("long",) for chunk in layout.shard_of(chunks, i, 3)) for i in range(3)]
    assert dear == [1, 1, 1]  # three dear chunks, one each


SLURM = {
    "SLURM_ARRAY_TASK_MIN": "3",
    "SLURM_ARRAY_TASK_MAX": "9",
    "SLURM_ARRAY_TASK_STEP": "2",
    "SLURM_ARRAY_TASK_COUNT": "4",
}


def test_the_share_comes_from_the_flag_or_the_scheduler():
    assert share_of(None, {}) == (0, 1)
    assert share_of("2/3", {"SLURM_ARRAY_TASK_ID": "9"}) == (2, 3)
    assert share_of(None, SLURM | {"SLURM_ARRAY_TASK_ID": "7"}) == (2, 4)
    assert share_of(None, {"JOB_COMPLETION_INDEX": "1", "JOB_COMPLETIONS": "4"}) == (1, 4)


@pytest.mark.parametrize("asked", ["3/3", "-1/3", "1", "a/b", "1/0", ""])
def test_no_such_share_is_refused(asked):
    with pytest.raises(ConfigError, match=r"expected i/N with whole numbers 0 <= i < N"):
        share_of(asked, {})


def test_a_scheduler_that_does_not_say_how_many_is_refused():
    with pytest.raises(ConfigError, match=r"has gaps: give --shard=i/N"):
        share_of(None, SLURM | {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "2"})
    with pytest.raises(ConfigError, match="JOB_COMPLETIONS=not set"):
        share_of(None, {"JOB_COMPLETION_INDEX": "1"})


def test_three_shares_one_killed_and_the_rest_by_another_number(cache, alone, tmp_path):
    """Three at once, one of them killed; what is there is reported as such; two more of another count finish it."""
    started = [Started(cache, tmp_path, f"--shard={i}/3") for i in range(3)]
    while not list(tmp_path.glob("tiny/*/*/lock")):
        time.sleep(0.01)
    started[1].process.kill()
    ended = [run.end() for run in started]
    assert [status for status, _ in ended] == [0, -signal.SIGKILL, 0], ended
    there = len(list(tmp_path.glob("tiny/*/*/done.json")))
    assert there < CHUNKS
    status, printed = Started(cache, tmp_path, "--stage=measure,report").end()
    assert status == 0, printed
    assert f"{there} of {CHUNKS} chunks are there ({8 * there} of 40 runs); missing: " in printed
    assert f"{there} of {CHUNKS} chunks are there" in (tmp_path / "tiny" / "report.html").read_text()
    ended = [run.end() for run in [Started(cache, tmp_path, f"--shard={i}/2") for i in range(2)]]
    assert [status for status, _ in ended] == [0, 0], ended
    same(tmp_path / "tiny", alone())
    assert f"of {CHUNKS} chunks" not in (tmp_path / "tiny" / "report.html").read_text()


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_virtual_devices_change_no_number_and_pad_by_a_row_at_most(rows, alone):
    """Bits are those of two devices, but for one alone, which compiles another program and promises less."""
    folder, reference = alone(rows), alone()
    chunks = [store.read_json(path, "train") for path in folder.glob("*/*/done.json")]
    assert sum(len(chunk["runs"]) for chunk in chunks) == 40
    for chunk in chunks:
        laid = chunk["layout"]
        assert laid["rows"] <= rows
        assert laid["rows"] - math.ceil(len(chunk["runs"]) / laid["lanes"]) <= 1
    if rows > 1:
        same(folder, reference)
        assert fingerprints(folder) == fingerprints(reference)
    else:
        own, theirs = (Results(f).values("base.slow", "r2", "parity1") for f in (folder, reference))
        np.testing.assert_allclose(own, theirs, atol=1e-3)


def fingerprints(folder):
    """Of the final weights of all runs, by setting and seed."""
    runs = [run for path in folder.glob("*/*/done.json") for run in store.read_json(path, "train")["runs"]]
    return {(run["setting"], run["seed"]): run["fingerprint"] for run in runs}


@pytest.mark.parametrize("own", ["tiny_sequence", "tiny_images"])
def test_shares_devices_kills_and_damage_change_no_number_of_other_models(own, cache, tmp_path):
    """One process with four devices; two shares of two, of which one is killed and started again; a damaged file."""
    own = f"--experiment={own}"
    wide, shared = (tmp_path / name for name in ("wide", "shared"))
    status, printed = Started(cache, wide, own, "--devices=4").end()
    assert status == 0, printed
    killed = Started(cache, shared, own, "--shard=0/2")
    while not any(p.name.isdigit() for p in shared.glob("tiny/*/*/checkpoint/*")):
        assert killed.process.poll() is None, killed.end()
        time.sleep(0.01)
    killed.process.kill()
    killed.end()
    ended = [run.end() for run in [Started(cache, shared, own, f"--shard={i}/2") for i in range(2)]]
    assert [status for status, _ in ended] == [0, 0], ended
    same(shared / "tiny", wide / "tiny")
    assert fingerprints(shared / "tiny") == fingerprints(wide / "tiny")
    damaged = next((shared / "tiny").glob("*/*/curves.csv"))
    damaged.write_bytes(damaged.read_bytes()[:-2])
    status, printed = Started(cache, shared, own).end()
    assert status == 1
    assert str(damaged) in printed
    assert "rerun --stage=train" in printed


def test_the_last_to_measure_reports_though_others_trained_last(cache, alone, tmp_path, monkeypatch):
    """Share 0 is done training while share 1 is not; share 1 trains, measures and leaves; then share 0 measures."""
    experiment = dataclasses.replace(tiny.EXPERIMENT, num_seeds=20)
    folder, measured = tmp_path / "tiny", pipeline.measure.measure

    def late(*arguments):
        monkeypatch.setattr(pipeline.measure, "measure", measured)
        status, printed = Started(cache, tmp_path, "--shard=1/2").end()
        assert status == 0, printed
        assert "the last one reports" in printed
        measured(*arguments)

    monkeypatch.setattr(pipeline.measure, "measure", late)
    plan = planning.place(experiment, planning.check(experiment, "cpu"), folder, 2)
    record = {"commit": "", "jax": ""}
    done = pipeline.run(plan, tiny, folder, pipeline.STAGES, lambda: False, record, 0.0, (0, 2))
    assert done.claims
    assert done.missing == ""
    same(folder, alone())


def test_a_scheduler_with_a_time_limit(cache, alone, tmp_path):
    """A SLURM task as our script runs it: USR1 before the limit, exit 75, back into the queue, until 0."""
    bin_, log = tmp_path / "bin", tmp_path / "requeued"
    bin_.mkdir()
    (bin_ / "scontrol").write_text(f'#!/bin/bash\necho "$@" >> {log}\n')
    (bin_ / "scontrol").chmod(0o755)
    (bin_ / "python").write_text(f'#!/bin/bash\nshift 2\nexec {sys.executable} -m tests.faults.one "$@"\n')
    (bin_ / "python").chmod(0o755)
    words = [*ARGUMENTS[1:], f"--compilation_cache={cache}"]
    task = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "0"}
    task |= {
        "SLURM_ARRAY_TASK_COUNT": "1",
        "EXPERIMENT": "tiny",
        "WORKDIR": str(tmp_path / "w"),
        "ARGUMENTS": " ".join(words),
    }
    task |= {"PYTHON": str(bin_ / "python"), "PATH": f"{bin_}:{os.environ['PATH']}"}
    statuses = []
    while 0 not in statuses:
        assert len(statuses) < 10
        line = ["bash", str(CLUSTER / "slurm.sbatch")]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        run = subprocess.Popen(line, cwd=ROOT, env=os.environ | task, **quiet)
        if not statuses:
            while not list((tmp_path / "w").glob("tiny/*/*/checkpoint/*")):
                time.sleep(0.01)
            run.send_signal(signal.SIGUSR1)
        statuses.append(run.wait(timeout=300))
    assert statuses[0] == 75
    assert log.read_text().splitlines() == ["requeue 7_0"] * statuses.count(75)
    same(tmp_path / "w" / "tiny", alone())


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_one_job_of_two_processes_one_killed_and_started_again(cache, alone, tmp_path):
    """Two processes of two devices each, one mesh. Killing one ends the other; again, they go on; one measures."""

    def start():
        job = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
        more = ("--distributed", "--stage=train")
        return [Started(cache, tmp_path, *more, JAX_PROCESS_ID=str(i), **job) for i in range(2)]

    first = start()
    while not any(p.name.isdigit() for p in tmp_path.glob("tiny/*/*/checkpoint/*")):
        assert first[0].process.poll() is None, first[0].end()
        time.sleep(0.01)
    first[1].process.kill()
    statuses = [run.end()[0] for run in first]
    assert 0 not in statuses  # they share fate
    assert len(list(tmp_path.glob("tiny/*/*/done.json"))) < 3
    ended = [run.end() for run in start()]
    assert [status for status, _ in ended] == [0, 0], ended
    status, printed = Started(cache, tmp_path, "--devices=4").end()
    assert status == 0, printed
    same(tmp_path / "tiny", alone(4))


def test_a_distributed_job_only_trains(cache, tmp_path):
    status, printed = Started(cache, tmp_path, "--distributed").end()
    assert status == 2
    assert "--distributed needs --stage=train" in printed
    status, printed = Started(cache, tmp_path, "--distributed", "--stage=train", "--shard=0/2").end()
    assert status == 2
    assert "it needs no --shard" in printed
    status, printed = Started(cache, tmp_path, "--distributed", "--stage=train").end()
    assert status == 2, printed
    assert "--distributed: JAX recognises no cluster here" in printed


def test_cluster_recipes_are_sound():
    for name in ("slurm.sbatch", "tpu_slice.sh"):
        subprocess.run(["bash", "-n", CLUSTER / name], check=True)
    directives = re.findall(r"^#SBATCH --(\S+)$", (CLUSTER / "slurm.sbatch").read_text(), re.M)
    assert {"requeue", "array=0-3", "signal=B:USR1@90"} <= set(directives)
    job = yaml.safe_load((CLUSTER / "indexed_job.yaml").read_text())
    spec, (container,) = job["spec"], job["spec"]["template"]["spec"]["containers"]
    assert spec["completionMode"] == "Indexed"
    assert container["env"] == [{"name": "JOB_COMPLETIONS", "value": str(spec["completions"])}]
    assert container["command"][:3] == ["python", "-m", "experiments.run"]
    ast.parse((CLUSTER / "submitit_sweep.py").read_text())
    usage = subprocess.run(["bash", CLUSTER / "tpu_slice.sh"], env={"EXPERIMENT": "e", "WORKDIR": "w"}, capture_output=True)
    assert usage.returncode == 2


def test_the_tpu_recipe_trains_everywhere_and_measures_once(tmp_path):
    """With a command that writes down what it was asked for, and is interrupted once."""
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/log\n[ $(wc -l < {tmp_path}/log) -gt 1 ] || exit 75\n')
    fake.chmod(0o755)
    own = os.environ | {"EXPERIMENT": "e", "WORKDIR": "w", "PYTHON": str(fake)}
    subprocess.run(["bash", CLUSTER / "tpu_slice.sh", "train"], env=own, check=True)
    for worker in ("0", "1"):
        subprocess.run(["bash", CLUSTER / "tpu_slice.sh", "measure"], env=own | {"TPU_WORKER_ID": worker}, check=True)
    common = "-m experiments.run --experiment=e --workdir=w"
    train, measure = f"{common} --distributed --stage=train", f"{common} --stage=measure,report"
    assert (tmp_path / "log").read_text().splitlines() == [train, train, measure]


def test_the_submitit_example_submits_every_share(monkeypatch, tmp_path):
    """With a stand-in for submitit that runs its jobs here, and for the command."""
    jobs = []

    class Executor:
        def __init__(self, folder, cluster):
            assert (folder, cluster) == ("logs", "local")

        def update_parameters(self, **_):
            pass

        def submit(self, function, *arguments):
            jobs.append(arguments)
            return type("Job", (), {"result": lambda _: function(*arguments)})()

    monkeypatch.setitem(sys.modules, "submitit", type(sys)("submitit"))
    monkeypatch.setattr(sys.modules["submitit"], "AutoExecutor", Executor, raising=False)
    spec = importlib.util.spec_from_file_location("sweep", CLUSTER / "submitit_sweep.py")
    sweep = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sweep)
    assert sweep.main(2, ["--experiment=nope", f"--workdir={tmp_path}"], "local", "logs") == 1
    assert [share for share, _ in jobs] == ["0/2", "1/2"]


PROGRAMS = """
import json, sys, jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
sys.path.insert(0, "tests")
from test_many import compiled
print(json.dumps({name: compiled(name, int(sys.argv[1])) for name in sys.argv[2:]}))
"""


# For each model a task that it can read, and options that make it small.
SMALL = {
    "mlp": (BinaryOptions(), {"model.widths": (16, 8)}),
    "transformer": (SequenceOptions(), {"model.width": 8, "model.layers": 1, "model.heads": 2, "task.num_probe": 512}),
    "convnet": (ImageOptions(size=24), {"model.widths": (8, 16), "task.num_probe": 512}),
    "vit": (
        ImageOptions(size=24),
        {"model.patch": 8, "model.width": 8, "model.layers": 1, "model.heads": 2, "task.num_probe": 512},
    ),
}


def abstract(name, rows, lanes=2):
    """A model's programs and their arguments as shapes, a row a device."""
    task, small = SMALL[name]
    small = {"model.dropout": 0.1, "task.num_train": 256, "task.num_test": 64, "training.batch_size": 16, **small}
    config = override_all(Config(task, MODELS[name].options()), small)
    static = static_half(config, Runtime(lanes=lanes))
    programs = population.Programs(static, devices.make_mesh(rows))

    def stacked(tree):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((rows, lanes, *x.shape), x.dtype, sharding=programs.sharding), tree
        )

    dials, seeds = stacked(dials_of(config)), stacked(jax.ShapeDtypeStruct((), np.int32))
    data = stacked_of(programs.data, programs, dials, seeds)
    state = stacked_of(programs.init, programs, dials, seeds)
    step = jax.ShapeDtypeStruct((), np.int32)
    return programs, {"segment": (dials, seeds, data, state, step, step), "observe": (dials, data, state),
                      "represent": (dials, data, state), "init": (dials, seeds), "fingerprint": (state,)}  # fmt: skip


def stacked_of(spread, programs, *arguments):
    found = jax.eval_shape(spread.program, *arguments)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=programs.sharding), found)


def compiled(name, rows):
    """By program: the collectives in what was compiled, and bytes a device."""
    programs, arguments = abstract(name, rows)
    found = {}
    for program, own in arguments.items():
        done = getattr(programs, program).program.lower(*own).compile()
        memory = done.memory_analysis()
        size = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
        found[program] = (sorted(set(COLLECTIVES.findall(done.as_text()))), size)
    return found


@pytest.fixture(scope="module")
def by_devices():
    """What `compiled` finds for 8 and for 256 virtual devices, each in a process of its own."""
    found = {}
    for rows in (8, 256):
        line = [sys.executable, "-c", PROGRAMS, str(rows), *MODELS]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        found[rows] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", list(MODELS))
def test_no_collective_and_the_same_memory_on_8_and_256_devices(name, by_devices):
    for program, (collectives, size) in by_devices[8][name].items():
        assert collectives == [], program
        collectives, larger = by_devices[256][name][program]
        assert collectives == [], program
        # Not to the byte: XLA keeps tables of a few bytes a device. Another device's data would be 32 times as much.
        assert abs(larger - size) < 0.06 * size, program


def test_a_planted_mean_over_runs_is_found():
    """The same search finds a collective where there is one."""
    mesh = devices.make_mesh(4)
    mean = jax.shard_map(lambda x: x - jax.lax.pmean(x, "runs"), mesh=mesh, in_specs=P("runs"), out_specs=P("runs"))
    text = jax.jit(mean).lower(jnp.zeros((4, 2))).compile().as_text()
    assert COLLECTIVES.findall(text)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", list(MODELS))
def test_programs_lower_for_accelerators_without_one(name, platform):
    programs, arguments = abstract(name, 4)
    for program, own in {**arguments, "data": arguments["init"]}.items():
        text = getattr(programs, program).program.trace(*own).lower(lowering_platforms=(platform,)).as_text()
        assert not re.search(r"stablehlo\.(all_|reduce_scatter|collective)", text), program
        assert largest_table(text) < 1_000_000, program


def largest_table(text):
    """The most bytes of any table of numbers in a lowered program; one number that is repeated is none."""
    tables = re.findall(r"dense<(?:\"|\[)[^>]*> : tensor<([\dx]+)x[a-z]+(\d+)>", text)
    return max((math.prod(map(int, shape.split("x"))) * int(bits) // 8 for shape, bits in tables), default=0)


def test_a_planted_table_is_found():
    table = np.random.default_rng(0).normal(size=(100, 30)).astype(np.float32)
    text = jax.jit(lambda x: x @ table + jnp.zeros((1, 30))).lower(jnp.zeros((2, 100))).as_text()
    assert largest_table(text) == 100 * 30 * 4


def test_a_slice_of_256_tpu_chips_needs_no_collective():
    """Compiled for v5e:16x16, where the `tpu` extra is installed; no TPU is needed."""
    pytest.importorskip("libtpu")
    line = [sys.executable, "-c", TPU, *MODELS]
    done = subprocess.run(
        line, cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for name, (collectives, small, large, planted) in found.items():
        assert collectives == [], name
        assert abs(large - small) < 0.06 * small, name
        assert planted, name


TPU = """
import json, sys, jax, jax.numpy as jnp, numpy as np
from unittest import mock
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, PartitionSpec as P
sys.path.insert(0, "tests")
import test_many
from repbias_jax import devices

def look(name, shape):
    chips = topologies.get_topology_desc(platform="tpu", topology_name=f"v5e:{shape}").devices
    mesh = Mesh(np.array(chips), ("runs",), axis_types=(AxisType.Auto,))
    with mock.patch.object(devices, "make_mesh", lambda rows: mesh):
        programs, arguments = test_many.abstract(name, len(chips))
    done = programs.segment.program.lower(*arguments["segment"]).compile()
    memory = done.memory_analysis()
    size = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    mean = jax.shard_map(lambda x: x - jax.lax.pmean(x, "runs"), mesh=mesh, in_specs=P("runs"), out_specs=P("runs"))
    text = jax.jit(mean).lower(jax.ShapeDtypeStruct((len(chips), 128), jnp.float32)).compile().as_text()
    return sorted(set(test_many.COLLECTIVES.findall(done.as_text()))), size, bool(test_many.COLLECTIVES.findall(text))

found = {}
for name in sys.argv[1:]:
    _, small, _ = look(name, "2x2")
    collectives, large, planted = look(name, "16x16")
    found[name] = (collectives, small, large, planted)
print(json.dumps(found))
"""
