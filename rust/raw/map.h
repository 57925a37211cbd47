/* SPDX-License-Identifier: GPL-2.0 */
/* A VM's memory: memslots, stage-2 roots, and what of the host stands behind. No logic. */
#ifndef _KVMATE_MAP_H
#define _KVMATE_MAP_H

#include <linux/types.h>

struct kvm;
struct kvm_vcpu;
struct mm_struct;

/* A memslot. */
struct kvmate_slot {
	u64 gfn;
	u64 pages;
	u64 hva;
	u32 flags;
	u32 id;
	bool bitmap;
};

/* Those of an address space that end behind "gfn", the lowest first; how many, "max" at most. */
unsigned int kvmate_slots(struct kvm *kvm, unsigned int as, u64 gfn,
			  struct kvmate_slot *slots, unsigned int max);
/* What KVM counts against a large page of 2 MiB there: lpage_info of the slot with that frame. */
unsigned int kvmate_slot_disallow(struct kvm *kvm, unsigned int as, u64 gfn);

/* The root that a vCPU has of its own stage 2 or shadow tables, and its nested guest's. */
struct kvmate_roots {
	u64 own;
	u32 own_role;
	u64 nested;
	u32 nested_role;
};

/* A word of kvm_mmu_page_role, taken apart. */
struct kvmate_role {
	u8 level;
	u8 as;
	bool direct;
	bool guest_mode;
};

void kvmate_vcpu_roots(struct kvm_vcpu *vcpu, struct kvmate_roots *roots);
void kvmate_role(u32 word, struct kvmate_role *role);
bool kvmate_root_valid(u64 hpa);

/*
 * Take KVM's MMU lock for reading, with RCU, so that the tables under the vCPU's root stay; the
 * root, or INVALID_PAGE. kvmate_mmu_leave() gives both back, whatever the root was.
 */
u64 kvmate_mmu_enter(struct kvm *kvm, struct kvm_vcpu *vcpu, u32 *role);
void kvmate_mmu_leave(struct kvm *kvm);
/* The table at the address in an entry or a root; NULL if there is no memory of the kernel's. */
const u64 *kvmate_mmu_table(u64 entry);
u8 kvmate_physical_bits(void);
bool kvmate_ept(void);
/* Whether KVM maps no executable large pages in this VM, given that it does so in general. */
bool kvmate_nx_exempt(struct kvm *kvm);

/* What a host virtual address is mapped to. */
struct kvmate_vma {
	u64 start;
	u64 end;
	u64 offset;
	u64 inode;
	bool file;
	bool shared;
	bool readable;
	bool writable;
	char kind[32];
};

/* The VM's user space, kept until kvmate_mm_put(); NULL if it has gone. */
struct mm_struct *kvmate_vm_mmget(struct kvm *kvm);
void kvmate_mm_put(struct mm_struct *mm);
bool kvmate_mm_trylock(struct mm_struct *mm);
void kvmate_mm_unlock(struct mm_struct *mm);
/*
 * The mapping at that address or, if there is none, the next one; and the file's path, if there is
 * one and it fits, into "path". With kvmate_mm_trylock().
 */
bool kvmate_mm_vma(struct mm_struct *mm, unsigned long hva, struct kvmate_vma *vma,
		   char *path, int size);

/* A leaf of the host's page tables, and the folio it maps. */
struct kvmate_leaf {
	u8 level;
	bool writable;
	bool dirty;
	bool accessed;
	bool folio;
	u64 pfn;
	u64 flags;
	u64 cgroup;
	u32 order;
	s32 refcount;
	s32 expected;
	s32 mapcount;
	s32 node;
};

/* The level that an address is mapped at, 0 if it is not. With kvmate_mm_trylock(). */
u8 kvmate_mm_level(struct mm_struct *mm, unsigned long hva);
/* All that is known of that. With kvmate_mm_trylock(). */
void kvmate_mm_leaf(struct mm_struct *mm, unsigned long hva, struct kvmate_leaf *leaf);

#endif /* _KVMATE_MAP_H */
