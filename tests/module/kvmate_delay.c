// SPDX-License-Identifier: GPL-2.0
/*
 * For tests only: makes races between KVM, kvmate and user space happen, by waiting (busily, in
 * whatever context) at chosen points of a VM's life, around kvmate's probes, and in faults.
 *
 * Each point is a parameter, in microseconds, 0 for none, that can be set at any time, and with
 * "_hits" at its end how often that point has been waited at. It uses nothing of kvmate, and holds
 * neither kvm nor its vendor module.
 */
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/kprobes.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/random.h>
#include <linux/sched.h>
#include <linux/tracepoint.h>

struct point {
	unsigned int us;
	unsigned long hits;
};

#define POINT(name, description)                                            \
	static struct point name;                                           \
	module_param_named(name, name.us, uint, 0644);                      \
	MODULE_PARM_DESC(name, description);                                \
	module_param_named(name##_hits, name.hits, ulong, 0444)

POINT(exit_before, "at kvm_exit, before kvmate's probe");
POINT(exit_after, "at kvm_exit, after kvmate's probe");
POINT(entry_before, "at kvm_entry, before kvmate's probe");
POINT(entry_after, "at kvm_entry, after kvmate's probe");
POINT(made_before, "user space could have the vCPU; kvmate does not know if loaded before us");
POINT(made_after, "kvmate was told of the vCPU, and its maker has not returned to user space");
POINT(ended, "kvm_arch_pre_destroy_vm() has returned, the routing is there still");
POINT(destroy, "kvm_arch_destroy_vm() begins");
POINT(woken, "an eventfd has told KVM's irqfd or kvmate's binding, under its lock");
POINT(delivered, "an interrupt is about to go into the PIC or to the LAPICs, by whomever");
POINT(unbound, "somebody is about to leave the wait queue of an eventfd");
POINT(ack_before, "a guest has ended an interrupt; kvmate does not know");
POINT(ack_after, "kvmate was told of that; KVM does not know");
POINT(folder_made, "a debugfs folder is made, by whomever");
POINT(file_removed, "a debugfs file or folder is removed, by a worker (KVM's tasks go on)");
POINT(halting, "a vCPU is about to halt");
POINT(fault_made, "a memory file's page is found or made and locked, and not mapped yet");

static unsigned int one_in = 1;
module_param(one_in, uint, 0644);
MODULE_PARM_DESC(one_in, "wait at exits, entries and interrupts by chance only, once in so many");

static unsigned long vms_again;
module_param(vms_again, ulong, 0444);
MODULE_PARM_DESC(vms_again, "VMs that ended at the address of one of the 64 that ended before");

static unsigned long vcpus_again;
module_param(vcpus_again, ulong, 0444);
MODULE_PARM_DESC(vcpus_again, "vCPUs made at the address of one of the 64 made before");

static void wait_at(struct point *point)
{
	unsigned int us = READ_ONCE(point->us);

	if (!us)
		return;
	WRITE_ONCE(point->hits, point->hits + 1);
	mdelay(us / 1000);
	udelay(us % 1000);
}

static void wait_by_chance(struct point *point)
{
	unsigned int chance = READ_ONCE(one_in);

	if (chance <= 1 || !get_random_u32_below(chance))
		wait_at(point);
}

struct addresses {
	raw_spinlock_t lock;
	unsigned long past[64];
	unsigned int next;
};

static struct addresses vms = { .lock = __RAW_SPIN_LOCK_UNLOCKED(vms.lock) };
static struct addresses vcpus = { .lock = __RAW_SPIN_LOCK_UNLOCKED(vcpus.lock) };

static void note(struct addresses *known, unsigned long address, unsigned long *again)
{
	unsigned long flags;
	unsigned int i;

	raw_spin_lock_irqsave(&known->lock, flags);
	for (i = 0; i < ARRAY_SIZE(known->past); i++) {
		if (known->past[i] == address) {
			++*again;
			break;
		}
	}
	known->past[known->next++ % ARRAY_SIZE(known->past)] = address;
	raw_spin_unlock_irqrestore(&known->lock, flags);
}

/* Kernel probes: on where functions begin, and on where they have returned. */

static int at_made(struct kprobe *probe, struct pt_regs *regs)
{
	note(&vcpus, regs->di, &vcpus_again);
	wait_at(&made_before);
	return 0;
}

static int at_end(struct kprobe *probe, struct pt_regs *regs)
{
	note(&vms, regs->di, &vms_again);
	return 0;
}

static int at_destroy(struct kprobe *probe, struct pt_regs *regs)
{
	wait_at(&destroy);
	return 0;
}

static int at_woken(struct kprobe *probe, struct pt_regs *regs)
{
	wait_by_chance(&woken);
	return 0;
}

static int at_delivered(struct kprobe *probe, struct pt_regs *regs)
{
	wait_by_chance(&delivered);
	return 0;
}

static int at_unbound(struct kprobe *probe, struct pt_regs *regs)
{
	wait_by_chance(&unbound);
	return 0;
}

static int at_folder_made(struct kprobe *probe, struct pt_regs *regs)
{
	wait_at(&folder_made);
	return 0;
}

static int at_file_removed(struct kprobe *probe, struct pt_regs *regs)
{
	if (current->flags & PF_WQ_WORKER)
		wait_at(&file_removed);
	return 0;
}

static int at_halting(struct kprobe *probe, struct pt_regs *regs)
{
	wait_at(&halting);
	return 0;
}

/* finish_fault(vmf) maps what the file's own handler has answered. */
static int at_fault_made(struct kprobe *probe, struct pt_regs *regs)
{
	struct file *file = ((struct vm_fault *)regs->di)->vma->vm_file;

	if (file && file->f_op->owner && !strcmp(file->f_op->owner->name, "kvmate"))
		wait_at(&fault_made);
	return 0;
}

static int after_made(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	wait_at(&made_after);
	return 0;
}

static int after_end(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	wait_at(&ended);
	return 0;
}

static struct {
	const char *function;
	kprobe_pre_handler_t handler;
	struct kprobe probe;
} begins[] = {
	{ "kvm_arch_vcpu_postcreate", at_made },
	{ "kvm_arch_pre_destroy_vm", at_end },
	{ "kvm_arch_destroy_vm", at_destroy },
	{ "eventfd_ctx_do_read", at_woken },
	{ "kvm_set_msi", at_delivered },
	{ "kvm_pic_set_irq", at_delivered },
	{ "eventfd_ctx_remove_wait_queue", at_unbound },
	{ "debugfs_create_dir", at_folder_made },
	{ "debugfs_remove", at_file_removed },
	{ "finish_fault", at_fault_made },
	{ "kvm_vcpu_halt", at_halting },
};

static struct {
	const char *function;
	kretprobe_handler_t handler;
	struct kretprobe probe;
} returns[] = {
	{ "kvm_arch_vcpu_postcreate", after_made },
	{ "kvm_arch_pre_destroy_vm", after_end },
};

/* Probes on tracepoints, around kvmate's, which has the default priority. */

#define BEFORE (TRACEPOINT_DEFAULT_PRIO + 1)
#define AFTER (TRACEPOINT_DEFAULT_PRIO - 1)

struct kvm_vcpu;

static void on_exit(void *point, struct kvm_vcpu *vcpu, unsigned int isa)
{
	wait_by_chance(point);
}

static void on_entry(void *point, struct kvm_vcpu *vcpu, bool force_immediate_exit)
{
	wait_by_chance(point);
}

static void on_ack(void *point, unsigned int irqchip, unsigned int pin)
{
	wait_by_chance(point);
}

static struct {
	const char *name;
	void *probe;
	struct point *point;
	int priority;
	struct tracepoint *registered;
} around[] = {
	{ "kvm_exit", on_exit, &exit_before, BEFORE },
	{ "kvm_exit", on_exit, &exit_after, AFTER },
	{ "kvm_entry", on_entry, &entry_before, BEFORE },
	{ "kvm_entry", on_entry, &entry_after, AFTER },
	{ "kvm_ack_irq", on_ack, &ack_before, BEFORE },
	{ "kvm_ack_irq", on_ack, &ack_after, AFTER },
};

static void detach(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(around); i++) {
		if (around[i].registered)
			tracepoint_probe_unregister(around[i].registered, around[i].probe,
						    around[i].point);
		around[i].registered = NULL;
	}
	tracepoint_synchronize_unregister();
	for (i = 0; i < ARRAY_SIZE(returns); i++) {
		if (returns[i].probe.kp.addr)
			unregister_kretprobe(&returns[i].probe);
		returns[i].probe.kp.addr = NULL;
	}
	for (i = 0; i < ARRAY_SIZE(begins); i++) {
		if (begins[i].probe.addr)
			unregister_kprobe(&begins[i].probe);
		begins[i].probe.addr = NULL;
	}
}

static void attach(struct module *kvm)
{
	int i, j, error;

	for (i = 0; i < ARRAY_SIZE(begins); i++) {
		begins[i].probe = (struct kprobe) {
			.symbol_name = begins[i].function,
			.pre_handler = begins[i].handler,
		};
		error = register_kprobe(&begins[i].probe);
		if (error) {
			pr_err("no probe on %s: %d\n", begins[i].function, error);
			begins[i].probe.addr = NULL;
		}
	}
	for (i = 0; i < ARRAY_SIZE(returns); i++) {
		returns[i].probe = (struct kretprobe) {
			.kp.symbol_name = returns[i].function,
			.handler = returns[i].handler,
			.maxactive = 64,
		};
		error = register_kretprobe(&returns[i].probe);
		if (error) {
			pr_err("no probe on %s's end: %d\n", returns[i].function, error);
			returns[i].probe.kp.addr = NULL;
		}
	}
	for (i = 0; i < ARRAY_SIZE(around); i++) {
		for (j = 0; j < kvm->num_tracepoints; j++) {
			struct tracepoint *tp = tracepoint_ptr_deref(kvm->tracepoints_ptrs + j);

			if (strcmp(tp->name, around[i].name))
				continue;
			error = tracepoint_probe_register_prio(tp, around[i].probe,
							       around[i].point,
							       around[i].priority);
			if (error)
				pr_err("no probe at %s: %d\n", tp->name, error);
			else
				around[i].registered = tp;
		}
	}
}

static int on_kvm(struct notifier_block *block, unsigned long event, void *data)
{
	struct module *module = ((struct tp_module *)data)->mod;

	if (strcmp(module->name, "kvm"))
		return 0;
	if (event == MODULE_STATE_COMING)
		attach(module);
	else if (event == MODULE_STATE_GOING)
		detach();
	return 0;
}

static struct notifier_block kvm_notifier = { .notifier_call = on_kvm };

static int __init delay_init(void)
{
	return register_tracepoint_module_notifier(&kvm_notifier);
}

static void __exit delay_exit(void)
{
	/* Tells of kvm's going, if it is there. */
	unregister_tracepoint_module_notifier(&kvm_notifier);
}

module_init(delay_init);
module_exit(delay_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Waits in KVM, for kvmate's tests");
