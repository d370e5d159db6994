#include "base/text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/tap.h"

static void test_growing(void)
{
    struct text text = {0};
    is_text(text_string(&text), "", "an empty text");
    text_add(&text, "%d-%s", 12, "ab");
    text_add_bytes(&text, "c\0d", 3);
    ok(text.length == 8 && !memcmp(text_string(&text), "12-abc\0d", 9), "any bytes, closed by a zero");
    text_fini(&text);
    for (int i = 0; i < 20000; i++)
        text_add(&text, "%05d", i);
    ok(text.length == 100000 && !strncmp(text.bytes + 5 * 12345, "12345", 5), "twenty thousand additions");
    text_fini(&text);
    ok(!text.bytes && text.length == 0, "empty again");
}

static void test_amounts(void)
{
    static const struct {
        double bytes;
        const char *text;
    } bytes[] = {{0, "0 B"},
                 {17, "17 B"},
                 {1023, "1023 B"},
                 {1024, "1.00 KiB"},
                 {1024 * 9.996, "10.0 KiB"},
                 {1024 * 99.96, "100 KiB"},
                 {1023.6 * 1024, "1.00 MiB"},
                 {12.3 * 1073741824, "12.3 GiB"},
                 {0x1p40, "1.00 TiB"},
                 {-0x1p20, "-1.00 MiB"},
                 {0x1p70, "1024 EiB"}};
    for (size_t i = 0; i < sizeof bytes / sizeof *bytes; i++)
        is_text(text_bytes(bytes[i].bytes).text, bytes[i].text, "%.17g bytes", bytes[i].bytes);
    static const struct {
        double seconds;
        const char *text;
    } durations[] = {{0, "0.00 ns"},
                     {250e-9, "250 ns"},
                     {999.6e-9, "1.00 us"},
                     {3.21e-3, "3.21 ms"},
                     {12.34, "12.3 s"},
                     {59.94, "59.9 s"},
                     {59.96, "1 min 00 s"},
                     {245, "4 min 05 s"},
                     {3599.6, "1 h 00 min"},
                     {3 * 3600 + 12 * 60 + 59, "3 h 12 min"},
                     {2 * 86400 + 3 * 3600, "2 d 03 h"},
                     {-90, "-1 min 30 s"},
                     {-0.5, "-500 ms"}};
    for (size_t i = 0; i < sizeof durations / sizeof *durations; i++)
        is_text(text_duration(durations[i].seconds).text, durations[i].text, "%.17g seconds", durations[i].seconds);
}

static void test_quotes(void)
{
    is_text(text_quote("layer").text, "'layer'", "a name in quotes");
    is_text(text_quote("a\nb\033[1m").text, "'a?b?[1m'", "control characters are shown as '?'");
    char name[200];
    memset(name, 'x', sizeof name);
    name[sizeof name - 1] = 0;
    const char *quoted = text_quote(name).text;
    ok(strlen(quoted) < sizeof(struct short_text) && !strcmp(quoted + strlen(quoted) - 5, "x...'"),
       "a long name is cut");
    for (size_t i = 0; i + 2 < sizeof name; i += 2)
        memcpy(name + i, "\xC3\xA9", 2);
    for (size_t from = 0; from < 2; from++) {
        struct short_text clip = text_clip(name + 2 - from, 150);
        size_t length = strlen(clip.text) - 3;
        ok(!strcmp(clip.text + length, "...") && (length - from) % 2 == 0, "no character of two bytes is cut in half");
    }
}

/* The distance by its definition, for short words: the cheapest of the last edits. */
static int distance_of(const char *a, size_t m, const char *b, size_t n)
{
    if (m == 0 || n == 0)
        return (int)(m + n);
    int best = distance_of(a, m - 1, b, n - 1) + (a[m - 1] != b[n - 1]);
    int removed = distance_of(a, m - 1, b, n) + 1, inserted = distance_of(a, m, b, n - 1) + 1;
    best = removed < best ? removed : best;
    best = inserted < best ? inserted : best;
    if (m > 1 && n > 1 && a[m - 1] == b[n - 2] && a[m - 2] == b[n - 1]) {
        int swapped = distance_of(a, m - 2, b, n - 2) + 1;
        best = swapped < best ? swapped : best;
    }
    return best;
}

static void test_distance(void)
{
    ok(text_distance("", "") == 0 && text_distance("", "abc") == 3 && text_distance("abc", "") == 3, "empty words");
    ok(text_distance("kitten", "sitting") == 3, "kitten and sitting");
    ok(text_distance("layres", "layers") == 1, "exchanged neighbours count once");
    ok(text_distance("ca", "abc") == 3, "no part is edited twice");
    unsigned state = 1;
    int wrong = 0;
    for (int trial = 0; trial < 300; trial++) {
        char words[2][8];
        for (int w = 0; w < 2; w++) {
            size_t length = (state = state * 1103515245 + 12345) >> 16 & 7;
            for (size_t i = 0; i < length; i++)
                words[w][i] = (char)('a' + ((state = state * 1103515245 + 12345) >> 16 & 0x7fff) % 3);
            words[w][length] = 0;
        }
        int distance = text_distance(words[0], words[1]);
        wrong += distance != distance_of(words[0], strlen(words[0]), words[1], strlen(words[1]));
        wrong += distance != text_distance(words[1], words[0]);
    }
    ok(wrong == 0, "300 pairs of words as by the definition, in both orders");
}

static void test_nearest(void)
{
    static const char *const names[] = {"layers", "hidden", "heads", "kv_heads", "sequence"};
    const char *found = text_nearest("layer", names, 5);
    ok(found == names[0], "layer is near to layers");
    ok(text_nearest("haeds", names, 5) == names[2], "haeds is near to heads");
    ok(!text_nearest("vocabulary", names, 5), "nothing is near to vocabulary");
    ok(!text_nearest("", names, 5) && !text_nearest("layers", names, 0), "no name, no names");
    char *name = malloc(1000001);
    memset(name, 'l', 1000000);
    name[1000000] = 0;
    ok(!text_nearest(name, names, 5), "a million characters are near to nothing");
    free(name);
}

int main(void)
{
    test_growing();
    test_amounts();
    test_quotes();
    test_distance();
    test_nearest();
    return tap_done();
}
