"""Reads tensors of a checkpoint in pieces, so that none need fit into memory."""
import math
import signal
import sys

import h5py
import numpy as np

MOST = 1 << 22  # elements of a piece: 16 MiB

signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that has seen enough, as `head`, ends the program


def slabs(shape, most=MOST):
    """Selections that cover an array of that shape in the order of its elements, each of at most `most` elements."""
    if not shape:
        yield ()
        return
    inner = math.prod(shape[1:])
    if inner > most:
        for index in range(shape[0]):
            for rest in slabs(shape[1:], most):
                yield (slice(index, index + 1), *rest)
    else:
        rows = max(1, most // max(inner, 1))
        for first in range(0, shape[0], rows):
            yield (slice(first, min(first + rows, shape[0])),)


def tensors(file, below):
    """{path: dataset} of the floating-point datasets below a group, by path."""
    found = {}

    def visit(path, item):
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f" and ("/" + path + "/").startswith(below):
            found["/" + path] = item

    below = "/" + below.strip("/") + "/" if below.strip("/") else "/"
    file.visititems(visit)
    return dict(sorted(found.items()))


def read(dataset, where):
    """One piece, in double precision."""
    return dataset[where].astype(np.float64)


def open_checkpoint(path):
    try:
        return h5py.File(path, "r")
    except OSError as error:
        print(f"{path} cannot be read: {error}", file=sys.stderr)
        sys.exit(2)
