#!/usr/bin/env python3
"""Tells from the flight records in a run's output folder what each rank did last and who waited for whom:

    jobs/flight.py run/            a line for each rank, behind those that kept the job
    jobs/flight.py run/ --rank 3   all that the record of one rank holds

After a hang the folder has flight-<rank>.json, written by the watchdog. After a job that was killed it has
flight-<rank>.record, as it stood at each rank's last heartbeat, a second before the end at most; a rank whose heart
stopped beating before those of the others is told as stopped. Files of other runs than the last one are left out.
"""
import argparse
import collections
import glob
import json
import os
import re
import struct
import sys

# src/parallel/flight.h has the layout.
DEPTH, GROUPS, RING = 8, 24, 64
HEAD = struct.Struct("=8sIIQQQddiiiiii64sq QQdii")
GROUP = struct.Struct("=QQQii")
ENTRY = struct.Struct("=ddqQiiiiiiii")
SIZE = HEAD.size + GROUPS * GROUP.size + (DEPTH + RING) * ENTRY.size + 8
STILL_SECONDS = 2.5  # a heart that stopped so long before the last one of all

Entry = collections.namedtuple("Entry", "begin end bytes sequence act step stage microbatch peer group count depth")
Group = collections.namedtuple("Group", "id sums agreements size unused")


class Rank:
    """What is known of one rank: `open` and `ended` are dictionaries as in the JSON files, times since 1970."""

    def __init__(self, rank, run, size, wall, host="", process=0, place=None, step=-1):
        self.rank, self.run, self.size, self.wall = rank, run, size, wall
        self.host, self.process, self.place, self.step = host, process, place, step
        self.standing, self.waits_for = "unknown", None
        self.open, self.ended, self.groups, self.wait = [], [], [], None

    def name(self):
        return f"rank {self.rank}" + (" (p{} d{} t{})".format(*self.place) if self.place else "")

    def doing(self):
        words = [describe(entry) for entry in self.open]
        if not words:
            words = ["after " + describe(self.ended[-1]) if self.ended else "at its start"]
        return (f"step {self.step} " if self.step >= 0 else "") + ": ".join(words)

    def seconds(self):
        """Since when it does that, at the time of the record."""
        last = self.open[-1]["begin"] if self.open else max((e["begin"] + e["seconds"] for e in self.ended), default=0)
        return self.wall - last if last else 0.0


def describe(entry):
    return entry["name"] + "".join(f" {key} {entry[key]}" for key in ("stage", "microbatch") if key in entry)


def as_dictionary(entry, names, shift):
    """An entry of a record; `shift` takes the clock of its node to seconds since 1970."""
    found = {"name": names[entry.act] if entry.act < len(names) else str(entry.act), "begin": entry.begin + shift}
    if entry.end > 0:
        found["seconds"] = entry.end - entry.begin
    found.update((key, value) for key, value in entry._asdict().items()
                 if key in ("step", "stage", "microbatch", "peer", "bytes", "depth") and value >= 0)
    return found


def parse_record(data, names):
    """A rank from the bytes of a record, None where they are none."""
    if len(data) < SIZE or data[:8] != b"ppflight":
        return None
    (_, version, size, run, address, _, now, wall, rank, ranks, p, d, t, process, host, group_count, _, ended, _, step,
     depth) = HEAD.unpack_from(data)
    if version != 1 or size != SIZE:
        return None
    found = Rank(rank, f"{run:016x}", ranks, wall, host.split(b"\0")[0].decode(), process,
                 (p, d, t) if p >= 0 else None, step)
    found.address, found.names = address, names
    at = HEAD.size
    found.groups = [Group(*GROUP.unpack_from(data, at + i * GROUP.size)) for i in range(min(group_count, GROUPS))]
    at += GROUPS * GROUP.size
    entries = [Entry(*ENTRY.unpack_from(data, at + i * ENTRY.size)) for i in range(DEPTH + RING)]
    open_entries = entries[:min(depth, DEPTH)]
    found.open = [as_dictionary(entry, names, wall - now) for entry in open_entries]
    found.ended = [as_dictionary(entries[DEPTH + i % RING], names, wall - now)
                   for i in range(max(0, ended - RING), ended)]
    if open_entries and (open_entries[-1].peer >= 0 or open_entries[-1].group >= 0):
        found.wait = open_entries[-1]
    return found


def read_record(path):
    with open(path, "rb") as file:
        data = file.read()
    return parse_record(data, data[SIZE:].decode("ascii", "replace").split("\n")[:-1])


def read_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            text = json.load(file)
    except ValueError:  # not written to its end
        return None
    if "run" not in text:
        return None
    found = Rank(text["rank"], text["run"], text["size"], text["wall"], text["host"], text["process"],
                 (text["p"], text["d"], text["t"]) if "p" in text else None, text["step"])
    found.standing, found.waits_for = text["standing"], text.get("waits_for")
    found.open, found.ended = text["open"], text["ended"]
    return found


def suspicion(other, wait, identity):
    """How much a rank looks like the one that a group waits for: most of all one that has not come and is stopped."""
    group = next((group for group in other.groups if group.id == identity), None)
    if not group:
        return 0
    missing = wait.sequence > 0 and (group.sums, group.agreements)[wait.count] < wait.sequence
    return {"stopped": 4, "works": 2, "waits": 1}[other.standing] + (4 if missing else 0)


def judge(ranks):
    """Standing and waits_for from records alone, as the watchdog finds them."""
    newest = max(rank.wall for rank in ranks.values())
    for rank in ranks.values():
        stopped = newest - rank.wall > STILL_SECONDS
        rank.standing = "stopped" if stopped else "waits" if rank.wait else "works"
    for rank in ranks.values():
        if rank.standing != "waits":
            continue
        if rank.wait.peer >= 0:
            rank.waits_for = rank.wait.peer
            continue
        identity = rank.groups[rank.wait.group].id
        others = [(suspicion(other, rank.wait, identity), -other.rank) for other in ranks.values() if other is not rank]
        most = max(others, default=(0, 0))
        rank.waits_for = -most[1] if most[0] > 0 else None


def read_folder(folder):
    """The ranks of the folder's last run."""
    runs = collections.defaultdict(dict)
    for path in glob.glob(os.path.join(glob.escape(folder), "flight-*.*")):
        if not re.search(r"/flight-\d+\.(record|json)$", path):
            continue
        rank = (read_json if path.endswith(".json") else read_record)(path)
        if rank and not (path.endswith(".record") and rank.rank in runs[rank.run]):
            runs[rank.run][rank.rank] = rank
    if not any(runs.values()):
        sys.exit(f"{folder} has no flight records: no run there hangs, or was killed")
    ranks = runs[max(runs)]
    if not any(rank.standing != "unknown" for rank in ranks.values()):
        judge(ranks)
    return ranks


def causes(ranks):
    """Sentences about those that kept the job."""
    arrivals, cycles = collections.Counter(), set()
    for rank in ranks.values():
        chain = [rank.rank]
        while (following := ranks[chain[-1]].waits_for if chain[-1] in ranks else None) is not None:
            if following in chain:
                cycles.add(tuple(sorted(chain[chain.index(following):])))
                break
            chain.append(following)
        arrivals.update(chain[1:])
    found = ["deadlock: " + ", ".join(ranks[rank].name() for rank in cycle) + " wait for each other"
             for cycle in sorted(cycles)]
    for number in sorted(ranks.keys() | arrivals.keys()):
        rank = ranks.get(number)
        if rank is None:
            found.append(f"rank {number} has left no record, and {arrivals[number]} wait for it")
        elif rank.standing == "stopped" or (rank.waits_for is None and arrivals[number] > 0):
            what = "was stopped or dead" if rank.standing == "stopped" else "did not come to an end"
            found.append(f"{rank.name()} of {rank.host}, process {rank.process}, {what} in {rank.doing()}, "
                         f"for {rank.seconds():.3f} s; {arrivals[number]} waited for it")
    return found or ["no rank waited for another"]


def print_table(ranks):
    print(f"{'rank':22} {'host':12} {'process':>8} {'stands':8} {'waits for':>9} {'seconds':>9}  in")
    for _, rank in sorted(ranks.items()):
        waits_for = "-" if rank.waits_for is None else rank.waits_for
        print(f"{rank.name():22} {rank.host:12.12} {rank.process:8} {rank.standing:8} {waits_for:>9} "
              f"{rank.seconds():9.3f}  {rank.doing()}")


def print_rank(rank):
    print(f"{rank.name()} of {rank.host}, process {rank.process}: {rank.standing}")
    for entry in rank.ended + rank.open:
        step = f"step {entry['step']} " if "step" in entry else ""
        peer = f" rank {entry['peer']}" if "peer" in entry else ""
        seconds = f"{1e3 * entry['seconds']:10.3f} ms" if "seconds" in entry else "   under way"
        print(f"{entry['begin'] - rank.wall:12.6f} s {seconds} {'  ' * entry['depth']} {step}{describe(entry)}{peer}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="the run's output folder")
    parser.add_argument("--rank", type=int, help="show this rank's record")
    options = parser.parse_args()
    ranks = read_folder(options.folder)
    if options.rank is not None:
        if options.rank not in ranks:
            sys.exit(f"there is no record of rank {options.rank}")
        print_rank(ranks[options.rank])
        return
    print("\n".join(causes(ranks)))
    print_table(ranks)


if __name__ == "__main__":
    main()
