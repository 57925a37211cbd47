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
 * An open descriptor of /dev/kvmate, or of a file below /sys/kernel/debug/kvmate that is kvmate's
 * own, holds the module: rmmod then fails with EWOULDBLOCK. Running VMs do not hold it.
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
#define KVMATE_FEATURE_KVM	(1ULL << 0)	/* kvm was there when kvmate was loaded */
#define KVMATE_FEATURE_EXITS	(1ULL << 1)	/* VM exits can be counted */

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
 * Its memory is charged to the memory cgroup of who touches it first (in a mapping: whose mapping it
 * is). It counts there as file, file_thp, file_mapped and unevictable, in /proc/meminfo in Cached,
 * Unevictable, FileHugePages, Mapped and FilePmdMapped, and not in MemAvailable: it is never swapped,
 * written back or reclaimed. smaps shows it as Rss, dirty, and FilePmdMapped where mapped by PMD;
 * /proc/PID/status as RssFile.
 *
 * With KVMATE_GMEM_NODE every allocation is from that node or fails; without it the task's memory
 * policy chooses. mbind(), which sets the policy of a mapping, does not matter. What is there may be
 * moved to another node by who asks for it (move_pages(), NUMA balancing).
 *
 * Errors: EINVAL (size, an unknown flag, a node that has no memory or no flag, a name without end,
 * reserved not zero), EFAULT, EMFILE, ENFILE, ENOMEM.
 *
 * The file is that of memfd_create() sealed with F_SEAL_GROW | F_SEAL_SHRINK:
 *
 *   mmap       MAP_SHARED; MAP_PRIVATE is EINVAL, PROT_EXEC EPERM. Mapped by PMD where the folio
 *              and the alignment allow. Reading or writing a hole allocates it; beyond the end, or
 *              where there is no memory (of the node, or below the cgroup's limit): SIGBUS. Nobody
 *              is killed for want of it
 *   madvise    MADV_REMOVE is a punch; MADV_COLLAPSE maps by PMD what is of 2 MiB, else EINVAL or
 *              EAGAIN: nothing merges a file's pages
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
 *   open       of /proc/PID/fd/N opens the same file again; O_TRUNC: EPERM; O_DIRECT: EINVAL
 *
 * A punched range reads zeros at once, for every process and every guest, through whatever mapping
 * was made before. All its whole 4 KiB pages go back to the system, and no byte outside it changes.
 * A larger folio over an edge of the range is split for that. While somebody else holds a page of
 * that folio (vmsplice, O_DIRECT, VFIO, ...), or there is no memory to split it with, it cannot be
 * split: then its part of the range is zeroed and the memory stays, which is no error and is counted
 * (gmem/INO/info in debugfs).
 */
#define KVMATE_GMEM_CREATE	_IOW(KVMATE_IOCTL_TYPE, 0x10, struct kvmate_gmem)

#endif /* _UAPI_KVMATE_H */
