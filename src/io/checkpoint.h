/* Checkpoints: HDF5 files of whole logical tensors, float32, each with a digest, whatever grid wrote them. This module
 * knows tensors by name and shape and where their parts lie in memory, and nothing of models.
 *
 * A file under its final name is complete: it is written under the name with ".partial" behind it, flushed to disk and
 * renamed, and the folder is flushed too. */
#ifndef IO_CHECKPOINT_H
#define IO_CHECKPOINT_H

#include "base/error.h"
#include "base/text.h"
#include "io/staging.h"
#include "parallel/communicator.h"

#define CHECKPOINT_MAX_AXES 6

/* A logical tensor of the file; all ranks give the same list in the same order. */
struct checkpoint_tensor {
    char path[128]; /* "/model/blocks/attention/query/weight" */
    int axes;
    int64_t shape[CHECKPOINT_MAX_AXES];
};

/* A box of a tensor that this rank holds; a rank may have none or several of a tensor. In memory the axes behind the
 * first are contiguous; consecutive indices of the first axis are `stride` elements apart. */
struct checkpoint_part {
    int tensor; /* index in the list */
    int64_t start[CHECKPOINT_MAX_AXES], count[CHECKPOINT_MAX_AXES];
    float *data; /* memory of a device */
    int64_t stride;
    bool first; /* among the parts of all ranks that cover the same elements this is the one that counts: it is written,
                 * and it enters the digest when read. Together these cover every tensor exactly once. */
};

/* What else an exact resume needs; strings and the array are owned (checkpoint_info_fini). Each member is the root
 * attribute of its name. */
struct checkpoint_info {
    int64_t step, samples, seed;  /* steps done, samples consumed */
    char *input, *dataset, *code; /* text of resolved.nml, path of the dataset, git description; NULL: not there */
    double *outlier_window;       /* numbers by which outliers among the steps are told, [outlier_count] */
    int64_t outlier_count;
};

void checkpoint_info_fini(struct checkpoint_info *info);

/* <directory>/step-<8 digits>.h5, owned by the caller; and the step that a file's name tells, -1 for other names. */
char *checkpoint_path(const char *directory, int64_t step);
int64_t checkpoint_step(const char *path);

/* Writes the file of info->step (folders made if missing) from parts in the memory of staging's device, as they are
 * behind all that its stream holds. An older file of that name is replaced only by the rename. On failure the .partial
 * is removed. Collective over comm: 0, or -1 with the same text on all ranks. */
int checkpoint_write(struct communicator *comm, struct staging *staging, const char *directory,
                     const struct checkpoint_info *info, const struct checkpoint_tensor *tensors, int tensor_count,
                     const struct checkpoint_part *parts, int part_count, struct err *err);

/* Reads the parts of the listed tensors into the memory of staging's device, where they are when this returns; what its
 * stream holds must not write there. Checks format, version, shapes and digests (where the file has them) and says
 * what differs: the tensor, what was expected and what is there. Accepts any floating-point type and layout. info may
 * be NULL (a file with weights alone need not have its attributes); else step, samples and seed must be there.
 * Collective over comm. After an error the parts' contents are undefined. */
int checkpoint_read(struct communicator *comm, struct staging *staging, const char *path, struct checkpoint_info *info,
                    const struct checkpoint_tensor *tensors, int tensor_count, const struct checkpoint_part *parts,
                    int part_count, struct err *err);

/* The names of the complete checkpoints in a directory, newest (highest step) first, as an owned array of owned strings
 * (checkpoint_list_free); none where there is no such directory. Looks on rank 0 and tells all ranks. Collective. */
int checkpoint_list(struct communicator *comm, const char *directory, char ***paths, int *count, struct err *err);
void checkpoint_list_free(char **paths, int count);

/* Keeps the `keep` newest files (0: all) and those whose step is a multiple of keep_every (0: none such); removes the
 * others, and any .partial left behind. Rank 0 works; collective. A file that cannot be removed is an error. */
int checkpoint_prune(struct communicator *comm, const char *directory, int64_t keep, int64_t keep_every,
                     struct err *err);

/* The digest of several tensors, which is the sum over them of random_bits(random_key(0, path), their own digest), from
 * parts in memory as checkpoint_write takes them. Collective over comm; the same on all ranks. */
uint64_t checkpoint_digest_memory(struct communicator *comm, struct staging *staging,
                                  const struct checkpoint_tensor *tensors, int tensor_count,
                                  const struct checkpoint_part *parts, int part_count);

/* Prints each tensor's digest, computed from its data, that of those below /model where there are any, and that of all;
 * says where a stored digest differs (and returns -1). Serial, any HDF5 file of float32 datasets; reads in bounded
 * pieces. */
int checkpoint_digest(const char *path, struct text *out, struct err *err);

#endif
