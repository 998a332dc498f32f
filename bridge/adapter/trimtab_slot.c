/* SPDX-License-Identifier: MIT */
/* Named slots, and the fields of a code as it describes them; see trimtab_slot.h and trimtab.f90. */
#include "trimtab_state.h"
#include "trimtab_stop.h"
#include "trimtab_thread.h"

/* ---- failures */

void trimtab_f_refuse(const CFI_cdesc_t *why)
{
    char text[sizeof T->sentence];
    text_of(why, text, sizeof text);
    fail(TRIMTAB_REFUSED, "%s", text);
}

int64_t trimtab_slot_status(char *text, int64_t length)
{
    if (text && length > 0) snprintf(text, (size_t)length, "%s", T->status ? T->sentence : "");
    return T->status;
}

void trimtab_slot_refuse(const char *sentence) { fail(TRIMTAB_CORRECTION_FAILED, "%s", sentence); }
void trimtab_slot_clear(void)
{
    T->status = 0;
    __sync_lock_release(&T->failing);
}

void trimtab_slot_go_on(int (*ask)(void)) { T->go_on = ask; }
void trimtab_slot_handshake(int64_t on) { T->handshake = on; }

bool trimtab_f_go_on(void)
{
    if (!T->status && T->go_on && on_driver() && T->go_on()) fail(TRIMTAB_INTERRUPTED, "the rollout was interrupted");
    return !T->status;
}

/* ---- slots */

int64_t trimtab_slot_fill(const char *name, trimtab_function function, void *context, int64_t bytes)
{
    if (bytes != 4 && bytes != 8) {
        fail(TRIMTAB_REFUSED, "a correction works in 4 or 8 bytes a number, not in %lld", (long long)bytes);
        return T->status;
    }
    if (*name && !(T->described ? find(name) : make(name))) fail(TRIMTAB_REFUSED, "there is no slot %s in this code", name);
    for (int i = 0; i < T->n_slots; i++)
        if (!*name || !strcmp(T->slots[i].name, name)) {
            T->slots[i].function = function;
            T->slots[i].context = context;
            T->slots[i].bytes = bytes;
            T->slots[i].explain = NULL;
        }
    return T->status;
}

int64_t trimtab_slot_declare(const char *name, const char *layout)
{
    slot_t *slot = T->described ? find(name) : make(name);
    if (!slot) fail(TRIMTAB_REFUSED, "there is no slot %s in this code", name);
    if (T->status || T->described) return T->status;
    slot->ins = slot->outs = 0;
    slot->n = slot->m = 0;
    for (const char *end; (end = strchr(layout, ';')); layout = end + 1) {
        char kind[8];
        long long size;
        int at = 0, *count;
        if (sscanf(layout, " %7s %lld %n", kind, &size, &at) < 2 || !at || size < 1 || end - layout - at < 1 || end - layout - at >= WORD) break;
        bool output = !strcmp(kind, "output");
        if ((!output && strcmp(kind, "input")) || *(count = output ? &slot->outs : &slot->ins) >= MOST_PORTS) break;
        item_t *one = &(output ? slot->out : slot->in)[(*count)++];
        int64_t *total = output ? &slot->m : &slot->n;
        memset(one, 0, sizeof *one);
        snprintf(one->name, WORD, "%.*s", (int)(end - layout) - at, layout + at);
        one->array.size = size;
        one->at = *total;
        *total += size;
    }
    if (*layout) fail(TRIMTAB_REFUSED, "the inputs and outputs of the slot %s cannot be read from %.200s", name, layout);
    slot->declared = true;
    return T->status;
}

void trimtab_slot_empty(const char *name)
{
    for (int i = 0; i < T->n_slots; i++)
        if (!*name || !strcmp(T->slots[i].name, name)) T->slots[i].function = NULL;
}

void trimtab_slot_when_ready(const char *name, void (*ready)(const char *))
{
    slot_t *slot = find(name);
    if (slot) slot->ready = ready;
}

void trimtab_slot_explain(const char *name, const char *(*explain)(void *))
{
    slot_t *slot = find(name);
    if (slot) slot->explain = explain;
}

int64_t trimtab_slot_calls(const char *name)
{
    int64_t calls = 0;
    for (int i = 0; i < T->n_slots; i++)
        if (!*name || !strcmp(T->slots[i].name, name)) calls += T->slots[i].calls;
    return calls;
}

/* The next call of each slot is recorded; the inputs of the record before go to `inputs`. Returns the slots not called since. */
int64_t trimtab_slot_record(double *inputs, int64_t n)
{
    int64_t missing = 0, total = 0;
    for (int i = 0; i < T->n_slots; total += T->slots[i++].n) {
        if (T->recording && inputs && total + T->slots[i].n <= n && T->slots[i].recorded)
            memcpy(inputs + total, T->slots[i].seen, sizeof(double) * (size_t)T->slots[i].n);
        missing += !T->slots[i].recorded;
        T->slots[i].recorded = false;
    }
    T->recording = true;
    return missing;
}

static bool roomy(slot_t *slot)
{
    if (slot->room < slot->n) {
        free(slot->inputs);
        free(slot->seen);
        slot->inputs = malloc(8 * (size_t)slot->n);
        slot->seen = malloc(8 * (size_t)slot->n);
        slot->room = slot->inputs && slot->seen ? slot->n : 0;
        if (!slot->room) fail(TRIMTAB_REFUSED, "no memory for the inputs of the slot %s", slot->name);
    }
    return !T->status;
}

/* An array of another size than the correction was trained with: a block of a code on several ranks, which whoever filled the slot may
 * fit it to, once; whether it did. */
static bool fitted(slot_t *slot)
{
    void (*ready)(const char *) = slot->ready, *before = slot->context;
    slot->ready = NULL;
    describe();
    if (!T->status) ready(slot->name);
    T->present = slot;
    return !T->status && slot->context != before && roomy(slot);
}

bool trimtab_f_filled(const CFI_cdesc_t *name)
{
    char word[WORD];
    slot_t *slot;
    if (T->status) return false;
    text_of(name, word, WORD);
    slot = find(word);
    if (!slot || !slot->function || !enter(true)) return false;
    if (!T->described && !slot->declared) describe();
    if (!T->status && roomy(slot)) {
        T->present = slot;
        slot->given = 0;
        slot->answer = NULL;
    }
    leave();
    return !T->status;
}

/* An input or output of the present slot by name. */
static item_t *port_of(const CFI_cdesc_t *array, const CFI_cdesc_t *name, int outputs, array_t *a)
{
    char word[WORD];
    if (T->status || !T->present) return NULL;
    text_of(name, word, WORD);
    item_t *list = outputs ? T->present->out : T->present->in;
    bool trained = T->present->declared && !T->described;
    int count = outputs ? T->present->outs : T->present->ins;
    for (int i = 0; i < count; i++)
        if (!strcmp(list[i].name, word)) {
            if (!view(array, word, a)) return NULL;
            int64_t expected = list[i].array.size;
            if (a->size == expected) return &list[i];
            if (trained && T->present->ready && !T->present->given && fitted(T->present)) return port_of(array, name, outputs, a);
            fail(TRIMTAB_REFUSED, "the slot %s has %lld numbers of %s, and %s %lld", T->present->name, (long long)a->size, word,
                 trained ? "its correction was trained with" : "trimtab_describe says", (long long)expected);
            return NULL;
        }
    if (trained)
        fail(TRIMTAB_REFUSED, "the correction of the slot %s was trained with %d %ss, the first is %s, and none of them is %s: build the "
             "program with the adapter it was trained with", T->present->name, count, outputs ? "output" : "input",
             count ? list[0].name : "missing", word);
    fail(TRIMTAB_REFUSED, "the slot %s has no %s %s: name it in trimtab_describe, below trimtab_slot", T->present->name,
         outputs ? "output" : "input", word);
    return NULL;
}

void trimtab_f_give(const CFI_cdesc_t *array, const CFI_cdesc_t *name)
{
    array_t a;
    if (!enter(false)) return;
    item_t *one = port_of(array, name, 0, &a);
    if (one) {
        walk(a, 'r', (char *)T->present->inputs + T->present->bytes * one->at, T->present->bytes, 0);
        T->present->given += a.size;
    }
    leave();
}

static void ask(void)
{
    slot_t *slot = T->present;
    if (slot->given != slot->n) {
        fail(TRIMTAB_REFUSED, "the slot %s was given %lld of its %lld inputs: call trimtab_give once for each before trimtab_ask",
             slot->name, (long long)slot->given, (long long)slot->n);
        return;
    }
    if (T->recording && !slot->recorded) {
        for (int64_t i = 0; i < slot->n; i++)
            slot->seen[i] = slot->bytes == 8 ? ((double *)slot->inputs)[i] : (double)((float *)slot->inputs)[i];
        slot->recorded = true;
    }
    slot->calls++;
    slot->answer = slot->function(slot->context, slot->inputs, slot->n, 1, T->clock_dt);
    if (slot->answer) return;
    const char *why = slot->explain ? slot->explain(slot->context) : "";
    fail(TRIMTAB_CORRECTION_FAILED, "the correction in the slot %s failed%s%s", slot->name, *why ? ": " : " or never ran", why);
    tell_alone();
}

void trimtab_f_ask(void)
{
    if (!enter(false)) return;
    ask();
    leave();
}

static void add(CFI_cdesc_t *array, const CFI_cdesc_t *name, const CFI_cdesc_t *factor)
{
    array_t a, f;
    double by = 1;
    item_t *one = port_of(array, name, 1, &a);
    if (!one) return;
    if (factor) {
        if (!view(factor, "the factor of trimtab_add", &f)) return;
        walk(f, 'r', (char *)&by, 8, 0);
    }
    if (a.kind != REAL4 && a.kind != REAL8) fail(TRIMTAB_REFUSED, "%s is %s: only real and complex arrays can be added to", one->name, KIND[a.kind]);
    else if (!T->present->answer) fail(TRIMTAB_REFUSED, "trimtab_add comes after trimtab_ask, and the slot %s was not asked", T->present->name);
    else walk(a, 'a', (char *)T->present->answer + T->present->bytes * one->at, T->present->bytes, by);
}

void trimtab_f_add(CFI_cdesc_t *array, const CFI_cdesc_t *name, const CFI_cdesc_t *factor)
{
    if (!enter(false)) return;
    add(array, name, factor);
    leave();
}
