#!/usr/bin/env bash
# Builds ppmodel: jobs/setup.sh [FOLDER [CONFIGURE_OPTION...]]
#
# Installs what is missing (Debian and Ubuntu, as root or with sudo), configures FOLDER (by default `build`) and runs
# make there. Each step is left out where its result stands already, so that running it again takes seconds. A folder
# that is configured keeps its options unless others are given. Exit code 2: something is missing, and is named; 1: the
# compiler failed.
set -uo pipefail
unset MAKEFLAGS MFLAGS MAKELEVEL
top=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-build}
shift $(($# > 0))
case $build in /*) ;; *) build=$top/$build ;; esac

required=(autoconf automake gcc make pkg-config mpich libmpich-dev libhdf5-mpich-dev libopenblas-openmp-dev)
for_speed_and_tests=(libdnnl-dev python3 python3-numpy python3-h5py-serial hdf5-tools)

say() { echo "setup: $*"; }

# phase TEXT COMMAND...: one line, its output in the log; shows the end of the log when it fails.
phase() {
    say "$1"
    shift
    if ! "$@" >"$log" 2>&1 </dev/null; then
        tail -n 40 "$log" >&2
        say "failed; all of it is in $log" >&2
        return 1
    fi
}

# The Debian packages of a list that are not installed.
absent() {
    local package
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
    done
}

install_packages() {
    local root=() missing
    command -v apt-get >/dev/null && command -v dpkg-query >/dev/null || return 0
    missing=$(absent "${required[@]}" "${for_speed_and_tests[@]}")
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2>/dev/null || return 0
        root=(sudo -n)
    fi
    log=$build/setup-install.log
    phase "installing $(echo $missing)" "${root[@]}" apt-get -q update || return 0
    local install=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends)
    missing=$(absent "${required[@]}")
    [ -z "$missing" ] || phase "- what the build needs" "${install[@]}" $missing
    missing=$(absent "${for_speed_and_tests[@]}")
    [ -z "$missing" ] || phase "- what the tests and fast matrix products need" "${install[@]}" $missing
    return 0
}

# found PROGRAM... or a library that pkg-config knows: any of them is enough
found() {
    local name
    for name in "$@"; do
        command -v "$name" >/dev/null || pkg-config --exists "$name" 2>/dev/null && return 0
    done
    return 1
}

# Names each thing that is not there; fails when one is.
check_requirements() {
    local rc=0
    need() {
        local package=$1 what=$2
        shift 2
        found "$@" || { echo "setup: missing: $what (Debian: $package)" >&2; rc=2; }
    }
    need gcc "a C compiler" gcc cc icx clang
    need make "make" make
    need autoconf "Autoconf's autoreconf" autoreconf
    need automake "automake" automake
    need pkg-config "pkg-config" pkg-config pkgconf
    need libmpich-dev "an MPI compiler wrapper, mpicc" mpicc.mpich mpicc
    need mpich "an MPI launcher, mpiexec" mpiexec.mpich mpiexec srun
    need libhdf5-mpich-dev "parallel HDF5" hdf5-mpich hdf5-openmpi hdf5-mpi h5pcc
    [ -n "$(ls /usr/lib/*/openblas-openmp/libopenblas.so 2>/dev/null)" ] || case " $* " in
    *" --with-blas="*) ;;
    *) need libopenblas-openmp-dev "OpenBLAS" openblas openblas-openmp cblas ;;
    esac
    return $rc
}

build_program() {
    local configured=$build/configured-with
    cd "$top" || return 1
    if [ ! -e configure ] || [ ! -e Makefile.in ]; then
        log=$build/setup-autoreconf.log
        phase "making configure" autoreconf -i || return 2
    fi
    cd "$build" || return 1
    if [ ! -e config.status ] || [ ! -e Makefile ] || { [ $# -gt 0 ] && [ "$*" != "$(cat "$configured")" ]; }; then
        log=$build/setup-configure.log
        phase "configuring in ${build#"$top"/}${*:+ with $*}" "$top/configure" "$@" || return 2
        echo "$*" >"$configured"
    fi
    log=$build/setup-make.log
    phase "compiling in ${build#"$top"/}" make -j "$(nproc)" all || return 1
}

mkdir -p "$build" || exit 2
install_packages
check_requirements "$@" || exit 2
build_program "$@"
