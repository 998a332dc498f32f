/* SPDX-License-Identifier: MIT */
/* Arrays of any kind, rank and section, as the compiler describes them (ISO_Fortran_binding.h, Fortran 2018, section 18.5);
 * only for trimtab_slot.c. */
#ifndef TRIMTAB_ARRAY_H
#define TRIMTAB_ARRAY_H
#define _DEFAULT_SOURCE /* on_exit, dprintf */
#include "trimtab_slot.h"
#include <ISO_Fortran_binding.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RANK = CFI_MAX_RANK + 1, WORD = 128, MOST_FIELDS = 512, MOST_SLOTS = 16, MOST_PORTS = 32, MOST_OPTIONS = 256,
       MOST_BLOCKS = 15 };
typedef enum { NONE, REAL4, REAL8, INT1, INT2, INT4, INT8, BOOL1, BOOL4, BOOL8, TEXT } kind_t;
static const char *KIND[] = {"", "real32", "real64", "int8", "int16", "int32", "int64", "bool", "bool", "bool", "text"};
static const int WIDTH[] = {0, 4, 8, 1, 2, 4, 8, 1, 4, 8, 1};

/* An array as the compiler describes it; a complex number is one more dimension, of 2. */
typedef struct { char *base; kind_t kind; int rank; int64_t size, extent[RANK], stride[RANK]; } array_t;

typedef struct { char name[WORD], value[1024]; bool given, asked; } option_t;
typedef struct { char name[WORD], units[WORD], dims[WORD]; bool hidden; array_t array; int64_t at; } item_t;
typedef struct { char dim[WORD]; int64_t whole, before; } block_t; /* points of a dimension in all, and before those that are here */
typedef struct {
    char name[WORD];
    trimtab_function function;
    void *context, *inputs;
    void (*ready)(const char *);
    const char *(*explain)(void *);
    double *seen;
    bool recorded, declared;
    int64_t bytes, room, n, m, given, calls; /* n, m: length of the inputs and of the outputs */
    const char *answer; /* outputs of the last call; null before one */
    int ins, outs;
    item_t in[MOST_PORTS], out[MOST_PORTS];
} slot_t;

/* All that changes, in the heap and at one address: an image of the static memory of the code, put back, leaves it alone. */
typedef struct {
    int64_t status, handshake, communicator, terminal; /* where to speak if the code ends the process; -1 while it does not run */
    char sentence[1024], clock_units[WORD], log[4096];
    double clock_dt;
    kind_t clock_kind;
    int n_fields, n_slots, n_options, n_blocks;
    bool described, recording, refreshing, communicator_given, communicator_asked;
    bool placed;            /* the fields lie where trimtab_to_fields put a state, and nobody has looked since */
    char *frame;            /* where the stack of trimtab_describe begins while it runs, else null */
    int failing, inside;    /* locks: of the sentence, of the present slot */
    bool driven;            /* a driver says which thread is its own */
    pthread_t driver, owner; /* and that of the call of the present slot */
    int (*go_on)(void);
    slot_t *present, slots[MOST_SLOTS];
    item_t fields[MOST_FIELDS];
    option_t options[MOST_OPTIONS];
    block_t blocks[MOST_BLOCKS];
} table_t;
static table_t *T;

__attribute__((constructor)) static void make_table(void)
{
    if (!T) T = calloc(1, sizeof *T);
    if (!T) abort();
    T->terminal = -1;
}

/* Keep the first failure; whether this is it. Several threads may fail at once. */
static bool fail(int64_t code, const char *format, ...)
{
    va_list list;
    if (T->status || __sync_lock_test_and_set(&T->failing, 1)) return false;
    va_start(list, format);
    vsnprintf(T->sentence, sizeof T->sentence, format, list);
    va_end(list);
    __sync_synchronize();
    T->status = code;
    return true;
}

/* A program that drives itself may never ask for the status. */
static void tell_alone(void)
{
    if (!T->go_on) fprintf(stderr, "trimtab: %s; the run goes on without it\n", T->sentence);
}

/* Fortran text without its blanks at the end. */
static void text_of(const CFI_cdesc_t *d, char *to, size_t room)
{
    size_t length = d && d->base_addr ? d->elem_len : 0;
    const char *from = length ? d->base_addr : "";
    if (length >= room) length = room - 1;
    memcpy(to, from, length);
    while (length && (to[length - 1] == ' ' || to[length - 1] == 0)) length--;
    to[length] = 0;
}

/* Which kind of numbers; parts is 2 for complex ones. */
static kind_t kind_of(const CFI_cdesc_t *d, int *parts)
{
    CFI_type_t type = d->type;
    *parts = 1;
    if (type == CFI_type_float_Complex || type == CFI_type_double_Complex) *parts = 2;
    if (type == CFI_type_float || type == CFI_type_float_Complex) return REAL4;
    if (type == CFI_type_double || type == CFI_type_double_Complex) return REAL8;
    if (type == CFI_type_int8_t || type == CFI_type_signed_char) return INT1;
    if (type == CFI_type_int16_t) return INT2;
    if (type == CFI_type_int32_t) return INT4;
    if (type == CFI_type_int64_t) return INT8;
    if (type == CFI_type_char) return TEXT;
#ifdef CFI_type_mask /* gfortran: a logical of any kind */
    if (type == CFI_type_Bool || (type & CFI_type_mask) == CFI_type_Logical)
#else
    if (type == CFI_type_Bool)
#endif
        return d->elem_len == 1 ? BOOL1 : d->elem_len == 8 ? BOOL8 : d->elem_len == 4 ? BOOL4 : NONE;
    return NONE;
}

/* What the compiler says of an array, contiguous dimensions not yet joined. */
static bool view(const CFI_cdesc_t *d, const char *name, array_t *a)
{
    int parts;
    memset(a, 0, sizeof *a);
    a->kind = kind_of(d, &parts);
    if (a->kind == NONE || a->kind == TEXT) {
        fail(TRIMTAB_REFUSED, "%s is of a kind that trimtab does not take (%d bytes a number): real(4), real(8), their complex "
             "kinds, integer and logical go; mind -fdefault-real-8, which makes `double precision` 16 bytes unless "
             "-fdefault-double-8 is given, too", name, (int)d->elem_len / parts);
        return false;
    }
    if (!d->base_addr) {
        fail(TRIMTAB_REFUSED, "%s has no memory: it is described before it is allocated; allocate it in trimtab_initialise", name);
        return false;
    }
    a->base = d->base_addr;
    a->size = parts;
    if (parts == 2) {
        a->extent[0] = 2;
        a->stride[0] = (int64_t)d->elem_len / 2;
        a->rank = 1;
    }
    for (int i = 0; i < d->rank; i++, a->rank++) {
        if (d->dim[i].extent < 0) {
            fail(TRIMTAB_REFUSED, "%s has no known size in its last dimension (an assumed size, x(*)): give a section, x(1:n)", name);
            return false;
        }
        a->extent[a->rank] = d->dim[i].extent;
        a->stride[a->rank] = d->dim[i].sm;
        a->size *= d->dim[i].extent;
    }
    return true;
}

#define READ(NAME, FROM, EXPRESSION) \
    static void NAME(const char *p, int64_t s, int64_t n, double *to8, float *to4) \
    { \
        for (int64_t i = 0; i < n; i++, p += s) { \
            FROM v = *(const FROM *)p; \
            if (to8) to8[i] = (double)(EXPRESSION); \
            else to4[i] = (float)(EXPRESSION); \
        } \
    }
READ(read_r4, float, v)
READ(read_r8, double, v)
READ(read_i1, int8_t, v)
READ(read_i2, int16_t, v)
READ(read_i4, int32_t, v)
READ(read_i8, int64_t, v)
READ(read_b4, int32_t, v != 0)
READ(read_b8, int64_t, v != 0)
#define WRITE(NAME, TO, EXPRESSION) \
    static void NAME(char *p, int64_t s, int64_t n, const double *from) \
    { \
        for (int64_t i = 0; i < n; i++, p += s) *(TO *)p = (TO)(EXPRESSION); \
    }
WRITE(write_r4, float, from[i])
WRITE(write_r8, double, from[i])
WRITE(write_i1, int8_t, nearbyint(from[i]))
WRITE(write_i2, int16_t, nearbyint(from[i]))
WRITE(write_i4, int32_t, nearbyint(from[i]))
WRITE(write_i8, int64_t, nearbyint(from[i]))

static void (*const READERS[])(const char *, int64_t, int64_t, double *, float *) = {
    NULL, read_r4, read_r8, read_i1, read_i2, read_i4, read_i8, read_i1, read_b4, read_b8};
static void (*const WRITERS[])(char *, int64_t, int64_t, const double *) = {
    NULL, write_r4, write_r8, write_i1, write_i2, write_i4, write_i8, write_i1, write_i4, write_i8};

/* a += factor * output. What is zero is left alone, so that no bit changes, not even the sign of a zero. */
static void add_row(const array_t *a, char *p, int64_t s, int64_t n, const char *from, int64_t bytes, double factor)
{
    for (int64_t i = 0; i < n; i++, p += s) {
        double v = bytes == 8 ? ((const double *)from)[i] : (double)((const float *)from)[i];
        if (v == 0) continue;
        if (a->kind == REAL8) *(double *)p += factor * v;
        else *(float *)p = (float)(*(float *)p + factor * v);
    }
}

/* Join dimensions that follow each other in memory. */
static void join(array_t *a)
{
    int to = 0;
    if (a->rank == 0) { a->rank = 1; a->extent[0] = 1; a->stride[0] = 8; }
    for (int i = 1; i < a->rank; i++)
        if (a->stride[i] == a->stride[to] * a->extent[to] || a->extent[i] == 1) a->extent[to] *= a->extent[i];
        else { to++; a->extent[to] = a->extent[i]; a->stride[to] = a->stride[i]; }
    a->rank = to + 1;
}

/* One row after the other: mode 'r' reads into double (or float) memory, 'w' writes from double, 'a' adds. */
static void walk(array_t a, char mode, char *memory, int64_t bytes, double factor)
{
    int64_t index[RANK] = {0}, length;
    if (a.size == 0) return;
    join(&a);
    length = a.extent[0];
    for (char *p = a.base;; memory += length * bytes) {
        if (mode == 'r') READERS[a.kind](p, a.stride[0], length, bytes == 8 ? (double *)memory : NULL, (float *)memory);
        else if (mode == 'w') WRITERS[a.kind](p, a.stride[0], length, (const double *)memory);
        else add_row(&a, p, a.stride[0], length, memory, bytes, factor);
        int i = 1;
        for (; i < a.rank; i++) {
            p += a.stride[i];
            if (++index[i] < a.extent[i]) break;
            p -= a.stride[i] * a.extent[i];
            index[i] = 0;
        }
        if (i >= a.rank) return;
    }
}

#endif
