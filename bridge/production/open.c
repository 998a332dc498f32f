/* SPDX-License-Identifier: MIT */
/* The one line of a program that drives itself: a path -> what fills its slot. Python is looked for only when a checkpoint asks for it,
 * in a library of its own (embed.c), so that a program without Python needs none to build, link or run. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <glob.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "correction.h"

#define EMBED "libtrimtab_embed.so"

/* trimtab_slot.c, where a coupled code has it. */
extern int64_t trimtab_slot_fill(const char *name, trimtab_slot_function function, void *context, int64_t bytes) __attribute__((weak));
extern int64_t trimtab_slot_declare(const char *name, const char *layout) __attribute__((weak));
extern int64_t trimtab_slot_status(char *text, int64_t length) __attribute__((weak));
extern int64_t trimtab_slot_description(char *text, int64_t length) __attribute__((weak));
extern void trimtab_slot_when_ready(const char *name, void (*ready)(const char *name)) __attribute__((weak));
extern void trimtab_slot_explain(const char *name, const char *(*explain)(void *context)) __attribute__((weak));
extern void trimtab_slot_refuse(const char *sentence) __attribute__((weak));

/* What embed.c offers. */
typedef int32_t (*embed_open_t)(const char *, const char *, const char *, void **, void **, int64_t *, const char *(**)(void *), char *, int64_t);
typedef void (*embed_close_t)(void *);
typedef const char *(*embed_layout_t)(void *);

#define LAYOUT 16384

/* An open correction: who explains and who closes it; the slot it was trained for, with its inputs and outputs, "" where nobody says. */
typedef struct opened {
    void *context;
    const char *(*explain)(void *);
    void (*close)(void *);
    char slot[128], layout[LAYOUT];
    struct opened *next;
    char *path; /* of a named slot */
} opened_t;

static opened_t *all = NULL;

static int32_t refuse(char *message, int64_t length, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    if (message && length > 0)
        vsnprintf(message, (size_t)length, format, arguments);
    va_end(arguments);
    return 1;
}

static int exists(const char *folder, const char *name)
{
    char path[4096];
    struct stat found;
    snprintf(path, sizeof path, "%s%s%s", folder, *name ? "/" : "", name);
    return stat(path, &found) == 0;
}

/* The library that holds Python: TRIMTAB_EMBED, else beside this code, else in the environment of TRIMTAB_PYTHON, else where the loader
 * looks. Its symbols are global: Python's own modules look for them there. */
static void *load_embed(char *message, int64_t length)
{
    const char *chosen = getenv("TRIMTAB_EMBED"), *python = getenv("TRIMTAB_PYTHON"), *slash;
    char path[4096];
    void *library = NULL;
    Dl_info here;
    glob_t found;

    if (chosen && *chosen) {
        library = dlopen(chosen, RTLD_NOW | RTLD_GLOBAL);
        if (!library)
            refuse(message, length, "TRIMTAB_EMBED cannot be loaded: %s", dlerror());
        return library;
    }
    if (dladdr((void *)(intptr_t)load_embed, &here) && here.dli_fname && (slash = strrchr(here.dli_fname, '/'))) {
        snprintf(path, sizeof path, "%.*s/%s", (int)(slash - here.dli_fname), here.dli_fname, EMBED);
        if (exists(path, "") && !(library = dlopen(path, RTLD_NOW | RTLD_GLOBAL)))
            return refuse(message, length, "%s", dlerror()), NULL;
    }
    if (!library && python && (slash = strrchr(python, '/'))) {
        snprintf(path, sizeof path, "%.*s/../lib/python3*/site-packages/trimtab/lib/%s", (int)(slash - python), python, EMBED);
        if (glob(path, 0, NULL, &found) == 0 && found.gl_pathc > 0 && !(library = dlopen(found.gl_pathv[0], RTLD_NOW | RTLD_GLOBAL)))
            refuse(message, length, "%s", dlerror());
        globfree(&found);
    }
    if (!library && !(library = dlopen(EMBED, RTLD_NOW | RTLD_GLOBAL)))
        refuse(message, length, "a checkpoint needs %s and it was not found: set TRIMTAB_EMBED to the file that `trimtab version` names, "
               "or export the correction and run it without Python", EMBED);
    return library;
}

/* layout: "slot NAME;" and what trimtab_slot_declare takes. */
static int32_t remember(void *context, const char *(*explain)(void *), void (*close)(void *), const char *layout)
{
    opened_t *one = calloc(1, sizeof *one);
    const char *end = strncmp(layout, "slot ", 5) ? NULL : strchr(layout, ';');
    if (one) {
        one->context = context;
        one->explain = explain;
        one->close = close;
        if (end) {
            snprintf(one->slot, sizeof one->slot, "%.*s", (int)(end - layout) - 5, layout + 5);
            snprintf(one->layout, sizeof one->layout, "%s", end + 1);
        }
        one->next = all;
        all = one;
    }
    return one == NULL;
}

int32_t trimtab_open_correction(const char *kind, const char *path, const char *slot, const char *description, void **function,
                                void **context, int64_t *bytes, char *message, int64_t length)
{
    char folder[4096], layout[LAYOUT] = "";
    const char *(*explain)(void *) = trimtab_compiled_message;
    embed_open_t embed_open = NULL;
    embed_close_t embed_close = trimtab_close_compiled;
    embed_layout_t embed_layout = NULL;
    void *embed;
    int32_t failed;

    *function = *context = NULL;
    *bytes = 0;
    if (message && length > 0)
        *message = 0;
    if (!*path && !(path = getenv("TRIMTAB_CORRECTION")))
        return refuse(message, length, "no correction was named: give a path, or set TRIMTAB_CORRECTION");
    if (!exists(path, ""))
        return refuse(message, length, "there is no correction %s", path);
    snprintf(folder, sizeof folder, "%s/%s", path, slot);  /* of a code with several slots, each has a folder of its own */
    if (*slot && exists(folder, "manifest.json"))
        path = folder;
    if (!*kind)
        kind = exists(path, "manifest.json") ? "library" : "checkpoint";
    if (!strcmp(kind, "library")) {
        failed = trimtab_load_compiled(path, function, context, bytes, message, length);
        trimtab_exported_layout(path, layout, sizeof layout);
    } else if (!strcmp(kind, "checkpoint")) {
        if (!(embed = load_embed(message, length)))
            return 1;
        *(void **)&embed_open = dlsym(embed, "trimtab_embed_open");
        *(void **)&embed_close = dlsym(embed, "trimtab_embed_close");
        *(void **)&embed_layout = dlsym(embed, "trimtab_embed_layout");
        if (!embed_open || !embed_close || !embed_layout)
            return refuse(message, length, "%s is of another version of trimtab", EMBED);
        failed = embed_open(path, slot, description, function, context, bytes, &explain, message, length);
        if (!failed)
            snprintf(layout, sizeof layout, "%s", embed_layout(*context));
    } else {
        return refuse(message, length, "a correction is of kind library or checkpoint, not %s", kind);
    }
    if (!failed && remember(*context, explain, embed_close, layout))
        failed = refuse(message, length, "no memory for a correction");
    return failed;
}

static int32_t fill_slot(const char *slot, const char *path, const char *description, char *message, int64_t length)
{
    void *function, *context;
    int64_t bytes;
    if (trimtab_open_correction("", path, slot, description, &function, &context, &bytes, message, length))
        return 1;
    if (*all->slot && *slot && strcmp(all->slot, slot)) {
        refuse(message, length, "%s was trained for the slot %s, not %s", path, all->slot, slot);
        trimtab_close_correction(context);
        return 1;
    }
    if (!*slot)
        slot = all->slot;
    snprintf(all->slot, sizeof all->slot, "%s", slot);
    if ((!*all->layout || !trimtab_slot_declare || !trimtab_slot_declare(slot, all->layout))
        && !trimtab_slot_fill(slot, *(trimtab_slot_function *)&function, context, bytes)) {
        if (trimtab_slot_explain)
            trimtab_slot_explain(slot, all->explain);
        all->path = strdup(path);
        return 0;
    }
    trimtab_slot_status(message, length);
    trimtab_close_correction(context);
    return 1;
}

/* Arrays of another size than trained with: of a code on several ranks that is its block; open what fills its slot once more, with the
 * sizes that the code has. */
static void fit_block(const char *slot)
{
    char message[1024];
    int64_t length = trimtab_slot_description(NULL, 0);
    char *text = malloc((size_t)length + 1);
    opened_t *before = all; /* the latest, under the name of the slot */
    while (before && !(before->path && !strcmp(before->slot, slot)))
        before = before->next;
    if (!text || !before)
        return free(text);
    trimtab_slot_description(text, length + 1);
    if (!strstr(text, "\"blocks\": []")) {
        if (fill_slot(slot, before->path, text, message, sizeof message)) {
            trimtab_slot_refuse(message);
            fprintf(stderr, "trimtab: %s; the run goes on without the correction\n", message);
        } else {
            trimtab_close_correction(before->context);
        }
    }
    free(text);
}

int32_t trimtab_fill_slot(const char *slot, const char *path, char *message, int64_t length)
{
    if (!trimtab_slot_fill || !trimtab_slot_status)
        return refuse(message, length, "this program has no named slots: link trimtab_slot.c into it");
    if (fill_slot(slot, path, "", message, length))
        return 1;
    /* Blocks are of MPI programs alone; no other describes its state, whose arrays may not exist here. */
    if (trimtab_slot_description && trimtab_slot_when_ready && trimtab_slot_refuse && dlsym(dlopen(NULL, RTLD_LAZY), "MPI_Initialized"))
        trimtab_slot_when_ready(*slot ? slot : all->slot, fit_block);
    return 0;
}

int32_t trimtab_check_slots(char *message, int64_t length)
{
    if (!trimtab_slot_status || !trimtab_slot_status(message, length))
        return 0;
    for (opened_t *one = all; one && message; one = one->next)
        if (*one->explain(one->context) && (int64_t)strlen(message) + 3 < length)
            snprintf(message + strlen(message), (size_t)length - strlen(message), ": %s", one->explain(one->context));
    return 1;
}

void trimtab_correction_message(void *context, char *message, int64_t length)
{
    const char *text = "";
    for (opened_t *one = all; one; one = one->next)
        if (one->context == context)
            text = one->explain(context);
    if (message && length > 0)
        snprintf(message, (size_t)length, "%s", text);
}

void trimtab_close_correction(void *context)
{
    for (opened_t **at = &all; *at; at = &(*at)->next)
        if ((*at)->context == context) {
            opened_t *one = *at;
            *at = one->next;
            one->close(context);
            free(one->path);
            free(one);
            return;
        }
}
