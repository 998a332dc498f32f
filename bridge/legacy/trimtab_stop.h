/* SPDX-License-Identifier: MIT */
/* A STOP or MPI_Abort in a code that runs inside of Python ends Python: then at least it says so, and not with success; only for
 * trimtab_slot.c. */
#ifndef TRIMTAB_STOP_H
#define TRIMTAB_STOP_H
#include "trimtab_array.h"
#include <unistd.h>

enum { TAIL = 300 };
extern void _gfortran_flush_i4(int *unit) __attribute__((weak));

void trimtab_slot_entered(int64_t descriptor, const char *log)
{
    T->terminal = descriptor;
    if (log) snprintf(T->log, sizeof T->log, "%s", log);
}

/* The sentence, with the end of what the code printed; false when it is not the code that runs. */
static bool tell_the_end(const char *how, int status)
{
    char words[TAIL + 1];
    size_t length = 0, first = 0;
    FILE *file;
    if (T->terminal < 0) return false;
    if (_gfortran_flush_i4) _gfortran_flush_i4(NULL);
    fflush(NULL);
    if ((file = fopen(T->log, "r"))) {
        if (fseek(file, -TAIL, SEEK_END)) rewind(file);
        length = fread(words, 1, TAIL, file);
        fclose(file);
    }
    while (length && (words[length - 1] == '\n' || words[length - 1] == ' ')) length--;
    words[length] = 0;
    while (words[first] == ' ' || words[first] == '\n') first++;
    dprintf((int)T->terminal, "trimtab: the code ended this process, %s (exit code %d); it printed last: %s\n", how, status,
            length ? words + first : "nothing");
    return true;
}

static void ended(int status)
{
    if (tell_the_end("most likely with a STOP", status)) _exit(status ? status : 1);
}

/* By MPI's profiling interface (MPI 4.1, chapter 15): a code's call of MPI_ABORT comes here first. Weak, as serial builds bring their own. */
#define ABORT(NAME) \
    extern void p##NAME(int *, int *, int *) __attribute__((weak)); \
    __attribute__((weak)) void NAME(int *communicator, int *code, int *error) \
    { \
        tell_the_end("by MPI_ABORT", *code); \
        T->terminal = -1; \
        if (p##NAME) p##NAME(communicator, code, error); \
        _exit(*code ? *code : 1); \
    }
ABORT(mpi_abort_)
ABORT(mpi_abort_f08_)

#ifdef __GLIBC__
static void ended_with(int status, void *nothing) { (void)nothing; ended(status); }
static void watch_the_end(void) { on_exit(ended_with, NULL); }
#else
static void ended_plainly(void) { ended(0); }
static void watch_the_end(void) { atexit(ended_plainly); }
#endif

__attribute__((constructor(1000))) static void watch_for_stop(void)
{
    watch_the_end();
}

#endif
