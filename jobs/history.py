#!/usr/bin/env python3
"""The history of a run as CSV, one line a step, for spreadsheets and plotting programs:

    jobs/history.py RUN-FOLDER [-o history.csv] [--keys loss,validation_loss]

The columns are the keys of metrics.jsonl; a cell is empty where a step has no such figure. Numbers are written as they
were read. A step that was run again after a resume counts as it was the last time. Lines that cannot be read, as the
last one of a run that is under way, are left out and counted on standard error.
"""
import argparse
import csv
import os
import sys

import report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="&run output of the run")
    parser.add_argument("-o", "--output", help="the CSV file (default: standard output)")
    parser.add_argument("--keys", help="the columns besides the step, in this order (default: all)")
    words = parser.parse_args()
    lines, spoilt = report.read_lines(os.path.join(words.folder, "metrics.jsonl"))
    if not lines:
        sys.exit(f"{words.folder} has no metrics.jsonl with a step in it")
    steps, known = {}, {}
    for line in lines:
        steps.setdefault(line["step"], {}).update(line)
        known.update(dict.fromkeys(line))
    keys = words.keys.split(",") if words.keys else [key for key in known if key != "step"]
    if unknown := [key for key in keys if key not in known]:
        sys.exit(f"no {', '.join(unknown)} in metrics.jsonl; there are {', '.join(known)}")
    with open(words.output, "w", newline="", encoding="utf-8") if words.output else sys.stdout as file:
        writer = csv.DictWriter(file, ["step", *keys], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(steps[step] for step in sorted(steps))
    if spoilt:
        print(f"{spoilt} lines of metrics.jsonl could not be read", file=sys.stderr)


if __name__ == "__main__":
    main()
