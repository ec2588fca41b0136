"""The experiment command with the tiny experiment registered, as a process of its own."""

from absl import app

from experiments import command, run
from experiments.claims import EXPERIMENTS
from tests.faults.experiments import TINY

if __name__ == "__main__":
    run.HEARTBEAT = 10  # a test waits that long for a process to notice that another one was killed
    EXPERIMENTS |= TINY  # pyright: ignore
    app.run(command.prompt(run.main), flags_parser=run.parse)
