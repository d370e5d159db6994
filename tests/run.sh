#!/usr/bin/env bash
# Runs all tests: tests/run.sh [CONFIGURE_OPTION...]
#
# Builds in build/ and runs every test, then builds with the address and undefined-behaviour sanitizers in
# build-sanitizers/ and runs the C tests again. The last line counts both. Exit code 1 when a test failed, 2 when
# something is missing to build.
set -uo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE MAKEFLAGS MFLAGS MAKELEVEL
passed=0 failed=0 skipped=0 rc=0

# One line for each program as it ends, with the seconds since the one before; each check that failed or was skipped has
# a line of its own.
condense() {
    awk '
        function show() {
            if (program != "") printf "  %-40s %5d passed %5d s\n", program, passed, ended - begun
            fflush()
            if (ended) begun = ended
        }
        BEGIN { begun = systime() }
        /^(PASS|FAIL|SKIP|ERROR|XFAIL|XPASS): / {
            if ($2 != program) { show(); program = $2; passed = 0 }
            ended = systime()
            if ($1 == "PASS:") ++passed; else { print "  " $0; fflush() }
        }
        END { show() }'
}

# What the programs of one build folder with a failed check wrote, but for the checks that passed.
show_failures() {
    local trs
    for trs in $(grep -lE '^:global-test-result: (FAIL|ERROR|XPASS)' "$1"/tests/*.trs 2>/dev/null); do
        printf '\n--- %s\n' "${trs%.trs}.log"
        grep -vE '^(ok |PASS: )' "${trs%.trs}.log" | tail -n 60
    done
}

count() { cat "$1"/tests/*.trs 2>/dev/null | grep -cE "^:test-result: ($2)"; }

# suite FOLDER TARGET [CONFIGURE_OPTION...]
suite() {
    local folder=$1 target=$2
    shift 2
    if ! "$top/jobs/setup.sh" "$folder" "$@"; then
        rc=2
        return
    fi
    cd "$top/$folder" || exit 2
    rm -f tests/*.trs tests/*.log
    if ! make -j "$(nproc)" check TESTS= >check-build.log 2>&1; then
        tail -n 40 check-build.log
        echo "the tests do not build in $folder/"
        rc=2
        return
    fi
    echo "tests: make $target in $folder/"
    make "$target" 2>&1 | tee check.log | condense
    show_failures .
    passed=$((passed + $(count . PASS\|XFAIL)))
    failed=$((failed + $(count . 'FAIL|ERROR|XPASS')))
    skipped=$((skipped + $(count . SKIP)))
}

suite build check "$@"
suite build-sanitizers check-unit --enable-sanitizers "$@"
[ "$failed" = 0 ] || rc=1
[ "$rc" = 0 ] || [ "$failed" -gt 0 ] || failed=1
echo "$passed passed, $failed failed, $skipped skipped"
exit $rc
