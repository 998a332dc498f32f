/* SPDX-License-Identifier: MIT */
/* The Fortran program drives, Python sits inside it: started once, asked for a correction, called from the slot.
 *
 * Nothing here ends the process. An exception, SystemExit included, becomes one sentence; Python's lock is held only inside a call, so
 * that any one thread may make it; traps for floating-point exceptions, which Python's libraries do not bear, are off meanwhile. Python
 * is never finalised: its libraries keep threads that do not survive that, and the process ends without it.
 */
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>
#include <dlfcn.h>
#include <fenv.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "correction.h"

#define SENTENCE 1024

/* An open correction. */
typedef struct {
    trimtab_slot_function function;
    void *context;
    const char *(*explain)(void *);   /* of a compiled correction; null for one that Python runs */
    PyObject *keeper;                 /* what keeps the two alive */
    char *layout;                     /* see trimtab_exported_layout */
    char message[SENTENCE];
} embedded_t;

/* The exception that is set, as "Type: its text", in one line; nothing is set afterwards. */
static void take_exception(char *text, size_t room)
{
    PyObject *type = NULL, *value = NULL, *trace = NULL, *written = NULL;
    const char *name = "an error without an exception", *words = NULL;
    PyErr_Fetch(&type, &value, &trace);
    if (type)
        name = ((PyTypeObject *)type)->tp_name;
    if (value && (written = PyObject_Str(value)))
        words = PyUnicode_AsUTF8(written);
    snprintf(text, room, "%s%s%s", name, words && *words ? ": " : "", words ? words : "");
    for (char *at = text; *at; at++)
        if (*at == '\n')
            *at = ' ';
    PyErr_Clear();
    Py_XDECREF(written);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
}

/* Starts Python once, as the interpreter at TRIMTAB_PYTHON, else the one this was built for, would start itself. */
static int32_t start_python(char *message, int64_t length)
{
    const char *python = getenv("TRIMTAB_PYTHON");
    PyConfig config;
    PyStatus status;
    Dl_info library;

    if (Py_IsInitialized())
        return 0;
    if (!python || !*python)
        python = TRIMTAB_PYTHON;
    if (access(python, X_OK)) {
        snprintf(message, (size_t)length, "there is no Python %s: set TRIMTAB_PYTHON to the one that has trimtab", python);
        return 1;
    }
    /* Modules written in C look for Python's symbols among the global ones, wherever this library was loaded from. */
    if (dladdr((void *)(intptr_t)Py_IsInitialized, &library) && library.dli_fname)
        dlopen(library.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = 0;
    config.parse_argv = 0;
    config.buffered_stdio = 0;
    status = PyConfig_SetBytesString(&config, &config.program_name, python);
    if (!PyStatus_Exception(status))
        status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    if (PyStatus_Exception(status)) {
        snprintf(message, (size_t)length, "Python %s does not start: %s", python, status.err_msg ? status.err_msg : "no reason given");
        return 1;
    }
    PyEval_SaveThread();
    return 0;
}

/* Fills a slot with what Python runs. */
static void *call_embedded(void *context, void *state, int64_t n, int64_t members, double weight)
{
    embedded_t *self = context;
    fenv_t floating;
    PyGILState_STATE lock;
    void *answer;
    feholdexcept(&floating);
    lock = PyGILState_Ensure();
    answer = self->function(self->context, state, n, members, weight);
    if (!answer || PyErr_Occurred()) {
        take_exception(self->message, sizeof self->message);
        answer = NULL;
    }
    PyGILState_Release(lock);
    fesetenv(&floating);
    return answer;
}

/* The same with what Python compiled: Python's lock is not needed. */
static void *call_compiled(void *context, void *state, int64_t n, int64_t members, double weight)
{
    embedded_t *self = context;
    return self->function(self->context, state, n, members, weight);
}

static const char *explain_embedded(void *context)
{
    embedded_t *self = context;
    return self->explain ? self->explain(self->context) : self->message;
}

/* trimtab.production.embedded.open_correction(path, slot, description) -> (function, context, bytes, explain, layout, keeper). */
static int32_t ask(embedded_t *self, const char *path, const char *slot, const char *description, int64_t *bytes, char *message,
                   int64_t length)
{
    PyObject *module = PyImport_ImportModule("trimtab.production.embedded"), *answer = NULL;
    unsigned long long function = 0, context = 0, explain = 0;
    long long kind = 0;
    const char *layout = "";
    if (module)
        answer = PyObject_CallMethod(module, "open_correction", "sss", path, slot, description);
    if (answer && PyArg_ParseTuple(answer, "KKLKsO", &function, &context, &kind, &explain, &layout, &self->keeper)) {
        Py_INCREF(self->keeper);
        self->layout = strdup(layout);
        self->function = (trimtab_slot_function)(uintptr_t)function;
        self->context = (void *)(uintptr_t)context;
        self->explain = (const char *(*)(void *))(uintptr_t)explain;
        *bytes = kind;
    } else {
        char text[SENTENCE];
        int missing = !module && PyErr_ExceptionMatches(PyExc_ImportError);
        take_exception(text, sizeof text);
        snprintf(message, (size_t)length, missing ? "trimtab cannot be imported (%s): set TRIMTAB_PYTHON to the Python that has it" : "%s",
                 text);
    }
    Py_XDECREF(answer);
    Py_XDECREF(module);
    return self->function == NULL;
}

/* Opens a checkpoint or run folder; see trimtab_open_correction. */
int32_t trimtab_embed_open(const char *path, const char *slot, const char *description, void **function, void **context, int64_t *bytes,
                           const char *(**explain)(void *), char *message, int64_t length)
{
    embedded_t *self = calloc(1, sizeof *self);
    fenv_t floating;
    PyGILState_STATE lock;
    int32_t failed;
    if (!self)
        return snprintf(message, (size_t)length, "no memory for a correction"), 1;
    feholdexcept(&floating);
    failed = start_python(message, length);
    if (!failed) {
        lock = PyGILState_Ensure();
        failed = ask(self, path, slot, description, bytes, message, length);
        PyGILState_Release(lock);
    }
    fesetenv(&floating);
    if (failed) {
        free(self);
        return 1;
    }
    *(trimtab_slot_function *)function = self->explain ? call_compiled : call_embedded;
    *context = self;
    *explain = explain_embedded;
    return 0;
}

/* The slot it was trained for, with its inputs and outputs; see trimtab_exported_layout. */
const char *trimtab_embed_layout(void *context)
{
    embedded_t *self = context;
    return self->layout ? self->layout : "";
}

/* Lets go of one; Python stays. */
void trimtab_embed_close(void *context)
{
    embedded_t *self = context;
    PyGILState_STATE lock = PyGILState_Ensure();
    Py_XDECREF(self->keeper);
    PyGILState_Release(lock);
    free(self->layout);
    free(self);
}
