/* SPDX-License-Identifier: MIT */
/* Codes on several ranks: the communicator that Python gives, and which block of the domain is here; only for trimtab_slot.c.
 * MPI itself is not called: a communicator is the number that Fortran has for it. */
#ifndef TRIMTAB_BLOCK_H
#define TRIMTAB_BLOCK_H
#include "trimtab_option.h"

void trimtab_slot_communicator(int64_t communicator)
{
    T->communicator = communicator;
    T->communicator_given = true;
}

void trimtab_f_communicator(CFI_cdesc_t *communicator)
{
    array_t a;
    int parts;
    kind_t kind = kind_of(communicator, &parts);
    double handle = (double)T->communicator;
    if (kind != INT4 && kind != INT8) {
        fail(TRIMTAB_REFUSED, "trimtab_communicator takes the integer that holds your communicator; of a type(MPI_Comm) of mpi_f08 give "
             "comm%%MPI_VAL");
        return;
    }
    T->communicator_asked = true;
    if (T->communicator_given && view(communicator, "the communicator", &a)) walk(a, 'w', (char *)&handle, 8, 0);
}

/* A whole number of any kind. */
static int64_t whole_of(const CFI_cdesc_t *number, const char *what)
{
    array_t a;
    double value = 0;
    if (view(number, what, &a) && a.size == 1 && a.kind >= INT1) walk(a, 'r', (char *)&value, 8, 0);
    else fail(TRIMTAB_REFUSED, "%s must be one integer", what);
    return (int64_t)value;
}

void trimtab_f_block(const CFI_cdesc_t *dim, const CFI_cdesc_t *whole, const CFI_cdesc_t *before)
{
    block_t one;
    text_of(dim, one.dim, WORD);
    one.whole = whole_of(whole, "the points in all of trimtab_block");
    one.before = whole_of(before, "the points before this block in trimtab_block");
    for (int i = 0; i < T->n_blocks; i++)
        if (!strcmp(T->blocks[i].dim, one.dim)) fail(TRIMTAB_REFUSED, "trimtab_block names the dimension %s twice", one.dim);
    if (T->n_blocks >= MOST_BLOCKS) fail(TRIMTAB_REFUSED, "there are more than %d dimensions in trimtab_block", MOST_BLOCKS);
    else T->blocks[T->n_blocks++] = one;
}

static void put_blocks(char *text, int64_t room, int64_t *at)
{
    put(text, room, at, "\"communicator\": %s, \"blocks\": [", T->communicator_asked ? "true" : "false");
    for (int i = 0; i < T->n_blocks; i++) {
        put(text, room, at, "%s{", i ? ", " : "");
        put_word(text, room, at, "dim", T->blocks[i].dim);
        put(text, room, at, "\"whole\": %lld, \"before\": %lld}", (long long)T->blocks[i].whole, (long long)T->blocks[i].before);
    }
    put(text, room, at, "], ");
}

#endif
