/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The trace events, events/kvmate/ in tracefs. What they are is told in uapi/debugfs.md. Strings are
 * arrays, for not every reader follows a __data_loc, filled up with zeros, for some compare them whole.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM kvmate

#if !defined(_KVMATE_EVENTS_H) || defined(TRACE_HEADER_MULTI_READ)
#define _KVMATE_EVENTS_H

#include <linux/tracepoint.h>
#include "trace.h"

TRACE_EVENT_FN(exit,
	TP_PROTO(const struct kvmate_exit_event *e),
	TP_ARGS(e),
	TP_STRUCT__entry(
		__array(char, vm, 32)
		__array(char, name, 48)
		__field(u32, vcpu)
		__field(u64, reason)
		__field(u64, rip)
		__field(u64, info)
		__field(u64, ns)
	),
	TP_fast_assign(
		strscpy_pad(__entry->vm, e->vm);
		strscpy_pad(__entry->name, e->name);
		__entry->vcpu = e->vcpu;
		__entry->reason = e->reason;
		__entry->rip = e->rip;
		__entry->info = e->info;
		__entry->ns = e->ns;
	),
	TP_printk("vm %s vcpu %u: %s reason 0x%llx rip 0x%llx info 0x%llx ns %llu",
		  __entry->vm, __entry->vcpu, __entry->name, __entry->reason,
		  __entry->rip, __entry->info, __entry->ns),
	kvmate_exits_followed, kvmate_exits_left
);

DECLARE_EVENT_CLASS(kvmate_irq,
	TP_PROTO(const struct kvmate_irq_event *e),
	TP_ARGS(e),
	TP_STRUCT__entry(
		__array(char, vm, 32)
		__array(char, what, 48)
		__array(char, answer, 48)
	),
	TP_fast_assign(
		strscpy_pad(__entry->vm, e->vm);
		strscpy_pad(__entry->what, e->what);
		strscpy_pad(__entry->answer, e->answer);
	),
	TP_printk("vm %s: %s: %s", __entry->vm, __entry->what, __entry->answer)
);

DEFINE_EVENT(kvmate_irq, inject,
	TP_PROTO(const struct kvmate_irq_event *e), TP_ARGS(e));
DEFINE_EVENT(kvmate_irq, deliver,
	TP_PROTO(const struct kvmate_irq_event *e), TP_ARGS(e));

TRACE_EVENT(gmem_fault,
	TP_PROTO(u64 file, u64 offset, u32 order),
	TP_ARGS(file, offset, order),
	TP_STRUCT__entry(
		__field(u64, file)
		__field(u64, offset)
		__field(u32, order)
	),
	TP_fast_assign(
		__entry->file = file;
		__entry->offset = offset;
		__entry->order = order;
	),
	TP_printk("file %llu offset 0x%llx order %u", __entry->file, __entry->offset,
		  __entry->order)
);

TRACE_EVENT(gmem_punch,
	TP_PROTO(u64 file, u64 offset, u64 length, u64 freed, u64 kept),
	TP_ARGS(file, offset, length, freed, kept),
	TP_STRUCT__entry(
		__field(u64, file)
		__field(u64, offset)
		__field(u64, length)
		__field(u64, freed)
		__field(u64, kept)
	),
	TP_fast_assign(
		__entry->file = file;
		__entry->offset = offset;
		__entry->length = length;
		__entry->freed = freed;
		__entry->kept = kept;
	),
	TP_printk("file %llu offset 0x%llx length 0x%llx: %llu pages freed, %llu kept",
		  __entry->file, __entry->offset, __entry->length, __entry->freed,
		  __entry->kept)
);

DECLARE_EVENT_CLASS(kvmate_folio,
	TP_PROTO(u64 file, u64 offset, u32 from, u32 to),
	TP_ARGS(file, offset, from, to),
	TP_STRUCT__entry(
		__field(u64, file)
		__field(u64, offset)
		__field(u32, from)
		__field(u32, to)
	),
	TP_fast_assign(
		__entry->file = file;
		__entry->offset = offset;
		__entry->from = from;
		__entry->to = to;
	),
	TP_printk("file %llu offset 0x%llx: order %u to %u", __entry->file, __entry->offset,
		  __entry->from, __entry->to)
);

DEFINE_EVENT(kvmate_folio, gmem_split,
	TP_PROTO(u64 file, u64 offset, u32 from, u32 to), TP_ARGS(file, offset, from, to));

TRACE_EVENT(gmem_merge,
	TP_PROTO(u64 file, u64 offset, u32 folios, u32 order),
	TP_ARGS(file, offset, folios, order),
	TP_STRUCT__entry(
		__field(u64, file)
		__field(u64, offset)
		__field(u32, folios)
		__field(u32, order)
	),
	TP_fast_assign(
		__entry->file = file;
		__entry->offset = offset;
		__entry->folios = folios;
		__entry->order = order;
	),
	TP_printk("file %llu offset 0x%llx: %u folios to order %u", __entry->file,
		  __entry->offset, __entry->folios, __entry->order)
);

TRACE_EVENT(gmem_refused,
	TP_PROTO(const struct kvmate_gmem_refused_event *e),
	TP_ARGS(e),
	TP_STRUCT__entry(
		__field(u64, file)
		__field(u64, offset)
		__array(char, what, 8)
		__array(char, why, 16)
		__field(u32, order)
		__field(u32, references)
		__field(u32, expected)
		__field(u32, mappings)
		__field(u32, pinned)
	),
	TP_fast_assign(
		__entry->file = e->file;
		__entry->offset = e->offset;
		strscpy_pad(__entry->what, e->what);
		strscpy_pad(__entry->why, e->why);
		__entry->order = e->order;
		__entry->references = e->references;
		__entry->expected = e->expected;
		__entry->mappings = e->mappings;
		__entry->pinned = e->pinned;
	),
	TP_printk("file %llu offset 0x%llx: %s: %s order %u references %u expected %u mappings %u pinned %u",
		  __entry->file, __entry->offset, __entry->what, __entry->why, __entry->order,
		  __entry->references, __entry->expected, __entry->mappings, __entry->pinned)
);

#endif /* _KVMATE_EVENTS_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE kvmate_events
#include <trace/define_trace.h>
