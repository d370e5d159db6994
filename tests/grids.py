#!/usr/bin/env python3
"""The grid does not change the training: for given data and tensor ranks every number of pipeline ranks, schedule,
recompute mode and balance gives the same bits, and different data and tensor ranks agree to rounding. TAP.

With PP_LONG=1 more cases are added, and with PP_ALL_GRIDS=1 every combination of the values on at most 16 ranks, which
takes hours: raise TEST_TIMEOUT."""
import collections
import itertools
import os

import tap
import tiny

np = tiny.np

Case = collections.namedtuple("Case", "P D T schedule recompute sequence_parallel balance tied M size chunks",
                              defaults=[1])

# One case a line; -: no; M microbatches of `size` sequences on each data rank. These have every pair of two columns'
# values that fits on 8 ranks, which is checked.
#
# P D T  schedule  recompute  sequence_parallel  balance     tied  M  size
PAIRS = """
1 1 1  1f1b      full       yes                cost        -     4  3
3 1 1  1f1b      none       -                  cost        yes   4  3
5 1 1  1f1b      none       yes                parameters  -     4  3
5 1 1  gpipe     none       -                  explicit    yes   4  3
5 1 1  gpipe     selective  yes                uniform     -     4  3
5 1 1  1f1b      full       -                  cost        -     4  3
7 1 1  gpipe     selective  -                  cost        -     4  3
7 1 1  1f1b      none       yes                explicit    yes   4  3
7 1 1  gpipe     full       -                  parameters  yes   4  3
7 1 1  1f1b      selective  yes                uniform     -     4  3
3 1 2  gpipe     none       -                  uniform     -     4  3
3 1 2  gpipe     full       yes                parameters  yes   4  3
1 1 4  gpipe     selective  yes                uniform     -     4  3
1 1 4  1f1b      full       yes                parameters  -     4  3
2 1 4  gpipe     full       yes                explicit    -     4  3
2 2 1  gpipe     selective  -                  parameters  yes   2  3
3 2 1  1f1b      full       yes                uniform     yes   2  3
3 2 1  1f1b      selective  yes                explicit    yes   2  3
2 2 2  1f1b      full       yes                cost        -     2  3
1 2 4  1f1b      none       -                  cost        yes   2  3
1 4 1  gpipe     full       -                  parameters  -     1  3
1 4 1  gpipe     none       yes                cost        -     1  3
2 4 1  1f1b      none       -                  uniform     -     1  3
1 4 2  1f1b      selective  yes                explicit    yes   1  3
"""

# Ends of a tied weight with sequence parallelism, fewer microbatches than stages, other sizes; and the other schedules,
# with the chunks of each rank behind the size.
OTHERS = """
2 1 2  1f1b      none       yes                cost        yes   4  3
2 1 4  1f1b      selective  -                  parameters  yes   4  3
3 1 1  1f1b      selective  -                  explicit    yes   1  3
5 1 1  1f1b      none       -                  uniform     yes   2  3
2 2 1  1f1b      full       -                  uniform     yes   6  1
1 2 1  gpipe     none       -                  cost        yes   3  2
5 1 1  eager-1f1b   full       -               cost        -     4  3
2 2 1  eager-1f1b   none       -               parameters  yes   2  3
3 1 1  interleaved  none       -               uniform     yes   6  2  2
2 1 2  interleaved  full       yes             cost        yes   4  3  3
2 1 1  looped-bfs   selective  -               cost        yes   4  3  2
2 2 1  looped-bfs   none       -               uniform     yes   2  3  3
4 1 1  zb-h1        none       -               cost        yes   4  3
2 1 2  zb-h1        full       yes             uniform     yes   4  3
2 2 1  zb-v         selective  -               cost        yes   2  3  2
3 1 1  zb-v         full       -               cost        -     4  3  2
2 1 2  v-half       none       yes             parameters  yes   4  3  2
3 1 1  v-half       selective  -               cost        -     4  3  2
3 1 1  1f1b         none       -               memory      yes   4  3
2 1 2  v-half       full       yes             memory      yes   4  3  2
2 1 1  v-min        full       -               cost        yes   4  3  2
3 1 1  v-min        none       -               cost        -     4  3  2
"""

# Blocks in each stage, as uneven as can be.
STAGE_LAYERS = {1: "5", 2: "1,4", 3: "0,4,1", 5: "0,3,1,1,0", 7: "0,1,1,1,1,1,0"}


def read_table(text):
    return [Case(*(int(word) if word.isdigit() else word for word in line.split()))
            for line in text.strip().splitlines()]


def ranks(case):
    return case.P * case.D * case.T


def plain(case):
    """The case that has the same bits on one pipeline rank."""
    sequence_parallel = case.sequence_parallel if case.T > 1 else "-"
    return case._replace(P=1, schedule="1f1b", recompute="none", sequence_parallel=sequence_parallel, balance="cost",
                         chunks=1)


def alone(case):
    """The case with the same global batch on one rank."""
    return plain(case)._replace(D=1, T=1, sequence_parallel="-", M=case.M * case.D * case.size // 3, size=3)


def name_of(case):
    chunks = f" of {case.chunks} chunks" if case.chunks > 1 else ""
    return (f"{case.P}x{case.D}x{case.T} {case.schedule}{chunks}, recompute {case.recompute}"
            f"{', sequence parallel' if case.sequence_parallel == 'yes' else ''}, {case.balance} balance, "
            f"{'tied' if case.tied == 'yes' else 'untied'}, {case.M} x {case.size}")


def overrides(case):
    words = [f"grid.pipeline={case.P}", f"grid.data={case.D}", f"grid.tensor={case.T}",
             f"grid.sequence_parallel={'.true.' if case.sequence_parallel == 'yes' else '.false.'}",
             f"pipeline.schedule={case.schedule}", f"pipeline.chunks={case.chunks}",
             f"pipeline.recompute={case.recompute}", f"pipeline.balance={case.balance}",
             f"pipeline.microbatches={case.M}", f"pipeline.microbatch_size={case.size}",
             f"model.tied_embeddings={'.true.' if case.tied == 'yes' else '.false.'}",
             "checkpoint.gradients=true"]
    if case.balance == "explicit":
        words.append(f"pipeline.stage_layers={STAGE_LAYERS[case.P]}")
    if case == plain(case):
        words += ["checkpoint.every=1", "checkpoint.keep=4"]  # check_close looks at step 1, too
    return words


class Runs:
    """Runs each case once."""

    def __init__(self, folder):
        self.folder, self.done = folder, {}

    def of(self, case):
        if case not in self.done:
            self.done[case] = tiny.train(self.folder, f"run-{len(self.done)}", ranks(case), *overrides(case))
        return self.done[case]


def check_pairs(cases):
    """Every pair of values that fits on 8 ranks occurs in the table."""
    options = Case._fields[:-3]
    values = {option: sorted({getattr(case, option) for case in cases}, key=str) for option in options}
    missing = []
    for one, other in itertools.combinations(options, 2):
        there = {(getattr(case, one), getattr(case, other)) for case in cases}
        for pair in itertools.product(values[one], values[other]):
            count = np.prod([value for option, value in zip((one, other), pair) if option in "PDT"])
            if pair not in there and count <= 8:
                missing.append(f"{one} {pair[0]} with {other} {pair[1]}")
    if not tap.ok(not missing, "the table has every pair of values"):
        tap.note(", ".join(missing))
    return values


def check_equal(runs, case):
    """The same bits as on one pipeline rank."""
    found, expected = runs.of(case), runs.of(plain(case))
    same = tiny.is_same(found.tensors(4), expected.tensors(4), f"{name_of(case)}: all tensors to the bit")
    for key in ("loss", "gradient_norm") if same else ():
        tap.is_equal(found.metrics(key), expected.metrics(key), f"{name_of(case)}: the same {key} in every step")


def check_close(runs, case):
    """One pipeline rank, but several data or tensor ranks: as on one rank, to rounding."""
    found, expected = runs.of(case), runs.of(alone(case))
    for step in (1, 4):
        tiny.is_close(found.tensors(step), expected.tensors(step), 1e-5, f"{name_of(case)}: step {step} to rounding")
    noise = [np.abs(value).max() for key, value in found.tensors(4).items()
             if tiny.NOISE in key and key.startswith("gradients/")]
    tap.ok(len(noise) == 1 and noise[0] < 1e-7, f"{name_of(case)}: no gradient of the keys' bias")
    errors = [abs(a / b - 1) for a, b in zip(found.metrics("loss"), expected.metrics("loss"))]
    tap.ok(len(errors) == 4 and max(errors) < 1e-7, f"{name_of(case)}: the losses to rounding")


def check_threads(runs, case):
    """Threads share the sums of a matmul: rounding may differ, and nothing else."""
    found = tiny.train(runs.folder, "threads", ranks(case), *overrides(case), "run.threads=2")
    tiny.is_close(found.tensors(4), runs.of(case).tensors(4), 1e-5, f"{name_of(case)}: two threads to rounding")


def every_combination(values, schedules):
    """Of the values of each column and of the pairs (schedule, chunks)."""
    for *choice, (schedule, chunks) in itertools.product(*values.values(), schedules):
        case = Case(**dict(zip(values, choice)), schedule=schedule, chunks=chunks, M=0, size=3)
        if (ranks(case) <= 16 and case.P * chunks <= tiny.LAYERS + 2 and (case.balance != "explicit" or chunks == 1)
                and (case.sequence_parallel == "-" or case.T > 1)):
            yield case._replace(M=max(1, 4 // case.D))


def main():
    cases = read_table(PAIRS)
    values = check_pairs(cases)
    if "1" in (os.environ.get("PP_LONG"), os.environ.get("PP_ALL_GRIDS")):
        cases += read_table(OTHERS)
    if os.environ.get("PP_ALL_GRIDS") == "1":
        del values["schedule"]
        cases += every_combination(values, sorted({(case.schedule, case.chunks) for case in cases}))
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        runs = Runs(folder)
        for case in sorted({plain(case) for case in cases}):
            if case != alone(case):
                check_close(runs, case)
        for case in cases:
            if case != plain(case):
                check_equal(runs, case)
        check_threads(runs, plain(cases[0]))
    tap.done()


main()
