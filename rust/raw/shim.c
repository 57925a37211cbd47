// SPDX-License-Identifier: GPL-2.0
/* C that Rust cannot say: inlines and macros. No logic. KVM's structures are in kvm.c. */
#include <linux/cpumask.h>
#include <linux/eventfd.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/pid.h>
#include <linux/pid_namespace.h>
#include <linux/poll.h>
#include <linux/preempt.h>
#include <linux/sched.h>
#include <linux/sched/task.h>
#include <linux/workqueue.h>
#include <asm/cpufeature.h>
#include <asm/hypervisor.h>
#define INCLUDE_VERMAGIC
#include <linux/vermagic.h>
#include <kvmate.h>
#include "shim.h"

MODULE_VERSION(KVMATE_VERSION);

const char kvmate_vermagic[] = VERMAGIC_STRING;
const char kvmate_release[] = UTS_RELEASE;

struct tracepoint *kvmate_module_tracepoint(struct module *mod, const char *name)
{
	unsigned int i;

	for (i = 0; i < mod->num_tracepoints; i++) {
		struct tracepoint *tp = tracepoint_ptr_deref(mod->tracepoints_ptrs + i);

		if (!strcmp(tp->name, name))
			return tp;
	}
	return NULL;
}

struct kvmate_search {
	const char *name;
	struct tracepoint *found;
};

static void compare(struct tracepoint *tp, void *data)
{
	struct kvmate_search *search = data;

	if (!strcmp(tp->name, search->name))
		search->found = tp;
}

struct tracepoint *kvmate_kernel_tracepoint(const char *name)
{
	struct kvmate_search search = { .name = name };

	for_each_kernel_tracepoint(compare, &search);
	return search.found;
}

void kvmate_tracepoint_synchronize(void)
{
	tracepoint_synchronize_unregister();
}

bool kvmate_module_is(struct module *mod, const char *name)
{
	return !strcmp(mod->name, name);
}

bool kvmate_module_live(struct module *mod)
{
	return mod->state == MODULE_STATE_LIVE;
}

int kvmate_probe_address(const char *name, unsigned long *address)
{
	struct kprobe probe = {
		.symbol_name = name,
		.flags = KPROBE_FLAG_DISABLED,
	};
	int error;

	error = register_kprobe(&probe);
	if (error)
		return error;
	unregister_kprobe(&probe);
	*address = (unsigned long)probe.addr;
	return 0;
}

void *kvmate_ftrace_argument(struct ftrace_regs *fregs, unsigned int number)
{
	return (void *)ftrace_regs_get_argument(fregs, number);
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

struct workqueue_struct *kvmate_workqueue(const char *name)
{
	return alloc_workqueue("%s", WQ_UNBOUND, 0, name);
}

struct kvmate_wait {
	poll_table table;
	wait_queue_entry_t *entry;
	wait_queue_head_t *head;
	int error;
};

static void add_to_queue(struct file *file, wait_queue_head_t *head, poll_table *table)
{
	struct kvmate_wait *wait = container_of(table, struct kvmate_wait, table);

	wait->head = head;
	wait->error = add_wait_queue_priority_exclusive(head, wait->entry);
}

int kvmate_eventfd_wait(struct file *file, struct eventfd_ctx *context, wait_queue_entry_t *entry,
			wait_queue_func_t wake, bool *ready)
{
	struct kvmate_wait wait = { .entry = entry, .error = -EINVAL };
	u64 count;

	init_waitqueue_func_entry(entry, wake);
	init_poll_funcptr(&wait.table, add_to_queue);
	vfs_poll(file, &wait.table);
	if (wait.error)
		return wait.error;
	spin_lock_irq(&wait.head->lock);
	eventfd_ctx_do_read(context, &count);
	spin_unlock_irq(&wait.head->lock);
	*ready = count > 0;
	return 0;
}

int kvmate_task_number(struct task_struct *task)
{
	return task_pid_nr(task);
}

void kvmate_task_comm(struct task_struct *task, char comm[TASK_COMM_LEN])
{
	strscpy_pad(comm, task->comm, TASK_COMM_LEN);
}

void kvmate_task_see(struct task_struct *task, struct kvmate_task_seen *seen)
{
	seen->state = task_state_to_char(task);
	seen->on_cpu = READ_ONCE(task->on_cpu);
	seen->switches = READ_ONCE(task->nvcsw) + READ_ONCE(task->nivcsw);
}

size_t kvmate_symbol(char *text, size_t size, unsigned long address)
{
	return scnprintf(text, size, "%pB", (void *)address);
}

void kvmate_preempt_disable(void)
{
	preempt_disable();
}

void kvmate_preempt_enable(void)
{
	preempt_enable();
}

u64 kvmate_run_delay(void)
{
#ifdef CONFIG_SCHED_INFO
	return current->sched_info.run_delay;
#else
	return 0;
#endif
}

/* Whether KVM here is that of Intel's processors. */
bool kvmate_has_vmx(void)
{
	return boot_cpu_has(X86_FEATURE_VMX);
}

bool kvmate_on_hyperv(void)
{
	return hypervisor_is_type(X86_HYPER_MS_HYPERV);
}

struct task_struct *kvmate_next_task(int *from)
{
	struct task_struct *task = NULL;
	struct pid *pid;

	rcu_read_lock();
	while ((pid = find_ge_pid(*from, &init_pid_ns))) {
		*from = pid_nr(pid);
		task = get_pid_task(pid, PIDTYPE_PID);
		if (task)
			break;
		++*from;
	}
	rcu_read_unlock();
	return task;
}

bool kvmate_task_shares_files(struct task_struct *task)
{
	bool shares;

	rcu_read_lock();
	shares = task != task->group_leader &&
		 READ_ONCE(task->files) == READ_ONCE(task->group_leader->files);
	rcu_read_unlock();
	return shares;
}
