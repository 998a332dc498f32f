/* SPDX-License-Identifier: MIT */
/* A correction compiled by AOTInductor as the C function that fills a slot; no Python, no C++, nothing to link but dlopen.
 *
 * Source: torch/csrc/inductor/aoti_runtime/interface.h and aoti_torch/c/shim.h, the C interface of torch 2.10 and newer. Enumerations
 * below are theirs.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fenv.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "correction.h"

#define SENTENCE 1024
#define MOST_DIMENSIONS 16
#define ALIGNMENT 64

typedef struct tensor_opaque *tensor_t;
typedef struct { const char *name; tensor_t tensor; } pair_t;

/* What is taken from the two libraries; the first column is the name behind the prefix. */
#define FROM_TORCH(X) \
    X(create_tensor_from_blob, (void *, int64_t, const int64_t *, const int64_t *, int64_t, int32_t, int32_t, int32_t, tensor_t *)) \
    X(new_tensor_handle, (tensor_t, tensor_t *)) X(delete_tensor_object, (tensor_t)) X(get_data_ptr, (tensor_t, void **)) \
    X(get_numel, (tensor_t, int64_t *)) X(get_dtype, (tensor_t, int32_t *)) X(is_contiguous, (tensor_t, bool *))
#define FROM_LIBRARY(X) \
    X(ContainerCreateWithDevice, (void **, size_t, const char *, const char *)) X(ContainerDelete, (void *)) \
    X(ContainerRunSingleThreaded, (void *, tensor_t *, size_t, tensor_t *, size_t, void *, void *)) \
    X(ContainerGetNumConstants, (void *, size_t *)) X(ContainerGetConstantName, (void *, size_t, const char **)) \
    X(ContainerGetConstantOriginalFQN, (void *, size_t, const char **)) X(ContainerGetConstantType, (void *, size_t, int32_t *)) \
    X(ContainerGetConstantDtype, (void *, size_t, int32_t *)) X(ContainerGetConstantDataSize, (void *, size_t, size_t *)) \
    X(ContainerUpdateUserManagedConstantBufferPairs, (void *, const pair_t *, size_t, bool, bool))
#define DECLARE(name, arguments) int32_t (*name) arguments;

enum { DTYPE_FLOAT32 = 6, DTYPE_FLOAT64 = 7, DEVICE_CPU = 0 };
enum { CONSTANT_PARAMETER = 1, CONSTANT_BUFFER = 2 };

/* One open correction. */
typedef struct {
    int64_t n, n_out;                 /* numbers of one state, of one answer */
    int32_t dtype;
    void *torch, *library, *container;
    FROM_TORCH(DECLARE)
    FROM_LIBRARY(DECLARE)
    int32_t (*last_error)(const char **);
    void *state;                      /* where `view` looks, at how many members */
    int64_t members;
    bool trusted;                     /* the answer's layout was looked at, at this many members */
    tensor_t view, answer;
    size_t constants;
    pair_t *pairs;                    /* one a constant of the library; `tensor` null until it is given */
    void *memory;                     /* freed at the end */
    char message[SENTENCE], why[SENTENCE / 2];
} compiled_t;

static void say(char *message, int64_t length, const char *format, ...)
{
    va_list arguments;
    if (!message || length < 1)
        return;
    va_start(arguments, format);
    vsnprintf(message, (size_t)length, format, arguments);
    va_end(arguments);
}

/* The first line of what AOTInductor says of its last failure; torch before 2.13 says it on standard error alone. */
static const char *reason(compiled_t *self)
{
    const char *text = NULL;
    if (!self->last_error || self->last_error(&text) || !text || !*text)
        return "see standard error";
    snprintf(self->why, sizeof self->why, "%.*s", (int)strcspn(text, "\n"), text);
    return self->why;
}

const char *trimtab_compiled_message(void *context)
{
    return ((compiled_t *)context)->message;
}

/* Traps for floating-point exceptions are off while the network runs. */
void *trimtab_compiled_call(void *context, void *state, int64_t n, int64_t members, double weight)
{
    compiled_t *self = context;
    tensor_t input = NULL, answer = NULL;
    void *address = NULL;
    int64_t numbers = 0;
    int32_t dtype = 0, failed;
    bool contiguous = false;
    fenv_t floating;
    (void)weight;
    self->message[0] = 0;

    if (n != self->n || members < 1) {
        say(self->message, SENTENCE, "the compiled correction takes states of %lld numbers and was given %lld states of %lld",
            (long long)self->n, (long long)members, (long long)n);
        return NULL;
    }
    if (state != self->state || members != self->members) {
        const int64_t sizes[] = {members, n}, strides[] = {n, 1};
        if (self->view)
            self->delete_tensor_object(self->view);
        self->view = NULL;
        self->state = NULL;
        self->trusted = false;
        if (self->create_tensor_from_blob(state, 2, sizes, strides, 0, self->dtype, DEVICE_CPU, 0, &self->view)) {
            self->view = NULL;
            say(self->message, SENTENCE, "libtorch could not make a tensor of the solver's states");
            return NULL;
        }
        self->state = state;
        self->members = members;
    }
    if (self->new_tensor_handle(self->view, &input)) {  /* the call below takes it away */
        say(self->message, SENTENCE, "libtorch could not hand on the solver's states");
        return NULL;
    }
    feholdexcept(&floating);
    failed = self->ContainerRunSingleThreaded(self->container, &input, 1, &answer, 1, NULL, NULL);
    fesetenv(&floating);
    if (failed) {
        say(self->message, SENTENCE, "the compiled correction failed: %s", reason(self));
        return NULL;
    }
    if (self->answer)
        self->delete_tensor_object(self->answer);
    self->answer = answer;
    if (!self->trusted) {
        self->get_numel(answer, &numbers);
        self->get_dtype(answer, &dtype);
        self->is_contiguous(answer, &contiguous);
        if (numbers != members * self->n_out || dtype != self->dtype || !contiguous) {
            say(self->message, SENTENCE, "the compiled correction returned %lld numbers of type %d for %lld states; it must return %lld "
                "a state, contiguous, of type %d", (long long)numbers, dtype, (long long)members, (long long)self->n_out, self->dtype);
            return NULL;
        }
        self->trusted = true;
    }
    self->get_data_ptr(answer, &address);
    return address;
}

void trimtab_compiled_own(void *context, void *memory)
{
    ((compiled_t *)context)->memory = memory;
}

void trimtab_close_compiled(void *context)
{
    compiled_t *self = context;
    if (!self)
        return;
    if (self->view)
        self->delete_tensor_object(self->view);
    if (self->answer)
        self->delete_tensor_object(self->answer);
    if (self->container)
        self->ContainerDelete(self->container);
    for (size_t i = 0; self->pairs && i < self->constants; i++)
        if (self->pairs[i].tensor)
            self->delete_tensor_object(self->pairs[i].tensor);
    free(self->pairs);
    free(self->memory);
    /* The libraries stay: libtorch keeps threads, and other corrections may come from the same file. */
    free(self);
}

/* libtorch: the one this process has, else TRIMTAB_TORCH, else the folder given, else where the loader looks. */
static void *open_torch(const char *folder, char *message, int64_t length)
{
    char path[4096];
    const char *chosen = getenv("TRIMTAB_TORCH");
    void *torch = dlopen("libtorch_cpu.so", RTLD_NOW | RTLD_NOLOAD);
    if (torch)
        return torch;
    if (chosen && *chosen)
        folder = chosen;
    if (folder && *folder) {
        snprintf(path, sizeof path, "%s/libtorch_cpu.so", folder);
        torch = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    }
    if (!torch && !(chosen && *chosen))
        torch = dlopen("libtorch_cpu.so", RTLD_NOW | RTLD_GLOBAL);
    if (!torch)
        say(message, length, "libtorch_cpu.so cannot be loaded (%s): set TRIMTAB_TORCH to the folder lib of a torch installation",
            dlerror());
    return torch;
}

/* The C interface promises little across versions of torch: major and minor must be those it was compiled with. */
static bool version_fits(compiled_t *self, const char *version, const char *library, char *message, int64_t length)
{
    uint64_t (*abi)(void) = NULL;
    char found[64] = "?";
    *(void **)&abi = dlsym(self->torch, "aoti_torch_abi_version");
    if (abi)
        snprintf(found, sizeof found, "%d.%d.", (int)(abi() >> 56), (int)(abi() >> 48 & 255));
    if (!strncmp(found, version, strlen(found)))
        return true;
    say(message, length, "%s was compiled with torch %s and finds torch %s here: set TRIMTAB_TORCH, or export it again", library, version,
        found);
    return false;
}

void *trimtab_compiled_open(const char *library, const char *folder, const char *version, int64_t n, int64_t n_out, int64_t bytes,
                            char *message, int64_t length)
{
    compiled_t *self = calloc(1, sizeof *self);
    const char *missing = NULL, *name = NULL;
    if (!self)
        return say(message, length, "no memory for a compiled correction"), NULL;
    self->n = n;
    self->n_out = n_out;
    self->dtype = bytes == 4 ? DTYPE_FLOAT32 : DTYPE_FLOAT64;
    self->torch = open_torch(folder, message, length);
    if (!self->torch)
        goto failed;
    if (!version_fits(self, version, library, message, length))
        goto failed;
    self->library = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!self->library) {
        say(message, length, "the compiled correction %s cannot be loaded: %s", library, dlerror());
        goto failed;
    }
#define TAKE(from, prefix, name) if (!(*(void **)&self->name = dlsym(from, prefix #name))) missing = prefix #name;
#define TAKE_TORCH(name, arguments) TAKE(self->torch, "aoti_torch_", name)
#define TAKE_LIBRARY(name, arguments) TAKE(self->library, "AOTInductorModel", name)
    FROM_TORCH(TAKE_TORCH)
    FROM_LIBRARY(TAKE_LIBRARY)
    *(void **)&self->last_error = dlsym(self->library, "AOTInductorGetLastError");
    if (missing) {
        say(message, length, "%s has no %s: it is no compiled correction, or from a torch before 2.10; compile it again", library, missing);
        goto failed;
    }
    if (self->ContainerCreateWithDevice(&self->container, 1, "cpu", NULL)) {
        say(message, length, "the compiled correction %s cannot be opened: %s", library, reason(self));
        goto failed;
    }
    if (self->ContainerGetNumConstants(self->container, &self->constants))
        self->constants = 0;
    self->pairs = calloc(self->constants + 1, sizeof *self->pairs);
    for (size_t i = 0; self->pairs && i < self->constants; i++)
        if (self->ContainerGetConstantName(self->container, i, &name) == 0)
            self->pairs[i].name = name;
    if (self->pairs)
        return self;
    say(message, length, "no memory for the parameters of %s", library);
failed:
    trimtab_close_compiled(self);
    return NULL;
}

int32_t trimtab_compiled_give(void *context, const char *name, void *data, int64_t dimensions, const int64_t *sizes, int64_t bytes)
{
    compiled_t *self = context;
    int64_t strides[MOST_DIMENSIONS], stride = 1;
    const char *its_name = NULL;
    int32_t dtype = 0;
    size_t its_bytes = 0;
    if (dimensions > MOST_DIMENSIONS)
        return say(self->message, SENTENCE, "%s has %lld dimensions, more than %d", name, (long long)dimensions, MOST_DIMENSIONS), 1;
    for (int64_t d = dimensions - 1; d >= 0; stride *= sizes[d--])
        strides[d] = stride;
    for (size_t i = 0; i < self->constants; i++) {
        if (self->ContainerGetConstantOriginalFQN(self->container, i, &its_name) || strcmp(its_name, name))
            continue;
        if (self->ContainerGetConstantDtype(self->container, i, &dtype)
            || self->ContainerGetConstantDataSize(self->container, i, &its_bytes)  /* it may be filled up to whole lines of 64 */
            || (its_bytes != (size_t)bytes && its_bytes != ((size_t)bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT))
            return say(self->message, SENTENCE, "%s holds %lld bytes and the compiled correction needs %zu: compile it again", name,
                       (long long)bytes, its_bytes), 1;
        if (self->pairs[i].tensor)
            self->delete_tensor_object(self->pairs[i].tensor);
        self->pairs[i].tensor = NULL;
        if (self->create_tensor_from_blob(data, dimensions, sizes, strides, 0, dtype, DEVICE_CPU, 0, &self->pairs[i].tensor))
            return say(self->message, SENTENCE, "libtorch could not make a tensor of %s", name), 1;
    }
    return 0;
}

int32_t trimtab_compiled_commit(void *context)
{
    compiled_t *self = context;
    pair_t *given = calloc(self->constants + 1, sizeof *given);
    size_t count = 0;
    int32_t kind = 0, failed = 0;
    for (size_t i = 0; given && i < self->constants; i++) {
        if (self->pairs[i].tensor)
            given[count++] = self->pairs[i];
        else if (self->ContainerGetConstantType(self->container, i, &kind) || kind == CONSTANT_PARAMETER || kind == CONSTANT_BUFFER) {
            say(self->message, SENTENCE, "the compiled correction needs %s and was not given it", self->pairs[i].name);
            failed = 1;
        }
    }
    if (!given)
        return say(self->message, SENTENCE, "no memory for the parameters"), 1;
    if (!failed && self->ContainerUpdateUserManagedConstantBufferPairs(self->container, given, count, false, false)) {
        say(self->message, SENTENCE, "the compiled correction did not take its parameters: %s", reason(self));
        failed = 1;
    }
    free(given);
    return failed;
}
