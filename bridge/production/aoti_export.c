/* SPDX-License-Identifier: MIT */
/* A correction as `trimtab export RUN` writes it: a folder with manifest.json, a library, parameters.bin. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "correction.h"

#define MOST_DIMENSIONS 16
#define ALIGNMENT 64

static void say(char *message, int64_t length, const char *format, ...)
{
    va_list arguments;
    if (!message || length < 1)
        return;
    va_start(arguments, format);
    vsnprintf(message, (size_t)length, format, arguments);
    va_end(arguments);
}

/* The text of a whole file, ended by a null; its length without that. */
static char *read_file(const char *folder, const char *name, int64_t *bytes)
{
    char path[4096];
    FILE *file;
    char *text = NULL;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (!(file = fopen(path, "rb")))
        return NULL;
    if (fseek(file, 0, SEEK_END) == 0 && (*bytes = ftell(file)) >= 0 && fseek(file, 0, SEEK_SET) == 0) {
        size_t room = ((size_t)*bytes / ALIGNMENT + 1) * ALIGNMENT;
        text = aligned_alloc(ALIGNMENT, room);
        if (text && fread(text, 1, (size_t)*bytes, file) != (size_t)*bytes) {
            free(text);
            text = NULL;
        }
        if (text)
            text[*bytes] = 0;
    }
    fclose(file);
    return text;
}

/* The value behind a key of manifest.json: keys there are unique and strings hold no escapes (export.py sees to that). */
static const char *value_of(const char *json, const char *key)
{
    char quoted[128];
    const char *at;
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    at = strstr(json, quoted);
    return at ? at + strlen(quoted) + strspn(at + strlen(quoted), " ") : NULL;
}

static bool integer_of(const char *json, const char *key, int64_t *number)
{
    const char *at = value_of(json, key);
    return at && sscanf(at, "%" SCNd64, number) == 1;
}

static bool string_of(const char *json, const char *key, char *text, size_t room)
{
    const char *at = value_of(json, key);
    size_t length = at && *at == '"' ? strcspn(at + 1, "\"") : room;
    if (length < room)
        snprintf(text, length + 1, "%s", at + 1);
    return length < room;
}

void trimtab_exported_layout(const char *folder, char *text, int64_t room)
{
    int64_t size = 0;
    char *json = read_file(folder, "manifest.json", &size);
    if (!json || !string_of(json, "ports", text, (size_t)room))
        text[0] = 0;
    free(json);
}

/* Whether this processor has the vectors that the library was compiled for; on others than x86 the loader has to tell. */
static bool processor_fits(const char *capability)
{
#if defined(__x86_64__) && defined(__GNUC__)
    if (strstr(capability, "AVX512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
    if (strstr(capability, "AVX2"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    (void)capability;
    return true;
}

/* parameters.bin: the 8 characters TRIMTABP, int64 count, then for each int64 length of its name, dimensions, bytes, sizes, the name and
 * the numbers, both filled up to a multiple of 64 bytes from the file's beginning. False when the file ends before that. */
static bool give_all(void *correction, char *file, int64_t length, char *message, int64_t room)
{
    int64_t at = 16, count = 0, head[3];
    if (length < at || memcmp(file, "TRIMTABP", 8))
        return say(message, room, "it is not a file of parameters"), false;
    memcpy(&count, file + 8, 8);
    for (int64_t i = 0; i < count; i++) {
        int64_t sizes[MOST_DIMENSIONS];
        char name[512];
        if (at + 24 > length)
            return say(message, room, "it is cut short"), false;
        memcpy(head, file + at, 24);
        at += 24;
        if (head[0] < 1 || head[0] >= (int64_t)sizeof name || head[1] < 0 || head[1] > MOST_DIMENSIONS || head[2] < 0
            || at + 8 * head[1] + head[0] + head[2] > length)
            return say(message, room, "it is cut short or damaged"), false;
        memcpy(sizes, file + at, 8 * (size_t)head[1]);
        at += 8 * head[1];
        memcpy(name, file + at, (size_t)head[0]);
        name[head[0]] = 0;
        at = (at + head[0] + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        if (at + head[2] > length)
            return say(message, room, "it is cut short"), false;
        if (trimtab_compiled_give(correction, name, file + at, head[1], sizes, head[2]))
            return say(message, room, "%s", trimtab_compiled_message(correction)), false;
        at = (at + head[2] + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    return true;
}

int32_t trimtab_load_compiled(const char *folder, void **function, void **context, int64_t *bytes, char *message, int64_t length)
{
    char library[1024], path[5120], torch[2048], version[64] = "", capability[64] = "", why[512] = "", *values;
    int64_t size = 0, n = 0, n_out = 0, kind = 0;
    char *json = read_file(folder, "manifest.json", &size);
    void *correction = NULL;
    bool complete;
    *function = *context = NULL;
    if (!json)
        return say(message, length, "%s is not an exported correction, it has no manifest.json: give the --out of `trimtab export`", folder), 1;
    complete = integer_of(json, "n", &n) && integer_of(json, "n_out", &n_out) && integer_of(json, "bytes", &kind)
               && string_of(json, "library", library, sizeof library) && string_of(json, "torch_folder", torch, sizeof torch)
               && string_of(json, "torch", version, sizeof version) && string_of(json, "processor", capability, sizeof capability);
    free(json);
    if (!complete || (kind != 4 && kind != 8))
        return say(message, length, "%s/manifest.json is incomplete or damaged: export the correction again", folder), 1;
    if (!processor_fits(capability))
        return say(message, length, "%s was compiled for a processor with %s and this one has not: export it on this machine", folder,
                   capability), 1;
    snprintf(path, sizeof path, "%s/%s", folder, library);
    correction = trimtab_compiled_open(path, torch, version, n, n_out, kind, message, length);
    values = correction ? read_file(folder, "parameters.bin", &size) : NULL;
    if (correction && !values) {
        say(message, length, "%s/parameters.bin cannot be read", folder);
    } else if (correction) {
        trimtab_compiled_own(correction, values);
        if (!give_all(correction, values, size, why, sizeof why))
            say(message, length, "%s/parameters.bin cannot be used: %s", folder, why);
        else if (trimtab_compiled_commit(correction))
            say(message, length, "%s", trimtab_compiled_message(correction));
        else {
            *(trimtab_slot_function *)function = trimtab_compiled_call;
            *context = correction;
            *bytes = kind;
            return 0;
        }
    }
    trimtab_close_compiled(correction);
    return 1;
}
