/* SPDX-License-Identifier: MIT */
/* Named slots and the description of a code: what `trimtab.f90` gives to Fortran, and what a driver needs.
 *
 * A driver (Python, or what fills the slots of a production run) uses the functions below. No dependency but the C library.
 * Nothing here ends the process: the first failure is kept with its sentence, and everything after it does nothing until
 * trimtab_slot_clear().
 */
#ifndef TRIMTAB_SLOT_H
#define TRIMTAB_SLOT_H
#include <stdint.h>

#define TRIMTAB_SLOT_VERSION 2

enum { TRIMTAB_OK = 0, TRIMTAB_REFUSED = 1, TRIMTAB_CORRECTION_FAILED = 6, TRIMTAB_INTERRUPTED = 7 };

/* What fills a slot: reads the slot's inputs one after the other, n numbers a member, returns the address of its outputs;
 * null when it failed. The memory stays the callee's and must hold until its next call. weight: the time step. */
typedef void *(*trimtab_function)(void *context, void *inputs, int64_t n, int64_t members, double weight);

/* Fill a slot by name ("" for every slot) with numbers of 4 or 8 bytes; returns a status. */
int64_t trimtab_slot_fill(const char *name, trimtab_function function, void *context, int64_t bytes);
/* Called once with the slot's name, at the code's first look at a slot that is filled, when its arrays exist. */
void trimtab_slot_when_ready(const char *name, void (*ready)(const char *name));
/* Who says why a call of what fills a slot failed, in a program that drives itself. */
void trimtab_slot_explain(const char *name, const char *(*explain)(void *context));
/* What a slot's inputs and outputs are, by whoever knows it from elsewhere (a trained correction): one after the other, each as
 * "input NUMBERS NAME;" or "output NUMBERS NAME;". A slot so declared needs no trimtab_describe(). Returns a status. */
int64_t trimtab_slot_declare(const char *name, const char *layout);
/* Empty a slot ("" for every slot). */
void trimtab_slot_empty(const char *name);
/* The failure kept, 0 for none, and its sentence. */
int64_t trimtab_slot_status(char *text, int64_t length);
/* Keep a failure of what fills a slot. */
void trimtab_slot_refuse(const char *sentence);
/* Forget the failure. */
void trimtab_slot_clear(void);

/* The description as JSON, made by a call of trimtab_describe(); returns its length, which may exceed `length`. */
int64_t trimtab_slot_description(char *text, int64_t length);
/* An option before trimtab_initialise(): what trimtab_option in the adapter finds under that name. */
void trimtab_slot_option(const char *name, const char *value);
/* The communicator of the ranks that share the domain, before trimtab_initialise(), as Fortran's number for it: what
 * trimtab_communicator in the adapter gives to the code. */
void trimtab_slot_communicator(int64_t communicator);
/* Asked after each step: anything but 0 ends the rollout. */
void trimtab_slot_go_on(int (*ask)(void));
/* The code runs from here on (until -1): if it ends the process, a sentence with the last words of its log goes to the descriptor. */
void trimtab_slot_entered(int64_t descriptor, const char *log);
/* Unless 0: from here on trimtab_set_state, given what trimtab_get_state has just returned, checks what arrives instead of storing it. */
void trimtab_slot_handshake(int64_t on);
/* After trimtab_set_state(n, state): whether the fields still lie where the state was put. Returns a status. */
int64_t trimtab_slot_settled(const double *state);
/* The thread that calls this drives the code: a slot that is called from another one fails. */
void trimtab_slot_driver(void);
/* Calls of a slot ("" for all) since the program began. */
int64_t trimtab_slot_calls(const char *name);
/* Memory of what each slot saw at its first call since trimtab_slot_record(), all slots one after the other, float64. */
int64_t trimtab_slot_record(double *inputs, int64_t n);

/* What the adapter provides. */
void trimtab_initialise(void);
void trimtab_describe(void);
void trimtab_get_state(int64_t n, double *state);
void trimtab_set_state(int64_t n, double *state);
void trimtab_advance(int64_t n);
#endif
