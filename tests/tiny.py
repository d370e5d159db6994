"""A tiny model of odd sizes, its dataset, and training it as a user would: what the end-to-end tests share."""
import json
import os

import tap

h5py = tap.need("h5py")
np = tap.need("numpy")

LAYERS, HEADS, HIDDEN, SEQUENCE, VOCABULARY = 5, 4, 48, 23, 101

# Initial weights so large that attention is far from uniform: a mistake in it shows.
NAMELIST = f"""! a tiny model
&run steps = 4  device = 'cpu' /
&model layers = {LAYERS}  hidden = {HIDDEN}  heads = {HEADS}  sequence = {SEQUENCE}  vocabulary = {VOCABULARY}
       init_std = 0.1 /
&pipeline microbatches = 4  microbatch_size = 3 /
&data train = 'corpus.h5' /
&optimizer learning_rate = 1e-3  min_learning_rate = 1e-4 /
"""

# The bias of the keys adds the same to all scores of a query, so that its gradient is 0 but for rounding. AdamW makes
# whole steps of that noise: relative comparisons leave it out.
NOISE = "attention/key/bias"


class Run:
    """What the program left behind: exit code, output, messages, and its files in `folder`."""

    def __init__(self, folder, code, out, errors):
        self.folder, self.code, self.out, self.errors = folder, code, out, errors

    def checkpoint(self, step):
        return os.path.join(self.folder, "checkpoints", f"step-{step:08d}.h5")

    def checkpoints(self):
        """The names in the checkpoint directory."""
        path = os.path.join(self.folder, "checkpoints")
        return sorted(os.listdir(path)) if os.path.isdir(path) else []

    def tensors(self, step):
        return tensors(self.checkpoint(step))

    def metrics(self, key=None):
        """The objects of metrics.jsonl, or what those that have the key say of it; none where there is no file."""
        path = os.path.join(self.folder, "metrics.jsonl")
        if not os.path.exists(path):
            return []
        with open(path, encoding="ascii") as file:
            lines = [json.loads(line) for line in file]
        return lines if key is None else [line[key] for line in lines if key in line]


def write_stream(path, stream, vocabulary=VOCABULARY):
    with h5py.File(path, "w") as file:
        file["tokens"] = stream
        file.attrs.update(format="ppmodel-dataset", version=1, vocabulary=vocabulary, tokenizer="none")


def write_dataset(path, tokens=5000, vocabulary=VOCABULARY, seed=1):
    """A stream in which a token depends on the one before."""
    stream = (np.cumsum(np.random.default_rng(seed).geometric(0.3, tokens)) % vocabulary).astype(np.uint16)
    write_stream(path, stream, vocabulary)
    return stream


def prepare(folder):
    """The namelist in.nml and the dataset corpus.h5 in `folder`."""
    with open(os.path.join(folder, "in.nml"), "w", encoding="ascii") as file:
        file.write(NAMELIST)
    write_dataset(os.path.join(folder, "corpus.h5"))


def run(folder, name, ranks, *overrides, seconds=90, **environment):
    """Runs the program in `folder` with output in folder/name and, unless an override says otherwise, checkpoints in
    folder/name/checkpoints."""
    words = [f"run.output={name}", *overrides]
    if not any(word.startswith("checkpoint.directory=") for word in overrides):
        words.append(f"checkpoint.directory={name}/checkpoints")
    result = tap.launch(ranks, tap.program("ppmodel"), "in.nml", *words, folder=folder, seconds=seconds,
                        environment=environment)
    return Run(os.path.join(folder, name), *result)


def train(folder, name, ranks, *overrides, **more):
    """The same, where nothing but success is expected: says so otherwise."""
    result = run(folder, name, ranks, *overrides, **more)
    if result.code != 0:
        tap.ok(False, f"{name} ends with 0, not {result.code}")
        tap.note(result.out[-1000:] + result.errors)
    return result


def tensors(path):
    """All datasets of an HDF5 file by name; none where there is no such file."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    if os.path.exists(path):
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    return found


def different(a, b):
    """Names of the tensors whose bits differ, or that only one of the two has."""
    return sorted(name for name in a.keys() | b.keys()
                  if name not in a or name not in b or a[name].shape != b[name].shape
                  or a[name].tobytes() != b[name].tobytes())


def is_same(a, b, name):
    """Holds when there are tensors, and each has the same bits in both."""
    names = different(a, b)
    if not tap.ok(a and not names, name):
        tap.note(f"{len(names)} of {len(a)} tensors differ: {' '.join(names[:8])}")
    return not names


def relative(found, expected):
    """L2 norm of the difference over that of the expected."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30)


def farthest(a, b):
    """The largest relative difference between tensors of the same name, layer by layer in stacks, and where it is;
    noise is left out."""
    worst = (0.0, "")
    for name in a.keys() & b.keys():
        stacked = "blocks/" in name
        for layer in range(len(b[name])) if stacked and NOISE not in name else []:
            worst = max(worst, (relative(a[name][layer], b[name][layer]), f"{name}[{layer}]"))
        if not stacked:
            worst = max(worst, (relative(a[name], b[name]), name))
    return worst


def is_close(a, b, tolerance, name):
    """Holds when both have the same tensors and each agrees to `tolerance` in relative L2 norm; noise is left out."""
    distance, where = farthest(a, b)
    if not tap.ok(a and a.keys() == b.keys() and distance <= tolerance, name):
        tap.note(f"{where} differs by {distance:.2e}, allowed {tolerance:.0e}; "
                 f"in one only: {sorted(a.keys() ^ b.keys())}")


def part(tree, *prefixes):
    """The tensors whose names start with one of the prefixes."""
    return {name: value for name, value in tree.items() if name.startswith(prefixes)}


def norm(x, weight, bias, epsilon):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + epsilon) * weight + bias


def attention(x, weights, layer):
    """Causal attention of x [samples, sequence, hidden]."""
    query, key, value = (np.einsum("nsi,hdi->nhsd", x, weights[f"blocks/attention/{name}/weight"][layer])
                         + weights[f"blocks/attention/{name}/bias"][layer][:, None]
                         for name in ("query", "key", "value"))
    scores = np.einsum("nhqd,nhkd->nhqk", query, key) / np.sqrt(query.shape[-1])
    scores = np.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.einsum("nhqk,nhkd->nqhd", scores / scores.sum(-1, keepdims=True), value)
    return (np.einsum("nshd,ohd->nso", mixed, weights["blocks/attention/output/weight"][layer])
            + weights["blocks/attention/output/bias"][layer])


def mlp(x, weights, layer):
    up = x @ weights["blocks/mlp/up/weight"][layer].T + weights["blocks/mlp/up/bias"][layer]
    up = up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up ** 3))) / 2
    return up @ weights["blocks/mlp/down/weight"][layer].T + weights["blocks/mlp/down/bias"][layer]


def losses(tree, samples, epsilon=1e-5):
    """GPT-2 in double precision: the loss of each token, [samples, sequence], with the weights /model of a checkpoint;
    samples [samples, sequence + 1] are tokens."""
    weights = {name[len("model/"):]: value.astype(np.float64) for name, value in tree.items()
               if name.startswith("model/")}
    x = weights["embedding/token"][samples[:, :-1]] + weights["embedding/position"]
    for layer in range(len(weights["blocks/mlp/up/bias"])):
        x = x + attention(norm(x, weights["blocks/attention_norm/weight"][layer],
                               weights["blocks/attention_norm/bias"][layer], epsilon), weights, layer)
        x = x + mlp(norm(x, weights["blocks/mlp_norm/weight"][layer], weights["blocks/mlp_norm/bias"][layer], epsilon),
                    weights, layer)
    head = weights.get("head/weight", weights["embedding/token"])
    logits = norm(x, weights["final_norm/weight"], weights["final_norm/bias"], epsilon) @ head.T
    logits -= logits.max(-1, keepdims=True)
    right = np.take_along_axis(logits, samples[:, 1:, None].astype(np.int64), -1)[..., 0]
    return np.log(np.exp(logits).sum(-1)) - right


def samples_of(stream, count=None):
    """The samples of a stream of tokens, in order: [samples, sequence + 1]."""
    whole = (len(stream) - 1) // SEQUENCE
    return np.stack([stream[i * SEQUENCE:(i + 1) * SEQUENCE + 1] for i in range(whole if count is None else count)])
