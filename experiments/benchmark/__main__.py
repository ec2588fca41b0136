"""The command `python -m experiments.benchmark`: its flags and the choice of a benchmark."""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from experiments.benchmark import accelerator, networks, scale, speed
from experiments.command import DONE, complain

FLAGS = flags.FLAGS
flags.DEFINE_integer("rounds", 7, "rounds of every measurement", lower_bound=1)
flags.DEFINE_bool("smoke", False, "a small network and short rounds: shows that it works, and no number")
flags.DEFINE_string("output", "experiments/results", "folder for the table and its manifest")
flags.DEFINE_string("cache", None, "folder of your own for what JAX compiles; default: a temporary one")
flags.DEFINE_bool("accelerator", False, "measure on the accelerator of this machine instead: writes accelerator.csv")
flags.DEFINE_multi_enum(
    "part",
    [],
    (*accelerator.PARTS, "scale"),
    "a part of --accelerator (several: again); else `scale`, `transformer` or `convnet`",
)
flags.DEFINE_multi_enum(
    "form", [], list(networks.SETTINGS), "a form of the part, whose rows of other forms stay; default: all forms"
)
flags.DEFINE_float("seconds", 480.0, "time after which the accelerator's parts stop by themselves", lower_bound=1)
flags.DEFINE_bool("allow_cpu", False, "for tests: the accelerator's parts run in a tiny size on a CPU: no speeds")


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark that the flags select; returns the exit status."""
    if arguments[1:]:
        raise app.UsageError(f"unexpected argument {arguments[1]}")
    for form in FLAGS.form:
        if FLAGS.part != [networks.part_of(form)]:
            return complain(f"--form={form}: expected --part={networks.part_of(form)} beside it")
    output = Path(FLAGS.output)
    if FLAGS.accelerator:
        parts = tuple(FLAGS.part or accelerator.PARTS)
        if "scale" in parts:
            return complain("--part=scale: measured on the CPU; expected no --accelerator beside it")
        return accelerator.measure(output, parts, FLAGS.seconds, FLAGS.allow_cpu)
    if FLAGS.part == ["scale"]:
        return scale.measure(output, FLAGS.smoke)
    if FLAGS.part and (len(FLAGS.part) > 1 or FLAGS.part[0] not in networks.FORMS):
        return complain(f"--part={FLAGS.part[0]}: expected --accelerator beside it")
    forms = networks.FORMS[FLAGS.part[0]] if FLAGS.part else ()
    forms = [form for form in forms if form in FLAGS.form or not FLAGS.form]
    speed.measure(FLAGS.rounds, FLAGS.smoke, output, FLAGS.cache, forms)
    return DONE


if __name__ == "__main__":
    sys.exit(app.run(main))
