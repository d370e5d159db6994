/* A step whose loss or gradients turned out not to be finite, run again with a look at every tensor of every layer: no
 * weight was changed, so it comes out as before, and the first tensor that is not finite, in the order of computation,
 * tells where the fault lies. */
#ifndef RUN_REPLAY_H
#define RUN_REPLAY_H

#include "run/trainer_state.h"

/* Runs the present step again and writes what was found into *trouble, the same on all ranks: one line that begins with
 * the rank and step. `squares` [logical parameters, T] and `losses` [D] are what the ranks agreed on in the step; the
 * squares are overwritten, and so are the gradients. Collective over the grid. */
void replay_step(struct trainer *trainer, double *squares, const double *losses, struct err *trouble);

#endif
