/* For tests of how jobs end: a test starts itself as a job, with the name of what is to fail. */
#ifndef TESTS_FAILING_H
#define TESTS_FAILING_H

#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Where this program is; NULL where the system does not tell. */
static inline const char *own_program(void)
{
    static char path[2048];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    return length < 0 ? NULL : path;
}

/* Runs the command; its output, both streams, into text. Returns the exit code, -1 where there is none. */
static inline int run_command(const char *command, char *text, size_t room)
{
    text[0] = 0;
    FILE *pipe = popen(command, "r");
    if (!pipe)
        return -1;
    size_t used = fread(text, 1, room - 1, pipe);
    text[used] = 0;
    int status = pclose(pipe);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* How many messages of the program there are in the text, and the last of them. */
static inline int messages_in(const char *text, char *last, size_t room)
{
    int count = 0;
    last[0] = 0;
    for (const char *line = strstr(text, "ppmodel: "); line; line = strstr(line + 1, "ppmodel: "), count++)
        snprintf(last, room, "%.*s", (int)strcspn(line, "\n"), line);
    return count;
}

#endif
