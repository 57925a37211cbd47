// SPDX-License-Identifier: GPL-2.0
/*
 * A VM's memslots and stage-2 roots, read: inlines and macros of KVM's public header. The VM must
 * not go away meanwhile (rust/wrap says how that is known); nothing here sleeps.
 */
#include <linux/kvm_host.h>
#include <linux/mm.h>
#include <linux/mmzone.h>
#include <asm/cpufeature.h>
#include "map.h"

static struct kvm_memslots *memslots(struct kvm *kvm, unsigned int as)
{
	if (as >= KVM_MAX_NR_ADDRESS_SPACES)
		return NULL;
	return srcu_dereference(kvm->memslots[as], &kvm->srcu);
}

unsigned int kvmate_slots(struct kvm *kvm, unsigned int as, u64 gfn,
			  struct kvmate_slot *slots, unsigned int max)
{
	struct kvm_memslot_iter iter;
	struct kvm_memslots *all;
	unsigned int n = 0;
	int idx;

	idx = srcu_read_lock(&kvm->srcu);
	all = memslots(kvm, as);
	if (all) {
		kvm_for_each_memslot_in_gfn_range(&iter, all, gfn, U64_MAX) {
			const struct kvm_memory_slot *slot = iter.slot;

			if (n == max)
				break;
			slots[n++] = (struct kvmate_slot){
				.gfn = slot->base_gfn,
				.pages = slot->npages,
				.hva = slot->userspace_addr,
				.flags = slot->flags,
				.id = (u16)slot->id,
				.bitmap = slot->dirty_bitmap,
			};
		}
	}
	srcu_read_unlock(&kvm->srcu, idx);
	return n;
}

unsigned int kvmate_slot_disallow(struct kvm *kvm, unsigned int as, u64 gfn)
{
	struct kvm_memslot_iter iter;
	struct kvm_memslots *all;
	unsigned int count = 0;
	int idx;

	idx = srcu_read_lock(&kvm->srcu);
	all = memslots(kvm, as);
	if (all) {
		kvm_for_each_memslot_in_gfn_range(&iter, all, gfn, gfn + 1) {
			const struct kvm_lpage_info *info = iter.slot->arch.lpage_info[0];
			const int shift = KVM_HPAGE_GFN_SHIFT(PG_LEVEL_2M);

			if (info)
				info += (gfn >> shift) - (iter.slot->base_gfn >> shift);
			if (info)
				count = READ_ONCE(info->disallow_lpage);
		}
	}
	srcu_read_unlock(&kvm->srcu, idx);
	return count;
}

void kvmate_vcpu_roots(struct kvm_vcpu *vcpu, struct kvmate_roots *roots)
{
	const struct kvm_mmu *own = &vcpu->arch.root_mmu;
	const struct kvm_mmu *nested = &vcpu->arch.guest_mmu;

	roots->own = READ_ONCE(own->root.hpa);
	roots->own_role = READ_ONCE(own->root_role.word);
	roots->nested = READ_ONCE(nested->root.hpa);
	roots->nested_role = READ_ONCE(nested->root_role.word);
}

void kvmate_role(u32 word, struct kvmate_role *role)
{
	union kvm_mmu_page_role r = { .word = word };

	role->level = r.level;
	role->as = r.smm;
	role->direct = r.direct;
	role->guest_mode = r.guest_mode;
}

bool kvmate_root_valid(u64 hpa)
{
	return VALID_PAGE(hpa);
}

/*
 * Tables that have been unlinked are freed after a grace period of RCU (TDP MMU), or under the lock
 * held for writing. A root is let go of under the lock held for reading, and taken out of the vCPU
 * only then: for a moment the lock is taken for writing, so that nobody is in between and the root
 * seen is still in use after RCU's read side has begun.
 */
u64 kvmate_mmu_enter(struct kvm *kvm, struct kvm_vcpu *vcpu, u32 *role)
	__acquires(RCU) __acquires(kvm->mmu_lock)
{
	const struct kvm_mmu *mmu = &vcpu->arch.root_mmu;
	u64 root;

	rcu_read_lock();
	write_lock(&kvm->mmu_lock);
	root = READ_ONCE(mmu->root.hpa);
	write_unlock(&kvm->mmu_lock);
	read_lock(&kvm->mmu_lock);
	*role = READ_ONCE(mmu->root_role.word);
	return READ_ONCE(mmu->root.hpa) == root ? root : INVALID_PAGE;
}

void kvmate_mmu_leave(struct kvm *kvm)
	__releases(kvm->mmu_lock) __releases(RCU)
{
	read_unlock(&kvm->mmu_lock);
	rcu_read_unlock();
}

const u64 *kvmate_mmu_table(u64 entry)
{
	/* Without the bits of memory encryption. */
	unsigned long pfn = (entry & PHYSICAL_PAGE_MASK) >> PAGE_SHIFT;

	return pfn_valid(pfn) ? __va(PFN_PHYS(pfn)) : NULL;
}

u8 kvmate_physical_bits(void)
{
	return boot_cpu_data.x86_phys_bits;
}

bool kvmate_ept(void)
{
	return boot_cpu_has(X86_FEATURE_VMX);
}

bool kvmate_nx_exempt(struct kvm *kvm)
{
	return READ_ONCE(kvm->arch.disable_nx_huge_pages);
}
