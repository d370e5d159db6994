#!/usr/bin/env bash
# Builds ppmodel and trains a small model on this computer: jobs/quickstart.sh [FILE...]
#
# The model learns the bytes of the given text files, by default the project's own text, on a pipeline of two ranks as
# input/quickstart.nml says. Everything that it writes is in run/quickstart, which is made anew each time.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
files=()
for file in "$@"; do
    files+=("$(realpath "$file")")
done
# Settings of some computing environments that fit OpenBLAS to another processor
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE

"$top/jobs/setup.sh"
cd "$top"
if [ ${#files[@]} = 0 ]; then
    own=('*.c' '*.h' '*.md' '*.py' '*.sh' '*.nml' '*.am' '*.ac')
    mapfile -t files < <(git ls-files -- "${own[@]}" 2>/dev/null | LC_ALL=C sort)
    if [ ${#files[@]} = 0 ]; then
        mapfile -t files < <(find README.md Makefile.am configure.ac src kernels jobs input tests -type f \
            -regex '.*\.\(c\|h\|md\|py\|sh\|nml\|am\|ac\)' | LC_ALL=C sort)
    fi
fi

rm -rf run/quickstart
mkdir -p run/quickstart
build/ppmodel-pack --validation 0.05 -o run/quickstart/corpus.h5 "${files[@]}"

launcher=$(sed -n 's/^MPIEXEC = //p' build/Makefile)
count=$(sed -n 's/^MPIEXEC_NP = //p' build/Makefile)
echo "$launcher $count 2 build/ppmodel input/quickstart.nml"
# shellcheck disable=SC2086 # the launcher may hold options
exec $launcher $count 2 build/ppmodel input/quickstart.nml
