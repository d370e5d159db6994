/* The dataset: one stream of tokens in an HDF5 file (README has the layout). Sample i of sequence length S are tokens
 * i*S ... i*S + S: S inputs, and the same shifted by one as targets. */
#ifndef IO_DATASET_H
#define IO_DATASET_H

#include "base/error.h"
#include "parallel/communicator.h"

struct dataset;

/* Opens the file on all ranks; checks format, version, type and that lengths are what the file really holds. Accepts
 * any integer type of 8 to 64 bits, contiguous, chunked or compressed. Collective over comm: all get the dataset or all
 * get -1 and the same text. */
int dataset_open(struct dataset **dataset, struct communicator *comm, const char *path, struct err *err);
void dataset_close(struct dataset *dataset); /* collective; NULL is allowed */

int64_t dataset_tokens(const struct dataset *dataset);
int64_t dataset_vocabulary(const struct dataset *dataset);                /* token ids are below this */
int64_t dataset_samples(const struct dataset *dataset, int64_t sequence); /* whole samples of this sequence length */

/* Reads tokens samples[i]*sequence + shift ... of `sequence` tokens each into tokens [count, sequence]; shift 0 are the
 * inputs, 1 the targets. Not collective. A token outside the vocabulary or a failed read is an error that names the
 * sample. Only for the main thread. */
int dataset_read(struct dataset *dataset, const int64_t *samples, int64_t count, int64_t sequence, int shift,
                 int32_t *tokens, struct err *err);

#endif
