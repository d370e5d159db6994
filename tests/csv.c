/* Schedules as text: every schedule comes back as it was, PyTorch's files are read, and mistakes are told by their
 * place. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pipeline/csv.h"
#include "pipeline/generate.h"
#include "pipeline/lower.h"
#include "pipeline/validate.h"
#include "tests/tap.h"

static bool same(const struct schedule *a, const struct schedule *b)
{
    if (a->ranks != b->ranks || a->chunks != b->chunks || a->stages != b->stages ||
        a->microbatches != b->microbatches || a->placement != b->placement)
        return false;
    for (int rank = 0; rank < a->ranks; rank++) {
        if (a->lists[rank].count != b->lists[rank].count)
            return false;
        for (int64_t i = 0; i < a->lists[rank].count; i++) {
            struct instruction x = a->lists[rank].items[i], y = b->lists[rank].items[i];
            if (x.op != y.op || x.stage != y.stage || x.microbatch != y.microbatch || x.peer != y.peer)
                return false;
        }
    }
    return true;
}

static struct schedule *parse(const char *text, struct err *err)
{
    err->text[0] = 0;
    return csv_parse("order.csv", text, strlen(text), err);
}

static void round_trips(void)
{
    static const struct {
        const char *name;
        int chunks;
    } cases[] = {{"gpipe", 1},       {"1f1b", 1},       {"eager-1f1b", 1}, {"interleaved", 2},
                 {"interleaved", 3}, {"looped-bfs", 2}, {"looped-bfs", 3}, {"zb-h1", 1},
                 {"zb-v", 2},        {"v-half", 2},     {"v-min", 2}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int right = 0, count = 0;
        struct err err = {""};
        for (int ranks = 2; ranks <= 8; ranks++)
            for (int microbatches = 1; microbatches <= 16; microbatches++, count++) {
                struct text text = {0}, again = {0};
                struct schedule *schedule =
                    generate_schedule(cases[i].name, ranks, cases[i].chunks, microbatches, &err);
                struct schedule *lowered = lower_schedule(schedule, &err);
                csv_print(schedule, &text);
                csv_print(lowered, &again);
                struct schedule *read = csv_parse("order.csv", text.bytes, text.length, &err);
                right += read && same(schedule, read) && !strcmp(text_string(&text), text_string(&again)) &&
                         csv_check("order.csv", read, ranks, cases[i].chunks, microbatches, &err) == 0;
                schedule_destroy(read);
                schedule_destroy(schedule);
                schedule_destroy(lowered);
                text_fini(&text);
                text_fini(&again);
            }
        ok(right == count, "%s with %d chunks comes back from its text for P <= 8, M <= 16 %s", cases[i].name,
           cases[i].chunks, err.text);
    }
}

/* As PyTorch writes it: idle cells, CR LF, rows of unequal length. */
static void idle_cells(void)
{
    static const char text[] = "0F0,0F1,,,0B0,,0B1\r\n ,1F0 ,1B0,\t1F1,1B1,,\r\n\r\n";
    struct err err;
    struct schedule *read = parse(text, &err), *made = generate_schedule("1f1b", 2, 1, 2, &err);
    ok(read && same(read, made), "idle cells, blanks and empty lines at the end mean nothing %s", err.text);
    struct text out = {0};
    csv_print(read, &out);
    is_text(text_string(&out), "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n", "and are not written");
    text_fini(&out);
    schedule_destroy(read);
    schedule_destroy(made);

    read = parse("0F0,0B0", &err);
    ok(read && read->ranks == 1 && read->lists[0].count == 2, "no newline at the end is needed");
    schedule_destroy(read);
}

/* An order of DeepSeek's DualPipeV, P = 4, M = 8, which no generator makes: full and split backwards together. */
static void foreign_order(void)
{
    static const char *const lines[] = {
        "F0a F1a F2a F3a F4a F5a F6a F0b I0b W0b F1b I1b W1b F2b I2b W2b F3b F7a B3b F4b B0a B4b F5b B1a B5b F6b B2a "
        "B6b F7b B3a B7b I4a W4a I5a W5a I6a W6a I7a W7a",
        "F0a F1a F2a F3a F4a F0b F5a F1b I0b W0b F2b I1b W1b F3b F6a B2b F4b B0a F7a B3b F5b B1a B4b F6b B2a B5b F7b "
        "B3a B6b B4a I7b I5a W7b I6a W5a I7a W6a W7a",
        "F0a F1a F2a F0b F3a F1b F4a F2b I0b W0b F3b F5a B1b F4b B0a F6a B2b F5b B1a F7a B3b F6b B2a B4b F7b B3a B5b "
        "B4a B6b I5a I7b I6a W5a I7a W7b W6a W7a",
        "F0a F0b F1a F1b F2a F2b F3a F3b F4a B0b F4b B0a F5a B1b F5b B1a F6a B2b F6b B2a F7a B3b F7b B3a B4b B4a B5b "
        "B5a I6b I6a I7b I7a W6b W6a W7b W7a"};
    struct text text = {0};
    for (int rank = 0; rank < 4; rank++) {
        for (const char *at = lines[rank]; at; at = strchr(at, ' ')) {
            at += *at == ' ';
            text_add(&text, "%d%c%c,", at[2] == 'a' ? rank : 7 - rank, at[0], at[1]);
        }
        text_add(&text, "\n");
    }
    struct err err;
    struct schedule *read = parse(text_string(&text), &err);
    struct schedule *lowered = read ? lower_schedule(read, &err) : NULL;
    struct validation *validation = lowered ? validate_schedule(lowered, 2, &err) : NULL;
    ok(validation && read->placement == PLACEMENT_V && read->chunks == 2 && read->microbatches == 8 &&
           validation->rank_peak_sets[0] == 9 && validation->rank_peak_sets[3] == 9 && validation->ascending,
       "DualPipeV is read, is valid and has its published peaks %s", err.text);
    validate_destroy(validation);
    schedule_destroy(lowered);
    schedule_destroy(read);
    text_fini(&text);
}

/* A schedule may run the two halves of the backward in different orders; only ascending ones keep the bits. */
static void order_of_halves(void)
{
    static const struct {
        const char *text;
        bool ascending;
    } cases[] = {{"0F0,0F1,0I0,0I1,0W0,0W1", true},
                 {"0F0,0F1,0I1,0I0,0W0,0W1", false},
                 {"0F0,0F1,0I0,0I1,0W1,0W0", false},
                 {"0F0,0F1,0F2,0I0,0B1,0W0,0B2", false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err err;
        struct schedule *read = parse(cases[i].text, &err);
        struct schedule *lowered = lower_schedule(read, &err);
        struct validation *validation = validate_schedule(lowered, 2, &err);
        ok(validation && validation->ascending == cases[i].ascending, "%s: %s order", cases[i].text,
           cases[i].ascending ? "ascending" : "another");
        validate_destroy(validation);
        schedule_destroy(lowered);
        schedule_destroy(read);
    }
}

static void mistakes(void)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"0F0,0X0", "order.csv:1:2: '0X0' is not a computation: a stage, one of F, B, I and W, and a microbatch, as in "
                    "3F12; messages and reductions are not given"},
        {"0F0,0B0\n,,1F0,1SEND_B0",
         "order.csv:2:4: '1SEND_B0' is not a computation: a stage, one of F, B, I and W, and a microbatch, as in 3F12; "
         "messages and reductions are not given"},
        {"0F", "order.csv:1:1: '0F' is not a computation: a stage, one of F, B, I and W, and a microbatch, as in 3F12; "
               "messages and reductions are not given"},
        {"F0", "order.csv:1:1: 'F0' is not a computation: a stage, one of F, B, I and W, and a microbatch, as in 3F12; "
               "messages and reductions are not given"},
        {"0F0,7", "order.csv:1:2: '7' is not a computation: a stage, one of F, B, I and W, and a microbatch, as in "
                  "3F12; messages and reductions are not given"},
        {"0F0 0B0",
         "order.csv:1:1: '0F0 0B0' is not a computation: a stage, one of F, B, I and W, and a microbatch, as in 3F12; "
         "messages and reductions are not given"},
        {"0F-1", "order.csv:1:1: '0F-1' is not a computation: a stage, one of F, B, I and W, and a microbatch, as in "
                 "3F12; messages and reductions are not given"},
        {"99999999999F0",
         "order.csv:1:1: '99999999999F0' is not a computation: a stage, one of F, B, I and W, and a microbatch, as in "
         "3F12; messages and reductions are not given"},
        {"", "order.csv holds no computations"},
        {"\n,,,\n", "order.csv holds no computations"},
        {"0F0,2F0\n1F0", "order.csv: its 2 lines, one for each rank, do not share its stages 0 to 2 out evenly: each "
                         "needs as many"},
        {"0F0,0F7\n1F0,1F1", "order.csv: stages 0 to 1 with microbatches 0 to 7 need 16 forwards, not 4"},
        {"2147483646F2147483646", "order.csv: stages 0 to 2147483646 with microbatches 0 to 2147483646 need "
                                  "4611686014132420609 forwards, not 1"},
        {"0F0,3F0,3B0,0B0\n1F0,2F0,2B0,1B0\n\n", ""},
        {"1F0,1B0\n0F0,0B0",
         "order.csv:1:1: stage 1 cannot be on rank 0, with the stages of the cells before where they are: over 2 ranks "
         "stages go round in a loop (stage s on rank s mod 2) or down and up in a V"},
        {"0F0,3F0,3B0,0B0\n1F0,2F0,3B0,1B0",
         "order.csv:2:3: stage 3 cannot be on rank 1, with the stages of the cells before where they are: over 2 ranks "
         "stages go round in a loop (stage s on rank s mod 2) or down and up in a V"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err err;
        struct schedule *read = parse(cases[i].text, &err);
        is_text(err.text, cases[i].message, "malformed %zu", i);
        ok(!read == (*cases[i].message != '\0'), "malformed %zu is refused", i);
        schedule_destroy(read);
    }

    static const char zero[] = "0F0,0\0B0";
    struct err err = {""};
    ok(!csv_parse("order.csv", zero, sizeof zero - 1, &err), "a zero byte is refused: %s", err.text);

    struct schedule *read = parse("0F0,0B0\n1F0,1B0", &err);
    ok(csv_check("order.csv", read, 3, 1, 1, &err) < 0, "another number of ranks is refused");
    is_text(err.text, "order.csv has lines for pipeline = 2, but &grid pipeline = 3", "and told");
    ok(csv_check("order.csv", read, 2, 2, 1, &err) < 0, "other chunks are refused");
    is_text(err.text, "order.csv is for chunks = 1, but &pipeline chunks = 2; set chunks = 1", "and told");
    ok(csv_check("order.csv", read, 2, 1, 8, &err) < 0, "other microbatches are refused");
    is_text(err.text, "order.csv is for microbatches = 1, but &pipeline microbatches = 8; set microbatches = 1",
            "and told");
    schedule_destroy(read);

    /* what each rank does is right, but not the whole: the validator's */
    read = parse("0F0,0F0,0B0,0B1\n1F0,1F1,1B0,1B1", &err);
    ok(read && !lower_schedule(read, &err), "a computation given twice is the validator's to find");
    is_text(err.text, "rank 0 instruction 1 (0F0): appears a second time", "and it tells");
    schedule_destroy(read);
}

int main(void)
{
    round_trips();
    idle_cells();
    foreign_order();
    order_of_halves();
    mistakes();
    return tap_done();
}
