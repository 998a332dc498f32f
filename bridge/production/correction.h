/* SPDX-License-Identifier: MIT */
/* Trained corrections for a Fortran or C program that drives itself: what it may call, and what fills its slot.
 *
 * Every function that returns int32_t returns 0, or 1 and one sentence in `message` (of `length` characters, ended by a null).
 * Nothing here ends the process. Not for several threads at once with one context.
 */
#ifndef TRIMTAB_CORRECTION_H
#define TRIMTAB_CORRECTION_H
#include <stdint.h>

/* What fills a slot: reads (members, n) numbers of the slot's kind, 4 or 8 bytes, and returns the address of its answer, valid until
 * its next call; null when it failed. weight: the time for which the answer acts; trained corrections do not look at it. */
typedef void *(*trimtab_slot_function)(void *context, void *state, int64_t n, int64_t members, double weight);

/* ---- open.c: the one line of a program that drives itself */

/* Opens a correction. kind: "library", a folder that `trimtab export` wrote, runs without Python; "checkpoint", a run folder or a
 * checkpoint file, runs with Python inside the process; "": whichever `path` is. path: "" for what TRIMTAB_CORRECTION names.
 * slot: its name, of a coupled code with several; else "". description: the solver's JSON (solver, dt, n, fields, ...), or "" for what the
 * checkpoint says. */
int32_t trimtab_open_correction(const char *kind, const char *path, const char *slot, const char *description, void **function,
                                void **context, int64_t *bytes, char *message, int64_t length);
/* Opens a correction and fills a named slot of a coupled code with it ("" for its only one): needs trimtab_slot.c in the program. */
int32_t trimtab_fill_slot(const char *slot, const char *path, char *message, int64_t length);
/* Whether a slot failed since it was filled, with the sentence and the correction's own reason; 0 when none did. */
int32_t trimtab_check_slots(char *message, int64_t length);
/* Why the last call of an open correction failed; "" when none did. */
void trimtab_correction_message(void *context, char *message, int64_t length);
/* Closes one; its function must not be called again. */
void trimtab_close_correction(void *context);

/* ---- aoti_export.c: a correction without Python */

/* Opens a folder that `trimtab export` wrote. */
int32_t trimtab_load_compiled(const char *folder, void **function, void **context, int64_t *bytes, char *message, int64_t length);

/* What its manifest says of the slot: "slot NAME;input NUMBERS NAME;output NUMBERS NAME;", "" when it says nothing. */
void trimtab_exported_layout(const char *folder, char *text, int64_t room);

/* ---- aoti_runtime.c: the library itself */

/* Opens a library that AOTInductor made. folder: where libtorch lies, or null; version: of the torch it was compiled with. Null when that
 * fails. Parameters have to follow: trimtab_compiled_give for each, then trimtab_compiled_commit. */
void *trimtab_compiled_open(const char *library, const char *folder, const char *version, int64_t n, int64_t n_out, int64_t bytes,
                            char *message, int64_t length);
/* Hands over the memory of one parameter or buffer, by the name it has in the torch module; row-major, and it must outlive the
 * correction: a change in place is seen by the next call. A name the library does not use is no error. */
int32_t trimtab_compiled_give(void *context, const char *name, void *data, int64_t dimensions, const int64_t *sizes, int64_t bytes);
/* Puts in force what was given; fails when a parameter is still missing. */
int32_t trimtab_compiled_commit(void *context);
/* Memory from malloc that is freed with the correction. */
void trimtab_compiled_own(void *context, void *memory);
/* Fills a slot. */
void *trimtab_compiled_call(void *context, void *state, int64_t n, int64_t members, double weight);
/* Why the last call of one of these failed; "" when none did. */
const char *trimtab_compiled_message(void *context);
/* Gives back all that it holds; parameters that somebody else owns stay. */
void trimtab_close_compiled(void *context);
#endif
