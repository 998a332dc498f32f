/* SPDX-License-Identifier: MIT */
/* A STOP or MPI_Abort in a code that runs inside of Python ends Python: then at least it says so, and not with success. And MPI is
 * begun and ended by Python there, whatever the code says; only for trimtab_slot.c. */
#ifndef TRIMTAB_STOP_H
#define TRIMTAB_STOP_H
#include "trimtab_array.h"
#include <pthread.h>
#include <unistd.h>

enum { TAIL = 300, PATIENCE = 1000 };  /* bytes; ms */
extern void _gfortran_flush_i4(int *unit) __attribute__((weak));
extern int pthread_create(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *) __attribute__((weak));

void trimtab_slot_entered(int64_t descriptor, const char *log)
{
    T->terminal = descriptor;
    if (log) snprintf(T->log, sizeof T->log, "%s", log);
}

static void *flush_units(void *done)
{
    int output = 6;
    _gfortran_flush_i4(&output);
    _gfortran_flush_i4(NULL);
    *(volatile bool *)done = true;
    return NULL;
}

/* An OPEN or WRITE that fails ends the process while it holds its unit's lock: who flushes that unit waits for ever. Hence a thread that
 * is waited for a while; without threads libgfortran has no locks. */
static void flush_all(void)
{
    static volatile bool done;
    pthread_t thread;
    if (!_gfortran_flush_i4) return;
    if (!pthread_create || pthread_create(&thread, NULL, flush_units, (void *)&done)) flush_units((void *)&done);
    for (int waited = 0; !done && waited < PATIENCE; waited++) usleep(1000);
}

/* The number of this rank as launchers say it (Open MPI; Hydra, Intel MPI, Cray PALS; MVAPICH; srun), "" without one. */
static const char *rank_of_job(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (getenv(names[i])) return getenv(names[i]);
    return "";
}

/* The sentence, with the end of what the code printed; false when it is not the code that runs. */
static bool tell_the_end(const char *how, int status)
{
    char words[TAIL + 1];
    size_t length = 0, first = 0;
    FILE *file;
    if (T->terminal < 0) return false;
    flush_all();
    fflush(NULL);
    if ((file = fopen(T->log, "r"))) {
        if (fseek(file, -TAIL, SEEK_END)) rewind(file);
        length = fread(words, 1, TAIL, file);
        fclose(file);
    }
    while (length && (words[length - 1] == '\n' || words[length - 1] == ' ')) length--;
    words[length] = 0;
    while (words[first] == ' ' || words[first] == '\n') first++;
    dprintf((int)T->terminal, "trimtab: the code ended this process, %s (exit code %d)%s%s; it printed last: %s\n", how, status,
            *rank_of_job() ? " on rank " : "", rank_of_job(), length ? words + first : "nothing");
    return true;
}

static void ended(int status)
{
    if (tell_the_end("most likely with a STOP", status)) _exit(status ? status : 1);
}

/* By MPI's profiling interface (MPI 4.1, chapter 15): a code's call of MPI_ABORT comes here first. Weak, as serial builds bring their own.
 * A code that Python runs has failed for it, also with a code of 0, which mpirun would end with; a program of its own ends as it says. */
static int aborted(int code)
{
    int status = T->terminal < 0 || code ? code : 1;
    tell_the_end("by MPI_ABORT", code);
    T->terminal = -1;
    return status;
}

#define ABORT(NAME) \
    extern void p##NAME(int *, int *, int *) __attribute__((weak)); \
    __attribute__((weak)) void NAME(int *communicator, int *code, int *error) \
    { \
        int status = aborted(*code); \
        if (p##NAME) p##NAME(communicator, &status, error); \
        _exit(status ? status : 1); \
    }
ABORT(mpi_abort_)
ABORT(mpi_abort_f08_)

/* C's: a communicator is a number or an address, one register in either case. */
extern int PMPI_Abort(void *communicator, int code) __attribute__((weak));
__attribute__((weak)) int MPI_Abort(void *communicator, int code)
{
    int status = aborted(code);
    if (PMPI_Abort) PMPI_Abort(communicator, status);
    _exit(status ? status : 1);
}

/* MPI that runs already is not begun again, and not ended under Python. */
extern int MPI_Initialized(int *found) __attribute__((weak));
extern int MPI_Query_thread(int *provided) __attribute__((weak));

static bool begun(int *error)
{
    int found = 0;
    if (MPI_Initialized) MPI_Initialized(&found);
    if (found && error) *error = 0;
    return found;
}

#define BEGIN(NAME) \
    extern void p##NAME(int *) __attribute__((weak)); \
    __attribute__((weak)) void NAME(int *error) { if (!begun(error) && p##NAME) p##NAME(error); }
#define BEGIN_THREAD(NAME) \
    extern void p##NAME(int *, int *, int *) __attribute__((weak)); \
    __attribute__((weak)) void NAME(int *required, int *provided, int *error) \
    { \
        if (!begun(error) && p##NAME) p##NAME(required, provided, error); \
        else if (MPI_Query_thread) MPI_Query_thread(provided); \
    }
#define END(NAME) \
    extern void p##NAME(int *) __attribute__((weak)); \
    __attribute__((weak)) void NAME(int *error) \
    { \
        if (T->terminal < 0 && p##NAME) p##NAME(error); \
        else if (error) *error = 0; \
    }
BEGIN(mpi_init_)
BEGIN(mpi_init_f08_)
BEGIN_THREAD(mpi_init_thread_)
BEGIN_THREAD(mpi_init_thread_f08_)
END(mpi_finalize_)
END(mpi_finalize_f08_)

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
