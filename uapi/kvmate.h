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

#endif /* _UAPI_KVMATE_H */
