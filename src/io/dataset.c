#include "io/dataset.h"

#include <inttypes.h>
#include <stdlib.h>

#include "base/memory.h"
#include "io/file.h"
#include "io/h5.h"
#include "parallel/agree.h"

struct dataset {
    char *path;
    int64_t tokens, vocabulary;
    hid_t file, stream; /* stream: /tokens */
    int held;           /* descriptor of the file, to see whether it gets shorter than these bytes: */
    int64_t bytes;
};

/* What rank 0 finds out for all. */
struct facts {
    int64_t tokens, vocabulary;
};

static int examine_stream(hid_t stream, struct facts *facts, struct err *err)
{
    int64_t shape[H5S_MAX_RANK];
    int axes = h5_shape(stream, shape, err);
    if (axes < 0)
        return -1;
    if (axes != 1)
        return err_set(err, "has %d axes; it must be one stream, one axis", axes);
    if (h5_class(stream) != H5T_INTEGER)
        return err_set(err, "does not hold integers");
    if (shape[0] < 2)
        return err_set(err, "holds %" PRId64 " tokens; the shortest sample needs 2", shape[0]);
    facts->tokens = shape[0];
    int64_t last = shape[0] - 1, one = 1;
    int32_t token;
    struct box box = box_make(1, &last, &one);
    return h5_read_box(stream, H5T_NATIVE_INT32, &box, &token, 1, err); /* whether its compression is known here */
}

static int examine_file(hid_t file, struct facts *facts, struct err *err)
{
    if (h5_check_format(file, "ppmodel-dataset", 1, err) < 0 ||
        h5_get_int64(file, "vocabulary", &facts->vocabulary, err) < 0)
        return -1;
    if (facts->vocabulary < 1 || facts->vocabulary > INT32_MAX)
        return err_set(err, "attribute 'vocabulary' is %" PRId64 "; 1 ... %d is possible", facts->vocabulary,
                       INT32_MAX);
    if (!h5_exists(file, "/tokens"))
        return err_set(err, "dataset /tokens is missing");
    hid_t stream = H5Dopen2(file, "/tokens", H5P_DEFAULT);
    if (stream < 0)
        return h5_error(err, "/tokens cannot be opened as a dataset");
    int result = examine_stream(stream, facts, err);
    if (result < 0)
        err_prefix(err, "/tokens");
    H5Dclose(stream);
    return result;
}

static int examine(const char *path, struct facts *facts, struct err *err)
{
    hid_t file = h5_open(path, err);
    if (file < 0)
        return -1;
    int result = examine_file(file, facts, err);
    if (result < 0)
        err_prefix(err, "%s", path);
    H5Fclose(file);
    return result;
}

int dataset_open(struct dataset **dataset, struct communicator *comm, const char *path, struct err *err)
{
    struct facts facts = {0};
    int result = comm->rank == 0 ? examine(path, &facts, err) : 0;
    if (agree(comm, result, err) < 0)
        return -1;
    control_broadcast(comm, &facts, sizeof facts, 0);
    hid_t file = h5_open_together(comm, path, err);
    if (file < 0)
        return -1;
    hid_t stream = H5Dopen2(file, "/tokens", H5P_DEFAULT);
    int held = file_hold(path, err);
    result = held < 0 ? -1 : stream < 0 ? h5_error(err, "%s: /tokens cannot be opened", path) : 0;
    if (agree(comm, result, err) < 0) {
        file_let_go(held);
        if (stream >= 0)
            H5Dclose(stream);
        H5Fclose(file);
        return -1;
    }
    *dataset = allocate(1, sizeof **dataset);
    **dataset =
        (struct dataset){copy_text(path), facts.tokens, facts.vocabulary, file, stream, held, file_length(held)};
    return 0;
}

void dataset_close(struct dataset *dataset)
{
    if (!dataset)
        return;
    H5Dclose(dataset->stream);
    H5Fclose(dataset->file);
    file_let_go(dataset->held);
    free(dataset->path);
    free(dataset);
}

int64_t dataset_tokens(const struct dataset *dataset)
{
    return dataset->tokens;
}

int64_t dataset_vocabulary(const struct dataset *dataset)
{
    return dataset->vocabulary;
}

int64_t dataset_samples(const struct dataset *dataset, int64_t sequence)
{
    return dataset->tokens > 0 ? (dataset->tokens - 1) / sequence
                               : 0; /* one token more than the last sample's inputs */
}

static int read_sample(struct dataset *dataset, int64_t first, int64_t count, int32_t *tokens, struct err *err)
{
    if (first < 0 || first > dataset->tokens - count)
        return err_set(err, "tokens %" PRId64 " ... %" PRId64 " are not there; the file holds %" PRId64, first,
                       first + count - 1, dataset->tokens);
    struct box box = box_make(1, &first, &count);
    for (int64_t n = 0, pieces = box_pieces(&box, BOX_PIECE); n < pieces; n++) {
        struct box piece;
        int64_t at = box_piece(&box, BOX_PIECE, n, 1, &piece);
        if (h5_read_box(dataset->stream, H5T_NATIVE_INT32, &piece, tokens + at, 1, err) < 0)
            return err_prefix(err, "/tokens");
    }
    /* wider numbers were cut to the ends of int32, which are outside any vocabulary */
    for (int64_t i = 0; i < count; i++)
        if (tokens[i] < 0 || tokens[i] >= dataset->vocabulary)
            return err_set(err, "token %" PRId64 " is %s%" PRId32 ", outside the vocabulary of %" PRId64, first + i,
                           tokens[i] == INT32_MAX ? "at least " : "", tokens[i], dataset->vocabulary);
    return 0;
}

int dataset_read(struct dataset *dataset, const int64_t *samples, int64_t count, int64_t sequence, int shift,
                 int32_t *tokens, struct err *err)
{
    int64_t whole = dataset_samples(dataset, sequence);
    for (int64_t i = 0; i < count; i++) {
        if (samples[i] < 0 || samples[i] >= whole)
            return err_set(err, "%s: there is no sample %" PRId64 "; the file holds %" PRId64 " of length %" PRId64,
                           dataset->path, samples[i], whole, sequence);
        if (read_sample(dataset, samples[i] * sequence + shift, sequence, tokens + i * sequence, err) < 0)
            return err_prefix(err, "%s: sample %" PRId64, dataset->path, samples[i]);
    }
    int64_t bytes = file_length(dataset->held);
    if (bytes < dataset->bytes) /* HDF5 takes zeros for what is not there */
        return err_set(
            err, "%s: is shorter than when it was opened, %" PRId64 " bytes and not %" PRId64 "; samples may be lost",
            dataset->path, bytes, dataset->bytes);
    return 0;
}
