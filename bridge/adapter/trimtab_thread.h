/* SPDX-License-Identifier: MIT */
/* Which thread may call a slot; only for trimtab_slot.c.
 *
 * Python knows the thread that called the code and no other: a call from another one would wait for ever, or crash. A program that drives
 * itself may call from any thread, but from one at a time: a slot has one memory for its inputs. */
#ifndef TRIMTAB_THREAD_H
#define TRIMTAB_THREAD_H
#include "trimtab_array.h"
#include <pthread.h>

void trimtab_slot_driver(void)
{
    T->driver = pthread_self();
    T->driven = true;
}

/* Whether Python, if it drives, may be asked from here. */
static bool on_driver(void) { return !T->driven || pthread_equal(T->driver, pthread_self()); }

/* Begin a call of a slot, `first` with trimtab_filled; false, and a failure kept, where another thread is at it. */
static bool enter(bool first)
{
    bool free_to_enter = !__sync_lock_test_and_set(&T->inside, 1);
    bool other = !on_driver() || !free_to_enter || (!first && !pthread_equal(T->owner, pthread_self()));
    bool goes = free_to_enter && !T->status && (first || T->present) && !other;
    if (goes && first) T->owner = pthread_self();
    if (other && (first || T->present) && fail(TRIMTAB_REFUSED,
        on_driver() ? "a slot is called from several threads at once: call it outside of OpenMP parallel regions, or inside of one from a "
                      "single thread, with `!$omp master`"
                    : "a slot is called from another thread than the one that runs the code's steps: call it outside of OpenMP parallel "
                      "regions, or inside of one with `!$omp master`"))
        tell_alone();
    if (free_to_enter && !goes) __sync_lock_release(&T->inside);
    return goes;
}

static void leave(void) { __sync_lock_release(&T->inside); }

#endif
