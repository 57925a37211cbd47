// SPDX-License-Identifier: GPL-2.0
/*
 * KVM's structures, read. Each function wants a VM or vCPU that cannot go away meanwhile (rust/wrap
 * says how that is known); none takes a lock but vcpu->pid_lock and RCU, and none sleeps.
 */
#include <linux/kvm_host.h>
#include <linux/magic.h>
#include <linux/sched.h>
#include <linux/sched/task.h>
#include <linux/trace_events.h>
#include <asm/svm.h>
#include <asm/vmx.h>
#include "shim.h"

/* The vCPU behind the current task's preempt notifier, if it has one; not followed. */
struct kvm_vcpu *kvmate_loaded_vcpu(void)
{
	struct hlist_node *first = current->preempt_notifiers.first;

	if (!first)
		return NULL;
	return container_of(hlist_entry(first, struct preempt_notifier, link),
			    struct kvm_vcpu, preempt_notifier);
}

struct kvm *kvmate_vcpu_kvm(struct kvm_vcpu *vcpu)
{
	return vcpu->kvm;
}

struct kvm_lapic *kvmate_vcpu_lapic(struct kvm_vcpu *vcpu)
{
	return vcpu->arch.apic;
}

int kvmate_vcpu_id(struct kvm_vcpu *vcpu)
{
	return vcpu->vcpu_id;
}

/* The name of the VM's folder in KVM's own debugfs; 0 where it has none of its own. */
size_t kvmate_vm_name(struct kvm *kvm, char *name, size_t size)
{
	if (IS_ERR_OR_NULL(kvm->debugfs_dentry))
		return 0;
	return strscpy(name, kvm->debugfs_dentry->d_name.name, size) > 0;
}

/* "kvm-" and the number of the thread that made the VM. */
const char *kvmate_vm_stats_id(struct kvm *kvm)
{
	return kvm->stats_id;
}

bool kvmate_vm_bugged(struct kvm *kvm)
{
	return READ_ONCE(kvm->vm_bugged);
}

bool kvmate_vm_dead(struct kvm *kvm)
{
	return READ_ONCE(kvm->vm_dead);
}

/* Whether the exit's reason and registers are out of the host's sight (SEV-ES, SNP, TDX). */
bool kvmate_vcpu_hidden(struct kvm_vcpu *vcpu)
{
	switch (vcpu->kvm->arch.vm_type) {
	case KVM_X86_SEV_ES_VM:
	case KVM_X86_SNP_VM:
	case KVM_X86_TDX_VM:
		return true;
	}
	return vcpu->arch.guest_state_protected;
}

void kvmate_vcpu_sample(struct kvm_vcpu *vcpu, struct kvmate_vcpu_sample *sample)
{
	sample->requests = READ_ONCE(vcpu->requests);
	sample->in_guest = READ_ONCE(vcpu->mode) != OUTSIDE_GUEST_MODE;
	sample->blocking = READ_ONCE(vcpu->stat.generic.blocking);
	sample->in_kernel = READ_ONCE(vcpu->wants_to_run);
}

/*
 * The memslot of a guest frame: its number, with its address space's above bit 16; -1 where there
 * is no memory. The caller runs the vCPU and so holds kvm->srcu. As KVM's own look-up, but it does
 * not touch the slot that KVM remembers.
 */
int kvmate_vcpu_memslot(struct kvm_vcpu *vcpu, u64 gfn)
{
	int space = kvm_arch_vcpu_memslots_id(vcpu);
	struct kvm_memslots *slots = rcu_dereference_raw(vcpu->kvm->memslots[space]);
	struct kvm_memory_slot *slot = search_memslots(slots, gfn, false);

	return slot ? (slot->as_id << 16 | (u16)slot->id) : -1;
}

/* Whether hardware delivers interrupts by itself (APICv, AVIC), where KVM does not see it. */
bool kvmate_vm_apicv(struct kvm *kvm)
{
	return !READ_ONCE(kvm->arch.apicv_inhibit_reasons);
}

/* What waits to get into the guest, but for what is the LAPIC's alone: that is private to KVM. */
void kvmate_vcpu_pending(struct kvm_vcpu *vcpu, struct kvmate_vcpu_pending *pending)
{
	struct kvm_vcpu_arch *arch = &vcpu->arch;

	pending->mp_state = READ_ONCE(arch->mp_state);
	pending->interrupt = READ_ONCE(arch->interrupt.injected) ?
			     READ_ONCE(arch->interrupt.nr) : -1;
	pending->exception = READ_ONCE(arch->exception.pending) ||
			     READ_ONCE(arch->exception.injected) ?
			     READ_ONCE(arch->exception.vector) : -1;
	pending->nmis = READ_ONCE(arch->nmi_pending) + READ_ONCE(arch->nmi_injected) +
			atomic_read(&arch->nmi_queued);
	pending->smi = READ_ONCE(arch->smi_pending);
	pending->unhalted = READ_ONCE(arch->pv.pv_unhalted);
}

/* The task that last ran the vCPU, and a reference to it; NULL: none did, or it has ended. */
struct task_struct *kvmate_vcpu_task(struct kvm_vcpu *vcpu)
{
	struct task_struct *task;

	rcu_read_lock();
	read_lock(&vcpu->pid_lock);
	task = pid_task(vcpu->pid, PIDTYPE_PID);
	read_unlock(&vcpu->pid_lock);
	if (task)
		get_task_struct(task);
	rcu_read_unlock();
	return task;
}

/* The task that last ran the vCPU, and the current one: addresses to compare. */
unsigned long kvmate_vcpu_pid(struct kvm_vcpu *vcpu)
{
	return (unsigned long)READ_ONCE(vcpu->pid);
}

unsigned long kvmate_current_pid(void)
{
	return (unsigned long)task_pid(current);
}

/* Which interrupts are being served on this CPU, one in another. */
unsigned long kvmate_interrupts(void)
{
	return preempt_count() & (NMI_MASK | HARDIRQ_MASK | SOFTIRQ_MASK);
}

/* The VMM's memory, to compare with. */
struct mm_struct *kvmate_vm_mm(struct kvm *kvm)
{
	return kvm->mm;
}

/*
 * Whether the current task is in KVM_RUN of one of the VM's vCPUs. A task that runs several vCPUs
 * by turns is the last that ran each, but wants to run one only. Whoever runs one sets vcpu->pid
 * before it says that it wants to, so the order of looking makes another's run not ours.
 */
bool kvmate_vm_is_run_here(struct kvm *kvm)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;
	bool ours;

	kvm_for_each_vcpu(i, vcpu, kvm) {
		if (!READ_ONCE(vcpu->wants_to_run))
			continue;
		read_lock(&vcpu->pid_lock);
		ours = vcpu->pid == task_pid(current);
		read_unlock(&vcpu->pid_lock);
		if (ours)
			return true;
	}
	return false;
}

/* The vCPU with the number that user space gave it. */
struct kvm_vcpu *kvmate_vm_vcpu(struct kvm *kvm, int number)
{
	return kvm_get_vcpu_by_id(kvm, number);
}

/* Every vCPU that user space could have, in turn. */
void kvmate_vm_each_vcpu(struct kvm *kvm,
			 void (*call)(void *data, struct kvm_vcpu *vcpu),
			 void *data)
{
	struct kvm_vcpu *vcpu;
	unsigned long i;

	kvm_for_each_vcpu(i, vcpu, kvm)
		call(data, vcpu);
}

static bool of_kvm(struct file *file)
{
	struct module *owner = file->f_op->owner;

	if (file_inode(file)->i_sb->s_magic != ANON_INODE_FS_MAGIC)
		return false;
	if (!owner)
		return IS_BUILTIN(CONFIG_KVM_AMD) || IS_BUILTIN(CONFIG_KVM_INTEL);
	return !strcmp(owner->name, "kvm_amd") || !strcmp(owner->name, "kvm_intel");
}

/* The VM behind a VM's own file, which keeps it; NULL for any other file, also a vCPU's. */
struct kvm *kvmate_vm_file_vm(struct file *file)
{
	if (!of_kvm(file) || strcmp(file->f_path.dentry->d_name.name, "kvm-vm"))
		return NULL;
	return file->private_data;
}

/* The VM behind a VM's or a vCPU's file, which keeps it; NULL for any other file. */
struct kvm *kvmate_file_vm(struct file *file)
{
	const char *name = file->f_path.dentry->d_name.name;

	if (!of_kvm(file))
		return NULL;
	if (!strcmp(name, "kvm-vm"))
		return file->private_data;
	if (!strncmp(name, "kvm-vcpu:", 9))
		return ((struct kvm_vcpu *)file->private_data)->kvm;
	return NULL;
}

/* The public headers' own tables, each ended by a name that is NULL. */
const struct kvmate_name kvmate_svm_exits[] = { SVM_EXIT_REASONS, {} };
const struct kvmate_name kvmate_vmx_exits[] = { VMX_EXIT_REASONS, {} };

/* The name of a bit of vcpu->requests, or NULL. */
const char *kvmate_request_name(unsigned int bit)
{
#define REQUEST(name)                                  \
	do {                                           \
		if (bit == ((name) & KVM_REQUEST_MASK)) \
			return #name;                  \
	} while (0)
	REQUEST(KVM_REQ_TLB_FLUSH);
	REQUEST(KVM_REQ_VM_DEAD);
	REQUEST(KVM_REQ_UNBLOCK);
	REQUEST(KVM_REQ_DIRTY_RING_SOFT_FULL);
	REQUEST(KVM_REQ_MIGRATE_TIMER);
	REQUEST(KVM_REQ_REPORT_TPR_ACCESS);
	REQUEST(KVM_REQ_TRIPLE_FAULT);
	REQUEST(KVM_REQ_MMU_SYNC);
	REQUEST(KVM_REQ_CLOCK_UPDATE);
	REQUEST(KVM_REQ_LOAD_MMU_PGD);
	REQUEST(KVM_REQ_EVENT);
	REQUEST(KVM_REQ_APF_HALT);
	REQUEST(KVM_REQ_STEAL_UPDATE);
	REQUEST(KVM_REQ_NMI);
	REQUEST(KVM_REQ_PMU);
	REQUEST(KVM_REQ_PMI);
#ifdef CONFIG_KVM_SMM
	REQUEST(KVM_REQ_SMI);
#endif
	REQUEST(KVM_REQ_MASTERCLOCK_UPDATE);
	REQUEST(KVM_REQ_MCLOCK_INPROGRESS);
	REQUEST(KVM_REQ_SCAN_IOAPIC);
	REQUEST(KVM_REQ_GLOBAL_CLOCK_UPDATE);
	REQUEST(KVM_REQ_APIC_PAGE_RELOAD);
	REQUEST(KVM_REQ_HV_CRASH);
	REQUEST(KVM_REQ_IOAPIC_EOI_EXIT);
	REQUEST(KVM_REQ_HV_RESET);
	REQUEST(KVM_REQ_HV_EXIT);
	REQUEST(KVM_REQ_HV_STIMER);
	REQUEST(KVM_REQ_LOAD_EOI_EXITMAP);
	REQUEST(KVM_REQ_GET_NESTED_STATE_PAGES);
	REQUEST(KVM_REQ_APICV_UPDATE);
	REQUEST(KVM_REQ_TLB_FLUSH_CURRENT);
	REQUEST(KVM_REQ_TLB_FLUSH_GUEST);
	REQUEST(KVM_REQ_APF_READY);
	REQUEST(KVM_REQ_RECALC_INTERCEPTS);
	REQUEST(KVM_REQ_UPDATE_CPU_DIRTY_LOGGING);
	REQUEST(KVM_REQ_MMU_FREE_OBSOLETE_ROOTS);
	REQUEST(KVM_REQ_HV_TLB_FLUSH);
	REQUEST(KVM_REQ_VMSA_PAGE_RELOAD);
	REQUEST(KVM_REQ_UPDATE_PROTECTED_GUEST_STATE);
#undef REQUEST
	return NULL;
}
