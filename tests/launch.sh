#!/bin/sh
# Runs one test: launch.sh NAME.t (alone), NAME.npN (on N ranks), NAME.cuda (alone, on a CUDA device or what CUDA_RUNNER
# puts in its place), NAME.npN.cuda (on N ranks with a CUDA device each) or NAME.py.
#
# Tests wait for each other, even under `make -j`: waiting ranks keep their cores busy, and slow tests run into the time
# limit. Those that take minutes are left to `make check-long`, or PP_LONG=1. The build gives MPIEXEC, MPIEXEC_NP,
# PYTHON and TEST_TIMEOUT (seconds); MPIEXEC may hold options too.
test=$1
export OMP_NUM_THREADS=1
# With sanitizers: a request for more memory than there is fails as it does without
ASAN_OPTIONS=${ASAN_OPTIONS:+$ASAN_OPTIONS:}allocator_may_return_null=1
export ASAN_OPTIONS

case $test in
*.py)
    set -- ${PYTHON:-python3} "$test" ;;
*.np*.cuda)
    ranks=${test##*.np}
    set -- ${CUDA_RUNNER:-} ${MPIEXEC:-mpiexec} ${MPIEXEC_NP:--n} "${ranks%.cuda}" "$test" ;;
*.cuda)
    set -- ${CUDA_RUNNER:-} "$test" ;;
*.np*)
    # MPI libraries keep memory until the process ends: no report of leaks
    ASAN_OPTIONS=$ASAN_OPTIONS:detect_leaks=0
    set -- ${MPIEXEC:-mpiexec} ${MPIEXEC_NP:--n} "${test##*.np}" "$test" ;;
esac
case $test in
*/entropy.py | */hangs.py | */kills.py | */slurm_jobs.py | */slurm_limit.py | */stops.py | */study.py | */train_jobs.py)
    if [ "${PP_LONG:-0}" != 1 ]; then
        echo "1..0 # SKIP takes minutes: make check-long, or PP_LONG=1 make check TESTS=tests/$(basename "$test")"
        exit 0
    fi ;;
esac
exec flock --close . timeout -k 5 "${TEST_TIMEOUT:-300}" "$@" </dev/null
