/* The syntax of namelists; namelist_gfortran.py compares random files with gfortran's reader. */
#include "base/namelist.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/tap.h"

/* Everything read, in one line: `group:` for each group, `key(low:high)=` and its values: i, r, l or s with the text in
 * brackets. After mistakes the messages instead. */
static void parse(const char *bytes, size_t length, struct text *out)
{
    /* A copy of exactly this length, so that a sanitizer sees every step beyond it. */
    char *copy = malloc(length ? length : 1);
    if (!copy)
        return;
    memcpy(copy, bytes, length);
    struct source source = {"x.nml", copy, length, true};
    struct mistakes mistakes = {0};
    struct namelist namelist;
    int rc = namelist_parse(&source, &namelist, &mistakes);
    if ((rc != 0) != (mistakes.count > 0))
        text_add(out, "rc %d with %d mistakes\n", rc, mistakes.count);
    mistakes_print(&mistakes, out);
    for (int g = 0; g < namelist.group_count && !rc; g++) {
        text_add(out, "%s%s:", g ? " " : "", namelist.groups[g].name);
        for (int a = 0; a < namelist.assignment_count; a++) {
            const struct namelist_assignment *assignment = &namelist.assignments[a];
            if (assignment->group != g)
                continue;
            text_add(out, " %s", assignment->key);
            if (assignment->low)
                text_add(out, "(%d:%d)", assignment->low, assignment->high);
            text_add(out, "=");
            for (int v = 0; v < assignment->count; v++) {
                const struct namelist_value *value = &namelist.values[assignment->first + v];
                if (value->repeat != 1)
                    text_add(out, "%d*", value->repeat);
                text_add(out, "%c[%s]", "irls"[value->kind], value -> text);
            }
        }
    }
    namelist_fini(&namelist);
    mistakes_fini(&mistakes);
    free(copy);
}

static void reads(const char *text, const char *expected)
{
    struct text out = {0};
    parse(text, strlen(text), &out);
    struct text name = {0};
    for (const char *c = text; *c; c++)
        text_add(&name, *c == '\n' ? "\\n" : *c == '\r' ? "\\r" : *c == '\t' ? "\\t" : *c == '#' ? "(#)" : "%c", *c);
    is_text(text_string(&out), expected, "%s", text_string(&name));
    text_fini(&name);
    text_fini(&out);
}

static void test_values(void)
{
    reads("", "");
    reads("\n\n  ! nothing\n", "");
    reads("&a /", "a:");
    reads("&a/", "a:");
    reads("&a!c\n/", "a:");
    reads("&A I=1 /", "a: i=i[1]");
    reads("&a_1 Key_2 = -007 /\n", "a_1: key_2=i[-007]");
    reads("&a i=+1,j=2,/", "a: i=i[+1] j=i[2]");
    reads("&a i = 1 2\t3,4 , 5\n6 /", "a: i=i[1]i[2]i[3]i[4]i[5]i[6]");
    reads("&a i =\n 1,\n 2 ! c\n 3 j\t=4/ ! e = 5\n&b /", "a: i=i[1]i[2]i[3] j=i[4] b:");
    reads("&a x = 1.0 .5 5. 1e-3 1.0d0 1D0 -1E+2 +.5d-07 /",
          "a: x=r[1.0]r[.5]r[5.]r[1e-3]r[1.0e0]r[1e0]r[-1e+2]r[+.5e-07]");
    reads("&a b = .true. .TRUE. .t. T true .False. .F. f fAlSe /", "a: b=l[t]l[t]l[t]l[t]l[t]l[f]l[f]l[f]l[f]");
    reads("&a t = t f = f, true = true /", "a: t=l[t] f=l[f] true=l[t]");
    reads("&a s = 'it''s' \"say \"\"x\"\"\" '' \"\" 'a ! b' 'a / b' '&c' 'k = 3' /",
          "a: s=s[it's]s[say \"x\"]s[]s[]s[a ! b]s[a / b]s[&c]s[k = 3]");
    reads("&a s = '''' '''''' \"'\" 'a\tb\xC3\xA9' /", "a: s=s[']s['']s[']s[a\tb\xC3\xA9]");
    reads("&a x = 3*1.0, 2*'ab' 1*.t. 2147483647*4 /", "a: x=3*r[1.0]2*s[ab]l[t]2147483647*i[4]");
    reads("&a k(2) = 5 k(3:5) = 6, 2*7 k ( 6 : 7 ) = 8 9/", "a: k(2:2)=i[5] k(3:5)=i[6]2*i[7] k(6:7)=i[8]i[9]");
    reads("&a k(2147483647) = 1 /", "a: k(2147483647:2147483647)=i[1]");
    reads("&a i=1 / &b i=2 /\n&c\n/", "a: i=i[1] b: i=i[2] c:");
    reads("&a i=1! c\n/", "a: i=i[1]");
    reads("&a s='x'! c\n/", "a: s=s[x]");
}

static void test_line_ends(void)
{
    reads("&a\r\n  i = 1,\r\n  2 ! c\r\n  s = 'b'\r\n/\r\n", "a: i=i[1]i[2] s=s[b]");
    reads("\t&a\ti\t=\t1\t/\t", "a: i=i[1]");
    reads("\xEF\xBB\xBF&a i = 1 /", "a: i=i[1]");
    reads("\xEF\xBB\xBF&a i = x /", "x.nml:1:8: error: x is neither a number, nor a logical, nor a text in quotes\n"
                                    "    1 | &a i = x /\n"
                                    "      |        ^  write 'x' for a text\n");
    struct text out = {0};
    parse("&a i = 1 /\n\0", 12, &out);
    is_text(text_string(&out),
            "x.nml:2:1: error: byte 0x00 is not allowed\n    2 | ?\n      | ^  is this a text file?\n", "a zero byte");
    text_fini(&out);
    parse("&a s = 'x\0y' /", 14, &out);
    is_text(text_string(&out),
            "x.nml:1:10: error: byte 0x00 is not allowed\n    1 | &a s = 'x?y' /\n"
            "      |          ^  is this a text file?\n",
            "a zero byte in a string");
    text_fini(&out);
    reads("&a i = 1\r j = 2 /", "x.nml:1:9: error: byte 0x0D is not allowed\n    1 | &a i = 1? j = 2 /\n"
                                "      |         ^  is this a text file?\n");
}

/* One mistake in the line `&a <text> /`, which starts at this column of so many characters. */
static void refuses(const char *text, int column, int width, const char *message, const char *hint)
{
    struct text line = {0}, expected = {0};
    text_add(&line, "&a %s /", text);
    text_add(&expected, "x.nml:1:%d: error: %s\n    1 | %s\n      | %*s", column, message, line.bytes, column - 1, "");
    for (int i = 0; i < width; i++)
        text_add(&expected, i ? "~" : "^");
    text_add(&expected, "%s%s\n", hint[0] ? "  " : "", hint);
    reads(line.bytes, expected.bytes);
    text_fini(&line);
    text_fini(&expected);
}

static void test_mistakes(void)
{
    const char *separate = "separate values by commas or blanks; double a quote inside quotes";
    const char *index = "allowed: (i) or (i:j) with 1 <= i <= j";
    const char *repeat = "allowed: 1 to 2147483647", *blank = "a value follows the '*' without a blank";
    const char *out = "leave the key out to have its default";
    refuses("i = 1,,3", 10, 1, "empty value before the comma", "a value is missing");
    refuses("i = ,3", 8, 1, "empty value before the comma", "a value is missing");
    refuses("i =", 4, 1, "empty value: nothing is given for 'i'", out);
    refuses("key = j = 3", 4, 3, "empty value: nothing is given for 'key'", out);
    refuses("i = 3*", 8, 2, "empty value: nothing is repeated", blank);
    refuses("i = 3* 4", 8, 2, "empty value: nothing is repeated", blank);
    refuses("i = 0*4", 8, 2, "the repeat count is out of range", repeat);
    refuses("i = 2147483648*4", 8, 11, "the repeat count is out of range", repeat);
    refuses("i = 99999999999999999999999999*4", 8, 27, "the repeat count is out of range", repeat);
    refuses("i = 1;2", 8, 3, "1;2 is neither a number, nor a logical, nor a text in quotes", "write '1;2' for a text");
    refuses("i = 1 ; 2", 10, 1, "unexpected ';'", "separate values by commas or blanks");
    refuses("i = (1, 2)", 8, 2, "unexpected '(1'", "separate values by commas or blanks");
    refuses("i = 3 *4", 10, 2, "unexpected '*4'", "separate values by commas or blanks");
    refuses("i = 1 = 2", 10, 1, "unexpected '='", "separate values by commas or blanks");
    refuses("i = 1=2", 9, 1, "unexpected character behind a value", separate);
    refuses("i = 1'x'", 9, 1, "unexpected character behind a value", separate);
    refuses("i = 'x'y", 11, 1, "unexpected character behind a value", separate);
    refuses("s = hello", 8, 5, "hello is neither a number, nor a logical, nor a text in quotes",
            "write 'hello' for a text");
    refuses("s = data/x.h5", 8, 9, "data/x.h5 is neither a number, nor a logical, nor a text in quotes",
            "write 'data/x.h5' for a text");
    refuses("s = /scratch/me/", 8, 12, "/scratch/me/ is neither a number, nor a logical, nor a text in quotes",
            "write '/scratch/me/' for a text");
    refuses("x = 1+0", 8, 3, "1+0 is neither a number, nor a logical, nor a text in quotes", "write '1+0' for a text");
    refuses("x = 1.0q0", 8, 5, "1.0q0 is neither a number, nor a logical, nor a text in quotes",
            "write '1.0q0' for a text");
    refuses("x = 0x10", 8, 4, "0x10 is neither a number, nor a logical, nor a text in quotes",
            "write '0x10' for a text");
    refuses("x = .", 8, 1, ". is neither a number, nor a logical, nor a text in quotes", "write '.' for a text");
    refuses("x = 1e", 8, 2, "1e is neither a number, nor a logical, nor a text in quotes", "write '1e' for a text");
    refuses("x = .true", 8, 5, ".true is neither a number, nor a logical, nor a text in quotes",
            "write '.true' for a text");
    refuses("x = tuesday", 8, 7, "tuesday is neither a number, nor a logical, nor a text in quotes",
            "write 'tuesday' for a text");
    refuses("x = inf", 8, 3, "inf is not a finite number", "");
    refuses("x = -Infinity", 8, 9, "-Infinity is not a finite number", "");
    refuses("x = NaN", 8, 3, "NaN is not a finite number", "");
    refuses("k(2) = 5, 6, 7", 4, 1, "3 values for one element", "write k(2:4) = ...");
    refuses("k(2:4) = 5, 6", 4, 1, "2 values for 3 elements", "");
    refuses("k(2:3) = 3*6", 4, 1, "3 values for 2 elements", "");
    refuses("k(0) = 5", 5, 1, "the index of 'k' is not understood", index);
    refuses("k(-1) = 5", 5, 1, "the index of 'k' is not understood", index);
    refuses("k(:) = 5", 5, 1, "the index of 'k' is not understood", index);
    refuses("k(3:2) = 5", 5, 1, "the index of 'k' is not understood", index);
    refuses("k(1:5:2) = 5", 5, 1, "the index of 'k' is not understood", index);
    refuses("k(1,2) = 5", 5, 1, "the index of 'k' is not understood", index);
    refuses("k(2147483648) = 5", 5, 1, "the index of 'k' is not understood", index);
    refuses("k() = 5", 5, 1, "the index of 'k' is not understood", index);
    refuses("k%member = 5", 5, 1, "'k' has no members", "");
    refuses("key 24", 4, 3, "no '=' behind 'key'", "write key = value");
    refuses("2 = 3", 4, 1, "unexpected '2'", "expected: key = value, or / to end the group");
    refuses(", i = 3", 4, 1, "unexpected ','", "expected: key = value, or / to end the group");
}

static void test_lines_of_a_list(void)
{
    reads("&a i = ! c\n 1 /", "x.nml:1:8: error: a comment between '=' and the value\n"
                              "    1 | &a i = ! c\n"
                              "      |        ^  move it behind the value\n");
    reads("&a i = ! i = 2, 'x\n 1 /", "x.nml:1:8: error: a comment between '=' and the value\n"
                                      "    1 | &a i = ! i = 2, 'x\n"
                                      "      |        ^  move it behind the value\n");
    reads("&a i = 1, ! c\n 2 /", "x.nml:2:2: error: a value behind a comma and a comment\n"
                                 "    2 |  2 /\n"
                                 "      |  ^  leave out the comma\n");
    reads("&a i = 1\n , 2 /", "x.nml:2:2: error: a comma at the start of a line\n"
                              "    2 |  , 2 /\n"
                              "      |  ^  move it behind the value before it\n");
    reads("&a i = 1, ! c\n j = 2,\n ! d\n k = 3 ! e\n 4 /", "a: i=i[1] j=i[2] k=i[3]i[4]");
    reads("&a s = 'b\n c = 3 /", "x.nml:1:8: error: the string is not closed on its line\n"
                                 "    1 | &a s = 'b\n"
                                 "      |        ^~  a quote is missing\n");
    reads("&a s = 'b\r\n c = 3 /\r\n", "x.nml:1:8: error: the string is not closed on its line\n"
                                       "    1 | &a s = 'b\n"
                                       "      |        ^~  a quote is missing\n");
}

static void test_groups(void)
{
    reads("&a i = 1\n", "x.nml:1:1: error: the group has no end\n"
                        "    1 | &a i = 1\n"
                        "      | ^~  close it by a /\n");
    reads("&a i = 1\n&b j = 2 /", "x.nml:1:1: error: the group has no end\n"
                                  "    1 | &a i = 1\n"
                                  "      | ^~  close it by a /\n");
    reads("&a i = 1\n&end", "x.nml:2:1: error: '&end' does not end a group\n"
                            "    2 | &end\n"
                            "      | ^~~~  write /\n");
    reads("$a i = 1 $END", "x.nml:1:1: error: a group starts with '&'\n"
                           "    1 | $a i = 1 $END\n"
                           "      | ^~  write &name\n"
                           "x.nml:1:10: error: '$end' does not end a group\n"
                           "    1 | $a i = 1 $END\n"
                           "      |          ^~~~  write /\n");
    reads("& a i = 1 /", "x.nml:1:1: error: no name of a group behind '&'\n"
                         "    1 | & a i = 1 /\n"
                         "      | ^  write &name\n"
                         "x.nml:1:3: error: no '=' behind 'a'\n"
                         "    1 | & a i = 1 /\n"
                         "      |   ^  write key = value\n");
    reads("&a, i = 1 /", "x.nml:1:1: error: a blank follows the name of a group\n"
                         "    1 | &a, i = 1 /\n"
                         "      | ^~\n");
    reads("a title, don't read\n  it\n&a i = 1 / more\n i = 2\n/ &b j = 2 /\nend",
          "x.nml:1:1: error: text outside of a group\n"
          "    1 | a title, don't read\n"
          "      | ^  a group starts with &name\n"
          "x.nml:3:12: error: text outside of a group\n"
          "    3 | &a i = 1 / more\n"
          "      |            ^~~~  the last group ended on line 3\n"
          "x.nml:6:1: error: text outside of a group\n"
          "    6 | end\n"
          "      | ^~~  the last group ended on line 5\n");
}

static void test_all_in_one_run(void)
{
    reads("&a\n  i = 1x\n  j = 2\n  s = 'open\n  k(0) = 4, 5 'l = 6' l = ,\n/\n&b\n\tm = n\n",
          "x.nml:2:7: error: 1x is neither a number, nor a logical, nor a text in quotes\n"
          "    2 |   i = 1x\n"
          "      |       ^~  write '1x' for a text\n"
          "x.nml:4:7: error: the string is not closed on its line\n"
          "    4 |   s = 'open\n"
          "      |       ^~~~~  a quote is missing\n"
          "x.nml:5:4: error: the index of 'k' is not understood\n"
          "    5 |   k(0) = 4, 5 'l = 6' l = ,\n"
          "      |    ^  allowed: (i) or (i:j) with 1 <= i <= j\n"
          "x.nml:5:27: error: empty value before the comma\n"
          "    5 |   k(0) = 4, 5 'l = 6' l = ,\n"
          "      |                           ^  a value is missing\n"
          "x.nml:7:1: error: the group has no end\n"
          "    7 | &b\n"
          "      | ^~  close it by a /\n"
          "x.nml:8:6: error: n is neither a number, nor a logical, nor a text in quotes\n"
          "    8 | \tm = n\n"
          "      | \t    ^  write 'n' for a text\n");
    struct text text = {0}, out = {0};
    text_add(&text, "&a\n");
    for (int i = 0; i < 150; i++)
        text_add(&text, "i = ?\n");
    text_add(&text, "/\n");
    parse(text.bytes, text.length, &out);
    const char *last = strstr(text_string(&out), "x.nml:101:5: ");
    ok(last && strstr(last, "50 more mistakes are not shown\n") && !strstr(last, "x.nml:102"),
       "a hundred messages, the rest is counted");
    text_fini(&text);
    text_fini(&out);
}

/* A million of these characters, in a group where there is nothing else; returns the messages. */
static void parse_million(const char *before, const char *repeated, const char *after, struct text *out)
{
    struct text text = {0};
    text_add(&text, "%s", before);
    while (text.length < 1000000)
        text_add_bytes(&text, repeated, strlen(repeated));
    text_add(&text, "%s", after);
    parse(text.bytes, text.length, out);
    text_fini(&text);
}

static void test_long_lines(void)
{
    struct text out = {0};
    parse_million("&a s = '", "x", "' /", &out);
    ok(out.length == 1000000 - 8 + strlen("a: s=s[]"), "a string of a million characters");
    text_fini(&out);
    parse_million("&a k = ", "1 ", "/", &out);
    ok(out.length > 1000000 && !strncmp(out.bytes, "a: k=i[1]i[1]", 13), "half a million values on a line");
    text_fini(&out);
    parse_million("&a ", "k = 1 ", "/", &out);
    ok(out.length > 1000000 && !strncmp(out.bytes, "a: k=i[1] k=i[1]", 16), "a line of assignments");
    text_fini(&out);
    parse_million("&a x = 0.", "0", "1 /", &out);
    ok(out.length > 999000 && !strncmp(out.bytes, "a: x=r[0.000", 12), "a number of a million digits");
    text_fini(&out);
    static const char *const junk[] = {"t(",  "'",     "\"'",  "a=", "a = ,", "&",  "$a ",
                                       "&a ", "k(1) ", "x y ", "/ ", "((",    "&a/"};
    for (size_t i = 0; i < sizeof junk / sizeof *junk; i++) {
        parse_million("&a ", junk[i], "", &out);
        ok(!strncmp(text_string(&out), "x.nml:1:", 8) && out.length < 100000, "a million characters of %s", junk[i]);
        text_fini(&out);
    }
    parse_million("&a k = ", "1 ", "z 2 2 /", &out);
    const char *line = strstr(text_string(&out), "\n");
    is_text(line ? line + 1 : "",
            "    1 | ...1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 z 2 2 /\n"
            "      |                                            ^  write 'z' for a text\n",
            "of a long line the part around the mistake is shown");
    text_fini(&out);
}

static void test_values_alone(void)
{
    struct source source = {"command line", "a.b=1,2*4 5", 11, false};
    struct namelist namelist;
    struct mistakes mistakes = {0};
    ok(!namelist_parse_values(&source, 4, "b", false, &namelist, &mistakes) && namelist.assignment_count == 1 &&
           namelist.assignments[0].total == 4 && namelist.assignments[0].count == 3 && namelist.values[1].repeat == 2,
       "a list of values alone");
    namelist_fini(&namelist);
    ok(!namelist_parse_values(&source, 2, "b", true, &namelist, &mistakes) &&
           !strcmp(namelist.values[0].text, "b=1,2*4 5") && namelist.values[0].kind == NAMELIST_STRING,
       "a verbatim string");
    namelist_fini(&namelist);
    static const char *const wrong[] = {"", "1 /", "1 &a", "1 ! c", "1\n2", "b = 3", "1,,2", "'x", "$", "a%b", "/x"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        int before = mistakes.count;
        struct source text = {"command line", wrong[i], strlen(wrong[i]), false};
        ok(namelist_parse_values(&text, 0, "b", false, &namelist, &mistakes) && mistakes.count == before + 1,
           "no list of values: %zu", i);
        namelist_fini(&namelist);
    }
    mistakes_fini(&mistakes);
}

int main(void)
{
    test_values();
    test_line_ends();
    test_mistakes();
    test_lines_of_a_list();
    test_groups();
    test_all_in_one_run();
    test_long_lines();
    test_values_alone();
    return tap_done();
}
