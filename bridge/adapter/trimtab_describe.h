/* SPDX-License-Identifier: MIT */
/* What an adapter's trimtab_describe says: fields, slots, inputs and outputs, and their JSON; only for trimtab_slot.c. */
#ifndef TRIMTAB_DESCRIBE_H
#define TRIMTAB_DESCRIBE_H
#include "trimtab_block.h"
#include <math.h>

#define COPY "a local variable of it, or a copy that the compiler makes for an argument of explicit shape (a(n)) or an expression; give " \
    "trimtab_field and trimtab_hidden the array of your module or COMMON itself, or a section of it, and allocate nothing in there"

static item_t *item(item_t *list, int *count, int most, const CFI_cdesc_t *array, const CFI_cdesc_t *name,
                    const CFI_cdesc_t *units, const CFI_cdesc_t *dims, const char *what)
{
    item_t one;
    memset(&one, 0, sizeof one);
    text_of(name, one.name, WORD);
    text_of(units, one.units, WORD);
    text_of(dims, one.dims, WORD);
    if (!view(array, one.name, &one.array)) return NULL;
    for (int i = 0; i < *count; i++)
        if (!strcmp(list[i].name, one.name)) {
            fail(TRIMTAB_REFUSED, "two of the %s are called %s: give each a name of its own", what, one.name);
            return NULL;
        }
    if (*count >= most) {
        fail(TRIMTAB_REFUSED, "there are more than %d %s: raise the number in trimtab_slot.c", most, what);
        return NULL;
    }
    list[*count] = one;
    return &list[(*count)++];
}

static slot_t *find(const char *name)
{
    for (int i = 0; i < T->n_slots; i++)
        if (!strcmp(T->slots[i].name, name)) return &T->slots[i];
    return NULL;
}

static slot_t *make(const char *name)
{
    slot_t *slot = find(name);
    if (slot) return slot;
    if (T->n_slots >= MOST_SLOTS) {
        fail(TRIMTAB_REFUSED, "there are more than %d slots: raise the number in trimtab_slot.c", T->n_slots);
        return NULL;
    }
    slot = &T->slots[T->n_slots++];
    memset(slot, 0, sizeof *slot);
    snprintf(slot->name, WORD, "%s", name);
    return slot;
}

static void describe(void)
{
    int before = T->n_fields;
    char *outer = T->frame, here;
    T->refreshing = T->described;
    T->n_fields = T->n_blocks = 0;
    for (int i = 0; i < T->n_slots; i++) T->slots[i].ins = T->slots[i].outs = 0, T->slots[i].n = T->slots[i].m = 0;
    T->present = NULL;
    T->frame = &here;
    trimtab_describe();
    T->frame = outer;
    T->present = NULL;
    if (!T->status && T->described && T->n_fields != before)
        fail(TRIMTAB_REFUSED, "trimtab_describe named %d fields at first and %d now: it must always name the same", before, T->n_fields);
    if (!T->status) T->described = true;
}

void trimtab_f_clock(const CFI_cdesc_t *dt, const CFI_cdesc_t *units)
{
    array_t a;
    double before = T->clock_dt;
    if (!view(dt, "the time step", &a)) return;
    walk(a, 'r', (char *)&T->clock_dt, 8, 0);
    T->clock_kind = a.kind;
    if (T->refreshing && T->go_on && !(fabs(T->clock_dt - before) <= 1e-6 * before)) {  /* a program of its own may do so */
        fail(TRIMTAB_REFUSED, "the code changed its time step from %.6g to %.6g: trimtab needs a fixed one; switch its control of the "
             "step off, or set the end at which it cuts its last step short out of reach", before, T->clock_dt);
        T->clock_dt = before;
    }
    text_of(units, T->clock_units, WORD);
}

void trimtab_f_field(CFI_cdesc_t *array, const CFI_cdesc_t *name, const CFI_cdesc_t *units, const CFI_cdesc_t *dims)
{
    char known[WORD] = "";
    if (T->refreshing && T->n_fields < MOST_FIELDS) memcpy(known, T->fields[T->n_fields].name, WORD);
    int64_t size = T->refreshing ? T->fields[T->n_fields].array.size : -1;
    item_t *one = item(T->fields, &T->n_fields, MOST_FIELDS, array, name, units, dims, "fields");
    uintptr_t here = (uintptr_t)&size, frame = (uintptr_t)T->frame, base = one ? (uintptr_t)one->array.base : 0;
    if (one && frame && ((here < base && base < frame) || (frame < base && base < here)))
        fail(TRIMTAB_REFUSED, "the field %s is described by memory that trimtab_describe has only while it runs: " COPY, one->name);
    if (one && size >= 0 && one->array.size != size)
        fail(TRIMTAB_REFUSED, "the field %s had %lld numbers at first and has %lld now: a state keeps its size", one->name,
             (long long)size, (long long)one->array.size);
    if (one && *known && strcmp(known, one->name))
        fail(TRIMTAB_REFUSED, "trimtab_describe named the field %s at first where it names %s now: it must always name the same fields, in "
             "the same order", known, one->name);
}

void trimtab_f_hidden(CFI_cdesc_t *array, const CFI_cdesc_t *name, const CFI_cdesc_t *dims)
{
    int before = T->n_fields;
    trimtab_f_field(array, name, NULL, dims);
    if (T->n_fields > before) T->fields[before].hidden = true;
}

void trimtab_f_slot(const CFI_cdesc_t *name)
{
    char word[WORD];
    text_of(name, word, WORD);
    T->present = make(word);
}

static void port(int outputs, const CFI_cdesc_t *array, const CFI_cdesc_t *name, const CFI_cdesc_t *units, const CFI_cdesc_t *dims)
{
    if (!T->present) {
        fail(TRIMTAB_REFUSED, "trimtab_input and trimtab_output stand below their slot: call trimtab_slot('NAME') first");
        return;
    }
    item_t *one = outputs ? item(T->present->out, &T->present->outs, MOST_PORTS, array, name, units, dims, "outputs of a slot")
                          : item(T->present->in, &T->present->ins, MOST_PORTS, array, name, units, dims, "inputs of a slot");
    int64_t *total = outputs ? &T->present->m : &T->present->n;
    if (!one) return;
    one->at = *total;
    *total += one->array.size;
}

void trimtab_f_input(const CFI_cdesc_t *array, const CFI_cdesc_t *name, const CFI_cdesc_t *units, const CFI_cdesc_t *dims)
{
    port(0, array, name, units, dims);
}

void trimtab_f_output(const CFI_cdesc_t *array, const CFI_cdesc_t *name) { port(1, array, name, NULL, NULL); }

static void put_items(char *text, int64_t room, int64_t *at, const char *key, const item_t *list, int count)
{
    put(text, room, at, "\"%s\": [", key);
    for (int i = 0; i < count; i++) {
        put(text, room, at, "%s{", i ? ", " : "");
        put_word(text, room, at, "name", list[i].name);
        put_word(text, room, at, "units", list[i].units);
        put_word(text, room, at, "dims", list[i].dims);
        put_word(text, room, at, "kind", KIND[list[i].array.kind]);
        int64_t span = WIDTH[list[i].array.kind];
        for (int k = 0; k < list[i].array.rank; k++) span += (list[i].array.extent[k] - 1) * list[i].array.stride[k];
        put(text, room, at, "\"address\": %lld, \"span\": %lld, ", (long long)(intptr_t)list[i].array.base, (long long)span);
        put(text, room, at, "\"hidden\": %s, \"shape\": [", list[i].hidden ? "true" : "false");
        for (int k = 0; k < list[i].array.rank; k++) put(text, room, at, "%s%lld", k ? ", " : "", (long long)list[i].array.extent[k]);
        put(text, room, at, "]}");
    }
    put(text, room, at, "]");
}

/* Describe twice without a step between, the second time with memory of the fields' sizes taken from the heap: what lies elsewhere then
 * is a copy that the compiler made, and what would be written there went astray. */
static void describe_twice(void)
{
    char *before[MOST_FIELDS];
    void *taken[MOST_FIELDS];
    int n;
    describe();
    n = T->n_fields;
    for (int i = 0; i < n; i++) {
        before[i] = T->fields[i].array.base;
        taken[i] = malloc((size_t)(T->fields[i].array.size * WIDTH[T->fields[i].array.kind] + 1));
    }
    if (!T->status) describe();
    for (int i = 0; i < n; i++) {
        if (!T->status && T->fields[i].array.base != before[i])
            fail(TRIMTAB_REFUSED, "the field %s lies elsewhere at the second call of trimtab_describe, though no step was made between: " COPY,
                 T->fields[i].name);
        free(taken[i]);
    }
}

int64_t trimtab_slot_description(char *text, int64_t length)
{
    int64_t at = 0;
    if (!T->status && T->go_on && !T->described) describe_twice();
    else describe();
    if (T->status) return 0;
    put(text, length, &at, "{\"version\": %d, \"dt\": %.17g, ", TRIMTAB_SLOT_VERSION, T->clock_dt);
    put_word(text, length, &at, "time_units", T->clock_units);
    put_word(text, length, &at, "dt_kind", KIND[T->clock_kind]);
    put_blocks(text, length, &at);
    put_items(text, length, &at, "fields", T->fields, T->n_fields);
    put(text, length, &at, ", \"options\": [");
    for (int i = 0; i < T->n_options; i++) {
        put(text, length, &at, "%s{", i ? ", " : "");
        put_word(text, length, &at, "name", T->options[i].name);
        put_word(text, length, &at, "value", T->options[i].value);
        put(text, length, &at, "\"given\": %s, \"asked\": %s}", T->options[i].given ? "true" : "false", T->options[i].asked ? "true" : "false");
    }
    put(text, length, &at, "], \"slots\": [");
    for (int i = 0; i < T->n_slots; i++) {
        put(text, length, &at, "%s{", i ? ", " : "");
        put_word(text, length, &at, "name", T->slots[i].name);
        put_items(text, length, &at, "inputs", T->slots[i].in, T->slots[i].ins);
        put(text, length, &at, ", ");
        put_items(text, length, &at, "outputs", T->slots[i].out, T->slots[i].outs);
        put(text, length, &at, "}");
    }
    put(text, length, &at, "]}");
    return at;
}

#endif
