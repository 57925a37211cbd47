/* SPDX-License-Identifier: GPL-2.0 */
/* What this build takes KVM's structures to look like; see layout.c. */
#ifndef _KVMATE_LAYOUT_H
#define _KVMATE_LAYOUT_H

#include <linux/types.h>

/* A member of a structure, or the whole of it if the member's name is empty. */
struct kvmate_layout {
	const char *of;
	const char *member;
	unsigned int offset;
	unsigned int size;
};

/* The structures of one module, and that module's build id; without length: not known. */
struct kvmate_layouts {
	const char *module;
	const struct kvmate_layout *layout;
	size_t count;
	const unsigned char *build_id;
	size_t build_id_length;
};

extern const struct kvmate_layouts kvmate_layouts_kvm;
extern const struct kvmate_layouts kvmate_layouts_kvm_amd;

#endif /* _KVMATE_LAYOUT_H */
