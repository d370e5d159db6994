#include "base/json.h"

#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

static void add_key(struct text *out, const char *key)
{
    bool first = out->length == 0 || strchr("{[ \n", out->bytes[out->length - 1]);
    text_add(out, "%s\"%s\": ", first ? "" : ", ", key);
}

void json_real(struct text *out, const char *key, double value, int digits)
{
    add_key(out, key);
    if (isfinite(value))
        text_add(out, "%.*g", digits, value);
    else
        text_add(out, "null");
}

void json_count(struct text *out, const char *key, int64_t value)
{
    add_key(out, key);
    text_add(out, "%" PRId64, value);
}

void json_string(struct text *out, const char *key, const char *value)
{
    add_key(out, key);
    text_add(out, "\"");
    for (; *value; value++) {
        if (*value == '"' || *value == '\\')
            text_add(out, "\\%c", *value);
        else if ((unsigned char)*value < 0x20)
            text_add(out, "\\u%04x", (unsigned)*value);
        else
            text_add_bytes(out, value, 1);
    }
    text_add(out, "\"");
}
