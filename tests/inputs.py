#!/usr/bin/env python3
"""Wrong inputs: one message that says what is wrong, exit code 2 on every rank, nothing on the disk touched. TAP."""
import os

import tap
import tiny

np, h5py = tiny.np, tiny.h5py

RANKS = 4
NAMELIST = tiny.NAMELIST + "&grid tensor = 2 /\n&checkpoint directory = 'kept' /\n"

# A name; a text in the namelist and what it is replaced by; what the message must contain.
NAMELISTS = [
    ("an unknown key", "layers = 5", "layer = 5", ["in.nml:3:", "unknown key 'layer'", "did you mean 'layers'"]),
    ("an unknown group", "&model", "&modle", ["in.nml:3:", "&modle", "did you mean &model"]),
    ("a key given twice", "layers = 5", "layers = 5 layers = 5", ["'layers'", "twice"]),
    ("a group that is not closed", "'kept' /", "'kept'", ["&checkpoint"]),
    ("a string that is not closed", "'kept' /", "'kept\n/", ["the string is not closed"]),
    ("a key outside of a group", "&model", "seed = 3 &model", ["outside of a group"]),
    ("a number that is a word", "layers = 5", "layers = five", ["layers", "five"]),
    ("a whole number with a fraction", "layers = 5", "layers = 5.5", ["layers", "5.5"]),
    ("a number that is too small", "layers = 5", "layers = 0", ["layers", "1 to"]),
    ("a number that is too large", "layers = 5", "layers = 99999999999999999999", ["layers"]),
    ("several values of one", "layers = 5", "layers = 5, 5", ["layers"]),
    ("a string without quotes", "'kept'", "kept", ["directory"]),
    ("an unknown choice", "microbatches", "schedule = '1f1c' microbatches",
     ["'1f1c'", "did you mean '1f1b'", "'gpipe'"]),
    ("no value", "layers = 5", "layers =", ["layers"]),
]

# A name; overrides; what the message must contain. `empty` is a folder, `file` and corpus.h5 are files.
OVERRIDES = [
    ("an override of an unknown key", "run.stps=3", ["unknown key 'stps'", "did you mean 'steps'"]),
    ("an override of an unknown group", "rum.steps=3", ["&rum", "did you mean &run"]),
    ("an override without a group", "steps=3", ["steps"]),
    ("an override given twice", "run.steps=3 run.steps=3", ["'steps'", "twice"]),
    ("an override with an unknown choice", "run.mode=trian", ["did you mean 'train'", "'evaluate'"]),
    ("a run both verbose and quiet", "run.verbose=true run.quiet=true", ["verbose and quiet"]),
    ("a negative rate", "optimizer.learning_rate=-1", ["learning_rate", "-1"]),
    ("a rate that is no number", "optimizer.learning_rate=nan", ["learning_rate"]),

    ("a pipeline that does not divide the job", "grid.pipeline=3 grid.tensor=1", ["pipeline = 3", " 4 ranks", "1 2 4"]),
    ("a pipeline longer than the job", "grid.pipeline=8 grid.tensor=1", ["pipeline = 8", " 4 ranks", "1 2 4"]),
    ("more ranks than the job has", "grid.data=3 grid.tensor=2", ["make 6 ranks", "has 4", "1 2 4"]),
    ("fewer ranks than the job has", "grid.data=1 grid.tensor=1", ["make 1 ranks", "has 4", "1 2 4"]),
    ("heads that tensor ranks cannot share", "grid.tensor=4 model.heads=6", ["heads = 6", "tensor = 4", "1 2 3 6"]),
    ("columns that tensor ranks cannot share", "grid.tensor=4 model.ffn_hidden=50", ["ffn_hidden = 50", "tensor = 4"]),
    ("heads that do not divide the width", "model.heads=5 grid.tensor=1", ["hidden = 48", "heads = 5"]),
    ("fewer key than query heads", "model.kv_heads=2", ["kv_heads = 2", "gpt2"]),
    ("heads that are too wide", "model.hidden=1024 model.heads=2", ["512"]),
    ("more stages than layers", "grid.pipeline=4 grid.tensor=1 model.layers=1", ["4 stages", "largest pipeline", "3"]),
    ("chunks in a schedule without", "pipeline.chunks=2", ["1f1b", "chunks"]),
    ("a global batch that contradicts", "pipeline.global_batch=25", ["25", "microbatches = 4", "24"]),
    ("a global batch in part of a row", "pipeline.global_batch=20 pipeline.microbatches=0", ["20", "18 and 24"]),
    ("no stage_layers", "pipeline.balance=explicit", ["stage_layers"]),
    ("too many stage_layers", "pipeline.balance=explicit pipeline.stage_layers=2,3", ["stage_layers", "2"]),
    ("too few blocks in stage_layers", "pipeline.balance=explicit pipeline.stage_layers=4", ["stage_layers", "4", "5"]),
    ("a stage without layers", "grid.pipeline=4 grid.tensor=1 pipeline.balance=explicit pipeline.stage_layers=2,0,2,1",
     ["stage_layers"]),
    ("stage_layers for nothing", "pipeline.stage_layers=5", ["stage_layers", "balance = 'explicit'"]),
    ("a table without its file", "pipeline.schedule=csv", ["schedule_file"]),
    ("a table that is none", "pipeline.schedule=csv pipeline.schedule_file=file", ["file:1:1"]),
    ("a table's file for nothing", "pipeline.schedule_file=file", ["schedule_file", "schedule = 'csv'"]),

    ("too little memory", "plan.memory_gib=1e-4", ["memory_gib = 0.0001", "rank that holds"]),

    ("a stop beyond the end", "run.stop_at=9", ["stop_at = 9", "steps = 4"]),
    ("a rate that rises", "optimizer.min_learning_rate=1", ["min_learning_rate = 1"]),
    ("a warm-up beyond the end", "optimizer.warmup_steps=5", ["warmup_steps = 5", "steps = 4"]),
    ("a decay without length", "optimizer.decay=wsd", ["decay_steps"]),
    ("a decay that is too long", "optimizer.decay=wsd optimizer.decay_steps=5", ["decay_steps = 5", "steps = 4"]),
    ("a length of decay for nothing", "optimizer.decay_steps=2", ["decay_steps", "'cosine'"]),
    ("a trace that ends before it begins", "trace.first_step=3 trace.last_step=2", ["last_step = 2", "first_step = 3"]),

    ("no dataset", "data.train=none.h5", ["none.h5"]),
    ("a dataset that is a folder", "data.train=empty", ["empty"]),
    ("a dataset that is not HDF5", "data.train=file", ["file"]),
    ("a dataset that was cut off", "data.train=cut.h5", ["cut.h5"]),
    ("a checkpoint in place of a dataset", "data.train=kept/step-00000002.h5", ["ppmodel-dataset"]),
    ("a dataset without format", "data.train=no-format.h5", ["no-format.h5", "format"]),
    ("a dataset of another version", "data.train=version.h5", ["version.h5", "version"]),
    ("a dataset without a vocabulary", "data.train=no-vocabulary.h5", ["no-vocabulary.h5", "vocabulary"]),
    ("a dataset without tokens", "data.train=no-tokens.h5", ["no-tokens.h5", "/tokens"]),
    ("tokens that are not whole numbers", "data.train=real.h5", ["real.h5", "integers"]),
    ("tokens in a table", "data.train=table.h5", ["table.h5", "2 axes"]),
    ("a dataset with too many tokens", "model.vocabulary=100", ["vocabulary of 101", "vocabulary = 100"]),
    ("a dataset shorter than a batch", "data.train=short.h5", ["short.h5", "23 samples", "24"]),
    ("a validation set that is not there", "data.validation=none.h5", ["none.h5"]),
    ("a validation set without a sample", "data.validation=tiny.h5", ["tiny.h5", "0 samples"]),
    ("evaluations of nothing", "run.evaluate_every=1", ["validation"]),

    ("an output folder that is a file", "run.output=file", ["file"]),
    ("an output folder below a file", "run.output=file/out", ["file"]),
    ("a checkpoint directory that is a file", "checkpoint.directory=file", ["file"]),
    ("a checkpoint directory below a file", "checkpoint.directory=file/kept", ["file/kept"]),
    ("checkpoints for nobody", "checkpoint.directory='' checkpoint.every=1", ["every = 1", "directory"]),
    ("checkpoints in the way", "checkpoint.resume=none", ["resume = 'none'", "step-00000002.h5"]),
    ("a checkpoint that is not there", "checkpoint.resume=none.h5", ["none.h5"]),
    ("a dataset in place of a checkpoint", "checkpoint.resume=corpus.h5", ["corpus.h5", "ppmodel-checkpoint"]),
    ("weights alone in place of a checkpoint", "checkpoint.resume=weights.h5", ["weights.h5"]),
    ("weights that are not there", "checkpoint.directory='' checkpoint.load_weights=none.h5", ["none.h5"]),
    ("a checkpoint and weights", "checkpoint.resume=weights.h5 checkpoint.load_weights=weights.h5",
     ["resume", "load_weights"]),
    ("a checkpoint of fewer layers", "model.layers=6", ["step-00000002.h5", "[5, 48]", "[6, 48]"]),
    ("a checkpoint of an untied model", "model.tied_embeddings=false", ["step-00000002.h5", "/model/head/weight"]),
    ("a checkpoint of another seed", "run.seed=2", ["seed = 1", "seed = 2"]),
    ("no checkpoint but a damaged one", "checkpoint.directory=damaged", ["damaged/step-00000002.h5"]),
    ("an evaluation of nothing", "run.mode=evaluate", ["validation"]),
    ("an evaluation without a checkpoint",
     "run.mode=evaluate data.validation=corpus.h5 checkpoint.directory=empty", ["empty"]),
    ("an evaluation without weights", "run.mode=evaluate data.validation=corpus.h5 checkpoint.directory=''",
     ["load_weights"]),
]

# What the program does not do yet: said at once, never ignored.
UNFINISHED = [
    ("generate", "run.mode=generate", ["mode = 'generate'"]),
    ("CUDA", "run.device=cuda", ["device = 'cuda'"]),
    ("tf32", "run.precision=tf32", ["precision = 'tf32'"]),
    ("samples", "run.sample_every=1", ["sample_every"]),
    ("a llama", "model.family=llama", ["llama"]),
    ("scores", "run.mode=evaluate data.validation=corpus.h5 evaluate.scores=scores.h5", ["scores"]),
]

# The command line as it is; what the message must contain.
COMMANDS = [
    ("no input", [], ["no input file"]),
    ("an input that is not there", ["none.nml"], ["none.nml"]),
    ("an input that is a folder", ["empty"], ["empty"]),
    ("an input that is not a namelist", ["corpus.h5"], ["corpus.h5:", "is this a text file?"]),
    ("an unknown option", ["--hlep"], ["--hlep"]),
]


def write_bad_files(folder):
    def dataset(name, tokens=5000, change=None):
        tiny.write_dataset(os.path.join(folder, name), tokens)
        with h5py.File(os.path.join(folder, name), "r+") as file:
            if change:
                change(file)

    def replace(file, tokens):
        del file["tokens"]
        if tokens is not None:
            file["tokens"] = tokens

    dataset("no-format.h5", change=lambda file: file.attrs.pop("format"))
    dataset("version.h5", change=lambda file: file.attrs.modify("version", 2))
    dataset("no-vocabulary.h5", change=lambda file: file.attrs.pop("vocabulary"))
    dataset("no-tokens.h5", change=lambda file: replace(file, None))
    dataset("real.h5", change=lambda file: replace(file, np.ones(5000, np.float32)))
    dataset("table.h5", change=lambda file: replace(file, np.ones((50, 100), np.uint16)))
    dataset("short.h5", tokens=24 * tiny.SEQUENCE)
    dataset("tiny.h5", tokens=tiny.SEQUENCE)
    with open(os.path.join(folder, "corpus.h5"), "rb") as whole, open(os.path.join(folder, "cut.h5"), "wb") as cut:
        cut.write(whole.read(4000))
    with open(os.path.join(folder, "file"), "w", encoding="ascii") as file:
        file.write("not HDF5\n" * 1000)
    os.mkdir(os.path.join(folder, "empty"))
    kept = os.path.join(folder, "kept", "step-00000002.h5")
    with h5py.File(kept, "r") as source, h5py.File(os.path.join(folder, "weights.h5"), "w") as file:
        source.copy("model", file)
        file.attrs.update(format="ppmodel-checkpoint", version=1)
    os.mkdir(os.path.join(folder, "damaged"))
    with open(kept, "rb") as whole, open(os.path.join(folder, "damaged", "step-00000002.h5"), "wb") as damaged:
        damaged.write(whole.read()[:-1000])


def listing(folder):
    """Every file and folder with size and time of change."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in folders + files:
            path = os.path.join(place, name)
            state = os.stat(path)
            found[os.path.relpath(path, folder)] = state.st_size if os.path.isfile(path) else 0, state.st_mtime_ns
    return found


def check(folder, name, command, parts):
    before = listing(folder)
    code, out, errors = tap.launch(RANKS, *tap.EACH_RANK, tap.program("ppmodel"), *command, folder=folder)
    after = listing(folder)
    codes, errors = tap.rank_codes(errors)
    changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    right = {"exit code 2": code == 2, "of every rank": codes == [2] * RANKS,
             "one message": errors.count("error:") == 1,
             "no other": "warning" not in errors and "BAD TERMINATION" not in out + errors and "Abort" not in errors,
             "nothing is trained": "loss" not in out, "nothing is touched": not changed}
    right.update({f"says {part}": part in errors for part in parts})
    if not tap.ok(all(right.values()), name):
        tap.note(f"wrong: {', '.join(key for key, value in right.items() if not value)} (code {code})")
        tap.note(f"touched: {changed}\n{out[-300:]}{errors}")


def main():
    with tap.scratch_folder() as folder:
        tiny.prepare(folder)
        with open(os.path.join(folder, "in.nml"), "w", encoding="ascii") as file:
            file.write(NAMELIST)
        right = tap.launch(RANKS, tap.program("ppmodel"), "in.nml", "run.stop_at=2", "run.output=out", folder=folder)
        tap.ok(right[0] == 0 and "error" not in right[2], "the right input")
        write_bad_files(folder)
        for name, old, new, parts in NAMELISTS:
            assert NAMELIST.count(old) == 1, name
            with open(os.path.join(folder, "in.nml"), "w", encoding="ascii") as file:
                file.write(NAMELIST.replace(old, new))
            check(folder, name, ["in.nml", "run.output=new"], parts)
        with open(os.path.join(folder, "in.nml"), "w", encoding="ascii") as file:
            file.write(NAMELIST)
        for name, words, parts in OVERRIDES + [(f"not built: {name}", *rest) for name, *rest in UNFINISHED]:
            output = [] if "run.output" in words else ["run.output=new"]
            check(folder, name, ["in.nml", *output, *words.split()], parts)
        for name, command, parts in COMMANDS:
            check(folder, name, command, parts)
    tap.done()


main()
