#!/usr/bin/env python3
"""What the CUDA kernels take of a device, as the compiler told it: no kernel keeps registers in memory, and each leaves
room for as many threads as hide the latency of memory. TAP."""
import glob
import os
import re

import tap

REGISTERS = 65536  # of a multiprocessor of compute capability 8.0 and 9.0
SHARED = {"80": 164 << 10, "90": 228 << 10}  # bytes
GRAIN = 8  # registers of a thread are given out in multiples of so many
SPILLED = 64  # bytes that may be: outside the loops, in attention over rows that are not whole packs of 16 bytes

# Kernels that hold tiles in registers: threads of a block, dynamic shared memory, and the blocks of one multiprocessor
# that there must be room for, with compute capability 8.0 and 9.0. Sizes follow from `struct tiles`, `tensor_tiles` and
# `key_tiles`. Those made for tensor cores take up to 255 registers, as two rows of pieces for each warp halve what is
# read of shared memory; two warps for each scheduler, of blocks of their own, then keep the tensor cores busy.
TILED = {
    ("tensor_attend", "bfloat16", 64): (128, 55296, 2, 2),
    ("tensor_attend", "bfloat16", 128): (128, 104448, 1, 2),
    ("tensor_query_gradient", "bfloat16", 64): (128, 73728, 2, 2),
    ("tensor_query_gradient", "bfloat16", 128): (128, 104448, 1, 2),
    ("tensor_key_value_gradient", "bfloat16", 64): (128, 74752, 2, 2),
    ("paired_key_value_gradient", "bfloat16", 128): (256, 155392, 1, 1),
    ("attend", "bfloat16", 256): (128, 101376, 1, 2),
    ("query_gradient", "bfloat16", 256): (128, 135680, 1, 1),
    ("key_value_gradient", "bfloat16", 256): (128, 135680, 1, 1),
    ("attend", "float", 64): (128, 52224, 3, 3),
    ("attend", "float", 128): (128, 101376, 1, 2),
    ("attend", "float", 256): (64, 99840, 1, 2),
    ("query_gradient", "float", 64): (128, 70144, 2, 3),
    ("query_gradient", "float", 128): (128, 135680, 1, 1),
    ("query_gradient", "float", 256): (64, 133376, 1, 1),
    ("key_value_gradient", "float", 64): (128, 70144, 2, 2),
    ("key_value_gradient", "float", 128): (128, 135680, 1, 1),
    ("key_value_gradient", "float", 256): (64, 133376, 1, 1),
}
# All others move memory: at half of a multiprocessor's 2048 threads or more it is busy.
THREADS = 1024


def kernels():
    """(name, architecture, registers, bytes of stack and spills) of every kernel that was compiled."""
    found = []
    for path in glob.glob("kernels/cuda/*.resources"):
        with open(path, encoding="utf-8") as file:
            text = file.read()
        pattern = (r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?(\d+) bytes stack frame, (\d+) bytes spill "
                   r"stores, (\d+) bytes spill loads.*?Used (\d+) registers")
        for name, arch, stack, stores, loads, registers in re.findall(pattern, text, re.DOTALL):
            found.append((name, arch, int(registers), int(stack) + int(stores) + int(loads)))
    return found


def tiled_key(name):
    """Its key in TILED, or None: _Z6attendI13__nv_bfloat16Li64EE..., _Z13tensor_attendILi64ELb1EE..."""
    match = re.match(r"_Z\d+(\w+?)I(13__nv_bfloat16|f)?Li(\d+)E", name)
    return match and (match[1], "float" if match[2] == "f" else "bfloat16", int(match[3]))


def check_room(arch, found):
    crowded, seen = [], set()
    for name, registers in found:
        each = -(-registers // GRAIN) * GRAIN
        key = tiled_key(name)
        if key is None:
            room = REGISTERS // each
            if room < THREADS:
                crowded.append(f"{name}: {registers} registers leave room for {room} threads, not {THREADS}")
            continue
        seen.add(key)
        threads, shared, *wanted = TILED[key]
        blocks = min(REGISTERS // (each * threads), SHARED[arch] // (shared + 1024))
        if blocks < wanted[arch != "80"]:
            crowded.append(f"{name}: {registers} registers and {shared} bytes leave room for {blocks} blocks, not "
                           f"{wanted[arch != '80']}")
    if not tap.ok(not crowded, f"sm_{arch}: kernels leave room for enough threads"):
        tap.note("\n".join(crowded))
    tap.is_equal(sorted(set(TILED) - seen), [], f"sm_{arch}: every kernel of tiles was seen")


def main():
    found = kernels()
    if not found:
        tap.skip_all("built without CUDA")
    architectures = sorted({arch for _, arch, _, _ in found})
    spilled = [f"{name} for sm_{arch}: {memory} bytes" for name, arch, _, memory in found
               if memory > (SPILLED if "ELb0E" in name else 0)]
    if not tap.ok(not spilled, f"no kernel of {len(found)} keeps registers in memory"):
        tap.note("\n".join(spilled))
    counts = [sum(arch == own for _, own, _, _ in found) for arch in architectures]
    tap.ok(len(set(counts)) == 1,
           f"as many kernels for each of {', '.join(architectures)}")
    for arch in architectures:
        if arch in SHARED:
            check_room(arch, [(name, registers) for name, own, registers, _ in found if own == arch])
    tap.done()


if __name__ == "__main__":
    main()
