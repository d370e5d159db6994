#!/usr/bin/env python3
"""Norms and spectra of a checkpoint's tensors, layer by layer:

    jobs/norms.py checkpoints/step-00000100.h5 [--below /model] [--spectrum] [--csv values.csv]

For each tensor, and in stacks for each layer: root mean square, largest magnitude, and elements that are not finite.
--spectrum adds for each matrix its largest and smallest singular value and its stable rank, the squared Frobenius norm
over the square of the largest: how many directions carry the matrix. --csv writes all singular values, one a line. One
matrix's smaller side squared must fit into memory, nothing else. Needs h5py and numpy.
"""
import argparse
import csv
import math
import sys

import numpy as np

import slabs


def layers_of(path, dataset):
    """(layer, selection) of a stack; one without a number of anything else."""
    if "/blocks/" in path:
        return [(layer, (slice(layer, layer + 1),)) for layer in range(dataset.shape[0])]
    return [(None, ())]


def shape_of(dataset, selection):
    return dataset.shape[len(selection):]


def statistics(dataset, selection):
    """Root mean square and largest magnitude of what is finite, and how many are not."""
    squares, largest, infinite, shape = 0.0, 0.0, 0, shape_of(dataset, selection)
    for where in slabs.slabs(shape):
        values = slabs.read(dataset, selection + where)
        finite = np.isfinite(values)
        infinite += int(values.size - finite.sum())
        values = np.where(finite, values, 0)
        squares += np.square(values).sum()
        largest = max(largest, float(np.abs(values).max(initial=0)))
    return math.sqrt(squares / max(math.prod(shape) - infinite, 1)), largest, infinite


def matrix_shape(path, shape):
    """[out, in] of a weight; None where it is no matrix. The attention's output has its heads on the side of `in`."""
    if len(shape) < 2 or not (path.endswith("/weight") or "/embedding/" in path):
        return None
    rows = shape[0] if path.endswith("attention/output/weight") else math.prod(shape[:-1])
    return rows, math.prod(shape) // rows


def singular_values(dataset, selection, rows, columns):
    """Of the matrix, the largest first, from the products of its shorter side's vectors, in double precision: those
    below 1e-8 of the largest are lost in rounding."""
    wide, shape = columns > rows, shape_of(dataset, selection)
    products = np.zeros((min(rows, columns),) * 2)
    if wide:  # in strips of columns; all rows of a strip are needed
        last = shape[-1] if len(shape) == 2 else None
        strip = max(1, slabs.MOST // rows) if last else columns
        for first in range(0, columns, strip):
            where = selection + ((slice(None), slice(first, first + strip)) if last else ())
            part = slabs.read(dataset, where).reshape(rows, -1)
            products += part @ part.T
    else:
        for where in slabs.slabs(shape):
            part = slabs.read(dataset, selection + where).reshape(-1, columns)
            products += part.T @ part
    return np.sqrt(np.maximum(np.linalg.eigvalsh(products)[::-1], 0))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--below", default="/model", help="a group (default: /model)")
    parser.add_argument("--spectrum", action="store_true", help="singular values of matrices")
    parser.add_argument("--csv", help="a file for all of them: tensor, layer, number, value")
    words = parser.parse_args()
    rows = []
    with slabs.open_checkpoint(words.checkpoint) as file:
        found = slabs.tensors(file, words.below)
        if not found:
            parser.error(f"{words.checkpoint} has no tensors below {words.below}")
        print(f"{'tensor':52} {'layer':>5} {'rms':>11} {'largest':>11} {'not finite':>10}"
              + (f" {'sigma max':>11} {'sigma min':>11} {'stable rank':>11}" if words.spectrum or words.csv else ""))
        for path, dataset in found.items():
            for layer, selection in layers_of(path, dataset):
                rms, largest, infinite = statistics(dataset, selection)
                line = f"{path:52} {'' if layer is None else layer:>5} {rms:11.4e} {largest:11.4e} {infinite:10d}"
                matrix = matrix_shape(path, shape_of(dataset, selection))
                if (words.spectrum or words.csv) and matrix and infinite == 0:
                    values = singular_values(dataset, selection, *matrix)
                    rank = np.square(values / values[0]).sum() if values[0] > 0 else 0
                    line += f" {values[0]:11.4e} {values[-1]:11.4e} {rank:11.1f}"
                    rows += [(path, layer, number, repr(float(value))) for number, value in enumerate(values)]
                print(line, flush=True)
    if words.csv:
        with open(words.csv, "w", newline="", encoding="utf-8") as out:
            csv.writer(out).writerows([("tensor", "layer", "number", "singular_value"), *rows])


if __name__ == "__main__":
    sys.exit(main())
