/* Datasets as the program and as others write them, on any number of ranks, and broken ones. */
#include "io/dataset.h"

#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/random.h"
#include "parallel/job.h"
#include "tap.h"
#include "tests/file_checks.h"

enum {
    TOKENS = 10007,
    VOCABULARY = 100
};

/* How a dataset file is made; all zero: right and plain. */
struct recipe {
    hid_t type;          /* of the tokens on disk; 0: uint16 */
    hsize_t chunk;       /* 0: contiguous */
    int compress;        /* gzip level */
    int axes;            /* 0: 1 */
    int64_t tokens;      /* 0: TOKENS */
    int64_t bad_value;   /* of token 5000 where not 0 */
    const char *format;  /* NULL: right; "": no such attribute */
    int64_t version;     /* 0: 1 */
    const char *no_int;  /* name of an integer attribute that is a float */
    const char *missing; /* name of an attribute or dataset that is left out */
    int64_t vocabulary;  /* 0: VOCABULARY */
    bool fixed_text;     /* the format as a string of fixed length, padded with blanks */
    bool group_for_tokens;
};

static char path[64] = "dataset-test-XXXXXX";

static int64_t token(int64_t i)
{
    return (int64_t)(random_bits(5, (uint64_t)i) % VOCABULARY);
}

static void put(hid_t file, const struct recipe *recipe, const char *name, int64_t value)
{
    if (recipe->missing && strcmp(recipe->missing, name) == 0)
        return;
    bool real = recipe->no_int && strcmp(recipe->no_int, name) == 0;
    hid_t space = H5Screate(H5S_SCALAR), type = real ? H5T_IEEE_F64LE : H5T_STD_I32LE;
    hid_t attribute = H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    H5Awrite(attribute, H5T_NATIVE_INT64, &value);
    H5Aclose(attribute);
    H5Sclose(space);
}

static void put_format(hid_t file, const struct recipe *recipe)
{
    const char *format = recipe->format ? recipe->format : "ppmodel-dataset";
    if (!*format)
        return;
    char padded[40];
    memset(padded, ' ', sizeof padded);
    memcpy(padded, format, strlen(format));
    hid_t space = H5Screate(H5S_SCALAR), type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, recipe->fixed_text ? sizeof padded : H5T_VARIABLE);
    H5Tset_strpad(type, recipe->fixed_text ? H5T_STR_SPACEPAD : H5T_STR_NULLTERM);
    hid_t attribute = H5Acreate2(file, "format", type, space, H5P_DEFAULT, H5P_DEFAULT);
    if (recipe->fixed_text)
        H5Awrite(attribute, type, padded);
    else
        H5Awrite(attribute, type, &format);
    H5Aclose(attribute);
    H5Tclose(type);
    H5Sclose(space);
}

static void make(const struct recipe *recipe)
{
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    put_format(file, recipe);
    put(file, recipe, "version", recipe->version ? recipe->version : 1);
    put(file, recipe, "vocabulary", recipe->vocabulary ? recipe->vocabulary : VOCABULARY);
    int64_t count = recipe->tokens ? recipe->tokens : TOKENS;
    hsize_t dims[2] = {(hsize_t)count, 1};
    hid_t space = H5Screate_simple(recipe->axes ? recipe->axes : 1, dims, NULL), layout = H5Pcreate(H5P_DATASET_CREATE);
    if (recipe->chunk)
        H5Pset_chunk(layout, 1, &recipe->chunk);
    if (recipe->compress)
        H5Pset_deflate(layout, (unsigned)recipe->compress);
    if (recipe->group_for_tokens) {
        H5Gclose(H5Gcreate2(file, "/tokens", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
    } else if (!recipe->missing || strcmp(recipe->missing, "tokens") != 0) {
        int64_t *tokens = malloc((size_t)count * sizeof *tokens);
        for (int64_t i = 0; i < count; i++)
            tokens[i] = i == 5000 && recipe->bad_value ? recipe->bad_value : token(i);
        hid_t stream = H5Dcreate2(file, "/tokens", recipe->type ? recipe->type : H5T_STD_U16LE, space, H5P_DEFAULT,
                                  layout, H5P_DEFAULT);
        H5Dwrite(stream, H5T_NATIVE_INT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, tokens);
        H5Dclose(stream);
        free(tokens);
    }
    H5Pclose(layout);
    H5Sclose(space);
    H5Fclose(file);
}

static int open_made(struct communicator *world, const struct recipe *recipe, struct dataset **dataset, struct err *err)
{
    if (world->rank == 0)
        make(recipe);
    control_barrier(world);
    err->text[0] = '\0';
    return dataset_open(dataset, world, path, err);
}

/* Each rank reads samples of its own, the last one too. */
static void reads(struct communicator *world, const char *name, struct recipe recipe)
{
    enum {
        SEQUENCE = 37,
        COUNT = 40
    };
    struct dataset *dataset;
    struct err err;
    if (!ok(open_made(world, &recipe, &dataset, &err) == 0, "%s: opened", name)) {
        tap_note("%s", err.text);
        return;
    }
    int64_t samples[COUNT], whole = dataset_samples(dataset, SEQUENCE);
    static int32_t tokens[COUNT * SEQUENCE];
    bool right = dataset_tokens(dataset) == TOKENS && whole == (TOKENS - 1) / SEQUENCE &&
                 dataset_vocabulary(dataset) == VOCABULARY;
    for (int shift = 0; shift < 2; shift++) {
        for (int i = 0; i < COUNT; i++)
            samples[i] =
                i == 0 ? whole - 1 : (int64_t)(random_bits((uint64_t)world->rank, (uint64_t)i) % (uint64_t)whole);
        right =
            right && dataset_read(dataset, samples, world->rank == 1 ? 3 : COUNT, SEQUENCE, shift, tokens, &err) == 0;
        for (int i = 0; i < (world->rank == 1 ? 3 : COUNT) && right; i++)
            for (int j = 0; j < SEQUENCE; j++)
                right = right && tokens[i * SEQUENCE + j] == token(samples[i] * SEQUENCE + shift + j);
    }
    ok(right, "%s: every token is right", name);
    dataset_close(dataset);
}

static void refuses(struct communicator *world, const char *words, struct recipe recipe)
{
    struct dataset *dataset;
    struct err err;
    int result = open_made(world, &recipe, &dataset, &err);
    ok(result < 0 && strstr(err.text, words) && strstr(err.text, path) && same_text(world, &err), "refused: %s", words);
    if (result == 0)
        dataset_close(dataset);
    if (!strstr(err.text, words))
        tap_note("%s", err.text);
}

static void refuses_value(struct communicator *world, const char *words, struct recipe recipe)
{
    struct dataset *dataset;
    struct err err;
    int64_t samples[] = {10, 50, 60};
    int32_t tokens[300];
    int result = open_made(world, &recipe, &dataset, &err);
    ok(result == 0 && dataset_read(dataset, samples, 3, 100, 0, tokens, &err) < 0 && strstr(err.text, words) &&
           strstr(err.text, "sample 50"),
       "a bad token: %s", err.text);
    ok(result == 0 && dataset_read(dataset, samples, 1, 100, 1, tokens, &err) == 0, "the others can be read");
    if (result == 0)
        dataset_close(dataset);
}

static void out_of_range(struct communicator *world)
{
    struct dataset *dataset;
    struct err err;
    int32_t tokens[100];
    if (open_made(world, &(struct recipe){.tokens = 201}, &dataset, &err) < 0) {
        ok(false, "%s", err.text);
        return;
    }
    ok(dataset_samples(dataset, 100) == 2 && dataset_samples(dataset, 101) == 1 && dataset_samples(dataset, 200) == 1 &&
           dataset_samples(dataset, 201) == 0,
       "whole samples");
    for (int64_t sample = -1; sample <= 2; sample++) {
        int result = dataset_read(dataset, &sample, 1, 100, 1, tokens, &err);
        ok(result == (sample < 0 || sample > 1 ? -1 : 0), "sample %d of 2", (int)sample);
    }
    dataset_close(dataset);
}

/* Files cut short: an error, or (where only unused bytes are missing) the right tokens; never a crash. */
static void truncated(struct communicator *world)
{
    struct err err;
    bool holds = true;
    int opened = 0;
    for (off_t size = 0; size < 22000; size += 997) {
        if (world->rank == 0)
            make(&(struct recipe){.type = 0});
        if (world->rank == 0 && truncate(path, size) != 0)
            holds = false;
        control_barrier(world);
        struct dataset *dataset;
        err.text[0] = '\0';
        int result = dataset_open(&dataset, world, path, &err);
        holds = holds && (result == 0 || err.text[0]);
        opened += result == 0;
        if (result == 0)
            dataset_close(dataset);
    }
    ok(holds && opened == 0, "files cut short are refused, %d were not", opened);
    tap_note("%s", err.text);
}

int main(int argc, char **argv)
{
    struct job job;
    job_begin(&argc, &argv, &job);
    struct communicator *world = job.world;
    int descriptor = world->rank == 0 ? mkstemp(path) : 0;
    control_broadcast(world, path, sizeof path, 0);

    reads(world, "uint16", (struct recipe){.type = 0});
    reads(world, "int8", (struct recipe){.type = H5T_STD_I8LE});
    reads(world, "uint32, big end first", (struct recipe){.type = H5T_STD_U32BE});
    reads(world, "int64 in chunks", (struct recipe){.type = H5T_STD_I64LE, .chunk = 1000});
    reads(world, "uint64, compressed", (struct recipe){.type = H5T_STD_U64LE, .chunk = 333, .compress = 4});
    reads(world, "format padded with blanks", (struct recipe){.fixed_text = true});

    refuses(world, "attribute 'format' is missing", (struct recipe){.format = ""});
    refuses(world, "is 'ppmodel-checkpoint', not 'ppmodel-dataset'", (struct recipe){.format = "ppmodel-checkpoint"});
    refuses(world, "version 2", (struct recipe){.version = 2});
    refuses(world, "attribute 'version' is missing", (struct recipe){.missing = "version"});
    refuses(world, "attribute 'vocabulary' is missing", (struct recipe){.missing = "vocabulary"});
    refuses(world, "attribute 'vocabulary' is not an integer", (struct recipe){.no_int = "vocabulary"});
    refuses(world, "attribute 'vocabulary' is -1", (struct recipe){.vocabulary = -1});
    refuses(world, "/tokens is missing", (struct recipe){.missing = "tokens"});
    refuses(world, "/tokens cannot be opened as a dataset", (struct recipe){.group_for_tokens = true});
    refuses(world, "/tokens: has 2 axes", (struct recipe){.axes = 2});
    refuses(world, "/tokens: does not hold integers", (struct recipe){.type = H5T_IEEE_F32LE});
    refuses(world, "/tokens: holds 1 tokens", (struct recipe){.tokens = 1});
    refuses_value(world, "is 100, outside", (struct recipe){.bad_value = 100});
    refuses_value(world, "is -1, outside", (struct recipe){.bad_value = -1, .type = H5T_STD_I32LE});
    refuses_value(world, "is at least 2147483647",
                  (struct recipe){.bad_value = ((int64_t)1 << 32) + 3, .type = H5T_STD_I64LE});
    out_of_range(world);
    truncated(world);

    struct err err;
    struct dataset *dataset;
    ok(dataset_open(&dataset, world, "/nowhere", &err) < 0 && strstr(err.text, "No such file"), "no file: %s",
       err.text);
    ok(dataset_open(&dataset, world, "/dev/null", &err) < 0, "not an HDF5 file: %s", err.text);
    ok(dataset_open(&dataset, world, "/tmp", &err) < 0, "a folder: %s", err.text);
    if (world->rank == 0)
        unlink(path);
    if (world->rank == 0)
        close(descriptor);
    tap_done();
    job_end(&job);
    return 0;
}
