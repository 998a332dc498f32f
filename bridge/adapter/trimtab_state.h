/* SPDX-License-Identifier: MIT */
/* The state between Python and the fields; only for trimtab_slot.c.
 *
 * A field may lie where another one says: x(:, now) with an index `now`, a circular one in a code of several time levels. So what may
 * decide a place (whole numbers, truth values, single numbers) is set first, and the fields are looked up again before all are set. */
#ifndef TRIMTAB_STATE_H
#define TRIMTAB_STATE_H
#include "trimtab_describe.h"

enum { ROUNDS = 4 }; /* an index that lies where another index says, and so on */

/* The state as the adapter hands it over, checked against the fields. */
static char *state_of(const CFI_cdesc_t *state)
{
    array_t a;
    int64_t n = 0;
    describe();
    for (int i = 0; i < T->n_fields; i++) n += T->fields[i].array.size;
    if (T->status || !view(state, "the state in trimtab_get_state or trimtab_set_state", &a)) return NULL;
    if (a.kind != REAL8 || a.size != n || a.rank != 1 || (n > 1 && a.stride[0] != 8)) {
        fail(TRIMTAB_REFUSED, "the state in trimtab_get_state and trimtab_set_state is %lld numbers of kind %s, where Python has %lld "
             "of real64: declare it real(c_double) :: state(n), and leave out -freal-8-real-4 and its kin for the adapter",
             (long long)a.size, KIND[a.kind], (long long)n);
        return NULL;
    }
    return a.base;
}

void trimtab_f_from_fields(CFI_cdesc_t *state)
{
    char *memory = state_of(state);
    if (!memory) return;
    for (int i = 0; i < T->n_fields; memory += 8 * T->fields[i++].array.size) {
        walk(T->fields[i].array, 'r', memory, 8, 0);
        if (T->fields[i].array.kind == INT8)
            for (int64_t k = 0; k < T->fields[i].array.size; k++)
                if (fabs(((double *)memory)[k]) > 9007199254740992.0)
                    fail(TRIMTAB_REFUSED, "the field %s holds whole numbers beyond 2**53, which real64 does not: describe its halves as "
                         "integer(4)", T->fields[i].name);
    }
}

/* A number as a field of some kind keeps it. */
static double kept_as(kind_t kind, double value)
{
    if (kind == REAL4) return (double)(float)value;
    if (kind == BOOL1 || kind == BOOL4 || kind == BOOL8) return nearbyint(value) != 0;
    return kind >= INT1 ? nearbyint(value) : value;
}

/* The first number of a field that is not what the state says, counted from 0; -1 when there is none. */
static int64_t unlike(const item_t *field, const double *state)
{
    int64_t n = field->array.size, k = 0;
    double *now = malloc(8 * (size_t)(n + 1));
    if (!now) {
        fail(TRIMTAB_REFUSED, "no memory for the field %s", field->name);
        return -1;
    }
    walk(field->array, 'r', (char *)now, 8, 0);
    for (; k < n; k++) {
        double wanted = kept_as(field->array.kind, state[k]);
        if (now[k] != wanted && !(isnan(now[k]) && isnan(wanted))) break;
    }
    free(now);
    return k < n ? k : -1;
}

/* What was sent must arrive; nothing is stored. */
static void compare(const char *memory)
{
    for (int i = 0; i < T->n_fields && !T->status; memory += 8 * T->fields[i++].array.size) {
        int64_t k = unlike(&T->fields[i], (const double *)memory);
        if (k >= 0)
            fail(TRIMTAB_REFUSED, "number %lld of the field %s was sent as the code has it and arrived as %g: Fortran and Python differ in "
                 "kind or byte order, or trimtab_set_state changes its argument", (long long)k + 1, T->fields[i].name,
                 ((const double *)memory)[k]);
    }
}

static bool decides(const array_t *array) { return array->kind >= INT1 || array->size == 1; }

static void set_fields(const char *memory, bool deciding)
{
    for (int i = 0; i < T->n_fields; memory += 8 * T->fields[i++].array.size)
        if (!deciding || decides(&T->fields[i].array)) walk(T->fields[i].array, 'w', (char *)memory, 8, 0);
}

/* The first field that lies elsewhere than before when it is looked up again; -1 when there is none. */
static int looked_up(void)
{
    char *before[MOST_FIELDS];
    int moved = -1;
    for (int i = 0; i < T->n_fields; i++) before[i] = T->fields[i].array.base;
    describe();
    for (int i = 0; i < T->n_fields && moved < 0 && !T->status; i++)
        if (T->fields[i].array.base != before[i]) moved = i;
    return moved;
}

void trimtab_f_to_fields(const CFI_cdesc_t *state)
{
    char *memory = state_of(state);
    bool deciding = false;
    int moved = -1;
    if (!memory) return;
    if (T->handshake) {
        compare(memory);
        return;
    }
    for (int i = 0; i < T->n_fields; i++) deciding |= decides(&T->fields[i].array);
    for (int round = 0; deciding && round < ROUNDS; round++) {
        set_fields(memory, true);
        moved = looked_up();
        if (moved < 0) break;
    }
    if (moved >= 0)
        fail(TRIMTAB_REFUSED, "the field %s lies elsewhere each time its indices are set: describe the index that decides its place with "
             "trimtab_hidden, as it is", T->fields[moved].name);
    if (T->status) return;
    set_fields(memory, false); /* the last look at the fields came before: trimtab_describe may fill what it describes */
    T->placed = true;
}

int64_t trimtab_slot_settled(const double *state)
{
    char *before[MOST_FIELDS];
    if (T->status || !T->placed) return T->status;
    T->placed = false;
    for (int i = 0; i < T->n_fields; i++) before[i] = T->fields[i].array.base;
    describe();
    for (int i = 0; i < T->n_fields && !T->status; state += T->fields[i++].array.size)
        if (T->fields[i].array.base != before[i] && unlike(&T->fields[i], state) >= 0)
            fail(TRIMTAB_REFUSED, "trimtab_set_state put the field %s where it does not lie any more at its end: the index or pointer that "
                 "decides its place is set after trimtab_to_fields; describe it with trimtab_hidden (it is then set first), or set it "
                 "before trimtab_to_fields", T->fields[i].name);
    return T->status;
}

#endif
