/* Checkpoints that others made, that lack something or that are damaged: read rightly or refused with one message. */
#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/random.h"
#include "io/checkpoint.h"
#include "parallel/job.h"
#include "tap.h"
#include "tests/file_checks.h"

static const struct checkpoint_tensor tensors[2] = {{"/model/a/weight", 2, {5, 4}}, {"/model/b", 1, {3}}};
static char folder[64] = "damage-test-XXXXXX";
static struct staging *staging; /* of the CPU, whose memory is the host's */

/* Rank 0 holds and counts /model/a/weight by rows on two ranks (by columns would do too), /model/b lies on all. */
struct data {
    float a[20], b[3];
    struct checkpoint_part parts[2];
};

static void lay_out(struct data *data, const struct communicator *comm)
{
    int64_t from = 5 * comm->rank / comm->size, to = 5 * (comm->rank + 1) / comm->size;
    data->parts[0] = (struct checkpoint_part){
        .tensor = 0, .start = {from}, .count = {to - from, 4}, .data = data->a + 4 * from, .stride = 4, .first = true};
    data->parts[1] =
        (struct checkpoint_part){.tensor = 1, .count = {3}, .data = data->b, .stride = 1, .first = comm->rank == 0};
}

static float value(int tensor, int i)
{
    return 100.0f * (float)tensor + (float)i + 0.25f;
}

static void write_example(struct communicator *comm)
{
    struct data data;
    struct err err;
    struct checkpoint_info info = {.step = 7, .samples = 70, .seed = 1};
    char input[] = "&run / ", set[] = "corpus.h5", code[] = "v1";
    info.input = input;
    info.dataset = set;
    info.code = code;
    for (int i = 0; i < 20; i++)
        data.a[i] = value(0, i);
    for (int i = 0; i < 3; i++)
        data.b[i] = value(1, i);
    lay_out(&data, comm);
    if (checkpoint_write(comm, staging, folder, &info, tensors, 2, data.parts, 2, &err) < 0)
        tap_note("%s", err.text);
}

/* Reads the file; 0 only where every number is right. */
static int read_example(struct communicator *comm, const char *path, bool whole, struct err *err)
{
    struct data data = {.a = {0}};
    struct checkpoint_info info = {0};
    lay_out(&data, comm);
    err->text[0] = '\0';
    if (checkpoint_read(comm, staging, path, whole ? &info : NULL, tensors, 2, data.parts, 2, err) < 0)
        return -1;
    bool right = !whole || (info.step == 7 && info.samples == 70 && info.seed == 1);
    checkpoint_info_fini(&info);
    for (int64_t i = 4 * data.parts[0].start[0], n = 4 * data.parts[0].count[0]; n > 0; i++, n--)
        right = right && data.a[i] == value(0, (int)i);
    for (int i = 0; i < 3; i++)
        right = right && data.b[i] == value(1, i);
    return right ? 0 : err_set(err, "SILENTLY WRONG");
}

/* How rank 0 changes the right file. */
struct change {
    const char *drop_link, *drop_attribute;
    const char *text_attribute; /* name; gets text */
    const char *text;
    const char *int_attribute; /* name; gets number */
    int64_t number;
    hid_t type;          /* /model/b is made anew with this type ... */
    hsize_t rows, chunk; /* ... this length and, where not 0, in chunks, compressed */
    bool no_digest, with_digest_text;
    long flip; /* the element's byte that is changed: 1 ... */
};

static void set_attribute(hid_t where, const char *name, hid_t type, hid_t memory, const void *value_of)
{
    if (H5Aexists(where, name) > 0)
        H5Adelete(where, name);
    hid_t space = H5Screate(H5S_SCALAR), attribute = H5Acreate2(where, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    H5Awrite(attribute, memory, value_of);
    H5Aclose(attribute);
    H5Sclose(space);
}

static void renew_tensor(hid_t file, const struct change *change)
{
    float numbers[8] = {0};
    for (int i = 0; i < 3; i++)
        numbers[i] = value(1, i);
    H5Ldelete(file, "/model/b", H5P_DEFAULT);
    hid_t layout = H5Pcreate(H5P_DATASET_CREATE), space = H5Screate_simple(1, &change->rows, NULL);
    if (change->chunk) {
        H5Pset_chunk(layout, 1, &change->chunk);
        H5Pset_deflate(layout, 1);
    }
    hid_t set = H5Dcreate2(file, "/model/b", change->type, space, H5P_DEFAULT, layout, H5P_DEFAULT);
    H5Dwrite(set, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, numbers);
    if (change->with_digest_text) {
        hid_t text = H5Tcopy(H5T_C_S1);
        set_attribute(set, "digest", text, text, "x");
        H5Tclose(text);
    }
    H5Dclose(set);
    H5Sclose(space);
    H5Pclose(layout);
}

static void apply(const char *path, const struct change *change)
{
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
    hid_t text = H5Tcopy(H5T_C_S1);
    H5Tset_size(text, H5T_VARIABLE);
    if (change->drop_link)
        H5Ldelete(file, change->drop_link, H5P_DEFAULT);
    if (change->drop_attribute)
        H5Adelete(file, change->drop_attribute);
    if (change->text_attribute)
        set_attribute(file, change->text_attribute, text, text, &change->text);
    if (change->int_attribute)
        set_attribute(file, change->int_attribute, H5T_STD_I16BE, H5T_NATIVE_INT64, &change->number);
    if (change->rows)
        renew_tensor(file, change);
    long place = 0;
    hid_t set = H5Dopen2(file, "/model/a/weight", H5P_DEFAULT);
    if (set >= 0) {
        place = (long)H5Dget_offset(set);
        if (change->no_digest)
            H5Adelete(set, "digest");
        H5Dclose(set);
    }
    H5Tclose(text);
    H5Fclose(file);
    FILE *raw = change->flip ? fopen(path, "r+b") : NULL;
    if (raw) {
        fseek(raw, place + change->flip - 1, SEEK_SET);
        int byte = getc(raw);
        fseek(raw, place + change->flip - 1, SEEK_SET);
        putc(byte ^ 1, raw);
        fclose(raw);
    }
}

static char *changed(struct communicator *world, const struct change *change)
{
    write_example(world);
    char *path = checkpoint_path(folder, 7);
    if (world->rank == 0)
        apply(path, change);
    control_barrier(world);
    return path;
}

static void refuses(struct communicator *world, const char *words, struct change change)
{
    struct err err;
    char *path = changed(world, &change);
    int result = read_example(world, path, true, &err);
    ok(result < 0 && strstr(err.text, words) && strstr(err.text, path) && same_text(world, &err), "refused: %s", words);
    if (!strstr(err.text, words))
        tap_note("%s", err.text);
    free(path);
}

static void accepts(struct communicator *world, const char *name, bool whole, struct change change)
{
    struct err err;
    char *path = changed(world, &change);
    ok(read_example(world, path, whole, &err) == 0, "accepted: %s %s", name, err.text);
    free(path);
}

static void digest_tells(struct communicator *world)
{
    struct text out = {0};
    struct err err = {""};
    char *path = changed(world, &(struct change){.flip = 50});
    int result = world->rank == 0 ? checkpoint_digest(path, &out, &err) : -1;
    ok(result < 0 && (world->rank > 0 || (strstr(text_string(&out), "/model/a/weight  differs from the stored") &&
                                          !strstr(text_string(&out), "/model/b  differs"))),
       "--digest tells which tensor is damaged: %s", err.text);
    text_fini(&out);
    free(path);
}

/* The whole file in memory. */
static unsigned char *load(const char *path, long *size)
{
    FILE *file = fopen(path, "rb");
    fseek(file, 0, SEEK_END);
    *size = ftell(file);
    rewind(file);
    unsigned char *bytes = malloc((size_t)*size);
    if (fread(bytes, 1, (size_t)*size, file) != (size_t)*size)
        *size = 0;
    fclose(file);
    return bytes;
}

static void store(const char *path, const unsigned char *bytes, long size)
{
    FILE *file = fopen(path, "wb");
    fwrite(bytes, 1, (size_t)size, file);
    fclose(file);
}

struct fuzz {
    char *path, broken[128];
    unsigned char *bytes;
    long size;
    struct text out;
    int accepted, silent, wrong; /* files read; refused without a message; read wrongly */
};

static void try_bytes(struct fuzz *fuzz, struct communicator *alone, long size)
{
    struct err err = {""};
    store(fuzz->broken, fuzz->bytes, size);
    int result = read_example(alone, fuzz->broken, true, &err);
    fuzz->accepted += result == 0;
    fuzz->silent += result < 0 && !err.text[0];
    fuzz->wrong += result < 0 && strstr(err.text, "SILENTLY");
    err.text[0] = '\0';
    fuzz->silent += checkpoint_digest(fuzz->broken, &fuzz->out, &err) < 0 && !err.text[0];
}

/* Files cut short at many places, with single bytes changed and with stretches of garbage; on rank 0 alone, so that
 * a thousand files need no agreement. */
static void fuzz(struct communicator *world)
{
    struct fuzz fuzz = {.size = 0};
    struct communicator *alone = comm_mpi_open(MPI_COMM_SELF);
    if (world->rank == 0) {
        fuzz.path = checkpoint_path(folder, 7);
        snprintf(fuzz.broken, sizeof fuzz.broken, "%s/broken.h5", folder);
        write_example(alone);
        fuzz.bytes = load(fuzz.path, &fuzz.size);
        for (long cut = 0; cut < fuzz.size; cut += 97)
            try_bytes(&fuzz, alone, cut);
    }
    ok(world->rank > 0 || (fuzz.size > 1000 && fuzz.accepted == 0 && fuzz.silent == 0), "files cut short are refused");
    for (long at = 0; at < fuzz.size; at += 7) {
        unsigned char good = fuzz.bytes[at];
        fuzz.bytes[at] = at % 2 ? (unsigned char)(good ^ 1 << at / 14 % 8) : (unsigned char)random_mix((uint64_t)at);
        try_bytes(&fuzz, alone, fuzz.size);
        fuzz.bytes[at] = good;
    }
    for (uint64_t n = 0; n < 100 && fuzz.size > 40; n++) {
        unsigned char good[40], *from = fuzz.bytes + random_bits(9, n) % (uint64_t)(fuzz.size - 40);
        memcpy(good, from, sizeof good);
        for (uint64_t i = 0; i < sizeof good; i++)
            from[i] = (unsigned char)random_bits(10 + n, i);
        try_bytes(&fuzz, alone, fuzz.size);
        memcpy(from, good, sizeof good);
    }
    ok(fuzz.wrong == 0 && fuzz.silent == 0, "changed bytes are found or are of no consequence");
    tap_note("%ld bytes, %d changes of no consequence", fuzz.size, fuzz.accepted);
    text_fini(&fuzz.out);
    free(fuzz.bytes);
    free(fuzz.path);
    communicator_close(alone);
}

int main(int argc, char **argv)
{
    struct job job;
    job_begin(&argc, &argv, &job);
    struct communicator *world = job.world;
    const struct device *device = device_cpu(1);
    struct stream *stream = device->stream_open();
    staging = staging_create(device, stream, STAGING_ELEMENTS);
    if (world->rank == 0 && !mkdtemp(folder))
        return 1;
    control_broadcast(world, folder, sizeof folder, 0);

    accepts(world, "as written", true, (struct change){0});
    accepts(world, "no digest", true, (struct change){.no_digest = true});
    accepts(world, "float64, big end first", true, (struct change){.type = H5T_IEEE_F64BE, .rows = 3});
    accepts(world, "compressed", true, (struct change){.type = H5T_NATIVE_FLOAT, .rows = 3, .chunk = 2});
    accepts(world, "weights alone, without the run's attributes", false, (struct change){.drop_attribute = "step"});
    accepts(world, "without texts", true, (struct change){.drop_attribute = "dataset"});
    refuses(world, "attribute 'step' is missing", (struct change){.drop_attribute = "step"});
    refuses(world, "attribute 'format' is missing", (struct change){.drop_attribute = "format"});
    refuses(world, "'format' is 'other'", (struct change){.text_attribute = "format", .text = "other"});
    refuses(world, "version 2", (struct change){.int_attribute = "version", .number = 2});
    refuses(world, "'samples' is negative", (struct change){.int_attribute = "samples", .number = -1});
    refuses(world, "'seed' is not an integer", (struct change){.text_attribute = "seed", .text = "1"});
    refuses(world, "'input' is not a string", (struct change){.int_attribute = "input", .number = 1});
    refuses(world, "/model/b: the tensor is missing", (struct change){.drop_link = "/model/b"});
    refuses(world, "/model/a/weight: the tensor is missing", (struct change){.drop_link = "/model/a"});
    refuses(world, "/model/b: has shape [4]; expected was [3]", (struct change){.type = H5T_NATIVE_FLOAT, .rows = 4});
    refuses(world, "/model/b: does not hold floating-point", (struct change){.type = H5T_STD_I32LE, .rows = 3});
    refuses(world, "/model/b: attribute 'digest' is not an integer",
            (struct change){.type = H5T_NATIVE_FLOAT, .rows = 3, .with_digest_text = true});
    refuses(world, "/model/a/weight: its elements have the digest", (struct change){.flip = 1});
    refuses(world, "/model/a/weight: its elements have the digest", (struct change){.flip = 80});
    digest_tells(world);

    fuzz(world);

    control_barrier(world);
    char command[96];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    if (world->rank == 0 && system(command) != 0)
        tap_note("%s is left behind", folder);
    staging_destroy(staging);
    device->stream_close(stream);
    tap_done();
    job_end(&job);
    return 0;
}
