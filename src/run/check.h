/* What several keys of the input, and the size of the job, must fit together: checked once, before anything is opened.
 */
#ifndef RUN_CHECK_H
#define RUN_CHECK_H

#include "base/settings.h"

/* Checks relations between keys, and fills in what is derived: grid.data, pipeline.microbatches and global_batch,
 * model.ffn_hidden and kv_heads. Returns 0, or -1 with *err naming the keys and what to change. Local. */
int check_settings(struct settings *settings, int world_size, struct err *err);

#endif
