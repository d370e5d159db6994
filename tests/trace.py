#!/usr/bin/env python3
"""The trace of a run: what it holds, that viewers can draw it, and that ranks whose clocks differ agree in it. TAP."""
import collections
import json
import os
import shutil
import subprocess

import tap
import tiny

RANKS, MICROBATCHES, STAGES = 3, 4, 3
OPTIONS = ("grid.pipeline=3", "run.steps=3", "trace.first_step=2", "trace.last_step=3", "run.evaluate_every=2",
           "data.validation=corpus.h5", "run.evaluate_batches=1", "checkpoint.every=2", "pipeline.recompute=full")

# Put between a rank and its clock: 5000 seconds more, and 1 in 100 faster.
SHIM = """#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && clock == CLOCK_MONOTONIC) {
        double seconds = now->tv_sec + 1e-9 * now->tv_nsec;
        seconds += 5000 + 0.01 * seconds;
        now->tv_sec = seconds;
        now->tv_nsec = 1e9 * (seconds - now->tv_sec);
    }
    return result;
}
"""
LAUNCH = ("sh", "-c", '[ "${PMI_RANK:-$OMPI_COMM_WORLD_RANK}" != 1 ] || export LD_PRELOAD=$SHIM; exec "$@"', "sh")


def read(run):
    with open(os.path.join(run.folder, "trace.json"), encoding="ascii") as file:
        return json.load(file)["traceEvents"]


def spans_of(events):
    return [event for event in events if event["ph"] == "X"]


def end(span):
    return span["ts"] + span["dur"]


def within(span, other):
    return (span["pid"] == other["pid"] and other["ts"] - 1e-3 <= span["ts"] and end(span) <= end(other) + 1e-3)


def crossing(spans):
    """Pairs of spans of one thread of which neither contains the other: no viewer can draw them."""
    threads, found = collections.defaultdict(list), []
    for span in spans:
        threads[span["pid"], span["tid"]].append(span)
    for thread in threads.values():
        around = []
        for span in sorted(thread, key=lambda span: (span["ts"], -span["dur"])):
            while around and end(around[-1]) <= span["ts"] + 1e-4:
                around.pop()
            if around and end(span) > end(around[-1]) + 1e-4:
                found.append((around[-1], span))
            around.append(span)
    return found


def messages(spans, step):
    """(send, receive) of each message between stages of a step."""
    ends = {(span["name"], span["args"]["stage"], span["args"]["microbatch"]): span for span in spans
            if span["args"].get("step") == step and "stage" in span["args"]}
    pairs = []
    for (name, stage, microbatch), span in ends.items():
        neighbour = {"SEND_ACTIVATION": stage + 1, "SEND_GRADIENT": stage - 1}.get(name)
        if neighbour is not None:
            pairs.append((span, ends[name.replace("SEND", "RECEIVE"), neighbour, microbatch]))
    return pairs


def check_order(spans, what):
    """Nothing is received before it is sent; all ranks are in the same step at the same time."""
    pairs = messages(spans, 3)
    tap.is_equal(len(pairs), 2 * MICROBATCHES * (STAGES - 1), f"{what}: all messages of a step")
    early = [pair for pair in pairs if end(pair[1]) < pair[0]["ts"] - 2e4]
    tap.ok(not early, f"{what}: none arrives before it is sent")
    for send, receive in early[:3]:
        tap.note(f"sent {send}\nreceived {receive}")
    steps = [span for span in spans if span["name"] == "STEP" and span["args"]["step"] == 3]
    tap.ok(max(s["ts"] for s in steps) < min(end(s) for s in steps), f"{what}: the ranks' steps lie over each other")


def check_content(events, spans):
    names = {(e["pid"], e["name"]): e["args"].get("name") for e in events if e["ph"] == "M"}
    tap.is_equal([names.get((rank, "process_name")) for rank in range(RANKS)],
                 [f"rank {rank} (p{rank} d0 t0)" for rank in range(RANKS)], "each rank is a process, and named")
    threads = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    tap.ok({(s["pid"], s["tid"]) for s in spans} == threads, "each thread has a name, and spans")
    tap.is_equal(crossing(spans)[:2], [], "spans of a thread lie beside or within each other")
    counts = collections.Counter((s["name"], s["args"]["step"]) for s in spans if "microbatch" in s["args"]
                                 and "step" in s["args"])
    for name, expected in {"FORWARD": STAGES, "BACKWARD": STAGES, "SEND_ACTIVATION": STAGES - 1,
                           "SEND_GRADIENT": STAGES - 1, "RECEIVE_ACTIVATION": STAGES - 1,
                           "RECEIVE_GRADIENT": STAGES - 1, "RECOMPUTE": tiny.LAYERS}.items():
        tap.is_equal([counts[name, step] for step in (2, 3)], 2 * [expected * MICROBATCHES], f"{name}: each of a step")
    moved = [s["args"]["bytes"] for s in spans if s["name"].startswith(("SEND", "RECEIVE"))]
    tap.ok(moved and min(moved) == max(moved) == 3 * tiny.SEQUENCE * tiny.HIDDEN * 4, "messages tell their bytes")
    alone = collections.Counter((s["name"], s["pid"]) for s in spans if "microbatch" not in s["args"])
    for name, expected in {"STEP": 2, "OPTIMIZER_STEP": 2, "FINISH_GRADIENTS": 2, "GRADIENT_NORM": 2, "EVALUATE": 1,
                           "CHECKPOINT": 1}.items():
        tap.is_equal([alone[name, rank] for rank in range(RANKS)], RANKS * [expected], f"{name}: on every rank")
    waits = [s for s in spans if s["name"] in ("WAIT_ACTIVATION", "WAIT_GRADIENT")]
    tap.ok(any(s["pid"] == RANKS - 1 and s["args"]["step"] == 2 for s in waits), "waiting for messages shows")
    backwards = [s for s in spans if s["name"] == "BACKWARD"]
    tap.ok(all(any(within(span, backward) and backward["args"] == span["args"] for backward in backwards)
               for span in spans if span["name"] == "RECOMPUTE"), "a recomputation is in its backward")
    whole = [s for s in spans if s["name"] in ("STEP", "EVALUATE", "CHECKPOINT")]
    outside = [span for span in spans if not any(within(span, around) for around in whole)]
    tap.is_equal(outside[:2], [], "everything belongs to a step, an evaluation or a checkpoint")


def check_clocks(folder):
    compiler = shutil.which(os.environ.get("CC", "cc").split()[0])
    shim = os.path.join(folder, "shim.so")
    with open(os.path.join(folder, "shim.c"), "w", encoding="ascii") as file:
        file.write(SHIM)
    if not compiler or subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", shim, file.name]).returncode != 0:
        tap.skip("a rank whose clock is another", "no C compiler")
        return
    code, _, errors = tap.launch(RANKS, *LAUNCH, tap.program("ppmodel"), "in.nml", "run.output=shifted",
                                 "checkpoint.directory=shifted", *OPTIONS,
                                 folder=folder, environment={"SHIM": shim})
    if not tap.ok(code == 0, "trained with a rank whose clock is another"):
        tap.note(errors)
        return
    spans = spans_of(read(tiny.Run(os.path.join(folder, "shifted"), code, "", "")))
    check_order(spans, "another clock")
    tap.ok(all(-1e7 < span["ts"] < 1e9 for span in spans), "another clock: no time is far off")


def main():
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        events = read(tiny.train(folder, "run", RANKS, *OPTIONS))
        spans = spans_of(events)
        check_content(events, spans)
        check_order(spans, "one clock")
        check_clocks(folder)
    tap.done()


main()
