#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/random.h"
#include "io/box.h"
#include "io/checkpoint_parts.h"
#include "io/h5.h"

struct visit {
    struct text *out;
    struct err *err;
    float *piece;          /* BOX_PIECE elements */
    uint64_t model, whole; /* digests so far: of what is below /model, of the file */
    int tensors, model_tensors, different;
    bool failed;
};

/* A tensor's share in the digest of several. */
static uint64_t share_of(const char *path, uint64_t digest)
{
    return random_bits(random_key(0, path), digest);
}

uint64_t checkpoint_digest_memory(struct communicator *comm, struct staging *staging,
                                  const struct checkpoint_tensor *tensors, int tensor_count,
                                  const struct checkpoint_part *parts, int part_count)
{
    uint64_t *digests = allocate((size_t)tensor_count, sizeof *digests), sum = 0;
    checkpoint_digest_parts(comm, staging, tensors, tensor_count, parts, part_count, digests);
    for (int i = 0; i < tensor_count; i++)
        sum += share_of(tensors[i].path, digests[i]);
    free(digests);
    return sum;
}

static int digest_elements(hid_t dataset, float *buffer, uint64_t *digest, struct err *err)
{
    int64_t shape[H5S_MAX_RANK];
    int axes = h5_shape(dataset, shape, err);
    if (axes < 0)
        return -1;
    struct box box = box_make(axes, NULL, shape);
    *digest = 0;
    for (int64_t n = 0, pieces = box_pieces(&box, BOX_PIECE); n < pieces; n++) {
        struct box piece;
        box_piece(&box, BOX_PIECE, n, 0, &piece);
        int64_t stride = axes > 0 ? box_elements(&piece) / piece.count[0] : 1;
        if (h5_read_box(dataset, H5T_NATIVE_FLOAT, &piece, buffer, stride, err) < 0)
            return -1;
        *digest += box_digest(&piece, shape, buffer, stride);
    }
    return 0;
}

static int visit_dataset(hid_t dataset, const char *path, struct visit *visit)
{
    uint64_t digest, stored;
    bool has = h5_has(dataset, "digest");
    if (digest_elements(dataset, visit->piece, &digest, visit->err) < 0 ||
        (has && h5_get_uint64(dataset, "digest", &stored, visit->err) < 0))
        return err_prefix(visit->err, "%s", path);
    text_add(visit->out, "%016" PRIx64 "  %s", digest, path);
    if (has && stored != digest) {
        visit->different++;
        text_add(visit->out, "  differs from the stored %016" PRIx64, stored);
    }
    text_add(visit->out, "\n");
    visit->tensors++;
    visit->whole += share_of(path, digest);
    if (strncmp(path, "/model/", strlen("/model/")) == 0) {
        visit->model_tensors++;
        visit->model += share_of(path, digest);
    }
    return 0;
}

static herr_t visit_link(hid_t file, const char *name, const H5L_info_t *info, void *data)
{
    struct visit *visit = data;
    (void)info;
    hid_t object = H5Oopen(file, name, H5P_DEFAULT);
    int result = 0;
    if (object < 0) {
        result = h5_error(visit->err, "/%s cannot be opened", name);
    } else if (H5Iget_type(object) == H5I_DATASET && h5_class(object) == H5T_FLOAT) {
        char path[1024];
        snprintf(path, sizeof path, "/%s", name);
        result = visit_dataset(object, path, visit);
    }
    if (object >= 0)
        H5Oclose(object);
    visit->failed = result < 0;
    return result;
}

static int finish(const struct visit *visit, struct err *err)
{
    if (visit->tensors == 0)
        return err_set(err, "holds no tensors of floating-point numbers");
    if (visit->model_tensors > 0)
        text_add(visit->out, "%016" PRIx64 "  all of /model\n", visit->model);
    text_add(visit->out, "%016" PRIx64 "  whole file\n", visit->whole);
    if (visit->different > 0)
        return err_set(err, "%d of %d tensors differ from their stored digests", visit->different, visit->tensors);
    return 0;
}

int checkpoint_digest(const char *path, struct text *out, struct err *err)
{
    hid_t file = h5_open(path, err);
    if (file < 0)
        return -1;
    struct visit visit = {.out = out, .err = err, .piece = allocate(BOX_PIECE, sizeof(float))};
    int result = 0;
    if (H5Lvisit(file, H5_INDEX_NAME, H5_ITER_INC, visit_link, &visit) < 0)
        result = visit.failed ? -1 : h5_error(err, "its groups cannot be listed");
    else
        result = finish(&visit, err);
    H5Eclear2(H5E_DEFAULT);
    free(visit.piece);
    H5Fclose(file);
    return result < 0 ? err_prefix(err, "%s", path) : 0;
}
