// SPDX-License-Identifier: GPL-2.0
/* Tracing: kvmate_events.h made real, and trace_printk(). No logic. */
#include <linux/instruction_pointer.h>
#include <linux/mutex.h>
#include <linux/trace.h>
#include <linux/trace_printk.h>
#include "trace.h"

#define CREATE_TRACE_POINTS
#include "kvmate_events.h"

/*
 * In C, because an event can be switched on before the module's init has run, and is switched off
 * after its exit has.
 */
static DEFINE_MUTEX(exits_lock);
static kvmate_follow follower;
static void *follower_data;
static bool exits_wanted;

static void want_exits(bool on)
{
	mutex_lock(&exits_lock);
	exits_wanted = on;
	if (follower)
		follower(follower_data, on);
	mutex_unlock(&exits_lock);
}

int kvmate_exits_followed(void)
{
	want_exits(true);
	return 0;
}

void kvmate_exits_left(void)
{
	want_exits(false);
}

void kvmate_follow_exits(kvmate_follow call, void *data)
{
	mutex_lock(&exits_lock);
	follower = call;
	follower_data = data;
	if (call && exits_wanted)
		call(data, true);
	mutex_unlock(&exits_lock);
}

bool kvmate_event_inject_on(void)
{
	return trace_inject_enabled();
}

bool kvmate_event_deliver_on(void)
{
	return trace_deliver_enabled();
}

void kvmate_event_exit(const struct kvmate_exit_event *event)
{
	trace_exit(event);
}

void kvmate_event_inject(const struct kvmate_irq_event *event)
{
	trace_inject(event);
}

void kvmate_event_deliver(const struct kvmate_irq_event *event)
{
	trace_deliver(event);
}

void kvmate_event_gmem_fault(u64 file, u64 offset, u32 order)
{
	trace_gmem_fault(file, offset, order);
}

void kvmate_event_gmem_punch(u64 file, u64 offset, u64 length, u64 freed, u64 kept)
{
	trace_gmem_punch(file, offset, length, freed, kept);
}

void kvmate_event_gmem_split(u64 file, u64 offset, u32 from, u32 to)
{
	trace_gmem_split(file, offset, from, to);
}

void kvmate_event_gmem_merge(u64 file, u64 offset, u32 folios, u32 order)
{
	trace_gmem_merge(file, offset, folios, order);
}

void kvmate_event_gmem_refused(const struct kvmate_gmem_refused_event *event)
{
	trace_gmem_refused(event);
}

void kvmate_trace_begin(void)
{
	trace_printk_init_buffers();
}

void kvmate_trace_line(const char *text)
{
	__trace_puts(_THIS_IP_, text);
}
