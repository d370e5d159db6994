#!/usr/bin/env bash
# Trains on computers without a queue, through as many failures as it takes:
#
#   jobs/train.sh RANKS RUN INPUT [group.key=value ...]
#
# RUN is the folder for what this training writes, its checkpoints too. After a failure (any exit code but 0, 2, 3 and
# 75) the training is started again from the newest checkpoint, at most ATTEMPTS=3 times in a row without a new one: see
# jobs/attempts.sh. SIGTERM, SIGINT and SIGUSR1 to this script, a file RUN/STOP and run.wall_minutes end it with a
# checkpoint and 75; the same command goes on from there.
#
# MPIEXEC is the launcher with its options, before RANKS (default: that of the build and its option for the number of
# ranks), OMP_NUM_THREADS the threads of a rank. Each rank should have cores of its own, for 8 threads on 4 hosts:
#
#   MPICH       MPIEXEC='mpiexec -f hosts -bind-to core:8 -n'          hosts: one line `name:ranks` for each
#   Intel MPI   MPIEXEC='mpiexec -f hosts -n' I_MPI_PIN_DOMAIN=omp
#   Open MPI    MPIEXEC='mpiexec --hostfile hosts --map-by slot:PE=8 --bind-to core -n'
set -uo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
. "$top/jobs/attempts.sh" || exit 2
[ $# -ge 3 ] || { echo "usage: jobs/train.sh RANKS RUN INPUT [group.key=value ...]" >&2; exit 2; }
ranks=$1 run=$2
shift 2
launcher=${MPIEXEC:-$(sed -n 's/^MPIEXEC = //p; s/^MPIEXEC_NP = //p' "$top/build/Makefile" | tr '\n' ' ')}

while attempt_begins "$run" "$$"; do
    # shellcheck disable=SC2086 # the launcher holds options; a session of its own keeps a terminal's Ctrl-C from it
    run_watched "$run/STOP" "$run" setsid -w $launcher "$ranks" "${PROGRAM:-$top/build/ppmodel}" "$@" \
        run.output="$run" checkpoint.directory="$run/checkpoints"
    [ $code != 75 ] || say "stopped after step $(newest_step "$run"): the same command goes on from there"
    [ -z "$signalled" ] && [ $code != 75 ] && worth_restarting $code "$run" "$$" || exit $code
done
exit 4
