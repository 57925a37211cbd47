/* SPDX-License-Identifier: GPL-2.0 */
/* What the shim has of tracing: kvmate's own trace events, and trace_printk(). No logic. */
#ifndef _KVMATE_TRACE_H
#define _KVMATE_TRACE_H

#include <linux/types.h>

struct kvmate_exit_event {
	const char *vm;
	const char *name;
	u64 reason;
	u64 rip;
	u64 info;
	u64 ns;
	u32 vcpu;
};

struct kvmate_irq_event {
	const char *vm;
	const char *what;
	const char *answer;
};

struct kvmate_gmem_refused_event {
	u64 file;
	u64 offset;
	const char *what;
	const char *why;
	u32 order;
	u32 references;
	u32 expected;
	u32 mappings;
	u32 pinned;
};

typedef void (*kvmate_follow)(void *data, bool on);

/* The event "exit" is wanted by somebody, and no longer: called with tracing's locks. */
int kvmate_exits_followed(void);
void kvmate_exits_left(void);
/*
 * Have "call" told of both from now on, at once if it is wanted already; NULL: nobody. When this
 * returns who was told before is told no more.
 */
void kvmate_follow_exits(kvmate_follow call, void *data);

bool kvmate_event_inject_on(void);
bool kvmate_event_deliver_on(void);
void kvmate_event_exit(const struct kvmate_exit_event *event);
void kvmate_event_inject(const struct kvmate_irq_event *event);
void kvmate_event_deliver(const struct kvmate_irq_event *event);
void kvmate_event_gmem_fault(u64 file, u64 offset, u32 order);
void kvmate_event_gmem_punch(u64 file, u64 offset, u64 length, u64 freed, u64 kept);
void kvmate_event_gmem_split(u64 file, u64 offset, u32 from, u32 to);
void kvmate_event_gmem_merge(u64 file, u64 offset, u32 folios, u32 order);
void kvmate_event_gmem_refused(const struct kvmate_gmem_refused_event *event);

/*
 * Take trace_printk()'s buffers, with the kernel's notice, if nobody has yet. One at a time;
 * sleeps.
 */
void kvmate_trace_begin(void);
/* A line in the trace. */
void kvmate_trace_line(const char *text);

#endif /* _KVMATE_TRACE_H */
