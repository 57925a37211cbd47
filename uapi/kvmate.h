/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * kvmate's interface to user space. The module and the user-space crate kvmate-uapi are both
 * generated from this header.
 *
 * /dev/kvmate takes ioctls. Opening it needs CAP_SYS_ADMIN in the initial user name space:
 *
 *   EPERM    the opener does not have it
 *
 * Every ioctl:
 *
 *   ENOTTY   the number is not one of those below
 *   EFAULT   the argument cannot be read or written
 *   EINVAL   a reserved field is not zero
 *
 * An open descriptor of /dev/kvmate, of a binding, of statistics, or of a file below
 * /sys/kernel/debug/kvmate that is kvmate's own, holds the module: rmmod then fails with
 * EWOULDBLOCK. Running VMs do not hold it.
 *
 * The debugfs files and their errors are described in uapi/debugfs.md.
 */
#ifndef _UAPI_KVMATE_H
#define _UAPI_KVMATE_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define KVMATE_VERSION		"0.1.0"

#define KVMATE_IOCTL_TYPE	0xE7

/* Features in kvmate_info: what this module, on this kernel, can do now. */
#define KVMATE_FEATURE_KVM	(1ULL << 0)	/* kvm is there */
#define KVMATE_FEATURE_EXITS	(1ULL << 1)	/* VM exits can be counted */
#define KVMATE_FEATURE_POKE	(1ULL << 2)	/* VMs can be bound to and injected into */

/**
 * struct kvmate_info - what is loaded
 * @flags: in: reserved, zero
 * @reserved: in: zero, out: zero
 * @features: out: KVMATE_FEATURE_*
 * @version: out: the module's version, ends with a zero byte
 * @release: out: the kernel release that the module was built for, ends with a zero byte
 */
struct kvmate_info {
	__u32 flags;
	__u32 reserved;
	__u64 features;
	char version[32];
	char release[80];
};

/*
 * Tell the module's version and features.
 * Errors: EINVAL (flags or reserved not zero), EFAULT.
 */
#define KVMATE_GET_INFO		_IOWR(KVMATE_IOCTL_TYPE, 0x00, struct kvmate_info)

/**
 * struct kvmate_vm_stats - whose statistics
 * @flags: zero
 * @vm_fd: a descriptor of the VM's file that KVM_CREATE_VM gave, whoever made it (pidfd_getfd(2)
 *	takes it from a running VMM; a vCPU's does not do). It may be closed afterwards
 * @reserved: zero
 */
struct kvmate_vm_stats {
	__u32 flags;
	__s32 vm_fd;
	__u64 reserved[3];
};

/*
 * Open a VM's statistics. Returns a descriptor (O_CLOEXEC, read-only) with the layout of
 * KVM_GET_STATS_FD, Documentation/virt/kvm/api.rst: whatever reads that reads this. The id is
 * "kvmate-" and the name of the VM's folder in debugfs. Header, id and descriptors never change.
 * The descriptor keeps no VM and no VM's file, holds the module, and may be passed on to whom the
 * statistics are to be shown: reading needs no capability.
 *
 * Each read() or pread() that reaches into the data puts it together anew, so read the data as a
 * whole: then what is the sum of others is so exactly. Numbers of a guest that runs meanwhile are
 * each of a moment during the read. lseek() finds the end; at and behind it 0 bytes are read.
 *
 * Errors of the ioctl; nothing is opened then:
 *   EFAULT		the argument cannot be read
 *   EINVAL		flags or reserved is not zero
 *   EOPNOTSUPP		VMs cannot be looked into: without KVMATE_FEATURE_POKE; debugfs'
 *			"layouts" and the kernel's log tell why
 *   EBADF		vm_fd is not an open descriptor
 *   EBADFD		vm_fd is not a VM's
 *   EMFILE, ENFILE	too many open files
 *   ENOMEM		short of memory
 *
 * Errors of reading:
 *   ENODEV		the VM has ended, or kvm is gone
 *   EAGAIN		as of the table "exits" (uapi/debugfs.md)
 *   ENOMEM		short of memory
 *   EFAULT		nothing could be written to the buffer
 * Of lseek(): EINVAL, beyond the end or before the beginning. Of writing: EBADF.
 *
 * The statistics, of all vCPUs together, since the VM was seen first or its tables were reset (by
 * "reset" in its folder in debugfs: all but vcpus and what is hidden begin at 0 again). Others may
 * be added; look for one by its name.
 *
 *   vcpus			how many vCPUs there are
 *   exits			VM exits: the sum of all that begin with "exits_"
 *   exits_unrecorded		of vCPUs that had no record yet
 *   exits_other		for a reason without a name, or of an entry that failed (VMX)
 *   exits_REASON		for that reason, by KVM's own name as in its trace events, with "_"
 *				for a blank: exits_io, exits_EPT_VIOLATION. All that KVM knows on
 *				this processor (SVM or VMX) are there, with 0 where there was none
 *   exit_timed		exits whose time to the next entry is known
 *   exit_ns			these times together
 *   exit_max_ns		the longest of them; peak
 *   exit_hist			how many of them took 0 ns, 1, 2 and 3, 4 to 7, ...: a logarithmic
 *				histogram of 48 buckets with the sum exit_timed. Times within a
 *				sixteenth of a bound may stand on its other side; those of 2^45
 *				cycles and more are all in the bucket of that length
 *   times_exits		exits whose time was split, while knobs/times was 1
 *   times_ns			these times: the sum of the next four
 *   times_user_ns		in user space
 *   times_halted_ns		halted
 *   times_preempted_ns		waiting for a CPU
 *   times_kernel_ns		otherwise in the kernel
 *   msr_reads, msr_writes	accesses to MSRs that made the guest exit, while knobs/msrs was 1
 *   msr_faults			those of both for which the guest got #GP
 *   page_faults		page faults that made the guest exit, while knobs/faults was 1
 *   page_faults_write, page_faults_exec	writes, fetches; the others were reads
 *   page_faults_present, page_faults_user, page_faults_walk	as in the table "faults"
 *   page_faults_mmio		where there is no memory
 *   irqs_injected, irqs_eoi	interrupts put into the guest, and ended by it, while knobs/irqs
 *				was 1
 *   irqs_hidden		1: hardware does both by itself (APICv, AVIC), or did, and what the
 *				two before this one say is not all
 *   irqs_accepted		interrupts that KVM gave to LAPICs, while knobs/irqs was 1
 *   irqs_accepted_hidden	1: KVM was built so that this cannot be told, as was found out
 *				when knobs/irqs was last set
 */
#define KVMATE_GET_VM_STATS	_IOW(KVMATE_IOCTL_TYPE, 0x08, struct kvmate_vm_stats)

/* Flags in kvmate_gmem */
#define KVMATE_GMEM_SMALL	(1U << 0)	/* pages of 4 KiB only */
#define KVMATE_GMEM_NODE	(1U << 1)	/* memory of the node @node only */

/**
 * struct kvmate_gmem - a memory file to be made
 * @size: in: its size in bytes, for ever; a multiple of 4096, not 0, at most 2^63 - 4096
 * @flags: in: KVMATE_GMEM_*
 * @node: in: the NUMA node with KVMATE_GMEM_NODE, else zero
 * @name: in: a name for people, ends with a zero byte: /proc/PID/maps and /proc/PID/fd show it
 * @reserved: in: zero
 */
struct kvmate_gmem {
	__u64 size;
	__u32 flags;
	__u32 node;
	char name[32];
	__u64 reserved[2];
};

/*
 * Make a memory file and answer a descriptor of it (close-on-exec). It gets memory 2 MiB at a time
 * where offset and size allow and there is memory, else in smaller folios, down to 4 KiB. It lives
 * until its last descriptor and mapping go, and holds the module until then.
 *
 * Its memory is charged to the memory cgroup of who touches it first (in a mapping: whose mapping
 * it is). It counts there as file, file_thp, file_mapped and unevictable, in /proc/meminfo in
 * Cached, Unevictable, FileHugePages, Mapped and FilePmdMapped, and not in MemAvailable: it is
 * never swapped, written back or reclaimed. smaps shows it as Rss, dirty, and FilePmdMapped where
 * mapped by PMD; /proc/PID/status as RssFile.
 *
 * With KVMATE_GMEM_NODE every allocation is from that node or fails; without it the task's memory
 * policy chooses. mbind(), which sets the policy of a mapping, does not matter. What is there may
 * be moved to another node by who asks for it (move_pages(), NUMA balancing).
 *
 * Errors: EINVAL (size, an unknown flag, a node that has no memory or no flag, a name without end,
 * reserved not zero), EFAULT, EMFILE, ENFILE, ENOMEM.
 *
 * The file is that of memfd_create() sealed with F_SEAL_GROW | F_SEAL_SHRINK:
 *
 *   mmap       MAP_SHARED; MAP_PRIVATE is EINVAL, PROT_EXEC EPERM. Mapped by PMD where the folio
 *              and the alignment allow. Reading or writing a hole allocates it; beyond the end, or
 *              where there is no memory (of the node, or below the cgroup's limit): SIGBUS. Nobody
 *              is killed for want of the file's pages; page tables are memory as any other
 *   madvise    MADV_REMOVE is a punch; MADV_COLLAPSE maps by PMD what is of 2 MiB, else EINVAL,
 *              EAGAIN, or, for want of memory that it would not need, ENOMEM or EBUSY: only
 *              KVMATE_GMEM_MERGE merges a file's pages. MADV_COLD and MADV_PAGEOUT of a part of a
 *              folio split it, without losing anything; the split counters do not know of that
 *   read       of a hole gives zeros and allocates nothing; EFAULT. Whole, but when killed
 *   write      beyond the end: EPERM, having written what fits; ENOMEM; EFAULT. Likewise
 *   ftruncate  EPERM, to the size that it has: 0
 *   fallocate  mode 0 and FALLOC_FL_KEEP_SIZE: fills holes with zeros, keeps data; beyond the end:
 *              EPERM; ENOMEM; EINTR by a signal; all three after a prefix is done.
 *              FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE: see below; EINTR by a signal, after a
 *              prefix is done. Any other mode: EOPNOTSUPP. From the VFS: EINVAL (negative, or
 *              nothing), EFBIG (overflow), EBADF (not open for writing)
 *   lseek      SEEK_DATA, SEEK_HOLE by pages; ENXIO at the end, behind it, and before 0
 *   fstat      st_blocks: the memory that the file has
 *   open       of /proc/PID/fd/N opens the same file again (mode 0600); O_TRUNC: EPERM; O_DIRECT:
 *              EINVAL
 *   fcntl      F_GET_SEALS, F_ADD_SEALS: EINVAL; KVMATE_GMEM_SEALS does that
 *   ioctl      those below; of an unknown number: ENOTTY. userfaultfd's MISSING and MINOR
 *              registrations are refused
 *
 * Where memory fails (a machine check, MADV_HWPOISON), its folio is split, the page is taken out,
 * and no other byte changes. The offset stays poisoned until the whole page is punched: SIGBUS
 * (BUS_MCEERR_AR) for who touches it by a mapping, a vCPU's thread too, EIO from read(), write()
 * and splice(); data for lseek(), nothing to fill for fallocate(). Who had it mapped as part of a
 * larger folio is told when it touches it next, not at once: mm unmaps the folio to split it.
 *
 * A folio that somebody holds cannot be split: the page stays in the file, poisoned likewise.
 * read() and write() go on beside it; faults on all of that folio are SIGBUS until it is let go,
 * and the next one then takes the page out. Mappings and guests that had the folio mapped by then
 * keep it, with the page that failed, until one of those faults: nothing tells kvmate before. If
 * such a folio is punched as a whole, or the file ends, while it is held, or while there is no
 * memory to split it with, none of its memory goes back to the system, then or later.
 *
 * A punched range reads zeros at once, for every process and every guest, through whatever mapping
 * was made before. All its whole 4 KiB pages go back to the system, and no byte outside it changes.
 * A larger folio over an edge of the range is split for that. While somebody else holds a page of
 * that folio (vmsplice, O_DIRECT, VFIO, ...), or there is no memory to split it with (the cgroup
 * may be at its limit), it cannot be split: then its part of the range is zeroed and the memory
 * stays, which is no error and is counted (gmem/INO/info in debugfs).
 */
#define KVMATE_GMEM_CREATE	_IOW(KVMATE_IOCTL_TYPE, 0x10, struct kvmate_gmem)

/* Flags in kvmate_gmem_record */
#define KVMATE_GMEM_HOLE	(1U << 0)	/* no memory here: order and numbers are 0 */
#define KVMATE_GMEM_MAPPED	(1U << 1)	/* in somebody's page tables */
#define KVMATE_GMEM_PINNED	(1U << 2)	/* looks pinned (VFIO, O_DIRECT) */
#define KVMATE_GMEM_POISONED	(1U << 3)	/* a page of it failed; and went, if HOLE */
#define KVMATE_GMEM_LOCKED	(1U << 4)	/* somebody has its lock at the moment */
#define KVMATE_GMEM_DIRTY	(1U << 5)	/* as all are: nothing is ever written back */

/**
 * struct kvmate_gmem_record - a folio of a memory file, or a hole
 * @offset: where it begins in the file, in bytes
 * @length: its bytes; a folio's are 4096 << @order
 * @order: log2 of a folio's pages
 * @flags: KVMATE_GMEM_HOLE, ...
 * @references: references to the folio
 * @expected: how many it has if nobody but the file and page tables knows it: one a page, and
 *	@mappings. Where @references are more, somebody holds it (vmsplice, O_DIRECT, VFIO, a
 *	fault at this moment, a processor's list of pages to be sorted in)
 * @mappings: how often its pages stand in page tables, a PMD being one
 * @reserved: zero
 */
struct kvmate_gmem_record {
	__u64 offset;
	__u64 length;
	__u32 order;
	__u32 flags;
	__u32 references;
	__u32 expected;
	__u32 mappings;
	__u32 reserved;
};

/**
 * struct kvmate_gmem_query - what a memory file has in a range
 * @offset: in: where to begin, a multiple of 4096; out: where to go on
 * @length: in: how many bytes, a multiple of 4096; out: how many are left, zero at the end of the
 *	range or of the file
 * @records: in: the address of an array of struct kvmate_gmem_record
 * @count: in: how many records there is room for; out: how many were filled
 * @flags: in: zero
 */
struct kvmate_gmem_query {
	__u64 offset;
	__u64 length;
	__u64 records;
	__u32 count;
	__u32 flags;
};

/*
 * Of a memory file's descriptor: fill an array with the folios and holes of a range, in order. The
 * first and the last may reach out of the range if they are folios; holes are told as far as the
 * range goes. Calling again with what was left in @offset and @length goes on; @length zero says
 * that there is no more. A folio's numbers are of the moment when it was looked at: nothing stops
 * meanwhile. A signal ends the call early, having filled at least one record.
 *
 * Errors:
 *   EINVAL	offset or length is no multiple of 4096, or their sum is too large; flags
 *		is not zero; or count is zero
 *   EFAULT	the structure or the array cannot be read or written
 */
#define KVMATE_GMEM_QUERY	_IOWR(KVMATE_IOCTL_TYPE, 0x11, struct kvmate_gmem_query)

/* Flags in kvmate_gmem_range */
#define KVMATE_GMEM_FILL	(1U << 0)	/* KVMATE_GMEM_MERGE: fill holes with zeros */

/**
 * struct kvmate_gmem_range - a range of a memory file whose folios are to be split or merged
 * @offset: in: where it begins, a multiple of 4096 << @order
 * @length: in: its bytes, a multiple of 4096 << @order
 * @order: in: log2 of the pages of a folio: to split, the most that one is to have, 0 to 8; to
 *	merge, the least, 1 to 9 (2 MiB)
 * @flags: in: KVMATE_GMEM_FILL to merge, else zero
 * @done: in: zero; out: how many bytes of the range are as wished, from @offset on
 * @refused: in: zero; out, with EAGAIN, ENOMEM, EHWPOISON and with EINVAL for a hole: the folio or
 *	hole that stood in the way, the first one, as it was then
 * @reserved: in: zero
 */
struct kvmate_gmem_range {
	__u64 offset;
	__u64 length;
	__u32 order;
	__u32 flags;
	__u64 done;
	struct kvmate_gmem_record refused;
	__u64 reserved[2];
};

/*
 * Of a memory file's descriptor, open for writing: split the folios of a range, or merge them,
 * while others read and write that memory, through whatever mapping, guests too. No byte changes,
 * and none is ever seen that was not there. The folios are unmapped for it; the next access maps
 * them anew. After a merge that is by PMD in mappings that have no page table there; where small
 * pages were mapped before there is one, and MADV_COLLAPSE makes it a PMD, for KVM too.
 *
 * A folio to which somebody else holds a reference (vmsplice, O_DIRECT, VFIO, ...) is neither split
 * nor merged: EAGAIN, and @refused tells which, how many references it has and how many it has when
 * nobody holds it, how often it is mapped, and whether it looks pinned. Nothing is lost by that;
 * calling again, once the reference is gone, does the rest. (Pages that processors keep in lists of
 * theirs, to be sorted in, are fetched from there; for that a processor that runs a real-time task
 * may let a merge wait.) The reference may be gone again when the folio is looked at for @refused:
 * then its references are those expected. Holes stay holes when splitting. Merging copies into new
 * memory, which is charged to who paid for the first page of each new folio; the old pages go back
 * to the system. It is of the file's node (KVMATE_GMEM_NODE), else of the node that this first page
 * is on, or of another if that has none. What was nothing but a hole (KVMATE_GMEM_FILL) is charged
 * to the caller, and the caller's policy chooses its node. knobs/gmem_order is not asked.
 *
 * What a file was merged to may be split again by a punch, and what was split is not merged again
 * by itself.
 *
 * Errors, with a prefix done (@done):
 *   EAGAIN	see above
 *   ENOMEM	no memory: for a new folio (or the cgroup's limit), or to split one; or, to
 *		split, a reference that nobody saw for being gone again (@refused has
 *		references as expected)
 *   EHWPOISON	to merge: a page has failed
 *   EINVAL	to merge: a hole, without KVMATE_GMEM_FILL; then @refused has
 *		KVMATE_GMEM_HOLE
 *   EINTR	a signal; calling again with what is left goes on
 * Errors, with nothing done and the structure as it was:
 *   EINVAL	order is not one of those above, offset or length is no multiple of it, their sum
 *		is too large or behind the file's end, an unknown flag, or done, refused or
 *		reserved is not zero
 *   EOPNOTSUPP	to merge: the file is one of 4 KiB pages only (KVMATE_GMEM_SMALL)
 *   EBADF	the descriptor is not open for writing
 *   EFAULT	the structure cannot be read
 * And EFAULT where it cannot be written: what was asked is done then, or a prefix of it.
 */
#define KVMATE_GMEM_SPLIT	_IOWR(KVMATE_IOCTL_TYPE, 0x12, struct kvmate_gmem_range)
#define KVMATE_GMEM_MERGE	_IOWR(KVMATE_IOCTL_TYPE, 0x13, struct kvmate_gmem_range)

/* Seals of a memory file */
#define KVMATE_GMEM_SEAL_SEAL		(1U << 0)	/* no more seals */
#define KVMATE_GMEM_SEAL_WRITE		(1U << 1)	/* nobody writes */
#define KVMATE_GMEM_SEAL_FUTURE_WRITE	(1U << 2)	/* only who has it mapped writes */

/**
 * struct kvmate_gmem_seals - seals of a memory file
 * @add: in: KVMATE_GMEM_SEAL_* to add; zero: only tell
 * @seals: in: zero; out: all that it has
 */
struct kvmate_gmem_seals {
	__u32 add;
	__u32 seals;
};

/*
 * Of a memory file's descriptor: add seals, which nothing takes away again, and tell which there
 * are. They mean what F_SEAL_SEAL, F_SEAL_WRITE and F_SEAL_FUTURE_WRITE mean to a memfd (growing
 * and shrinking are sealed from the start). Under either of the last two write() and
 * FALLOC_FL_PUNCH_HOLE are EPERM, and so is a shared mapping with PROT_WRITE; one without it never
 * becomes writable (mprotect(): EACCES). What is mapped to be written stays so under
 * KVMATE_GMEM_SEAL_FUTURE_WRITE. Reading, allocating (fallocate() without a punch, a read of a hole
 * through a mapping), splitting and merging go on: they change no byte.
 *
 * To add KVMATE_GMEM_SEAL_WRITE all pages are looked at, and where one is held, all processors are
 * asked to sort in the pages that they keep in lists of theirs. One that runs a real-time task
 * (SCHED_FIFO) may let that wait, without an end and not to be interrupted; calls that write,
 * punch, allocate, split, merge or seal this file, lseek() to data or holes, fchmod() and
 * ftruncate() wait then too. Faults and reads do not.
 *
 * Errors; no seal is added then:
 *   EPERM	the descriptor is not open for writing, and @add is not zero; or the file has
 *		KVMATE_GMEM_SEAL_SEAL
 *   EINVAL	an unknown seal, or @seals is not zero
 *   EBUSY	KVMATE_GMEM_SEAL_WRITE, and the file is mapped so that it can be written, now or
 *		by mprotect(); or somebody holds a page (vmsplice, O_DIRECT, VFIO, ...), after
 *		some tenths of a second, or one page after another, after some seconds
 *   EINTR	killed meanwhile
 *   EFAULT	the structure cannot be read or written
 */
#define KVMATE_GMEM_SEALS	_IOWR(KVMATE_IOCTL_TYPE, 0x14, struct kvmate_gmem_seals)

/* Flags of kvmate_irqfd. */
#define KVMATE_IRQFD_MSI	(1U << 0)	/* an MSI, not a GSI */
#define KVMATE_IRQFD_RESAMPLE	(1U << 1)	/* level: up until the guest's EOI */

/**
 * struct kvmate_irqfd - an eventfd, and the interrupt that a write to it is to be
 * @flags: KVMATE_IRQFD_*; not both
 * @vm_fd: a descriptor of the VM's file that KVM_CREATE_VM gave, whoever made it
 *	(pidfd_getfd(2) takes it from a running VMM; a vCPU's does not do). It may be closed
 *	afterwards: a binding keeps no VM, and no VM's file
 * @eventfd: an eventfd. Each time it is written to, or eventfd_signal() is called on it, one
 *	interrupt is delivered, whatever the number written; the number is taken out. What was
 *	written before it was bound is one interrupt. With EFD_SEMAPHORE 1 is taken out each time
 * @resample_eventfd: with KVMATE_IRQFD_RESAMPLE an eventfd to which 1 is added at the guest's
 *	EOI, after the line has gone down; else -1
 * @gsi: the GSI, below 4096; with KVMATE_IRQFD_MSI zero. Its route is looked up at each interrupt,
 *	so that it may be made later; without a route the interrupt is counted as failed. A route
 *	to an MSI delivers that; one to pins of chips raises and lowers them (an edge). With
 *	KVMATE_IRQFD_RESAMPLE it must be one to pins, which it only raises, until the guest's EOI:
 *	that lowers them, before KVM looks at them again. What is written while they are up
 *	coalesces. The guest must have programmed the pin as level-triggered: of an edge's EOI
 *	KVM tells only its own irqfds, so the second of those coalesces for ever. If the VMM takes
 *	the route away while the line is up, the pin stays up (with KVM's own irqfd too)
 * @msi_data: with KVMATE_IRQFD_MSI the MSI's data, else zero
 * @msi_address: with KVMATE_IRQFD_MSI the MSI's address, else zero. The VM must have a GSI that is
 *	routed to an MSI, any, when an interrupt is to be delivered: else it is counted as failed
 * @reserved: zero
 */
struct kvmate_irqfd {
	__u32 flags;
	__s32 vm_fd;
	__s32 eventfd;
	__s32 resample_eventfd;
	__u32 gsi;
	__u32 msi_data;
	__u64 msi_address;
	__u64 reserved[4];
};

/*
 * Bind an eventfd to an interrupt of a VM. Returns the binding: a descriptor (O_CLOEXEC) that can
 * only be passed on and closed. After its last close() has returned nothing is delivered any more,
 * the eventfd is free, and a line that the binding held up is down. A binding outlives its VM and
 * the last descriptor of its eventfd; it then does nothing. While one is open it holds the module.
 * vms/<id>/bindings in debugfs tells what each did.
 *
 * Whoever has the VM's descriptor may bind to it: knobs/inject is not asked.
 *
 * Errors; nothing is bound then:
 *   EFAULT		the argument cannot be read
 *   EINVAL		an unknown flag, both flags, a reserved field that is not zero, a field that
 *			the flags do not use and that is not zero (resample_eventfd: -1), an
 *			msi_address that no APIC listens at (0xfee00000 to 0xfeefffff; bits 8
 *			to 31 of a long APIC id from bit 40 on)
 *   ERANGE		gsi is 4096 or more (no VM has such a GSI)
 *   EBADF		vm_fd, eventfd or resample_eventfd is not an open descriptor
 *   EBADFD		vm_fd is not a VM's
 *   EPROTOTYPE		eventfd or resample_eventfd is not an eventfd
 *   EOPNOTSUPP		VMs cannot be looked into: without KVMATE_FEATURE_POKE; debugfs'
 *			"layouts" and the kernel's log tell why. Or KVMATE_IRQFD_RESAMPLE, and
 *			this KVM does not tell of EOIs
 *   ENODEV		the VM is dead (KVM has given it up)
 *   ENXIO		KVMATE_IRQFD_RESAMPLE, and the VM has no PIC and IOAPIC in the kernel
 *			(KVM_CAP_SPLIT_IRQCHIP, or no KVM_CREATE_IRQCHIP yet)
 *   EBUSY		another one has the eventfd: KVM_IRQFD, or a binding
 *   EMFILE, ENFILE	too many open files
 *   ENOMEM		short of memory
 */
#define KVMATE_BIND_IRQFD	_IOW(KVMATE_IOCTL_TYPE, 0x20, struct kvmate_irqfd)

/* What kvmate_lookup found. */
#define KVMATE_FOUND_SLOT	(1U << 0)	/* slot, slot_gpa, slot_size, slot_flags, hva */
#define KVMATE_FOUND_STAGE2	(1U << 1)	/* stage2_entry, stage2_level */
#define KVMATE_FOUND_HOST	(1U << 2)	/* pfn, host_level, host_flags */
#define KVMATE_FOUND_FOLIO	(1U << 3)	/* page_flags, cgroup, order ... node */

/* host_flags of kvmate_lookup: what the host's own page table allows and has seen. */
#define KVMATE_HOST_WRITE	(1U << 0)
#define KVMATE_HOST_DIRTY	(1U << 1)
#define KVMATE_HOST_ACCESSED	(1U << 2)

/* Why a leaf of level 1 is not of level 2; uapi/debugfs.md says what each means. */
#define KVMATE_WHY_NONE			0	/* there is no leaf of level 1 */
#define KVMATE_WHY_SLOT_ALIGNMENT	1
#define KVMATE_WHY_EDGE			2
#define KVMATE_WHY_DIRTY_LOG		3
#define KVMATE_WHY_WRITE_TRACKED	4
#define KVMATE_WHY_MIXED_PERMISSIONS	5
#define KVMATE_WHY_HOST_4K		6
#define KVMATE_WHY_NX_RECOVERY		7
#define KVMATE_WHY_UNKNOWN		8

/**
 * struct kvmate_lookup - a guest-physical address, and what there is
 * @vm_fd: in: a descriptor of the VM's file that KVM_CREATE_VM gave, whoever made it
 *	(pidfd_getfd(2) takes it from a running VMM; a vCPU's does not do)
 * @flags: in: reserved, zero
 * @gpa: in: the guest-physical address
 * @address_space: in: KVM's address space: 0, or 1 for system management mode
 * @found: out: KVMATE_FOUND_*; what is not found is zero below
 * @hva: out: the address in the VMM's memory
 * @slot_gpa: out: where the memslot begins
 * @slot_size: out: its size in bytes
 * @stage2_entry: out: the entry of the stage-2 tables as hardware and KVM have it: a leaf, or one
 *	that is not present but not empty (KVM notes MMIO so)
 * @pfn: out: the host's page frame, by the VMM's page table
 * @page_flags: out: the page's flags, as in /proc/kpageflags (zero without
 *	CONFIG_PROC_PAGE_MONITOR)
 * @cgroup: out: the inode of the memory cgroup that is charged, 0 for none
 * @slot: out: the memslot's number
 * @slot_flags: out: its KVM_MEM_*
 * @stage2_level: out: the entry's level: 1 (4 KiB) to 5
 * @why: out: KVMATE_WHY_*
 * @host_level: out: the level that the VMM's page table maps it at: 1 (4 KiB), 2 or 3
 * @host_flags: out: KVMATE_HOST_*
 * @order: out: the folio's order
 * @refcount: out: its references
 * @expected: out: how many it has if nobody pins it: for the page cache and for mappings
 * @mapcount: out: how often it is mapped, all of its pages together
 * @node: out: the NUMA node it is on
 * @reserved: in: zero, out: zero
 */
struct kvmate_lookup {
	__s32 vm_fd;
	__u32 flags;
	__u64 gpa;
	__u32 address_space;
	__u32 found;
	__u64 hva;
	__u64 slot_gpa;
	__u64 slot_size;
	__u64 stage2_entry;
	__u64 pfn;
	__u64 page_flags;
	__u64 cgroup;
	__u32 slot;
	__u32 slot_flags;
	__u32 stage2_level;
	__u32 why;
	__u32 host_level;
	__u32 host_flags;
	__u32 order;
	__s32 refcount;
	__s32 expected;
	__s32 mapcount;
	__s32 node;
	__u32 reserved[9];
};

/*
 * Look up a guest-physical address of a VM. Nothing is faulted in, and no reference to a page is
 * taken: what is told is what there was before. The parts are of moments that follow each other.
 *
 * Errors, in the order in which they are looked for:
 *   EFAULT		the argument cannot be read, or not be written
 *   EINVAL		flags or reserved not zero; gpa of more than 52 bits; address_space above 1
 *   EOPNOTSUPP		VMs cannot be looked into; debugfs' "layouts" and the kernel's log tell why
 *   EBADF		vm_fd is not an open descriptor
 *   EBADFD		vm_fd is not a VM's
 *   EIO		the VM is ending
 *   EINTR		a signal came
 *   EAGAIN		the vCPUs got other tables each of 64 times
 *   ENOMEM		short of memory
 */
#define KVMATE_LOOKUP		_IOWR(KVMATE_IOCTL_TYPE, 0x30, struct kvmate_lookup)

#endif /* _UAPI_KVMATE_H */
