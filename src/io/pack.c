#include "io/pack.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/text.h"
#include "io/file.h"
#include "io/h5.h"

enum {
    VOCABULARY = 256,
    PIECE = 4 << 20 /* tokens written at once */
};

/* A file that is being written: tokens first ... first + tokens - 1 of the whole stream. */
struct target {
    char *path, *partial;
    int64_t first, tokens;
    struct file *file; /* NULL: not open */
    int64_t offset;    /* of the tokens in the file, bytes */
};

static int check_output(const char *output, struct err *err)
{
    const char *slash = strrchr(output, '/');
    char *folder = copy_text(slash ? output : ".");
    if (slash)
        folder[slash == output ? 1 : slash - output] = '\0';
    struct stat there;
    int result = 0;
    if (stat(folder, &there) != 0)
        result = err_set(err, "%s: its folder: %s", output, strerror(errno));
    else if (stat(output, &there) == 0 && !S_ISREG(there.st_mode))
        result = err_set(err, "%s: is there and not a regular file", output);
    free(folder);
    return result;
}

/* Sizes of the inputs; each a regular file. */
static int measure(const struct pack *job, int64_t *sizes, struct err *err)
{
    if (check_output(job->output, err) < 0)
        return -1;
    struct stat output, input;
    bool exists = stat(job->output, &output) == 0;
    for (int i = 0; i < job->input_count; i++) {
        const char *path = job->inputs[i];
        if (stat(path, &input) != 0 || access(path, R_OK) != 0)
            return err_set(err, "%s: %s", path, strerror(errno));
        if (!S_ISREG(input.st_mode))
            return err_set(err, "%s: not a regular file", path);
        if (exists && input.st_dev == output.st_dev && input.st_ino == output.st_ino)
            return err_set(err, "%s: input and output at once", path);
        sizes[i] = input.st_size;
    }
    return 0;
}

static int put_array(hid_t file, const char *path, hid_t disk, hid_t memory, const void *values, int64_t count,
                     struct err *err)
{
    hid_t dataset = h5_create_dataset(file, path, disk, 1, &count, err);
    if (dataset < 0)
        return -1;
    struct box box = box_make(1, NULL, &count);
    int result = h5_write_box(dataset, memory, &box, values, 1, err);
    if (result < 0)
        err_prefix(err, "%s", path);
    H5Dclose(dataset);
    return result;
}

/* The starts of the documents that reach into this file, and its end. */
static int put_documents(hid_t file, const struct pack *job, const int64_t *sizes, const struct target *target,
                         struct err *err)
{
    uint64_t *starts = allocate((size_t)job->input_count + 1, sizeof *starts);
    int64_t count = 0, begin = -target->first;
    for (int i = 0; i < job->input_count; begin += sizes[i++])
        if (begin < target->tokens && (begin >= 0 || begin + sizes[i] > 0))
            starts[count++] = begin > 0 ? (uint64_t)begin : 0;
    starts[count++] = (uint64_t)target->tokens;
    int result = put_array(file, "/documents", H5T_STD_U64LE, H5T_NATIVE_UINT64, starts, count, err);
    free(starts);
    return result;
}

static int put_vocabulary(hid_t file, struct err *err)
{
    uint8_t bytes[VOCABULARY];
    uint64_t offsets[VOCABULARY + 1];
    for (int i = 0; i <= VOCABULARY; i++) {
        offsets[i] = (uint64_t)i;
        if (i < VOCABULARY)
            bytes[i] = (uint8_t)i;
    }
    return put_array(file, "/vocabulary/bytes", H5T_STD_U8LE, H5T_NATIVE_UINT8, bytes, VOCABULARY, err) < 0
               ? -1
               : put_array(file, "/vocabulary/offsets", H5T_STD_U64LE, H5T_NATIVE_UINT64, offsets, VOCABULARY + 1, err);
}

static int describe(hid_t file, const struct pack *job, const int64_t *sizes, struct target *target, struct err *err)
{
    if (h5_put_format(file, "ppmodel-dataset", 1, err) < 0 || h5_put_int64(file, "vocabulary", VOCABULARY, err) < 0 ||
        h5_put_text(file, "tokenizer", "bytes", err) < 0 || put_documents(file, job, sizes, target, err) < 0 ||
        put_vocabulary(file, err) < 0)
        return -1;
    hid_t stream = h5_create_dataset(file, "/tokens", H5T_NATIVE_UINT16, 1, &target->tokens, err);
    if (stream < 0)
        return -1;
    target->offset = h5_offset(stream, H5T_NATIVE_UINT16);
    H5Dclose(stream);
    return 0;
}

static int begin_target(struct target *target, const struct pack *job, const int64_t *sizes, struct err *err)
{
    hid_t file = h5_create(err);
    if (file < 0)
        return -1;
    if (describe(file, job, sizes, target, err) < 0) {
        H5Fclose(file);
        return err_prefix(err, "%s", target->partial);
    }
    if (h5_save(file, target->partial, err) < 0)
        return -1;
    target->file = file_open(target->partial, true, err);
    return target->file ? 0 : -1;
}

/* Writes the part of the stream's bytes from ... from + count - 1 that belongs to the target. */
static int put_tokens(struct target *target, int64_t from, int64_t count, const uint8_t *bytes, uint16_t *tokens,
                      struct err *err)
{
    int64_t skip = from < target->first ? target->first - from : 0;
    int64_t end = target->first + target->tokens - from;
    count = (count < end ? count : end) - skip;
    if (count <= 0)
        return 0;
    for (int64_t i = 0; i < count; i++)
        tokens[i] = bytes[skip + i];
    int64_t start = from + skip - target->first;
    return file_write(target->file, target->offset + start * (int64_t)sizeof *tokens, tokens,
                      count * (int64_t)sizeof *tokens, err);
}

/* Closes a target; with keep all of it is on disk then, else it is removed. */
static int end_target(struct target *target, bool keep, struct err *err)
{
    int result = keep ? file_flush(target->file, err) : 0;
    file_close(target->file);
    target->file = NULL;
    struct err second;
    if (!keep || result < 0)
        (void)file_remove(target->partial, &second); /* the first error is the one to tell */
    return result;
}

/* Fills `bytes` from the file, as far as it goes; the number of bytes or -1. */
static int64_t fill(int descriptor, uint8_t *bytes, int64_t room)
{
    int64_t filled = 0;
    while (filled < room) {
        ssize_t got = read(descriptor, bytes + filled, (size_t)(room - filled));
        if (got < 0)
            return -1;
        if (got == 0)
            break;
        filled += got;
    }
    return filled;
}

struct stream {
    const struct pack *job;
    struct target *targets;
    int target_count;
    int64_t done, all;
    uint8_t *bytes;   /* PIECE */
    uint16_t *tokens; /* PIECE */
};

static enum exit_code copy_input(struct stream *stream, const char *path, int64_t size, struct err *err)
{
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) {
        err_set(err, "%s: %s", path, strerror(errno));
        return EXIT_BAD_INPUT;
    }
    enum exit_code code = EXIT_DONE;
    for (int64_t left = size, count; left > 0 && code == EXIT_DONE; left -= count) {
        int64_t room = left < PIECE ? left : PIECE;
        count = fill(descriptor, stream->bytes, room);
        if (count != room) {
            code = count < 0 ? EXIT_FAILED : EXIT_BAD_INPUT;
            err_set(err, "%s: %s", path, count < 0 ? strerror(errno) : "became shorter while it was read");
            break;
        }
        for (int i = 0; i < stream->target_count; i++)
            if (put_tokens(&stream->targets[i], stream->done, count, stream->bytes, stream->tokens, err) < 0)
                code = EXIT_FAILED;
        stream->done += count;
        if (stream->job->progress)
            stream->job->progress(stream->job->context, stream->done, stream->all);
    }
    close(descriptor);
    return code;
}

static enum exit_code copy(struct stream *stream, const int64_t *sizes, struct err *err)
{
    for (int i = 0; i < stream->target_count; i++)
        if (begin_target(&stream->targets[i], stream->job, sizes, err) < 0)
            return EXIT_FAILED;
    stream->bytes = allocate(PIECE, sizeof *stream->bytes);
    stream->tokens = allocate(PIECE, sizeof *stream->tokens);
    enum exit_code code = EXIT_DONE;
    for (int i = 0; i < stream->job->input_count && code == EXIT_DONE; i++)
        code = copy_input(stream, stream->job->inputs[i], sizes[i], err);
    free(stream->tokens);
    free(stream->bytes);
    return code;
}

/* Both files are whole on disk before either gets its name. */
static enum exit_code finish(struct stream *stream, enum exit_code code, struct err *err)
{
    for (int i = 0; i < stream->target_count; i++)
        if (end_target(&stream->targets[i], code == EXIT_DONE, err) < 0)
            code = EXIT_FAILED;
    struct err second;
    for (int i = 0; i < stream->target_count; i++) {
        if (code == EXIT_DONE && file_publish(stream->targets[i].partial, stream->targets[i].path, err) < 0)
            code = EXIT_FAILED;
        if (code != EXIT_DONE)
            (void)file_remove(stream->targets[i].partial, &second);
    }
    return code;
}

/* corpus.h5 -> corpus-validation.h5 */
static char *validation_path(const char *output)
{
    size_t length = strlen(output);
    if (length > 3 && strcmp(output + length - 3, ".h5") == 0)
        length -= 3;
    struct text path = {0};
    text_add_bytes(&path, output, length);
    text_add(&path, "-validation.h5");
    char *copy = copy_text(text_string(&path));
    text_fini(&path);
    return copy;
}

enum exit_code pack(const struct pack *job, struct packed *packed, struct err *err)
{
    *packed = (struct packed){0};
    if (!(job->validation >= 0 && job->validation < 1)) {
        err_set(err, "a share of %g for validation; 0 <= share < 1 is possible", job->validation);
        return EXIT_BAD_INPUT;
    }
    int64_t *sizes = allocate((size_t)job->input_count, sizeof *sizes), all = 0;
    int result = measure(job, sizes, err);
    for (int i = 0; i < job->input_count; i++)
        all += sizes[i];
    int64_t validation = (int64_t)llround(job->validation * (double)all);
    if (result == 0 && all - validation < 2)
        result = err_set(err, "%" PRId64 " bytes%s are too few: the shortest sample needs 2", all,
                         validation > 0 ? ", less those for validation," : "");
    if (result == 0 && job->validation > 0 && validation < 2)
        result = err_set(err, "%g of %" PRId64 " bytes are too few for validation: the shortest sample needs 2",
                         job->validation, all);
    if (result < 0) {
        free(sizes);
        return EXIT_BAD_INPUT;
    }

    packed->tokens = all - validation;
    packed->validation_tokens = validation;
    packed->validation_path = validation > 0 ? validation_path(job->output) : NULL;
    struct target targets[2] = {{.path = copy_text(job->output), .tokens = packed->tokens},
                                {.first = packed->tokens, .tokens = validation}};
    targets[0].partial = file_partial(targets[0].path);
    if (validation > 0) {
        targets[1].path = copy_text(packed->validation_path);
        targets[1].partial = file_partial(targets[1].path);
    }
    struct stream stream = {.job = job, .targets = targets, .target_count = validation > 0 ? 2 : 1, .all = all};
    enum exit_code code = finish(&stream, copy(&stream, sizes, err), err);
    for (int i = 0; i < stream.target_count; i++) {
        free(targets[i].path);
        free(targets[i].partial);
    }
    free(sizes);
    return code;
}
