// SPDX-License-Identifier: GPL-2.0
/* C that Rust cannot say: weak symbols, inlines and macros. No logic. */
#include <linux/cpumask.h>
#include <linux/module.h>
#include <linux/percpu.h>
#define INCLUDE_VERMAGIC
#include <linux/vermagic.h>
#include <kvmate.h>
#include "shim.h"

MODULE_VERSION(KVMATE_VERSION);

const char kvmate_vermagic[] = VERMAGIC_STRING;
const char kvmate_release[] = UTS_RELEASE;

struct tracepoint *kvmate_tracepoint_kvm_exit(void)
{
	return &__tracepoint_kvm_exit;
}

void kvmate_tracepoint_synchronize(void)
{
	tracepoint_synchronize_unregister();
}

void __percpu *kvmate_percpu_alloc(size_t size, size_t align)
{
	return __alloc_percpu(size, align);
}

void *kvmate_percpu_ptr(void __percpu *p, unsigned int cpu)
{
	return per_cpu_ptr(p, cpu);
}

unsigned int kvmate_nr_cpu_ids(void)
{
	return nr_cpu_ids;
}

unsigned int kvmate_next_possible_cpu(unsigned int from)
{
	return cpumask_next((int)from - 1, cpu_possible_mask);
}
