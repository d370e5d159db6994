#!/usr/bin/env python3
"""Makes the files in tests/golden/: what PyTorch computes, in double precision, from the definition of gpt2.

    tests/make_golden.py            # needs torch, numpy and h5py; the tests that read the files do not need torch

tokens.h5                a dataset
untied.h5, tied.h5       a model each, trained twice. /model: initial weights (load_weights takes the file as it is);
                         /gradients: of step 1, before clipping; /runs/{clipped,unclipped}: losses, gradient_norms and
                         learning_rates of every step; in one of the two runs, after the last step: /change of the
                         weights from the initial ones, and both moments; /validation: the mean losses of the first
                         so many samples of the dataset, of the initial weights
layers.h5                /embedding, /block, /head alone: weights, what goes in and out, and gradients

Attributes: `script`, the digest of this file, which the tests compare; `torch`, the version that computed, which makes
the same bytes again; `input`, the run as a namelist, and of that `norm_epsilon`. Before anything is made, what is
written out in this script is compared with PyTorch's own functions on random numbers.

The files are small. Initial weights are multiples of 1/64, which float32 holds exactly. Gradients and what a run leaves
are rounded, once they are known, to counts of steps: count * step + least, with [least, step] in the attribute `scale`,
one pair for each layer of a stack. A step is such that the L2 norm of all errors is at most ROUNDING of the tensor's
norm (for a change: of the weights'). Everything else is float32, numbers of steps and of samples float64.
"""
import hashlib
import math
import os

import h5py
import numpy as np
import torch
import torch.nn.functional as F

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden")
GRAIN = 64  # initial weights are multiples of 1 / GRAIN
ROUNDING = {"gradients": 3e-7, "change": 5e-7, "first_moment": 2e-6, "second_moment": 2e-6}
NOTHING = 1e-15  # the finest step: the gradient of the keys' bias, 0 but for rounding, becomes 0
SAMPLES = 53  # in the dataset: fewer than the steps take, so that the last step wraps around
VALIDATION = (1, 2, 7, 31)  # samples: no microbatch size divides them all

VARIANTS = {
    "untied": {
        "run.steps": 7, "run.stop_at": 5,
        "model.layers": 5, "model.hidden": 48, "model.heads": 3, "model.ffn_hidden": 36, "model.sequence": 23,
        "model.vocabulary": 101, "model.tied_embeddings": False, "model.norm_epsilon": 1e-5,
        "pipeline.global_batch": 12, "pipeline.microbatch_size": 3,
        "optimizer.learning_rate": 3e-3, "optimizer.min_learning_rate": 5e-4, "optimizer.warmup_steps": 2,
        "optimizer.decay": "cosine", "optimizer.beta1": 0.9, "optimizer.beta2": 0.95, "optimizer.epsilon": 1e-6,
        "optimizer.weight_decay": 0.1, "data.shuffle": False,
    },
    "tied": {
        "run.steps": 5, "run.stop_at": 0,
        "model.layers": 5, "model.hidden": 48, "model.heads": 3, "model.ffn_hidden": 30, "model.sequence": 23,
        "model.vocabulary": 101, "model.tied_embeddings": True, "model.norm_epsilon": 1e-3,
        "pipeline.global_batch": 12, "pipeline.microbatch_size": 3,
        "optimizer.learning_rate": 2e-3, "optimizer.min_learning_rate": 0.0, "optimizer.warmup_steps": 0,
        "optimizer.decay": "cosine", "optimizer.beta1": 0.8, "optimizer.beta2": 0.9, "optimizer.epsilon": 1e-4,
        "optimizer.weight_decay": 0.3, "data.shuffle": False,
    },
}
CLIP_NORMS = {"untied": {"clipped": 0.25, "unclipped": 1000.0}, "tied": {"clipped": 0.25, "unclipped": 0.0}}
WHOLE = {"untied": "clipped", "tied": "unclipped"}  # the run whose weights and moments are kept


def grains(generator, *shape, scale):
    """Normal numbers rounded to grains, in double precision."""
    numbers = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
    return torch.round(numbers * GRAIN) / GRAIN


def shapes_of_block(s):
    h, n, f = s["model.hidden"], s["model.heads"], s["model.ffn_hidden"]
    shapes = {"attention_norm/weight": (h,), "attention_norm/bias": (h,)}
    for name in ("query", "key", "value"):
        shapes |= {f"attention/{name}/weight": (n, h // n, h), f"attention/{name}/bias": (n, h // n)}
    return shapes | {"attention/output/weight": (h, n, h // n), "attention/output/bias": (h,),
                     "mlp_norm/weight": (h,), "mlp_norm/bias": (h,), "mlp/up/weight": (f, h), "mlp/up/bias": (f,),
                     "mlp/down/weight": (h, f), "mlp/down/bias": (h,)}


def initial(path, shape, generator):
    """Biases and norms are not at their usual 0 and 1, so that none of them can be left out unseen."""
    if "norm/weight" in path:
        return 1 + grains(generator, *shape, scale=0.25)
    return grains(generator, *shape, scale=0.25 if path.endswith("bias") else 0.14)


def make_model(s, generator):
    """{path: tensor}: blocks/... are stacked on a leading axis, as in a checkpoint."""
    h, v = s["model.hidden"], s["model.vocabulary"]
    shapes = {"embedding/token": (v, h), "embedding/position": (s["model.sequence"], h)}
    shapes |= {f"blocks/{name}": (s["model.layers"], *shape) for name, shape in shapes_of_block(s).items()}
    shapes |= {"final_norm/weight": (h,), "final_norm/bias": (h,)}
    if not s["model.tied_embeddings"]:
        shapes["head/weight"] = (v, h)
    return {path: initial(path, shape, generator).requires_grad_() for path, shape in shapes.items()}


def norm(x, weight, bias, epsilon):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + epsilon) * weight + bias


def gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


def attention(x, w):
    """x [sequences, length, hidden]; weights [heads, head_size, hidden]."""
    q, k, v = (torch.einsum("btc,nsc->bnts", x, w[f"attention/{name}/weight"]) +
               w[f"attention/{name}/bias"][None, :, None, :] for name in ("query", "key", "value"))
    length, head_size = q.shape[-2:]
    scores = q @ k.transpose(-1, -2) / math.sqrt(head_size)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    mixed = torch.softmax(scores.masked_fill(future, -math.inf), -1) @ v
    return torch.einsum("bnts,hns->bth", mixed, w["attention/output/weight"]) + w["attention/output/bias"]


def block(x, w, epsilon):
    x = x + attention(norm(x, w["attention_norm/weight"], w["attention_norm/bias"], epsilon), w)
    up = norm(x, w["mlp_norm/weight"], w["mlp_norm/bias"], epsilon) @ w["mlp/up/weight"].T + w["mlp/up/bias"]
    return x + gelu(up) @ w["mlp/down/weight"].T + w["mlp/down/bias"]


def embedding(inputs, token, position):
    return token[inputs] + position


def head(x, targets, norm_weight, norm_bias, weight, epsilon):
    """Loss of every token."""
    logits = norm(x, norm_weight, norm_bias, epsilon) @ weight.T
    return torch.logsumexp(logits, -1) - logits.gather(-1, targets[..., None])[..., 0]


def model_losses(s, model, inputs, targets):
    epsilon = s["model.norm_epsilon"]
    x = embedding(inputs, model["embedding/token"], model["embedding/position"])
    for layer in range(s["model.layers"]):
        x = block(x, {name: model[f"blocks/{name}"][layer] for name in shapes_of_block(s)}, epsilon)
    weight = model["embedding/token"] if s["model.tied_embeddings"] else model["head/weight"]
    return head(x, targets, model["final_norm/weight"], model["final_norm/bias"], weight, epsilon)


def learning_rate(s, step):
    rate, low = s["optimizer.learning_rate"], s["optimizer.min_learning_rate"]
    warmup = s["optimizer.warmup_steps"]
    if step <= warmup:
        return rate * step / warmup
    x = (step - warmup) / (s["run.steps"] - warmup)
    return low + (rate - low) * (1 + math.cos(math.pi * x)) / 2


def decays(path):
    return path.startswith(("embedding/", "head/")) or path.endswith("weight") and "norm" not in path


def samples_at(s, tokens, places):
    """Inputs and targets at places of the dataset, which starts again at its end."""
    length = s["model.sequence"]
    starts = [place % SAMPLES * length for place in places]
    return (torch.stack([tokens[i:i + length] for i in starts]),
            torch.stack([tokens[i + 1:i + length + 1] for i in starts]))


def make_optimizer(s, model):
    return torch.optim.AdamW(
        [{"params": [w for path, w in model.items() if decays(path)], "weight_decay": s["optimizer.weight_decay"]},
         {"params": [w for path, w in model.items() if not decays(path)], "weight_decay": 0.0}],
        betas=(s["optimizer.beta1"], s["optimizer.beta2"]), eps=s["optimizer.epsilon"])


def train(s, model, tokens, clip_norm):
    """Trains `model` in place; returns losses, norms, learning rates, gradients of step 1 and the optimizer."""
    optimizer = make_optimizer(s, model)
    batch = s["pipeline.global_batch"]
    losses, norms, rates, first = [], [], [], {}
    for step in range(1, (s["run.stop_at"] or s["run.steps"]) + 1):
        inputs, targets = samples_at(s, tokens, range((step - 1) * batch, step * batch))
        optimizer.zero_grad()
        loss = model_losses(s, model, inputs, targets).mean()
        loss.backward()
        if step == 1:
            first = {path: w.grad.clone() for path, w in model.items()}
        gradient_norm = torch.nn.utils.clip_grad_norm_(model.values(), clip_norm or math.inf)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(s, step)
        optimizer.step()
        losses.append(loss.item())
        norms.append(gradient_norm.item())
        rates.append(group["lr"])
    return losses, norms, rates, first, optimizer


def put(group, name, array, dtype=np.float32, **attributes):
    array = (array.detach().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)).astype(dtype)
    dataset = group.create_dataset(name, data=array, chunks=array.shape, compression=9, shuffle=True, track_times=False)
    dataset.attrs.update(attributes)


def put_tree(group, name, tensors):
    for path, tensor in tensors.items():
        put(group, f"{name}/{path}", tensor)


def counted(array, size, error):
    """Counts of steps, and [least, step]; the error is relative to `size`, an L2 norm."""
    step = max(2.7 * error * size / math.sqrt(array.size), NOTHING)  # errors of 0.29 steps, and a margin
    counts = np.round(array / step).astype(np.int64)
    assert np.linalg.norm(counts * step - array) <= error * size or step == NOTHING
    return counts - counts.min(), [counts.min() * step, step]


def put_counted(group, kind, tensors, sizes):
    """Rounds each tensor, each layer of a stack by itself; `sizes` are those of what the errors are relative to."""
    for path, tensor in tensors.items():
        layers = len(tensor) if path.startswith("blocks/") else 1
        pairs = [counted(array, size, ROUNDING[kind]) for array, size in
                 zip(tensor.detach().numpy().reshape(layers, -1),
                     torch.linalg.norm(sizes[path].detach().reshape(layers, -1), dim=1).tolist())]
        put(group, f"{kind}/{path}", np.reshape([counts for counts, _ in pairs], tensor.shape), np.uint32,
            scale=[scale for _, scale in pairs])


def create(name):
    file = h5py.File(os.path.join(FOLDER, name), "w", libver=("v110", "v110"))
    with open(os.path.abspath(__file__), "rb") as script:
        file.attrs["script"] = hashlib.sha256(script.read()).hexdigest()
    file.attrs["torch"] = str(torch.__version__)
    return file


def namelist(s):
    lines = []
    for group in dict.fromkeys(key.split(".")[0] for key in s):
        lines.append(f"&{group}")
        for key, value in s.items():
            if key.startswith(group + "."):
                spelled = f".{value}.".lower() if isinstance(value, bool) else repr(value)
                lines.append(f"    {key.split('.')[1]} = {spelled}")
        lines.append("/\n")
    return "\n".join(lines)


def make_tokens(vocabulary, length):
    """Half of the tokens follow from the one before, so that there is something to learn."""
    generator = torch.Generator().manual_seed(11)
    tokens = torch.randint(0, vocabulary, (length,), generator=generator)
    for i in range(1, length):
        if i % 7 < 4:
            tokens[i] = (3 * tokens[i - 1] + 1) % vocabulary
    with create("tokens.h5") as file:
        file.attrs.update({"format": "ppmodel-dataset", "version": 1, "vocabulary": vocabulary, "tokenizer": "none"})
        put(file, "tokens", tokens, np.uint16)
    return tokens


def put_validation(file, s, model, tokens):
    losses = [model_losses(s, model, *samples_at(s, tokens, range(samples))).mean().item() for samples in VALIDATION]
    put(file, "validation/samples", VALIDATION, np.int32)
    put(file, "validation/losses", losses, np.float64)


def moments(model, optimizer, name):
    return {path: optimizer.state[w][name] for path, w in model.items()}


def put_results(group, model, initial_model, optimizer):
    put_counted(group, "change", {path: w - initial_model[path] for path, w in model.items()}, model)
    for kind, name in (("first_moment", "exp_avg"), ("second_moment", "exp_avg_sq")):
        tensors = moments(model, optimizer, name)
        put_counted(group, kind, tensors, tensors)


def make_run(variant, tokens):
    s = VARIANTS[variant]
    with create(f"{variant}.h5") as file:
        file.attrs.update({"format": "ppmodel-checkpoint", "version": 1})
        file.attrs["input"] = namelist(s)
        file.attrs["norm_epsilon"] = s["model.norm_epsilon"]
        for run, clip_norm in CLIP_NORMS[variant].items():
            model = make_model(s, torch.Generator().manual_seed(12))
            if run == "clipped":
                put_tree(file, "model", model)
                put_validation(file, s, model, tokens)
            losses, norms, rates, gradients, optimizer = train(s, model, tokens, clip_norm)
            assert run == "unclipped" or min(norms) > 2 * clip_norm, norms
            assert run == "clipped" or clip_norm == 0 or max(norms) < clip_norm, norms
            if run == "clipped":
                put_counted(file, "gradients", gradients, gradients)
            group = file.create_group(f"runs/{run}")
            group.attrs["clip_norm"] = clip_norm
            for name, values in {"losses": losses, "gradient_norms": norms, "learning_rates": rates}.items():
                put(group, name, values, np.float64)
            if run == WHOLE[variant]:
                put_results(group, model, make_model(s, torch.Generator().manual_seed(12)), optimizer)
            print(f"{variant} {run}: losses {losses}, norms {norms}")


def make_layers():
    """Each kind of layer alone, on 3 sequences; the loss that is differentiated is sum(out * out_gradient)."""
    s = VARIANTS["untied"]
    generator = torch.Generator().manual_seed(13)
    h, v, length, sequences, epsilon = s["model.hidden"], s["model.vocabulary"], s["model.sequence"], 3, 1e-5
    inputs = torch.randint(0, v, (sequences, length), generator=generator)
    targets = torch.randint(0, v, (sequences, length), generator=generator)

    def put_layer(file, kind, x, weights, compute):
        group = file.create_group(kind)
        put_tree(group, "weights", weights)
        out = compute(x, weights)
        if kind == "head":
            put(group, "losses", out)
            out.mean().backward()
        else:
            out_gradient = grains(generator, *out.shape, scale=1)
            put(group, "out", out)
            put(group, "out_gradient", out_gradient)
            (out * out_gradient).sum().backward()
        if x is not None:
            put(group, "in", x)
            put(group, "in_gradient", x.grad)
        put_tree(group, "gradients", {path: w.grad for path, w in weights.items()})

    def make(shapes):
        return {path: initial(path, shape, generator).requires_grad_() for path, shape in shapes.items()}

    with create("layers.h5") as file:
        file.attrs.update({"sequences": sequences, "sequence": length, "hidden": h, "heads": s["model.heads"],
                           "ffn_hidden": s["model.ffn_hidden"], "vocabulary": v, "norm_epsilon": epsilon})
        put(file, "inputs", inputs, np.int32)
        put(file, "targets", targets, np.int32)
        put_layer(file, "embedding", None, make({"embedding/token": (v, h), "embedding/position": (length, h)}),
                  lambda _, w: embedding(inputs, w["embedding/token"], w["embedding/position"]))
        x = grains(generator, sequences, length, h, scale=1).requires_grad_()
        names = shapes_of_block(s)
        put_layer(file, "block", x, make({f"blocks/{name}": shape for name, shape in names.items()}),
                  lambda x, w: block(x, {name: w[f"blocks/{name}"] for name in names}, epsilon))
        x = grains(generator, sequences, length, h, scale=1).requires_grad_()
        put_layer(file, "head", x, make({"final_norm/weight": (h,), "final_norm/bias": (h,), "head/weight": (v, h)}),
                  lambda x, w: head(x, targets, *w.values(), epsilon))


def block_of_torch(x, w, epsilon):
    """The same as block(), of PyTorch's own functions."""
    h = x.shape[-1]

    def heads(x, name):
        weight, bias = w[f"attention/{name}/weight"], w[f"attention/{name}/bias"]
        return F.linear(x, weight.reshape(-1, h), bias.reshape(-1)).unflatten(-1, bias.shape).transpose(1, 2)

    norm1 = F.layer_norm(x, (h,), w["attention_norm/weight"], w["attention_norm/bias"], epsilon)
    mixed = F.scaled_dot_product_attention(*(heads(norm1, name) for name in ("query", "key", "value")), is_causal=True)
    x = x + F.linear(mixed.transpose(1, 2).flatten(-2), w["attention/output/weight"].reshape(h, -1),
                     w["attention/output/bias"])
    norm2 = F.layer_norm(x, (h,), w["mlp_norm/weight"], w["mlp_norm/bias"], epsilon)
    up = F.gelu(F.linear(norm2, w["mlp/up/weight"], w["mlp/up/bias"]), approximate="tanh")
    return x + F.linear(up, w["mlp/down/weight"], w["mlp/down/bias"])


def head_of_torch(x, targets, norm_weight, norm_bias, weight, epsilon):
    logits = F.linear(F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, epsilon), weight)
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")


def assert_close(a, b):
    assert (a - b).norm() <= 1e-12 * b.norm(), (a - b).norm() / b.norm()


def assert_same(compute, compute_of_torch, tensors):
    """The same values, and the same gradients of a random sum of them."""
    out, right = compute(), compute_of_torch()
    assert_close(out, right)
    factors = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    for a, b in zip(torch.autograd.grad((out * factors).sum(), tensors, retain_graph=True),
                    torch.autograd.grad((right * factors).sum(), tensors, retain_graph=True)):
        if b.norm() > 1e-9:  # that of the keys' bias is 0 but for rounding
            assert_close(a, b)


def check_layers(s):
    generator = torch.Generator().manual_seed(2)
    h, v, length, epsilon = s["model.hidden"], s["model.vocabulary"], s["model.sequence"], s["model.norm_epsilon"]

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    x, targets = normal(4, length, h), torch.randint(0, v, (4, length), generator=generator)
    w = {name: normal(*shape) for name, shape in shapes_of_block(s).items()}
    assert_same(lambda: block(x, w, epsilon), lambda: block_of_torch(x, w, epsilon), [x, *w.values()])
    w = [normal(h), normal(h), normal(v, h)]
    assert_same(lambda: head(x, targets, *w, epsilon), lambda: head_of_torch(x, targets, *w, epsilon), [x, *w])
    token, position = normal(v, h), normal(length, h)
    assert_same(lambda: embedding(targets, token, position),
                lambda: F.embedding(targets, token) + F.embedding(torch.arange(length), position), [token, position])


def check_optimizer(s):
    """AdamW as PyTorch's documentation defines it: the weights decay by themselves, apart from the moments."""
    generator = torch.Generator().manual_seed(3)
    model = {path: torch.randn(7, 5, generator=generator, dtype=torch.float64).requires_grad_()
             for path in ("embedding/token", "embedding/position", "blocks/mlp/up/weight", "blocks/mlp/up/bias",
                          "blocks/mlp_norm/weight", "blocks/mlp_norm/bias", "final_norm/weight", "head/weight")}
    decaying = ("embedding/token", "embedding/position", "blocks/mlp/up/weight", "head/weight")
    beta1, beta2, epsilon = s["optimizer.beta1"], s["optimizer.beta2"], s["optimizer.epsilon"]
    optimizer = make_optimizer(s, model)
    right = {path: (w.detach().clone(), torch.zeros_like(w), torch.zeros_like(w)) for path, w in model.items()}
    for step in range(1, 5):
        for group in optimizer.param_groups:
            group["lr"] = rate = learning_rate(s, step)
        for path, w in model.items():
            w.grad = torch.randn(w.shape, generator=generator, dtype=w.dtype)
            weight, first, second = right[path]
            weight = weight - rate * (s["optimizer.weight_decay"] if path in decaying else 0) * weight
            first = beta1 * first + (1 - beta1) * w.grad
            second = beta2 * second + (1 - beta2) * w.grad ** 2
            weight = weight - rate * first / (1 - beta1 ** step) / ((second / (1 - beta2 ** step)).sqrt() + epsilon)
            right[path] = weight, first, second
        optimizer.step()
    for i, tree in enumerate((model, moments(model, optimizer, "exp_avg"), moments(model, optimizer, "exp_avg_sq"))):
        for path, tensor in tree.items():
            assert_close(tensor.detach(), right[path][i])


def main():
    os.makedirs(FOLDER, exist_ok=True)
    torch.set_num_threads(1)
    for variant in VARIANTS.values():
        check_layers(variant)
        check_optimizer(variant)
    tokens = make_tokens(101, 23 * SAMPLES + 9)
    for variant in VARIANTS:
        make_run(variant, tokens)
    make_layers()


if __name__ == "__main__":
    main()
