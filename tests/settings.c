/* The table of settings: defaults, reading, checks and their messages, printing. */
#include "base/settings.h"

#include <float.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/settings_table.h"
#include "tests/tap.h"

/* Reads a text and up to four arguments of the command line into fresh settings, which the caller releases. */
static struct settings *read_all(const char *text, const char *const *arguments, struct text *messages)
{
    struct settings *settings = malloc(sizeof *settings);
    if (!settings)
        abort();
    settings_init(settings);
    int count = 0;
    while (arguments && count < 4 && arguments[count])
        count++;
    int before = (int)messages->length;
    int rc = settings_parse(settings, text, strlen(text), "x.nml", arguments, count, messages);
    if ((rc != 0) != ((int)messages->length > before))
        text_add(messages, "rc %d without or with messages\n", rc);
    return settings;
}

static void release(struct settings *settings)
{
    settings_fini(settings);
    free(settings);
}

/* The messages about a text and arguments. */
static void says(const char *text, const char *const *arguments, const char *expected, const char *name)
{
    struct text messages = {0};
    release(read_all(text, arguments, &messages));
    is_text(text_string(&messages), expected, "%s", name);
    text_fini(&messages);
}

static void accepts(const char *text)
{
    says(text, NULL, "", text);
}

/* The file "&group\n  assignment\n/": one mistake in line 2 at this column, counted in the assignment from 1. */
static void refuses(const char *group, const char *assignment, int column, int width, const char *message,
                    const char *hint)
{
    struct text text = {0}, expected = {0};
    text_add(&text, "&%s\n  %s\n/\n", group, assignment);
    text_add(&expected, "x.nml:2:%d: error: %s\n    2 |   %s\n      | %*s", column + 2, message, assignment, column + 1,
             "");
    for (int i = 0; i < width; i++)
        text_add(&expected, i ? "~" : "^");
    text_add(&expected, "%s%s\n", hint[0] ? "  " : "", hint);
    says(text.bytes, NULL, expected.bytes, assignment);
    text_fini(&text);
    text_fini(&expected);
}

/* The same for one argument of the command line. */
static void refuses_argument(const char *argument, int column, int width, const char *message, const char *hint)
{
    struct text expected = {0};
    text_add(&expected, "command line: error: %s\n      | %s\n      | %*s", message, argument, column - 1, "");
    for (int i = 0; i < width; i++)
        text_add(&expected, i ? "~" : "^");
    text_add(&expected, "%s%s\n", hint[0] ? "  " : "", hint);
    says("", (const char *const[]){argument, NULL}, expected.bytes, argument);
    text_fini(&expected);
}

static void test_defaults(void)
{
    struct settings *s = malloc(sizeof *s);
    if (!s)
        abort();
    settings_init(s);
    ok(s->run.mode == MODE_TRAIN && s->run.steps == 200 && s->run.seed == 1 && s->run.device == DEVICE_AUTO &&
           s->run.precision == PRECISION_FP32 && !strcmp(s->run.output, ".") && !s->run.verbose &&
           s->run.hang_seconds == 600 && s->run.log_every == 1,
       "&run");
    ok(s->model.family == FAMILY_GPT2 && s->model.layers == 4 && s->model.hidden == 256 && s->model.tied_embeddings &&
           s->model.norm_epsilon == 1e-5 && s->model.init_std == 0.02,
       "&model");
    ok(s->grid.pipeline == 1 && s->grid.data == 0 && s->grid.tensor == 1 && !s->grid.sequence_parallel, "&grid");
    ok(s->pipeline.schedule == SCHEDULE_1F1B && s->pipeline.microbatch_size == 4 && s->pipeline.chunks == 1 &&
           s->pipeline.balance == BALANCE_COST && s->pipeline.recompute == RECOMPUTE_NONE &&
           s->pipeline.stage_layers.count == 0 && !s->pipeline.stage_layers.items,
       "&pipeline");
    ok(s->optimizer.kind == OPTIMIZER_ADAMW && s->optimizer.decay == DECAY_COSINE &&
           s->optimizer.learning_rate == 3e-4 && s->optimizer.beta2 == 0.95 && s->optimizer.epsilon == 1e-8,
       "&optimizer");
    ok(!strcmp(s->data.train, "corpus.h5") && !strcmp(s->data.validation, "") && s->data.shuffle &&
           !strcmp(s->checkpoint.resume, "auto") && s->checkpoint.keep == 2 && !strcmp(s->trace.file, "trace.json"),
       "&data, &checkpoint and &trace");
    ok(s->plan.devices_per_node == 8 && s->machine.link_gbs == 0 && s->generate.top_p == 1 &&
           !strcmp(s->generate.output, "generated.jsonl"),
       "&plan, &machine and &generate");
    ok(!strcmp(schedule_names[SCHEDULE_V_HALF], "v-half") && !strcmp(mode_names[MODE_BENCH], "bench") &&
           !mode_names[MODE_BENCH + 1] && !strcmp(decay_names[DECAY_WSD], "wsd"),
       "names of choices");
    release(s);
}

static void test_reading(void)
{
    const char *text =
        "&GRID pipeline = 4, tensor = 2 SEQUENCE_PARALLEL = T /\n"
        "&run steps = 1099511627776 seed = 4611686018427387904 wall_minutes = 90 /\n"
        "&pipeline schedule = \"zb-v\" stage_layers(3:4) = 2*7 stage_layers(1) = 0, stage_layers(2)=65536 /\n"
        "&optimizer learning_rate = 1.5d-4 beta1 = 0 /\n"
        "&machine sum_bytes(3) = 1d9 sum_bytes(1:2) = 0.5 3 name = 'mine' /\n"
        "&generate prompt = 'it''s \"it\"' /\n";
    struct text messages = {0};
    struct settings *s = read_all(text, NULL, &messages);
    is_text(text_string(&messages), "", "a file of all types is accepted");
    ok(s->grid.pipeline == 4 && s->grid.tensor == 2 && s->grid.sequence_parallel, "integers and a logical");
    ok(s->run.steps == INT64_C(1) << 40 && s->run.seed == INT64_C(1) << 62, "integers of 64 bits, at their bounds");
    ok(s->run.wall_minutes == 90 && s->optimizer.learning_rate == 1.5e-4 && s->optimizer.beta1 == 0, "reals");
    ok(s->pipeline.schedule == SCHEDULE_ZB_V, "a choice");
    is_text(s->generate.prompt, "it's \"it\"", "a string");
    const struct settings_list *list = &s->pipeline.stage_layers;
    ok(list->count == 4 && list->items[0] == 0 && list->items[1] == 65536 && list->items[2] == 7 && list->items[3] == 7,
       "a list, element by element");
    const struct settings_reals *reals = &s->machine.sum_bytes;
    ok(reals->count == 3 && reals->items[0] == 0.5 && reals->items[1] == 3 && reals->items[2] == 1e9,
       "a list of reals, element by element");
    struct settings *copy = malloc(sizeof *copy);
    if (!copy)
        abort();
    settings_copy(copy, s);
    release(s);
    ok(copy->pipeline.stage_layers.count == 4 && copy->pipeline.stage_layers.items[3] == 7 && copy->grid.tensor == 2,
       "a copy outlives its source");
    release(copy);
    accepts("");
    accepts("&run / &data /");
    accepts("&optimizer epsilon = 4.9406564584124654d-324 clip_norm = 0 /");
    accepts("&optimizer beta1 = 0.99999999999999989 /");
}

static void test_mistakes(void)
{
    refuses("model", "layer = 24", 1, 5, "unknown key 'layer' in &model", "did you mean 'layers'?");
    refuses("model", "LAYRES = 24", 1, 6, "unknown key 'layres' in &model", "did you mean 'layers'?");
    refuses("model", "pipeline = 4", 1, 8, "unknown key 'pipeline' in &model", "it belongs to &grid");
    refuses("run", "batch_size = 4", 1, 10, "unknown key 'batch_size' in &run",
            "did you mean 'microbatch_size' of &pipeline?");
    refuses("run", "dropout = 0.1", 1, 7, "unknown key 'dropout' in &run", "ppmodel --defaults shows all keys");
    refuses("run", "steps = 1e6", 9, 3, "'steps' takes an integer, found 1e6", "write 1000000");
    refuses("run", "steps = 3.5", 9, 3, "'steps' takes an integer, found 3.5",
            "an integer has no point and no exponent");
    refuses("run", "steps = '3'", 9, 3, "'steps' takes an integer, found '3'", "");
    refuses("run", "steps = .true.", 9, 6, "'steps' takes an integer, found .true.", "");
    refuses("run", "steps = -1", 9, 2, "'steps' = -1 is out of range", "allowed: 0 to 2^40");
    refuses("run", "steps = 1099511627777", 9, 13, "'steps' = 1099511627777 is out of range", "allowed: 0 to 2^40");
    refuses("run", "threads = 99999999999", 11, 11, "'threads' = 99999999999 is out of range", "allowed: 0 to 65536");
    refuses("run", "seed = 99999999999999999999", 8, 20, "'seed' = 99999999999999999999 is out of range",
            "allowed: 0 to 2^62");
    refuses("model", "layers = 0", 10, 1, "'layers' = 0 is out of range", "allowed: 1 to 65536");
    refuses("model", "layers = 4, 5", 13, 1, "'layers' takes one value, found 2", "");
    refuses("model", "layers = 3*4", 12, 1, "'layers' takes one value, found 3", "");
    refuses("model", "layers(1) = 4", 1, 6, "'layers' is not a list", "write layers = ...");
    refuses("run", "verbose = 1", 11, 1, "'verbose' takes a logical, found 1", "write .true. or .false.");
    refuses("run", "hang_seconds = -1", 16, 2, "'hang_seconds' = -1 is out of range", "allowed: >= 0 and <= 1e+09");
    refuses("run", "wall_minutes = 1e400", 16, 5, "'wall_minutes' = 1e400 is out of range",
            "allowed: >= 0 and <= 1e+09");
    refuses("run", "wall_minutes = 1e-400", 16, 6, "'wall_minutes' = 1e-400 is too small for a real", "write 0.0");
    refuses("run", "wall_minutes = nan", 16, 3, "nan is not a finite number", "");
    refuses("run", "wall_minutes = t", 16, 1, "'wall_minutes' takes a real, found t", "");
    refuses("optimizer", "beta1 = 1.0", 9, 3, "'beta1' = 1.0 is out of range", "allowed: >= 0 and < 1");
    refuses("optimizer", "beta1 = -1e-9", 9, 5, "'beta1' = -1e-9 is out of range", "allowed: >= 0 and < 1");
    refuses("run", "mode = 'tran'", 8, 6, "'tran' is not a choice for 'mode'",
            "did you mean 'train'? allowed: 'train' 'evaluate' 'generate' 'plan' 'bench'");
    refuses("run", "mode = 'Train'", 8, 7, "'Train' is not a choice for 'mode'",
            "did you mean 'train'? allowed: 'train' 'evaluate' 'generate' 'plan' 'bench'");
    refuses("run", "device = 'tpu'", 10, 5, "'tpu' is not a choice for 'device'",
            "did you mean 'cpu'? allowed: 'auto' 'cpu' 'cuda'");
    refuses("run", "device = ''", 10, 2, "'' is not a choice for 'device'", "allowed: 'auto' 'cpu' 'cuda'");
    refuses("run", "device = 1", 10, 1, "'device' takes a string, found 1", "write '1'");
    refuses("run", "device = cpu", 10, 3, "cpu is neither a number, nor a logical, nor a text in quotes",
            "write 'cpu' for a text");
    refuses("run", "output = ''", 10, 2, "'output' has 0 bytes", "allowed: 1 to 4096 bytes");
    refuses("pipeline", "stage_layers = 1, -1", 19, 2, "'stage_layers' = -1 is out of range",
            "allowed: at most 65536 elements of 0 to 65536");
    refuses("pipeline", "stage_layers = 1, 2.", 19, 2, "'stage_layers' takes integers, found 2.", "write 2");
    refuses("machine", "sum_bytes = 1, 0", 16, 1, "'sum_bytes' = 0 is out of range",
            "allowed: at most 65536 elements > 0 and <= 1e+15");
    refuses("machine", "sum_bytes = 1, .t.", 16, 3, "'sum_bytes' takes reals, found .t.", "");
    refuses("pipeline", "stage_layers = 65537*1", 1, 12, "'stage_layers' has at most 65536 elements, found 65537", "");
    refuses("pipeline", "stage_layers = 2147483647*1, 2147483647*1", 1, 12,
            "'stage_layers' has at most 65536 elements, found 4294967294", "");
    refuses("pipeline", "stage_layers(65537) = 1", 1, 12, "'stage_layers' has at most 65536 elements, found 65537", "");
    refuses("pipeline", "stage_layers(3) = 1 stage_layers(1) = 2", 1, 12, "'stage_layers(2)' is missing",
            "3 is the last element given");
    refuses("pipeline", "stage_layers = 1, 2 stage_layers(2) = 3", 39, 1, "'stage_layers(2)' is given twice",
            "already set on line 2");
}

static void test_whole_files(void)
{
    says("&modle\n  anything = 1\n/\n&nothing_like_it /\n", NULL,
         "x.nml:1:1: error: unknown group &modle\n"
         "    1 | &modle\n"
         "      | ^~~~~~  did you mean &model?\n"
         "x.nml:4:1: error: unknown group &nothing_like_it\n"
         "    4 | &nothing_like_it /\n"
         "      | ^~~~~~~~~~~~~~~~  known: &run &model &grid &pipeline &data &optimizer &checkpoint &trace &machine "
         "&plan &evaluate &generate\n",
         "unknown groups");
    says("&run steps = 3\n/\n&run\n  steps = 4\n/\n", NULL,
         "x.nml:3:1: error: the group &run is given twice\n"
         "    3 | &run\n"
         "      | ^~~~  already on line 1\n"
         "x.nml:4:3: error: 'steps' is given twice\n"
         "    4 |   steps = 4\n"
         "      |   ^~~~~  already set on line 1\n",
         "a group and a key given twice");
    says("&run\n steps = 1x\n modee = 'train'\n steps = 5\n threads = -4 /\n&grid data = 'x'\n",
         (const char *const[]){"run.stepz=3", NULL},
         "x.nml:2:10: error: 1x is neither a number, nor a logical, nor a text in quotes\n"
         "    2 |  steps = 1x\n"
         "      |          ^~  write '1x' for a text\n"
         "x.nml:3:2: error: unknown key 'modee' in &run\n"
         "    3 |  modee = 'train'\n"
         "      |  ^~~~~  did you mean 'mode'?\n"
         "x.nml:4:2: error: 'steps' is given twice\n"
         "    4 |  steps = 5\n"
         "      |  ^~~~~  already set on line 2\n"
         "x.nml:5:12: error: 'threads' = -4 is out of range\n"
         "    5 |  threads = -4 /\n"
         "      |            ^~  allowed: 0 to 65536\n"
         "x.nml:6:1: error: the group has no end\n"
         "    6 | &grid data = 'x'\n"
         "      | ^~~~~  close it by a /\n"
         "x.nml:6:14: error: 'data' takes an integer, found 'x'\n"
         "    6 | &grid data = 'x'\n"
         "      |              ^~~\n"
         "command line: error: unknown key 'stepz' in &run\n"
         "      | run.stepz=3\n"
         "      |     ^~~~~  did you mean 'steps'?\n",
         "all mistakes in one run, by line, syntax and meaning mixed, then the command line");
    struct text text = {0}, messages = {0};
    for (size_t length = 4096; length <= 4097; length++) {
        text_add(&text, "&run output = '%0*d' /", (int)length, 0);
        struct settings *s = read_all(text.bytes, NULL, &messages);
        ok((length == 4096) == (messages.length == 0) && (length > 4096 || strlen(s->run.output) == 4096),
           "a string of %zu bytes", length);
        release(s);
        text_fini(&text);
    }
    ok(strstr(text_string(&messages), "'output' has 4097 bytes\n") &&
           strstr(text_string(&messages), "allowed: 1 to 4096 bytes\n"),
       "which is too long");
    text_fini(&messages);
}

static void test_overrides(void)
{
    struct text messages = {0};
    const char *text = "&run steps = 5 output = 'here' / &pipeline stage_layers = 9, 9, 9 /";
    struct settings *s =
        read_all(text, (const char *const[]){"run.steps=7", "RUN.Output=/a b/'c", "pipeline.stage_layers=1,2*4", NULL},
                 &messages);
    is_text(text_string(&messages), "", "keys of the file are overridden");
    ok(s->run.steps == 7 && s->pipeline.stage_layers.count == 3 && s->pipeline.stage_layers.items[0] == 1 &&
           s->pipeline.stage_layers.items[2] == 4,
       "a number and a list");
    is_text(s->run.output, "/a b/'c", "a string without quotes, as it is");
    release(s);
    s = read_all("",
                 (const char *const[]){"generate.prompt='it''s'", "run.mode=plan", "run.verbose=true",
                                       "optimizer.learning_rate=1e-4", NULL},
                 &messages);
    is_text(text_string(&messages), "", "all types are accepted");
    is_text(s->generate.prompt, "it's", "a string in quotes");
    ok(s->run.mode == MODE_PLAN && s->run.verbose && s->optimizer.learning_rate == 1e-4, "choice, logical and real");
    release(s);
    s = read_all("", (const char *const[]){"generate.prompt=a=b.c", "data.validation=''", NULL}, &messages);
    ok(messages.length == 0 && !strcmp(s->generate.prompt, "a=b.c") && !s->data.validation[0],
       "a value with = and ., an empty string");
    release(s);
    s = read_all("&pipeline stage_layers = 9, 9, 9 /", (const char *const[]){"pipeline.stage_layers=4", NULL},
                 &messages);
    ok(messages.length == 0 && s->pipeline.stage_layers.count == 1 && s->pipeline.stage_layers.items[0] == 4,
       "a list replaces a longer one");
    release(s);
    text_fini(&messages);

    refuses_argument("run.stepz=3", 5, 5, "unknown key 'stepz' in &run", "did you mean 'steps'?");
    refuses_argument("run.layers=3", 5, 6, "unknown key 'layers' in &run", "it belongs to &model");
    refuses_argument("modl.layers=3", 1, 4, "unknown group &modl", "did you mean &model?");
    refuses_argument("steps=3", 1, 5, "no assignment to a key", "write group.key=value");
    refuses_argument("run.steps", 1, 9, "no assignment to a key", "write group.key=value");
    refuses_argument("input.nml", 1, 9, "no assignment to a key", "write group.key=value");
    refuses_argument("run.steps=", 11, 1, "empty value: nothing is given for 'steps'",
                     "leave the key out to have its default");
    refuses_argument("run.output=", 12, 1, "empty value: nothing is given for 'output'",
                     "leave the key out to have its default");
    refuses_argument("run.steps=ten", 11, 3, "ten is neither a number nor a logical", "");
    refuses_argument("run.steps=1e3", 11, 3, "'steps' takes an integer, found 1e3", "write 1000");
    refuses_argument("run.steps=10 20", 14, 2, "'steps' takes one value, found 2", "");
    refuses_argument("run.steps=10 ! ten", 14, 1, "unexpected '!'", "separate values by commas or blanks");
    refuses_argument("run.steps=10/", 13, 1, "/ is neither a number nor a logical", "");
    refuses_argument("model.layers=0", 14, 1, "'layers' = 0 is out of range", "allowed: 1 to 65536");
    refuses_argument("run.device=gpu", 12, 3, "'gpu' is not a choice for 'device'",
                     "did you mean 'cpu'? allowed: 'auto' 'cpu' 'cuda'");
    refuses_argument("generate.prompt='open", 17, 5, "the string is not closed on its line", "a quote is missing");
    says("", (const char *const[]){"generate.prompt=a\nb", NULL},
         "command line: error: byte 0x0A is not allowed\n      | generate.prompt=a\n      |                  ^\n",
         "an end of line in an argument");
    says("", (const char *const[]){"run.steps=3", "run.seed=2", "run.STEPS=3", NULL},
         "command line: error: 'steps' of &run is given twice on the command line\n      | run.STEPS=3\n"
         "      |     ^~~~~\n",
         "the same override twice");
}

/* Whether all members are equal, reals bit by bit. */
static bool same_settings(const struct settings *a, const struct settings *b)
{
    for (int i = 0; i < settings_key_count; i++) {
        const void *left = settings_value(a, &settings_keys[i]), *right = settings_value(b, &settings_keys[i]);
        const struct settings_list *x = left, *y = right;
        bool same = true;
        switch (settings_keys[i].type) {
        case SETTINGS_INT:
        case SETTINGS_CHOICE:
            same = !memcmp(left, right, sizeof(int));
            break;
        case SETTINGS_COUNT:
            same = !memcmp(left, right, sizeof(int64_t));
            break;
        case SETTINGS_REAL:
            same = !memcmp(left, right, sizeof(double));
            break;
        case SETTINGS_LOGICAL:
            same = !memcmp(left, right, sizeof(bool));
            break;
        case SETTINGS_STRING:
            same = !strcmp(left, right);
            break;
        case SETTINGS_LIST:
        case SETTINGS_REALS:
            same =
                x->count == y->count &&
                (x->count == 0 || !memcmp(x->items, y->items, (size_t)x->count * settings_element(&settings_keys[i])));
            break;
        }
        if (!same) {
            tap_note("%s.%s differs", settings_keys[i].group, settings_keys[i].key);
            return false;
        }
    }
    return true;
}

static void check_round_trip(const struct settings *settings, const char *name)
{
    struct text printed = {0}, messages = {0};
    settings_print(settings, &printed);
    struct settings *again = read_all(text_string(&printed), NULL, &messages);
    is_text(text_string(&messages), "", "%s: what is printed is accepted", name);
    ok(same_settings(settings, again), "%s: it reads back exactly", name);
    release(again);
    text_fini(&printed);
    text_fini(&messages);
}

static uint64_t next_random(uint64_t *state)
{
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return *state >> 11;
}

/* A value within the key's bounds, now and then the bounds themselves. */
static void randomize(struct settings *settings, const struct settings_key *key, uint64_t *state)
{
    void *member = settings_member(settings, key);
    uint64_t draw = next_random(state);
    int64_t span = key->high.whole - key->low.whole; /* 0 for what is real */
    int64_t whole = draw % 8 == 0   ? key->low.whole
                    : draw % 8 == 1 ? key->high.whole
                                    : key->low.whole + (int64_t)(next_random(state) % (uint64_t)(span + 1));
    double unit = (double)next_random(state) / 0x1p53, real;
    struct settings_list *list = member;
    struct settings_reals *reals = member;
    int choices = 0;
    switch (key->type) {
    case SETTINGS_INT:
        *(int *)member = (int)whole;
        return;
    case SETTINGS_COUNT:
        *(int64_t *)member = whole;
        return;
    case SETTINGS_REAL:
        real = draw % 8 == 0 && !key->low.open    ? key->low.real
               : draw % 8 == 1 && !key->high.open ? key->high.real
               : draw % 8 == 2                    ? DBL_TRUE_MIN
                                                  : key->low.real + unit * (key->high.real - key->low.real);
        *(double *)member = real;
        return;
    case SETTINGS_LOGICAL:
        *(bool *)member = draw % 2;
        return;
    case SETTINGS_STRING:
        snprintf(member, SETTINGS_STRING_MAX, "'%llu\" ! /\t\xC3\xA9 & x = '%.*s", (unsigned long long)draw,
                 (int)(draw % 4), "'''");
        return;
    case SETTINGS_CHOICE:
        while (key->names[choices])
            choices++;
        *(int *)member = (int)(draw % (uint64_t)choices);
        return;
    case SETTINGS_LIST:
        free(list->items);
        list->count = (int)(draw % 300);
        list->items = calloc((size_t)list->count + 1, sizeof *list->items);
        for (int i = 0; list->items && i < list->count; i++)
            list->items[i] = (int)(next_random(state) % (uint64_t)(span + 1));
        return;
    case SETTINGS_REALS:
        free(reals->items);
        reals->count = (int)(draw % 300);
        reals->items = calloc((size_t)reals->count + 1, sizeof *reals->items);
        for (int i = 0; reals->items && i < reals->count; i++)
            reals->items[i] = key->high.real - (double)next_random(state) / 0x1p53 * (key->high.real - key->low.real);
        return;
    }
}

static void test_groups(void)
{
    struct text messages = {0}, printed = {0};
    struct settings *mine = read_all("&machine link_gbs = 3 sum_bytes = 7 /\n", NULL, &messages);
    struct settings *preset =
        read_all("&machine link_gbs = 5 memory_gib = 2.5 sum_bytes = 1, 2 sum_ranks = 4 name = 'it''s' /\n"
                 "&run steps = 5 /\n",
                 NULL, &messages);
    settings_complete(mine, preset, "machine");
    release(preset);
    settings_print_group(mine, "machine", &printed);
    is_text(text_string(&printed),
            "&machine\n  name = 'it''s'\n  memory_gib = 2.5\n  link_gbs = 3.0\n  sum_ranks = 4\n  sum_bytes = 7.0\n/\n",
            "a group is completed from another one and printed without what is 0");
    ok(mine->run.steps == 200, "other groups stay");
    release(mine);
    text_fini(&printed);
    text_fini(&messages);
}

static void test_printing(void)
{
    struct settings *s = malloc(sizeof *s);
    if (!s)
        abort();
    settings_init(s);
    check_round_trip(s, "defaults");
    uint64_t state = 7;
    for (int trial = 0; trial < 20; trial++) {
        struct text name = {0};
        for (int i = 0; i < settings_key_count; i++)
            randomize(s, &settings_keys[i], &state);
        text_add(&name, "random settings %d", trial);
        check_round_trip(s, name.bytes);
        text_fini(&name);
    }
    settings_fini(s);
    settings_init(s);
    s->pipeline.stage_layers.count = SETTINGS_LIST_MAX;
    s->pipeline.stage_layers.items = calloc(SETTINGS_LIST_MAX, sizeof(int));
    memset(s->run.output, '\'', SETTINGS_STRING_MAX);
    s->run.output[SETTINGS_STRING_MAX] = 0;
    check_round_trip(s, "the longest list and string");
    release(s);

    struct text text = {0}, defaults = {0}, messages = {0};
    settings_defaults_print(&defaults);
    s = read_all(text_string(&defaults), NULL, &messages);
    is_text(text_string(&messages), "", "--defaults is a namelist");
    struct settings *fresh = malloc(sizeof *fresh);
    if (!fresh)
        abort();
    settings_init(fresh);
    ok(same_settings(s, fresh), "of the defaults");
    int missing = 0;
    for (int i = 0; i < settings_key_count; i++) {
        text_add(&text, "%s = ", settings_keys[i].key);
        missing +=
            !strstr(text_string(&defaults), text.bytes) || !strstr(text_string(&defaults), settings_keys[i].help);
        text_fini(&text);
    }
    ok(missing == 0, "with every key and its explanation");
    ok(strstr(text_string(&defaults), "  ! length of a sequence [tokens]\n"
                                      "  sequence = 256                         ! integer, 1 to 2^24\n"),
       "with type, allowed values and unit");
    release(s);
    release(fresh);
    text_fini(&defaults);
    text_fini(&messages);
}

int main(void)
{
    test_defaults();
    test_reading();
    test_mistakes();
    test_whole_files();
    test_overrides();
    test_groups();
    test_printing();
    return tap_done();
}
