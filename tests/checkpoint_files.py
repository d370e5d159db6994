#!/usr/bin/env python3
"""The files of ppmodel as other programs see them: what the packer and a training write, opened with h5py, and what
h5py wrote, read by the program."""
import os

import tap
import tiny

h5py = tap.need("h5py")
np = tap.need("numpy")


def mix(x):
    """SplitMix64's finaliser of an array of uint64."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def digest(array):
    """The digest of a tensor as the documentation defines it."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32).ravel().astype(np.uint64)
    with np.errstate(over="ignore"):
        index = (np.arange(bits.size, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        return int(mix(index ^ bits).sum(dtype=np.uint64))


def share(path, number):
    """A tensor's share in the digest of several: random bits of its digest's index in the stream of its path."""
    word = 2 ** 64 - 1
    gamma, key = 0x9E3779B97F4A7C15, 0xCBF29CE484222325
    for byte in path.encode():
        key = (key ^ byte) * 0x100000001B3 & word
    key = int(mix(np.uint64(key ^ int(mix(np.uint64(gamma))))))
    return int(mix(np.uint64(key + (number + 1) * gamma & word)))


def datasets(group):
    """The datasets below a group by their names."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item

    group.visititems(visit)
    return found


def pack(folder, *words):
    return tap.run(tap.program("ppmodel-pack"), *words, folder=folder)


def check_packed(path, documents, tokens, name):
    with h5py.File(path) as file:
        tap.is_equal((file.attrs["format"], int(file.attrs["version"]), int(file.attrs["vocabulary"]),
                      file.attrs["tokenizer"]), ("ppmodel-dataset", 1, 256, "bytes"), f"{name}: attributes")
        tap.is_equal((file["tokens"].dtype, file["tokens"].chunks), (np.uint16, None), f"{name}: type and layout")
        tap.ok(np.array_equal(file["tokens"][:], np.frombuffer(tokens, np.uint8)), f"{name}: every byte is a token")
        tap.is_equal(file["documents"][:].tolist(), documents, f"{name}: documents")
        offsets, texts = file["vocabulary/offsets"][:], file["vocabulary/bytes"][:]
        tap.ok(all(bytes(texts[offsets[i]:offsets[i + 1]]) == bytes([i]) for i in range(256)) and len(offsets) == 257,
               f"{name}: vocabulary")


def check_packer(folder):
    random = np.random.default_rng(1)
    parts = [random.integers(0, 256, size, np.uint8).tobytes() for size in (5 << 20, 0, 1, 12345)]
    names = [f"part{i}" for i in range(len(parts))]
    for name, part in zip(names, parts):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(part)
    stream = b"".join(parts)
    code, out, errors = pack(folder, *names)
    tap.is_equal((code, errors), (0, ""), "files are packed")
    tap.ok(str(len(stream)) in out and "corpus.h5" in out, "it says what it wrote")
    check_packed(os.path.join(folder, "corpus.h5"), [0, len(parts[0]), len(parts[0]), len(parts[0]) + 1, len(stream)],
                 stream, "packed")

    code, _, errors = pack(folder, "--validation", "0.05", "-o", "split.h5", *names)
    tap.is_equal((code, errors), (0, ""), "files are packed with a share for validation")
    cut = len(stream) - round(0.05 * len(stream))
    check_packed(os.path.join(folder, "split.h5"), [0, cut], stream[:cut], "training")
    check_packed(os.path.join(folder, "split-validation.h5"),
                 [0, *(n - cut for n in (len(parts[0]), len(parts[0]), len(parts[0]) + 1, len(stream)))], stream[cut:],
                 "validation")
    tap.is_equal([name for name in os.listdir(folder) if "partial" in name], [], "no partial file is left")

    empty = os.path.join(folder, "empty")
    with open(empty, "wb"):
        pass
    os.symlink("/dev/full", os.path.join(folder, "full.h5.partial"))
    for name, code, words in (("a missing file", 2, ["nowhere"]), ("empty input", 2, ["empty"]), ("a folder", 2, ["."]),
                              ("no input", 2, []), ("a share of 1", 2, ["--validation", "1", "part0"]),
                              ("a share below 0", 2, ["--validation", "-0.1", "part0"]),
                              ("a share that is no number", 2, ["--validation", "x", "part0"]),
                              ("a share of too few bytes", 2, ["--validation", "0.0001", "part3"]),
                              ("a share that leaves nothing", 2, ["--validation", "0.9", "part2", "empty"]),
                              ("an unknown option", 2, ["--tokens", "part0"]),
                              ("output over its input", 2, ["-o", "part0", "part0"]),
                              ("a full disk", 4, ["-o", "full.h5", "part0"]),
                              ("no such folder for the output", 2, ["-o", "none/x.h5", "part0"]),
                              ("a folder in the output's place", 2, ["-o", ".", "part0"])):
        found, out, errors = pack(folder, *words)
        tap.ok(found == code and errors.count("\n") >= 1 and "ppmodel-pack" in errors and not out,
               f"{name}: exit code {code}")
        tap.note(errors.strip())
    with open(os.path.join(folder, "part0"), "rb") as file:
        tap.ok(file.read() == parts[0], "an input is never changed")
    code, out, errors = pack(folder, "--help")
    tap.ok(code == 0 and "--validation" in out and not errors, "--help")


def check_training(folder):
    """A checkpoint of a training, and the digests of its tensors."""
    found = tiny.run(folder, "trained", 2, "run.steps=2", "checkpoint.every=2")
    if not tap.ok(found.code == 0, "a training on two ranks"):
        tap.note(found.errors)
        return
    path = found.checkpoint(2)
    with h5py.File(path) as file:
        tap.is_equal({name: file.attrs[name] for name in ("format", "version", "step", "seed", "dataset")},
                     {"format": "ppmodel-checkpoint", "version": 1, "step": 2, "seed": 1, "dataset": "corpus.h5"},
                     "the checkpoint's attributes")
        tap.ok("&run" in file.attrs["input"] and isinstance(file.attrs["code"], str), "input and code are texts")
        found = datasets(file)
        digests = {"/" + name: (digest(item[:]), int(item.attrs["digest"])) for name, item in found.items()}
        tap.ok(len(found) > 40 and all(item.dtype == np.float32 and item.chunks is None for item in found.values()),
               "its tensors are contiguous float32")
    tap.is_equal([path for path, (right, stored) in digests.items() if right != stored], [],
                 "every stored digest is right")
    code, out, errors = tap.run(tap.program("ppmodel"), "--digest", path)
    lines = {path: text for text, path in (line.split(None, 1) for line in out.splitlines())}
    tap.is_equal((code, errors), (0, ""), "ppmodel --digest")
    for name, start in (("all of /model", "/model/"), ("whole file", "/")):
        shares = [share(path, found) for path, (found, _) in digests.items() if path.startswith(start)]
        tap.is_equal(int(lines[name], 16), sum(shares) % 2 ** 64, f"its digest of {name}")
    tap.is_equal({path: int(text, 16) for path, text in lines.items() if path.startswith("/")},
                 {path: found for path, (found, _) in digests.items()}, "it prints the same digests")

    with h5py.File(path, "r+") as file:
        file["model/final_norm/bias"][3] += 1
    code, out, errors = tap.run(tap.program("ppmodel"), "--digest", path)
    tap.ok(code == 2 and "/model/final_norm/bias  differs" in out and "1 of" in errors, "a changed element is found")
    found = tiny.run(folder, "trained", 2, "run.steps=3")
    tap.ok(found.code == 2 and "/model/final_norm/bias" in found.errors and "damaged" in found.errors,
           "and no training goes on from it")


def check_digests(folder):
    """run.digest_every: the digest of the weights that --digest finds in the checkpoint of the same step, on each grid;
    with a line of its own where the step has none."""
    found = {}
    for name, ranks, words in (("one rank", 1, []), ("three stages", 3, ["grid.pipeline=3"]),
                               ("chunks", 2, ["grid.pipeline=2", "pipeline.schedule=zb-v", "pipeline.chunks=2"]),
                               ("data ranks", 3, ["grid.data=3", "pipeline.microbatches=2",
                                                  "pipeline.microbatch_size=2"]),
                               ("all", 8, ["grid.pipeline=2", "grid.data=2", "grid.tensor=2", "pipeline.microbatches=2",
                                           "grid.sequence_parallel=true"])):
        run = tiny.train(folder, "digest-" + name.replace(" ", "-"), ranks, *words, "checkpoint.every=1",
                         "checkpoint.keep=9", "run.digest_every=2", "run.log_every=3", "run.steps=6")
        lines = [(line["step"], "loss" in line, "digest" in line) for line in run.metrics()]
        tap.is_equal(lines, [(2, False, True), (3, True, False), (4, False, True), (6, True, True)],
                     f"{name}: a digest every two steps")
        right = []
        for step in (2, 4, 6):
            _, out, _ = tap.run(tap.program("ppmodel"), "--digest", run.checkpoint(step))
            right += [line.split()[0] for line in out.splitlines() if line.endswith("all of /model")]
        found[name] = run.metrics("digest")
        tap.is_equal(found[name], right, f"{name}: those of the checkpoints' weights")
        tap.ok(len(set(right)) == 3, f"{name}: each step has another")
    tap.is_equal([found["three stages"], found["chunks"]], [found["one rank"]] * 2, "the same on each number of stages")


def check_others(folder):
    """Datasets and weights that h5py wrote in other ways train as the plain ones do."""
    with h5py.File(os.path.join(folder, "corpus.h5")) as file:
        stream = file["tokens"][:]
    plain = tiny.run(folder, "plain", 1, "run.steps=2")
    tap.ok(plain.code == 0, "a training")
    for name, dtype, options in (("chunked", np.uint32, {"chunks": (1000,)}),
                                 ("gzip", np.int64, {"compression": "gzip"}),
                                 ("shuffled", np.uint8, {"compression": "gzip", "shuffle": True}),
                                 ("growing", np.dtype(">i4"), {"maxshape": (None,)})):
        bounds = ("v110", "v110") if name == "gzip" else "earliest"  # newest that all HDF5 1.10 read
        with h5py.File(os.path.join(folder, f"{name}.h5"), "w", libver=bounds) as file:
            file.create_dataset("tokens", data=stream.astype(dtype), **options)
            file.attrs["format"] = np.bytes_("ppmodel-dataset") if name == "gzip" else "ppmodel-dataset"
            file.attrs.update(version=np.uint8(1), vocabulary=np.int16(tiny.VOCABULARY))
        found = tiny.run(folder, name, 1, "run.steps=2", f"data.train={name}.h5")
        tap.is_equal((found.code, found.metrics("loss")), (0, plain.metrics("loss")),
                     f"the same from a dataset: {name}")

    with h5py.File(os.path.join(folder, "lzf.h5"), "w") as file:
        file.create_dataset("tokens", data=stream, compression="lzf")
        file.attrs.update(format="ppmodel-dataset", version=1, vocabulary=tiny.VOCABULARY)
    found = tiny.run(folder, "lzf", 2, "run.steps=2", "data.train=lzf.h5")
    tap.ok(found.code == 2 and "lzf" in found.errors.split("/tokens", 1)[-1],
           "a compression that is not known here is refused")
    tap.note(found.errors)

    weights = os.path.join(folder, "weights.h5")
    with h5py.File(plain.checkpoint(2)) as source, h5py.File(weights, "w") as file:
        file.attrs.update(format="ppmodel-checkpoint", version=1)
        for name, item in datasets(source["model"]).items():
            file.create_dataset("model/" + name, data=item[:].astype(np.float64), compression="gzip")
    both = [tiny.run(folder, f"loaded{i}", ranks, "run.steps=1", f"checkpoint.load_weights={path}",
                     f"grid.tensor={ranks}")
            for i, (ranks, path) in enumerate(((1, plain.checkpoint(2)), (1, weights), (2, weights),
                                               (2, plain.checkpoint(2))))]
    if not tap.ok(all(run.code == 0 for run in both), "weights are loaded from both"):
        tap.note("\n".join(run.errors for run in both))
    tap.is_equal(both[0].metrics("loss"), both[1].metrics("loss"), "the same weights from compressed float64")
    tap.is_equal(both[2].metrics("loss"), both[3].metrics("loss"), "also split over two ranks")


with tap.scratch_folder() as place:
    check_packer(place)
    tiny.prepare(place)
    check_training(place)
    check_digests(place)
    check_others(place)
tap.done()
