#!/usr/bin/env python3
"""Trains GPT-2 with PyTorch on the tokens and with the settings that jobs/gpu.py gives to ppmodel, and prints one line
of JSON: the loss, the norm of the gradient and the seconds of each step, and the largest memory of the device.

    jobs/gpu_torch.py --tokens FILE --layers 12 --hidden 768 ... [--weights CHECKPOINT] [--compile]

FILE has 16-bit tokens and nothing else; the steps take them in their order. With --weights, which needs h5py, the
training begins where a checkpoint of ppmodel's is, else with random weights. bf16 is autocast; AdamW is fused.
"""
import argparse
import contextlib
import json
import math
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


class Block(nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv, self.output = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x):
        sequences, length, hidden = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(sequences, length, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).reshape(sequences, length, hidden))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


class GPT2(nn.Module):
    """With the head tied to the embedding."""

    def __init__(self, layers, hidden, heads, sequence, vocabulary):
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, hidden), nn.Embedding(sequence, hidden)
        self.blocks = nn.ModuleList(Block(hidden, heads) for _ in range(layers))
        self.final_norm = nn.LayerNorm(hidden)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                outer = name.endswith(("output.weight", "down.weight"))
                nn.init.normal_(weight, 0, 0.02 / math.sqrt(2 * layers) if outer else 0.02)
            elif "norm" not in name:
                nn.init.zeros_(weight)

    def forward(self, inputs, targets):
        x = self.token(inputs) + self.position.weight
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.final_norm(x), self.token.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def load(model, path):
    """The weights of a checkpoint."""
    import h5py

    def put(parameter, values):
        parameter.data.copy_(torch.from_numpy(values).reshape(parameter.shape))

    with h5py.File(path, "r") as file:
        tree = file["model"]
        put(model.token.weight, tree["embedding/token"][()])
        put(model.position.weight, tree["embedding/position"][()])
        for kind in ("weight", "bias"):
            put(getattr(model.final_norm, kind), tree[f"final_norm/{kind}"][()])
            for layer, block in enumerate(model.blocks):
                parts = [torch.from_numpy(tree[f"blocks/attention/{name}/{kind}"][layer]).flatten(0, 1)
                         for name in ("query", "key", "value")]
                getattr(block.qkv, kind).data.copy_(torch.cat(parts))
                for module, name in ((block.output, "attention/output"), (block.up, "mlp/up"), (block.down, "mlp/down"),
                                     (block.attention_norm, "attention_norm"), (block.mlp_norm, "mlp_norm")):
                    put(getattr(module, kind), tree[f"blocks/{name}/{kind}"][layer])


class Batches:
    """[microbatches, size, sequence + 1] for each step, on the device."""

    def __init__(self, options):
        self.options = options
        self.stream = torch.from_file(options.tokens, dtype=torch.int16, size=self.length(options.steps) + 1)

    def length(self, steps):
        return steps * self.options.microbatches * self.options.microbatch_size * self.options.sequence

    def take(self, step):
        begin, end = self.length(step), self.length(step + 1)
        tokens = self.stream[begin:end + 1].to(torch.int64) & 0xFFFF
        samples = tokens.unfold(0, self.options.sequence + 1, self.options.sequence)
        return samples.view(self.options.microbatches, self.options.microbatch_size, -1).to(self.options.device)


def synchronize(options):
    if options.device == "cuda":
        torch.cuda.synchronize()


def optimizer_of(model, options):
    groups = [{"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 0.1},
              {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.95), eps=1e-8, fused=True)


def train(options):
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high" if options.precision == "tf32" else "highest")
    model = GPT2(options.layers, options.hidden, options.heads, options.sequence, options.vocabulary)
    if options.weights:
        load(model, options.weights)
    model.to(options.device)
    forward = torch.compile(model) if options.compile else model
    optimizer, batches = optimizer_of(model, options), Batches(options)
    narrow = (torch.autocast(options.device, torch.bfloat16) if options.precision == "bf16"
              else contextlib.nullcontext())
    report = {"loss": [], "gradient_norm": [], "seconds": []}
    for step in range(options.steps):
        samples, loss = batches.take(step), 0.0
        synchronize(options)
        begin = time.perf_counter()
        for microbatch in samples:
            with narrow:
                part = forward(microbatch[:, :-1], microbatch[:, 1:]) / options.microbatches
            part.backward()
            loss = loss + part.detach()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize(options)
        report["seconds"].append(time.perf_counter() - begin)
        report["loss"].append(loss.item())
        report["gradient_norm"].append(norm.item())
    report["memory"] = torch.cuda.max_memory_reserved() if options.device == "cuda" else 0
    return report | {"torch": torch.__version__}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", required=True)
    for name in ("layers", "hidden", "heads", "sequence", "vocabulary", "microbatch-size", "microbatches", "steps"):
        parser.add_argument("--" + name, type=int, required=True)
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--weights", metavar="CHECKPOINT")
    parser.add_argument("--compile", action="store_true")
    print(json.dumps(train(parser.parse_args())), flush=True)


if __name__ == "__main__":
    main()
