/* Which checkpoints of a folder are listed, kept and removed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "io/checkpoint.h"
#include "parallel/job.h"
#include "tap.h"
#include "tests/file_checks.h"

static char directory[64] = "keeping-test-XXXXXX";

static void touch(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "w");
    if (file)
        fclose(file);
}

static void list_is(struct communicator *world, const char *expected, const char *name)
{
    struct err err;
    struct text text = {0};
    char **paths;
    int count, result = checkpoint_list(world, directory, &paths, &count, &err);
    for (int i = 0; i < count; i++)
        text_add(&text, "%lld ", (long long)checkpoint_step(paths[i]));
    ok(result == 0, "%s: listed", name);
    is_text(text_string(&text), expected, "%s", name);
    text_fini(&text);
    checkpoint_list_free(paths, count);
}

static void keeping(struct communicator *world)
{
    if (world->rank == 0) {
        for (int64_t step = 1; step <= 6; step++) {
            char name[32];
            snprintf(name, sizeof name, "step-%08d.h5", (int)step);
            touch(name);
        }
        touch("step-00000099.h5");
        touch("step-00000007.h5.partial");
        touch("step-100000000.h5"); /* nine digits: newer than all of eight */
        touch("step-000000010.h5");
        touch("step-0000010.h5");
        touch("step-00000010.h5x");
        touch("step-.h5");
        touch("step-00000020.h5");
        touch("other.h5.partial");
    }
    control_barrier(world);
    list_is(world, "100000000 99 20 6 5 4 3 2 1 ", "complete files, newest first");
    struct err err;
    ok(checkpoint_prune(world, directory, 0, 0, &err) == 0, "keep all");
    list_is(world, "100000000 99 20 6 5 4 3 2 1 ", "all are kept");
    char path[128];
    snprintf(path, sizeof path, "%s/step-00000007.h5.partial", directory);
    ok(!is_there(path), "a partial file is removed");
    ok(checkpoint_prune(world, directory, 2, 3, &err) == 0, "keep two and multiples of three");
    list_is(world, "100000000 99 6 3 ", "two and the multiples of three are kept");
    ok(checkpoint_prune(world, directory, 1, 0, &err) == 0, "keep one");
    list_is(world, "100000000 ", "one is kept");
    snprintf(path, sizeof path, "%s/other.h5.partial", directory);
    ok(is_there(path), "others' files stay");

    char **paths;
    int count;
    ok(checkpoint_list(world, "no/such/folder", &paths, &count, &err) == 0 && count == 0, "no folder, no files");
    checkpoint_list_free(paths, count);
    snprintf(path, sizeof path, "%s/step-00000020.h5", directory);
    if (world->rank == 0)
        mkdir(path, 0777);
    control_barrier(world);
    ok(checkpoint_prune(world, directory, 1, 0, &err) < 0 && same_text(world, &err), "cannot be removed: %s", err.text);
    ok(checkpoint_step("x/step-00000020.h5") == 20 && checkpoint_step("step-00000020.h5.partial") == -1 &&
           checkpoint_step("step-99999999999999999999999.h5") == -1,
       "the step in a name");
}

int main(int argc, char **argv)
{
    struct job job;
    job_begin(&argc, &argv, &job);
    if (job.world->rank == 0 && !mkdtemp(directory))
        return 1;
    control_broadcast(job.world, directory, sizeof directory, 0);
    keeping(job.world);
    control_barrier(job.world);
    char command[96];
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    if (job.world->rank == 0 && system(command) != 0)
        tap_note("%s is left behind", directory);
    tap_done();
    job_end(&job);
    return 0;
}
