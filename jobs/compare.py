#!/usr/bin/env python3
"""Compares two checkpoints tensor by tensor:

    jobs/compare.py a/step-00000100.h5 b/step-00000100.h5 [--below /model] [--digests] [--all]

For each tensor that differs: how many elements do, the largest absolute difference, the L2 norm of the difference over
that of the first file's tensor, and whether the stored digests are equal. --digests compares these alone, which reads
no tensor; --all shows equal tensors, too. Checkpoints may be larger than memory. Exit code 0: the tensors are the same
to the last bit; 1: they differ; 2: a file cannot be read. Needs h5py and numpy.
"""
import argparse
import sys

import numpy as np

import slabs


def bits(values):
    return np.ascontiguousarray(values).view({4: np.uint32, 8: np.uint64, 2: np.uint16}[values.dtype.itemsize])


def compare(one, other):
    """How many elements differ in their bits, the largest absolute difference, and the relative L2 norm of it."""
    different, largest, squares, norm = 0, 0.0, 0.0, 0.0
    for where in slabs.slabs(one.shape):
        a, b = one[where], other[where]
        norm += np.square(a, dtype=np.float64).sum()
        unequal = bits(a) != bits(b) if a.dtype == b.dtype else a != b
        if not unequal.any():
            continue
        different += int(unequal.sum())
        with np.errstate(invalid="ignore"):
            apart = np.abs(np.where(unequal, a.astype(np.float64) - b, 0))
        largest = float(np.maximum(largest, apart.max()))  # a NaN stays
        squares += np.square(apart).sum()
    relative = np.sqrt(squares / norm) if norm > 0 else float("inf") if squares > 0 else 0.0
    return different, largest, float(relative)


def digests(one, other):
    """What the stored digests say: "equal", "differ", or "-" where one has none."""
    a, b = one.attrs.get("digest"), other.attrs.get("digest")
    return "-" if a is None or b is None else "equal" if a == b else "differ"


def compare_tensor(path, one, other, digests_alone):
    """Whether it is the same, and its line."""
    if one.shape != other.shape:
        return False, f"{path:52} shapes {list(one.shape)} and {list(other.shape)}"
    stored = digests(one, other)
    if digests_alone:
        return stored == "equal", f"{path:52} {'':>12} {'':>11} {'':>11}  {stored}"
    different, largest, relative = compare(one, other)
    if stored != "-" and (stored == "equal") != (different == 0):
        stored += ", which is not so: one of them is not of its tensor"
    return different == 0, f"{path:52} {different:12d} {largest:11.3e} {relative:11.3e}  {stored}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("one")
    parser.add_argument("other")
    parser.add_argument("--below", default="/", help="compare this group alone, as /model or /optimizer/first_moment")
    parser.add_argument("--digests", action="store_true", help="compare the stored digests alone")
    parser.add_argument("--all", action="store_true", help="show equal tensors, too")
    words = parser.parse_args()
    with slabs.open_checkpoint(words.one) as first, slabs.open_checkpoint(words.other) as second:
        ours, theirs = slabs.tensors(first, words.below), slabs.tensors(second, words.below)
        if not ours and not theirs:
            parser.error(f"neither file has tensors below {words.below}")
        print(f"{'tensor':52} {'differ':>12} {'largest':>11} {'relative':>11}  digests")
        same = 0
        for path in sorted(ours.keys() | theirs.keys()):
            if path not in ours or path not in theirs:
                print(f"{path:52} only in {words.one if path in ours else words.other}")
                continue
            equal, line = compare_tensor(path, ours[path], theirs[path], words.digests)
            same += equal
            if words.all or not equal:
                print(line, flush=True)
        total = len(ours.keys() | theirs.keys())
        print(f"{same} of {total} tensors are the same")
        sys.exit(0 if same == total else 1)


if __name__ == "__main__":
    main()
