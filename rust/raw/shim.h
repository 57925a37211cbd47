/* SPDX-License-Identifier: GPL-2.0 */
/* C that Rust cannot say: inlines, macros, and KVM's structures. No logic. */
#ifndef _KVMATE_SHIM_H
#define _KVMATE_SHIM_H

#include <linux/eventfd.h>
#include <linux/ftrace.h>
#include <linux/module.h>
#include <linux/tracepoint.h>
#include <linux/types.h>
#include <linux/wait.h>

struct kvm;
struct kvm_lapic;
struct kvm_vcpu;
struct kvm_lapic;

extern const char kvmate_vermagic[];
extern const char kvmate_release[];

/* The probes' prototypes, which control-flow integrity compares by the types' names. */
typedef void (*kvmate_kvm_exit_probe)(void *data, struct kvm_vcpu *vcpu,
				      unsigned int isa);
typedef void (*kvmate_kvm_entry_probe)(void *data, struct kvm_vcpu *vcpu,
				       bool force_immediate_exit);
typedef void (*kvmate_kvm_apic_accept_irq_probe)(void *data, u32 apicid, u16 dm, u16 tm,
						 u8 vec);
typedef void (*kvmate_kvm_inj_virq_probe)(void *data, unsigned int vector, bool soft,
					  bool reinjected);
typedef void (*kvmate_kvm_eoi_probe)(void *data, struct kvm_lapic *apic, int vector);
typedef void (*kvmate_kvm_ack_irq_probe)(void *data, unsigned int irqchip,
					 unsigned int pin);
typedef void (*kvmate_kvm_userspace_exit_probe)(void *data, __u32 reason, int error);
typedef void (*kvmate_kvm_vcpu_wakeup_probe)(void *data, __u64 ns, bool waited, bool valid);
typedef void (*kvmate_kvm_msr_probe)(void *data, unsigned int write, __u32 ecx, __u64 value,
				     bool exception);
typedef void (*kvmate_kvm_page_fault_probe)(void *data, struct kvm_vcpu *vcpu, __u64 address,
					    __u64 error_code);

/* Tracepoints by name: of a module, of the kernel proper. NULL if there is none. */
struct tracepoint *kvmate_module_tracepoint(struct module *mod, const char *name);
struct tracepoint *kvmate_kernel_tracepoint(const char *name);
void kvmate_tracepoint_synchronize(void);
bool kvmate_module_is(struct module *mod, const char *name);
bool kvmate_module_live(struct module *mod);

/* Where a kernel probe by that name would stand. -ENOENT: there is no such function. Sleeps. */
int kvmate_probe_address(const char *name, unsigned long *address);
void *kvmate_ftrace_argument(struct ftrace_regs *fregs, unsigned int number);

void __percpu *kvmate_percpu_alloc(size_t size, size_t align);
void *kvmate_percpu_ptr(void __percpu *p, unsigned int cpu);
unsigned int kvmate_nr_cpu_ids(void);
unsigned int kvmate_next_possible_cpu(unsigned int from);

struct workqueue_struct *kvmate_workqueue(const char *name);
bool kvmate_on_hyperv(void);
bool kvmate_has_vmx(void);

/*
 * Make "wake" the only priority waiter of an eventfd, whose file and context those are, and take
 * out what is in it: if there was something, "ready" is set. -EBUSY: it has one.
 */
int kvmate_eventfd_wait(struct file *file, struct eventfd_ctx *context, wait_queue_entry_t *entry,
			wait_queue_func_t wake, bool *ready);

/* The task with the number "from" or the next one, and its number; a reference. NULL at the end. */
struct task_struct *kvmate_next_task(int *from);
/* Whether it has its leader's files, so that looking at those of the leader is enough. */
bool kvmate_task_shares_files(struct task_struct *task);

int kvmate_task_number(struct task_struct *task);
void kvmate_task_comm(struct task_struct *task, char comm[TASK_COMM_LEN]);
struct kvmate_task_seen {
	char state;
	bool on_cpu;
	unsigned long switches;
};

void kvmate_task_see(struct task_struct *task, struct kvmate_task_seen *seen);
/* The function that an address is in, cut to what fits. */
size_t kvmate_symbol(char *text, size_t size, unsigned long address);

void kvmate_preempt_disable(void);
void kvmate_preempt_enable(void);
/* How long the current task has waited for a CPU, in nanoseconds. */
u64 kvmate_run_delay(void);

/* kvm.c */
struct kvmate_vcpu_sample {
	u64 requests;
	bool in_guest;
	bool blocking;
	bool in_kernel;
};

/* Vectors are -1 where there is none. */
struct kvmate_vcpu_pending {
	int mp_state;
	int interrupt;
	int exception;
	unsigned int nmis;
	bool smi;
	bool unhalted;
};

struct kvmate_name {
	unsigned long long value;
	const char *name;
};

extern const struct kvmate_name kvmate_svm_exits[];
extern const struct kvmate_name kvmate_vmx_exits[];
extern const struct kvmate_name kvmate_msrs[];
const char *kvmate_request_name(unsigned int bit);

struct kvm_vcpu *kvmate_loaded_vcpu(void);
struct kvm *kvmate_vcpu_kvm(struct kvm_vcpu *vcpu);
struct kvm_lapic *kvmate_vcpu_lapic(struct kvm_vcpu *vcpu);
int kvmate_vcpu_id(struct kvm_vcpu *vcpu);
bool kvmate_vcpu_hidden(struct kvm_vcpu *vcpu);
void kvmate_vcpu_sample(struct kvm_vcpu *vcpu, struct kvmate_vcpu_sample *sample);
int kvmate_vcpu_memslot(struct kvm_vcpu *vcpu, u64 gfn);
bool kvmate_vm_apicv(struct kvm *kvm);
void kvmate_vcpu_pending(struct kvm_vcpu *vcpu, struct kvmate_vcpu_pending *pending);
struct task_struct *kvmate_vcpu_task(struct kvm_vcpu *vcpu);
size_t kvmate_vm_name(struct kvm *kvm, char *name, size_t size);
const char *kvmate_vm_stats_id(struct kvm *kvm);
bool kvmate_vm_bugged(struct kvm *kvm);
bool kvmate_vm_dead(struct kvm *kvm);
struct kvm_vcpu *kvmate_vm_vcpu(struct kvm *kvm, int number);
void kvmate_vm_each_vcpu(struct kvm *kvm, void (*call)(void *data, struct kvm_vcpu *vcpu),
			 void *data);
unsigned long kvmate_vcpu_pid(struct kvm_vcpu *vcpu);
unsigned long kvmate_current_pid(void);
unsigned long kvmate_interrupts(void);
struct mm_struct *kvmate_vm_mm(struct kvm *kvm);
bool kvmate_vm_is_run_here(struct kvm *kvm);
struct kvm *kvmate_vm_file_vm(struct file *file);
struct kvm *kvmate_file_vm(struct file *file);

/* irq.c */
int kvmate_irq_set(struct kvm *kvm, u32 gsi, int source, int level, bool pins, int *answer);
int kvmate_irq_set_msi(struct kvm *kvm, u64 address, u32 data, int *answer);
int kvmate_irq_type(struct kvm *kvm, u32 gsi);
bool kvmate_irq_takes_msis(struct kvm *kvm);
bool kvmate_irq_long_ids(struct kvm *kvm);
bool kvmate_irq_full_chips(struct kvm *kvm);
struct kvmate_route {
	u32 type;
	u32 chip;
	u32 pin;
	u32 data;
	u64 address;
};

unsigned int kvmate_irq_routes(struct kvm *kvm, u32 gsi, struct kvmate_route *routes);
void kvmate_irqfd_each(struct kvm *kvm,
		       void (*call)(void *data, u32 gsi, bool resample,
				    struct eventfd_ctx *eventfd),
		       void *data);
int kvmate_irqfd_signal(struct kvm *kvm, u32 gsi);
int kvmate_irq_gsi_of(struct kvm *kvm, unsigned int chip, unsigned int pin);

#endif /* _KVMATE_SHIM_H */
