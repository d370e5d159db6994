#!/usr/bin/env python3
"""jobs/train.sbatch and a true time limit: the ranks get the signal in time, the job goes back into the queue and ends
with the weights of an uninterrupted run. TAP."""
import re

import slurm_cluster
import slurm_jobs
import tap

LIMIT_SECONDS = 90  # Slurm looks every 30 s whether a job comes near its limit


def check_time_limit(folder, cluster):
    job = slurm_jobs.Job(folder, cluster, "limit", "--time=1", "--signal=USR1@5")
    job.trains()
    stopped = slurm_jobs.wait_for(lambda: "Stopped after" in job.output(), LIMIT_SECONDS)
    job.goes_on("the time limit comes near")
    said = re.search(r"Stopped after step (\d+) of \d+ by a signal", job.output())
    tap.ok(stopped and said and f"from step {said[1]}\n" in job.output(),
           "the ranks got the signal in time, and the checkpoint of that step is where it went on")
    return job


def main():
    with slurm_cluster.prepared() as (folder, cluster):
        slurm_jobs.check_weights(folder, [check_time_limit(folder, cluster)])
    tap.done()


main()
