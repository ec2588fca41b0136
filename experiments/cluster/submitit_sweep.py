"""Runs a sweep with submitit: N independent processes, each with its shard of the chunks; the last one reports.

  pip install submitit
  python experiments/cluster/submitit_sweep.py 4 --experiment=complexity --workdir=/shared/repbias

Run it again until it prints that all are done. Finished work is skipped, and N may change from one time to the next.
"""

import subprocess
import sys
from collections.abc import Sequence


def run(share: str, arguments: Sequence[str]) -> int:
    """Runs one process of the sweep, as a job. Returns: its exit status."""
    line = [sys.executable, "-m", "experiments.run", f"--shard={share}", *arguments]
    return subprocess.run(line, check=False).returncode  # noqa: S603


def main(count: int, arguments: Sequence[str], cluster: str | None = None, folder: str = "submitit_logs") -> int:
    """Submits all shards, waits for them and returns an exit status.

    Args:
      count: number of shards, N.
      arguments: of `experiments.run`.
      cluster: `slurm`, `local` or None for what submitit finds.
      folder: for the logs of submitit.
    """
    import submitit  # pyright: ignore[reportMissingImports]  # an optional dependency

    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    executor.update_parameters(timeout_min=60, cpus_per_task=2, mem_gb=8)
    jobs = [executor.submit(run, f"{i}/{count}", list(arguments)) for i in range(count)]
    statuses = [job.result() for job in jobs]
    print(f"exit statuses {statuses}: {'all are done' if not any(statuses) else 'run the same command again'}")
    return int(any(statuses))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
