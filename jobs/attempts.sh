# Whether a training is started again: what train.sh, train.sbatch and train.pbs share, to be sourced by bash.
#
# RUN is the folder of one training: its checkpoints are in RUN/checkpoints, and RUN/attempts has one line for each time
# that it was started: the job, and the step of the newest checkpoint then. A file that is being written ends in
# .partial, so that what counts here is complete. A training that is started ATTEMPTS times (default: 3) in a row
# without a new checkpoint will not get any further by itself.

say() { echo "train: $*" >&2; }

# newest_step RUN: the step of its newest checkpoint, 0 where there is none
newest_step() {
    local newest
    newest=$(find "$1/checkpoints" -maxdepth 1 -name 'step-*.h5' 2>/dev/null | LC_ALL=C sort | tail -n 1)
    newest=${newest##*/step-}
    newest=${newest%.h5}
    echo $((10#${newest:-0}))
}

# attempts_in_vain RUN JOB: how often in a row this job was started at the newest checkpoint that there is now
attempts_in_vain() {
    awk -v now="$2 $(newest_step "$1")" '$0 == now { count++ } $0 != now { count = 0 } END { print count + 0 }' \
        "$1/attempts" 2>/dev/null || echo 0
}

# attempts_left RUN JOB: says so and fails where starting this job again would be in vain
attempts_left() {
    local count
    count=$(attempts_in_vain "$1" "$2")
    [ "$count" -ge "${ATTEMPTS:-3}" ] || return 0
    say "started $count times in a row without a new checkpoint after step $(newest_step "$1"): not started" \
        "again; see what ended it, then start it anew"
    return 1
}

# attempt_begins RUN JOB: notes that the job starts now; fails where that would be in vain
attempt_begins() {
    mkdir -p "$1" && attempts_left "$1" "$2" && echo "$2 $(newest_step "$1")" >>"$1/attempts"
}

# worth_restarting CODE RUN JOB: whether a training that ended with this exit code is to be started again
worth_restarting() {
    case $1 in
    0) return 1 ;;
    2) say "the input is wrong (exit code 2): not started again"; return 1 ;;
    3) say "a loss or gradient is not finite (exit code 3): it would be again, so not started again"; return 1 ;;
    75) say "stopped early with a checkpoint of step $(newest_step "$2")" ;;
    *) say "ended with exit code $1; the newest checkpoint is of step $(newest_step "$2")" ;;
    esac
    attempts_left "$2" "$3"
}

# is_silent RUN: whether no file there was written for SILENCE seconds. Flight records do not count: ranks that wait for
# one that is gone write them, too, once a second.
is_silent() {
    [ -z "$(find "$1" -maxdepth 1 -type f ! -name 'flight-*' -newermt "-${SILENCE:-3600} seconds" -print -quit)" ]
}

# run_watched STOP RUN COMMAND...: runs it to its end, whose exit code is $code. SIGTERM, SIGINT and SIGUSR1 to this
# shell are noted in $signalled and make the file STOP, which asks the training to end ('': the ranks hear of the signal
# by themselves). They are not passed on: mpiexec may then end with 0 or 6, whatever the ranks end with. A training that
# writes nothing for SILENCE seconds (default: 3600) is killed: one that hangs ends itself, but a launcher may wait
# forever for ranks of whose end it was not told. Where log_every or evaluations keep metrics.jsonl as it is for longer,
# SILENCE has to be longer.
run_watched() {
    local stop=$1 run=$2 child timer interrupted
    shift 2
    signalled='' code=0
    "$@" </dev/null &
    child=$!
    trap 'signalled=yes interrupted=yes; [ -z "$stop" ] || touch "$stop"' TERM INT USR1
    while kill -0 $child 2>/dev/null; do
        if is_silent "$run"; then
            say "nothing was written into $run for ${SILENCE:-3600} s: killed"
            kill -KILL $child
        fi
        sleep 5 >/dev/null 2>&1 &
        timer=$!
        wait -n $child $timer
        kill $timer 2>/dev/null
    done
    while interrupted=''; wait $child; code=$?; [ -n "$interrupted" ]; do # a signal ends the waiting alone
        :
    done
    trap - TERM INT USR1
    [ -z "$signalled" ] || rm -f "$stop" # the training itself may have ended without seeing it
}
