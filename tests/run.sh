#!/usr/bin/env bash
# Runs all tests: tests/run.sh [CONFIGURE_OPTION...]
#
# Builds in build/, and with the address and undefined-behaviour sanitizers in build-sanitizers/; runs every test in the
# first and the C tests again in the second. The last line counts both. Exit code 1 when a test failed, 2 when something
# is missing to build.
set -uo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE MAKEFLAGS MFLAGS MAKELEVEL
passed=0 failed=0 skipped=0 rc=0

# One line for each program as it ends; each check that failed or was skipped has a line of its own.
condense() {
    awk '
        function show() { if (program != "") printf "  %-40s %d passed\n", program, passed; fflush() }
        /^(PASS|FAIL|SKIP|ERROR|XFAIL|XPASS): / {
            if ($2 != program) { show(); program = $2; passed = 0 }
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

# prepare FOLDER [CONFIGURE_OPTION...]: builds the program and the tests there
prepare() {
    local folder=$1
    shift
    "$top/jobs/setup.sh" "$folder" "$@" || return 1
    cd "$top/$folder" || return 1
    rm -f tests/*.trs tests/*.log
    make -j "$(nproc)" check TESTS= >check-build.log 2>&1 && return 0
    tail -n 40 check-build.log
    echo "the tests do not build in $folder/"
    return 1
}

# suite FOLDER TARGET: runs them
suite() {
    cd "$top/$1" || return 1
    echo "tests: make $2 in $1/"
    make "$2" 2>&1 | tee check.log | condense
    show_failures .
}

# add FOLDER: counts what has run there
add() {
    passed=$((passed + $(count "$top/$1" PASS\|XFAIL)))
    failed=$((failed + $(count "$top/$1" 'FAIL|ERROR|XPASS')))
    skipped=$((skipped + $(count "$top/$1" SKIP)))
}

# The sanitizers' tests run beside the others, which leave cores idle at times; what they say comes behind.
rm -f "$top/build-sanitizers/suite.log"
prepare build "$@" || rc=2
if prepare build-sanitizers --enable-sanitizers "$@"; then
    suite build-sanitizers check-unit >"$top/build-sanitizers/suite.log" 2>&1 &
else
    rc=2
fi
if [ "$rc" = 0 ]; then
    suite build check
    add build
fi
if wait && [ -f "$top/build-sanitizers/suite.log" ]; then
    cat "$top/build-sanitizers/suite.log"
    add build-sanitizers
fi
[ "$failed" = 0 ] || rc=1
[ "$rc" = 0 ] || [ "$failed" -gt 0 ] || failed=1
echo "$passed passed, $failed failed, $skipped skipped"
exit $rc
