#include "run/metrics.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "base/memory.h"

struct metrics {
    FILE *file;
    char *path;
    struct text line;
};

/* Where to cut: the length of the lines up to the first that belongs to a later step or is not finished. */
static long kept_length(FILE *file, int64_t step)
{
    char *line = NULL;
    size_t capacity = 0;
    long length = 0;
    ssize_t bytes;
    while ((bytes = getline(&line, &capacity, file)) > 0) {
        long long number;
        if (line[bytes - 1] != '\n' || sscanf(line, "{\"step\": %lld", &number) != 1 || number > step)
            break;
        length += bytes;
    }
    free(line);
    return length;
}

int metrics_open(struct metrics **metrics, const char *folder, int64_t step, struct err *err)
{
    struct text path = {0};
    text_add(&path, "%s/metrics.jsonl", folder);
    FILE *file = fopen(text_string(&path), "a+");
    long length = 0;
    if (file) {
        rewind(file);
        length = kept_length(file, step);
    }
    if (!file || fflush(file) != 0 || ftruncate(fileno(file), length) != 0 || fseek(file, 0, SEEK_END) != 0) {
        err_set(err, "cannot write %s: %s", text_string(&path), strerror(errno));
        if (file)
            fclose(file);
        text_fini(&path);
        return -1;
    }
    *metrics = allocate(1, sizeof **metrics);
    **metrics = (struct metrics){.file = file, .path = copy_text(text_string(&path))};
    text_fini(&path);
    return 0;
}

void metrics_close(struct metrics *metrics)
{
    if (!metrics)
        return;
    fclose(metrics->file);
    text_fini(&metrics->line);
    free(metrics->path);
    free(metrics);
}

void metrics_begin(struct metrics *metrics, int64_t step)
{
    metrics->line.length = 0;
    text_add(&metrics->line, "{");
    json_count(&metrics->line, "step", step);
}

void metrics_real(struct metrics *metrics, const char *key, double value)
{
    json_real(&metrics->line, key, value, 17);
}

void metrics_count(struct metrics *metrics, const char *key, int64_t value)
{
    json_count(&metrics->line, key, value);
}

void metrics_text(struct metrics *metrics, const char *key, const char *value)
{
    json_string(&metrics->line, key, value);
}

void metrics_end(struct metrics *metrics)
{
    text_add(&metrics->line, "}\n");
    if (fputs(text_string(&metrics->line), metrics->file) < 0 || fflush(metrics->file) != 0)
        fatal("cannot write %s: %s", metrics->path, strerror(errno));
}
