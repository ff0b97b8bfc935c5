"""Calibration on a Dask cluster whose workers are killed at random moments, against the bytes of one process.

    python bench/cluster.py MODEL CALIB [--workers 4] [--runs 20] [--kills 1] [--seed 0]

In each run `--kills` workers, drawn at random, get SIGKILL at moments drawn from the time that a run takes.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import threading
import time
from pathlib import Path

from distributed import LocalCluster

import onnxq


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("calib")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:

        def calibrated(scheduler: str | None) -> tuple[bytes, float]:
            path, start = Path(folder, "found.npz"), time.perf_counter()
            onnxq.calibrate(given.model, given.calib, path, scheduler=scheduler)
            return path.read_bytes(), time.perf_counter() - start

        alone, seconds = calibrated(None)
        print(f"one process: {seconds:.1f} s, {len(alone)} bytes")
        lost = same = 0
        for number in range(given.runs + 1):  # in the first one nobody is killed
            with LocalCluster(
                n_workers=given.workers, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=60
            ) as cluster:
                moments = [rng.uniform(0, seconds) for _ in range(given.kills if number else 0)]
                timers = [threading.Timer(moment, kill, (cluster, rng)) for moment in moments]
                for timer in timers:
                    timer.start()
                found, seconds = calibrated(cluster.scheduler_address)
                for timer in timers:
                    lost += not timer.is_alive()
                    timer.cancel()
                    timer.join()
            same += found == alone
            print(f"run {number}: {seconds:.1f} s, {lost} killed so far, {same} of {number + 1} the same", flush=True)


def kill(cluster: LocalCluster, rng: random.Random) -> None:
    """A worker that there is just now; those that begin have no number yet."""
    os.kill(rng.choice([nanny.pid for nanny in cluster.workers.values() if nanny.pid]), signal.SIGKILL)


if __name__ == "__main__":
    main()
