/* ppmodel-pack: bytes of any files -> dataset. */
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/text.h"
#include "io/pack.h"

static const char help[] =
    "usage: ppmodel-pack [--validation SHARE] [-o corpus.h5] FILE...\n"
    "\n"
    "Writes the bytes of the files, one after another, as a dataset for ppmodel: one token for\n"
    "each byte, a vocabulary of 256, each file a document.\n"
    "\n"
    "  -o, --output FILE         the dataset (default: corpus.h5); replaced where it exists\n"
    "  -v, --validation SHARE    the last SHARE (such as 0.05) of the stream goes to a dataset of\n"
    "                            its own, corpus-validation.h5\n"
    "  -h, --help                this text\n"
    "\n"
    "Exit codes: 0 done, 2 bad input, 4 a file system failed.\n";

struct bar {
    double begin, shown; /* seconds */
};

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void show_progress(void *context, int64_t done, int64_t all)
{
    enum {
        WIDTH = 40
    };
    struct bar *bar = context;
    double now = seconds(), spent = now - bar->begin;
    if (done < all && now < bar->shown + 0.1)
        return;
    bar->shown = now;
    int filled = (int)(WIDTH * (double)done / (double)all);
    fprintf(stderr, "\r[%.*s%*s] %s of %s, %s left\033[K", filled, "########################################",
            WIDTH - filled, "", text_bytes((double)done).text, text_bytes((double)all).text,
            text_duration(spent * (double)(all - done) / (double)done).text);
    if (done == all)
        fputs("\r\033[K", stderr);
    fflush(stderr);
}

static int refuse(const char *text)
{
    fprintf(stderr, "ppmodel-pack: error: %s\n", text);
    return EXIT_BAD_INPUT;
}

static bool parse_share(const char *text, double *share)
{
    char *end;
    *share = strtod(text, &end);
    return end != text && *end == '\0' && isfinite(*share) && *share > 0 && *share < 1;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"output", required_argument, NULL, 'o'},
                                            {"validation", required_argument, NULL, 'v'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    struct bar bar = {.begin = seconds()};
    bool terminal = isatty(STDERR_FILENO);
    struct pack job = {.output = "corpus.h5", .progress = terminal ? show_progress : NULL, .context = &bar};
    for (int option; (option = getopt_long(argc, argv, "o:v:h", options, NULL)) != -1;) {
        if (option == 'h')
            return fputs(help, stdout) < 0 || fflush(stdout) != 0 ? EXIT_FAILED : EXIT_DONE;
        if (option == 'o')
            job.output = optarg;
        else if (option != 'v')
            return EXIT_BAD_INPUT; /* getopt_long has said why */
        else if (!parse_share(optarg, &job.validation))
            return refuse("--validation needs a share between 0 and 1, such as 0.05");
    }
    if (optind == argc)
        return refuse("no input files; --help says more");
    if (!*job.output)
        return refuse("the output has no name");
    job.inputs = (const char *const *)(argv + optind);
    job.input_count = argc - optind;

    struct packed packed;
    struct err err = {""};
    enum exit_code code = pack(&job, &packed, &err);
    if (code != EXIT_DONE) {
        fprintf(stderr, "%sppmodel-pack: error: %s\n", terminal ? "\r\033[K" : "", err.text);
    } else {
        printf("%s: %" PRId64 " tokens\n", job.output, packed.tokens);
        if (packed.validation_path)
            printf("%s: %" PRId64 " tokens\n", packed.validation_path, packed.validation_tokens);
        double spent = seconds() - bar.begin;
        double all = (double)(packed.tokens + packed.validation_tokens);
        printf("%s in %s, %s/s\n", text_bytes(all).text, text_duration(spent).text, text_bytes(all / spent).text);
        if (fflush(stdout) != 0)
            code = EXIT_FAILED;
    }
    free(packed.validation_path);
    return code;
}
