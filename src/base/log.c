#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#define BAR 20 /* columns */

static bool speaks, verbose, quiet, terminal, progress_open;

void log_open(bool this_process_speaks, bool is_verbose)
{
    speaks = this_process_speaks;
    verbose = is_verbose;
    terminal = isatty(STDOUT_FILENO);
}

void log_quiet(void)
{
    quiet = true;
}

static void close_progress(void)
{
    if (progress_open)
        putchar('\n');
    progress_open = false;
}

static void line(const char *format, va_list list)
{
    if (!speaks || quiet)
        return;
    close_progress();
    vprintf(format, list);
    putchar('\n');
    fflush(stdout);
}

void log_line(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    line(format, list);
    va_end(list);
}

void log_verbose(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    if (verbose)
        line(format, list);
    va_end(list);
}

void log_progress(double done, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    if (!terminal) {
        line(format, list);
    } else if (speaks && !quiet) {
        int full = (int)(BAR * done);
        printf("\r\033[K[%.*s%*s] ", full, "####################", BAR - full, "");
        vprintf(format, list);
        fflush(stdout);
        progress_open = true;
    }
    va_end(list);
}

void log_text(const char *text)
{
    if (!speaks || quiet)
        return;
    close_progress();
    fputs(text, stdout);
    fflush(stdout);
}

static void complain(const char *kind, const char *format, va_list list)
{
    if (!speaks)
        return;
    close_progress();
    fflush(stdout);
    fprintf(stderr, "ppmodel: %s: ", kind);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
}

void log_error(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    complain("error", format, list);
    va_end(list);
}

void log_warning(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    complain("warning", format, list);
    va_end(list);
}
