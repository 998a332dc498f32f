/* SPDX-License-Identifier: MIT */
/* Options that Python gives by name and the adapter takes; only for trimtab_slot.c. */
#ifndef TRIMTAB_OPTION_H
#define TRIMTAB_OPTION_H
#include "trimtab_array.h"
#include <math.h>

/* Text written as far as there is room; `at` counts all of it. */
static void put(char *text, int64_t room, int64_t *at, const char *format, ...)
{
    va_list list;
    int64_t left = text && *at < room ? room - *at : 0;
    va_start(list, format);
    *at += vsnprintf(left ? text + *at : NULL, (size_t)left, format, list);
    va_end(list);
}

static void put_word(char *text, int64_t room, int64_t *at, const char *key, const char *word)
{
    put(text, room, at, "\"%s\": \"", key);
    for (; *word; word++)
        put(text, room, at, (unsigned char)*word < 32 || *word == '"' || *word == '\\' ? "\\u%04x" : "%c", (unsigned char)*word);
    put(text, room, at, "\", ");
}

static option_t *option(const char *name)
{
    for (int i = 0; i < T->n_options; i++)
        if (!strcmp(T->options[i].name, name)) return &T->options[i];
    if (T->n_options >= MOST_OPTIONS) {
        fail(TRIMTAB_REFUSED, "there are more than %d options: raise the number in trimtab_slot.c", T->n_options);
        return NULL;
    }
    snprintf(T->options[T->n_options].name, WORD, "%s", name);
    return &T->options[T->n_options++];
}

void trimtab_slot_option(const char *name, const char *value)
{
    option_t *one = option(name);
    if (!one) return;
    one->given = true;
    snprintf(one->value, sizeof one->value, "%s", value);
}

/* The numbers of an option's text, blanks between; false when they are not as many as the variable holds. */
static bool numbers_of(const option_t *one, int64_t size, double *to)
{
    char *at = (char *)one->value, *end;
    for (int64_t i = 0; i < size; i++, at = end) {
        to[i] = strtod(at, &end);
        if (end == at) return false;
    }
    while (*at == ' ') at++;
    return !*at;
}

void trimtab_f_option(CFI_cdesc_t *variable, const CFI_cdesc_t *name)
{
    char word[WORD];
    array_t a;
    text_of(name, word, WORD);
    option_t *one = option(word);
    if (!one) return;
    one->asked = true;
    if (variable->type == CFI_type_char && variable->rank == 0) {
        if (!one->given) text_of(variable, one->value, sizeof one->value);
        else if (strlen(one->value) > variable->elem_len)
            fail(TRIMTAB_REFUSED, "the option %s = '%s' is longer than the %d letters that the code keeps of it", word, one->value,
                 (int)variable->elem_len);
        else {
            memset(variable->base_addr, ' ', variable->elem_len);
            memcpy(variable->base_addr, one->value, strlen(one->value));
        }
        return;
    }
    if (!view(variable, word, &a)) return;
    double *memory = malloc(sizeof *memory * (size_t)(a.size + 1));
    if (!memory) fail(TRIMTAB_REFUSED, "no memory for the option %s", word);
    else if (!one->given) {
        int64_t at = 0;
        walk(a, 'r', (char *)memory, 8, 0);
        for (int64_t i = 0; i < a.size && at < (int64_t)sizeof one->value - 40; i++)
            put(one->value, sizeof one->value, &at, a.kind == REAL4 ? "%s%.9g" : "%s%.17g", i ? " " : "", memory[i]);
    } else if (!numbers_of(one, a.size, memory))
        fail(TRIMTAB_REFUSED, "the option %s = '%s' is not what the code takes there: %lld number(s) of kind %s", word, one->value,
             (long long)a.size, KIND[a.kind]);
    else {
        for (int64_t i = 0; i < a.size; i++)
            if (a.kind >= INT1 && memory[i] != floor(memory[i]))
                fail(TRIMTAB_REFUSED, "the option %s = '%s' must be a whole number: the code keeps it as %s", word, one->value, KIND[a.kind]);
        walk(a, 'w', (char *)memory, 8, 0);
    }
    free(memory);
}

#endif
