/* SPDX-License-Identifier: MIT */
/* A Python callable as the C function that fills a solver's slot (correction_function of fortran/correction.f90).
 *
 * Not ctypes: when an exception strikes outside the callable's own code, a Ctrl-C for instance, ctypes swallows it and returns
 * whatever lies on the stack, and the solver would read a tendency there. Here an exception stays set, the solver gets a null
 * address and unwinds, and f2py raises the exception, with its own type and traceback, where the solver was called.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

/* Calls context(address of the states, n, members, weight), which returns the address of the tendencies.
 * Only Python calls a solver whose slot holds this, and its lock is held in that thread alone: in another one (of an OpenMP region) the
 * answer is a failure, as Python can neither run nor wait there. The reference to the callable is the caller's. */
static void *call_python(void *context, void *state, int64_t n, int64_t members, double weight)
{
    PyObject *arguments[5] = {NULL}, *answer = NULL;
    void *tendency = NULL;

    if (!PyGILState_Check())
        return NULL;
    arguments[1] = PyLong_FromVoidPtr(state);
    arguments[2] = PyLong_FromLongLong(n);
    arguments[3] = PyLong_FromLongLong(members);
    arguments[4] = PyFloat_FromDouble(weight);
    if (arguments[1] && arguments[2] && arguments[3] && arguments[4])
        answer = PyObject_Vectorcall((PyObject *)context, arguments + 1, 4 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    for (int i = 1; i <= 4; i++)
        Py_XDECREF(arguments[i]);
    if (answer) {
        tendency = PyLong_AsVoidPtr(answer);
        Py_DECREF(answer);
    }
    return PyErr_Occurred() ? NULL : tendency;
}

/* The address of the function above. */
int64_t trimtab_call_python_address(void)
{
    return (int64_t)(intptr_t)call_python;
}
