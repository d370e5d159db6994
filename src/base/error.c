#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char place[96];
static const char *activity = "";
static void (*abort_job)(int code);

int err_set(struct err *err, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(err->text, sizeof err->text, format, list);
    va_end(list);
    return -1;
}

int err_prefix(struct err *err, const char *format, ...)
{
    struct err whole;
    va_list list;
    va_start(list, format);
    int used = vsnprintf(whole.text, sizeof whole.text, format, list);
    va_end(list);
    int left = (int)sizeof whole.text - used - 3; /* the ": " and the closing zero */
    if (used >= 0 && left > 0)
        snprintf(whole.text + used, sizeof whole.text - (size_t)used, ": %.*s", left, err->text);
    *err = whole;
    return -1;
}

void error_set_place(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(place, sizeof place, format, list);
    va_end(list);
}

void error_set_activity(const char *text)
{
    activity = text ? text : "";
}

const char *error_place(void)
{
    return place;
}

const char *error_activity(void)
{
    return activity;
}

void error_set_abort(void (*hook)(int code))
{
    abort_job = hook;
}

static _Noreturn void end_job(enum exit_code code, const char *format, va_list list)
{
    char text[4096];
    vsnprintf(text, sizeof text, format, list);
    fflush(stdout);
    fprintf(stderr, "ppmodel: %s%s%s%s%s\n", place, place[0] && activity[0] ? " " : "", activity,
            place[0] || activity[0] ? ": " : "", text);
    fflush(stderr);
    if (abort_job)
        abort_job(code);
    exit(code);
}

void fatal(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    end_job(EXIT_FAILED, format, list);
}

void fatal_code(enum exit_code code, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    end_job(code, format, list);
}
