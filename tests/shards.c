/* How parameters are dealt to data ranks: every element once, cuts on the boundaries of blocks, ends of a tie and
 * tensor ranks cut alike, and about as much on each rank. */
#include "model/shards.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "tests/tap.h"

enum {
    LAYERS = 3
};

/* A model, and what one pipeline and tensor rank holds of it. */
struct holding {
    struct settings settings;
    struct model model;
    struct parameters parameters;
};

static void hold(struct holding *holding, int hidden, int vocabulary, bool tied, const struct slice *slices,
                 int slice_count, int tensor, int t)
{
    settings_init(&holding->settings);
    holding->settings.model.layers = LAYERS;
    holding->settings.model.hidden = hidden;
    holding->settings.model.heads = 4;
    holding->settings.model.sequence = 23;
    holding->settings.model.vocabulary = vocabulary;
    holding->settings.model.tied_embeddings = tied;
    struct err err;
    if (model_create(&holding->model, &holding->settings, &err) < 0)
        abort();
    parameters_create(&holding->parameters, &holding->model, slices, slice_count, tensor, t);
}

static void let_go(struct holding *holding)
{
    parameters_destroy(&holding->parameters);
    model_destroy(&holding->model);
    settings_fini(&holding->settings);
}

/* The whole model, in order; what a rank has where the stages run down and up; and single ends. */
static const struct slice WHOLE[] = {{0, 0, LAYERS + 2}};
static const struct slice ENDS[] = {{0, 0, 2}, {3, LAYERS, LAYERS + 2}};
static const struct slice FIRST[] = {{0, 0, 2}};
static const struct slice LAST[] = {{1, 2, LAYERS + 2}};

static bool is_cut_on_blocks(const struct parameter_share *share, int64_t first, int64_t count)
{
    int64_t end = first + count;
    return first % SQUARES_BLOCK == 0 && (end % SQUARES_BLOCK == 0 || end == share->count) && end <= share->count;
}

/* Buckets that follow one another through each layer's gradients, each filled by its pieces. */
static bool buckets_are_right(const struct shards *shards, const struct parameters *parameters)
{
    bool holds = shards->layer_first[0] == 0 && shards->layer_first[parameters->local_layers] == shards->bucket_count;
    int64_t elements = 0, shares = 0;
    for (int i = 0; i < parameters->count; i++)
        shares += parameters->shares[i].count;
    for (int b = 0; b < shards->bucket_count; b++) {
        const struct bucket *bucket = &shards->buckets[b], *first = &shards->buckets[bucket->first_end];
        int64_t sum = 0;
        for (int d = 0; d < shards->data; d++) {
            holds = holds && (d != shards->d || bucket->own == sum);
            sum += bucket->pieces[d];
        }
        holds = holds && sum == bucket->count && sum <= BUCKET_ELEMENTS && b >= shards->layer_first[bucket->layer] &&
                b < shards->layer_first[bucket->layer + 1] && first->weight == bucket->weight &&
                first->gradient == first->weight && first->count == bucket->count &&
                memcmp(first->pieces, bucket->pieces, (size_t)shards->data * sizeof *bucket->pieces) == 0 &&
                (bucket->first_end == b) == (bucket->gradient == bucket->weight);
        elements += bucket->count;
    }
    for (int i = 0; i < parameters->count; i++) {
        const struct bucket *bucket = &shards->buckets[shards->share_first[i]];
        holds = holds && bucket->gradient <= parameters->shares[i].gradient &&
                parameters->shares[i].gradient < bucket->gradient + bucket->count;
    }
    return holds && elements == shares;
}

/* Marks what this rank holds; false where a range is not what it says. */
static bool mark(const struct shards *shards, const struct parameters *parameters, unsigned char *gradients)
{
    unsigned char *moments = allocate((size_t)shards->moment_elements, 1);
    bool holds = true;
    for (int b = 0; b < shards->bucket_count; b++) {
        const struct bucket *bucket = &shards->buckets[b];
        int64_t begin, count = shards_held(shards, bucket, &begin), sum = 0;
        for (int i = bucket->first_range; i < bucket->first_range + bucket->ranges; i++) {
            const struct optimizer_range *range = &shards->ranges[i];
            const struct parameter_share *share = &parameters->shares[shards->shards[i].share];
            int64_t first = shards->shards[i].first;
            holds = holds && is_cut_on_blocks(share, first, range->count) && range->count > 0 &&
                    range->gradient == share->gradient + first && range->weight == share->weight + first &&
                    range->gradient == bucket->gradient + begin + sum && range->decay == share->parameter->decay;
            for (int64_t k = 0; k < range->count; k++) {
                gradients[range->gradient + k]++;
                if (share->gradient == share->weight)
                    holds = holds && range->moment + k < shards->moment_elements && moments[range->moment + k]++ == 0;
            }
            sum += range->count;
        }
        holds = holds && sum == count;
    }
    free(moments);
    return holds;
}

static void check_cover(const char *name, int hidden, int vocabulary, bool tied, const struct slice *slices,
                        int slice_count, int tensor)
{
    static const int data[] = {1, 2, 3, 4, 7, 64};
    for (int sharded = 0; sharded < 2; sharded++) {
        bool buckets = true, ranges = true, once = true;
        for (int i = 0; i < 6; i++)
            for (int t = 0; t < tensor; t++) {
                struct holding holding;
                hold(&holding, hidden, vocabulary, tied, slices, slice_count, tensor, t);
                const struct parameters *parameters = &holding.parameters;
                unsigned char *gradients = allocate((size_t)parameters->gradient_elements, 1);
                for (int d = 0; d < data[i]; d++) {
                    struct shards shards;
                    shards_create(&shards, parameters, tensor, data[i], d, sharded);
                    buckets = buckets && buckets_are_right(&shards, parameters);
                    ranges = ranges && mark(&shards, parameters, gradients);
                    shards_destroy(&shards);
                }
                for (int j = 0; j < parameters->count; j++)
                    for (int64_t k = 0; k < parameters->shares[j].count; k++)
                        once = once && gradients[parameters->shares[j].gradient + k] == (sharded ? 1 : data[i]);
                free(gradients);
                let_go(&holding);
            }
        ok(buckets, "%s, %s: buckets fill the layers, pieces the buckets", name, sharded ? "sharded" : "whole");
        ok(ranges, "%s, %s: ranges are cut on blocks and lie apart", name, sharded ? "sharded" : "whole");
        ok(once, "%s, %s: every element on %s", name, sharded ? "sharded" : "whole",
           sharded ? "one rank" : "every rank");
    }
}

/* The tied parameter's pieces, bucket after bucket. */
static int64_t tied_pieces(const struct slice *slices, int slice_count, int data, int64_t *pieces)
{
    struct holding holding;
    struct shards shards;
    int64_t count = 0;
    hold(&holding, 512, 5003, true, slices, slice_count, 1, 0);
    shards_create(&shards, &holding.parameters, 1, data, 0, true);
    for (int b = 0; b < shards.bucket_count; b++) {
        const struct bucket *bucket = &shards.buckets[b];
        if (holding.parameters.shares[bucket->share].parameter->tied && bucket->first_end == b)
            for (int d = 0; d < data; d++)
                pieces[count++] = bucket->pieces[d];
    }
    shards_destroy(&shards);
    let_go(&holding);
    return count;
}

static void check_ends(void)
{
    bool alike = true;
    for (int data = 2; data < 9; data++) {
        int64_t first[64], last[64], both[64];
        int64_t count = tied_pieces(FIRST, 1, data, first);
        alike = alike && count == 3 * data && tied_pieces(LAST, 1, data, last) == count &&
                tied_pieces(ENDS, 2, data, both) == count && memcmp(first, last, (size_t)count * sizeof *first) == 0 &&
                memcmp(first, both, (size_t)count * sizeof *first) == 0;
    }
    ok(alike, "ends of a tie on different ranks are cut alike, in three buckets");
}

/* What data rank d holds of replicated parameters must be the same on all tensor ranks, whose other shares differ. */
static void check_tensor(int tensor)
{
    bool alike = true;
    int differ = 0;
    for (int data = 2; data < 6; data++)
        for (int d = 0; d < data; d++) {
            struct holding holdings[4];
            struct shards shards[4];
            for (int t = 0; t < tensor; t++) {
                hold(&holdings[t], 516, 2003, true, WHOLE, 1, tensor, t);
                shards_create(&shards[t], &holdings[t].parameters, tensor, data, d, true);
            }
            for (int t = 1; t < tensor; t++) {
                differ += holdings[t].parameters.weight_elements != holdings[0].parameters.weight_elements;
                alike = alike && shards[t].range_count == shards[0].range_count;
                for (int i = 0; alike && i < shards[0].range_count; i++) {
                    int share = shards[0].shards[i].share;
                    bool replicated = holdings[0].parameters.shares[share].parameter->split < 0;
                    alike = shards[t].shards[i].share == share &&
                            shards[t].shards[i].first == shards[0].shards[i].first &&
                            (!replicated || shards[t].ranges[i].count == shards[0].ranges[i].count);
                }
            }
            for (int t = 0; t < tensor; t++) {
                shards_destroy(&shards[t]);
                let_go(&holdings[t]);
            }
        }
    ok(alike && differ > 0, "%d tensor ranks with uneven shares cut alike", tensor);
}

/* Moments of each data rank, against their equal part. */
static void check_balance(int hidden, int vocabulary, bool tied, int data)
{
    struct holding holding;
    hold(&holding, hidden, vocabulary, tied, WHOLE, 1, 1, 0);
    int64_t least = INT64_MAX, most = 0;
    for (int d = 0; d < data; d++) {
        struct shards shards;
        shards_create(&shards, &holding.parameters, 1, data, d, true);
        least = shards.moment_elements < least ? shards.moment_elements : least;
        most = shards.moment_elements > most ? shards.moment_elements : most;
        shards_destroy(&shards);
    }
    double part = (double)holding.parameters.weight_elements / data;
    if (!ok((double)most < part + 2 * SQUARES_BLOCK && (double)least > part - 2 * SQUARES_BLOCK,
            "hidden %d, vocabulary %d, %s, %d data ranks: equal to two blocks", hidden, vocabulary,
            tied ? "tied" : "untied", data))
        tap_note("%lld to %lld elements, %.0f in the mean", (long long)least, (long long)most, part);
    let_go(&holding);
}

int main(void)
{
    check_cover("whole model, tied", 96, 1009, true, WHOLE, 1, 1);
    check_cover("whole model, untied", 96, 1009, false, WHOLE, 1, 1);
    check_cover("both ends, three tensor ranks", 96, 1009, true, ENDS, 2, 3);
    check_cover("more than a bucket", 512, 2503, true, WHOLE, 1, 1);
    check_cover("smaller than a block", 48, 101, true, WHOLE, 1, 2);
    check_ends();
    check_tensor(2);
    check_tensor(4);
    for (int data = 2; data < 10; data += 2) {
        check_balance(512, 5003, true, data);
        check_balance(512, 5003, false, data - 1);
        check_balance(1024, 50257, true, 16 * data);
    }
    return tap_done();
}
