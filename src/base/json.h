/* Members of JSON objects, appended to a text: "key": value, behind a comma where another member stands before. */
#ifndef BASE_JSON_H
#define BASE_JSON_H

#include <stdint.h>

#include "base/text.h"

/* With so many significant digits (17: it reads back exactly); null where it is not finite. */
void json_real(struct text *out, const char *key, double value, int digits);
void json_count(struct text *out, const char *key, int64_t value);
void json_string(struct text *out, const char *key, const char *value);

#endif
