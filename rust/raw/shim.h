/* SPDX-License-Identifier: GPL-2.0 */
/* C that Rust cannot say: weak symbols, inlines and macros. No logic. */
#ifndef _KVMATE_SHIM_H
#define _KVMATE_SHIM_H

#include <linux/tracepoint.h>
#include <linux/types.h>

extern const char kvmate_vermagic[];
extern const char kvmate_release[];

/*
 * Weak, so that kvmate loads where kvm is not. Where it is, the reference makes kvmate a user of
 * kvm.ko (never of kvm_amd or kvm_intel), so what is linked here stays while kvmate is loaded.
 */
extern struct tracepoint __tracepoint_kvm_exit __weak;

/* For the probe's prototype, which control-flow integrity compares by the types' names. */
struct kvm_vcpu;
typedef void (*kvmate_kvm_exit_probe)(void *data, struct kvm_vcpu *vcpu,
				      unsigned int isa);

struct tracepoint *kvmate_tracepoint_kvm_exit(void);
void kvmate_tracepoint_synchronize(void);

void __percpu *kvmate_percpu_alloc(size_t size, size_t align);
void *kvmate_percpu_ptr(void __percpu *p, unsigned int cpu);
unsigned int kvmate_nr_cpu_ids(void);
unsigned int kvmate_next_possible_cpu(unsigned int from);

#endif /* _KVMATE_SHIM_H */
