// SPDX-License-Identifier: GPL-2.0
/*
 * What this build takes KVM's structures to look like: one line for each member that kvmate uses
 * (in kvm.c, irq.c, map.c, host.c, the inlines they call, and rust/wrap/exit_source.rs).
 * Members come before the whole, so that a difference is told by the first member it moves.
 */
#include <linux/kernel.h>
#include <linux/kvm_host.h>
#include <linux/kvm_irqfd.h>
#include "build_ids.h"
#include "layout.h"

#define MEMBER(s, m) { #s, #m, offsetof(struct s, m), sizeof_field(struct s, m) }
#define WHOLE(s) { #s, "", 0, sizeof(struct s) }

static const struct kvmate_layout kvm[] = {
	MEMBER(kvm, mmu_lock),
	MEMBER(kvm, mm),
	MEMBER(kvm, memslots),
	MEMBER(kvm, vcpu_array),
	MEMBER(kvm, online_vcpus),
	MEMBER(kvm, irqfds.lock),
	MEMBER(kvm, irqfds.items),
	MEMBER(kvm, arch),
	MEMBER(kvm, arch.vm_type),
	MEMBER(kvm, arch.irqchip_mode),
	MEMBER(kvm, arch.x2apic_format),
	MEMBER(kvm, arch.apicv_inhibit_reasons),
	MEMBER(kvm, arch.disable_nx_huge_pages),
	MEMBER(kvm, irq_routing),
	MEMBER(kvm, debugfs_dentry),
	MEMBER(kvm, srcu),
	MEMBER(kvm, irq_srcu),
	MEMBER(kvm, vm_bugged),
	MEMBER(kvm, vm_dead),
	MEMBER(kvm, stats_id),
	WHOLE(kvm),
	MEMBER(kvm_vcpu, kvm),
	MEMBER(kvm_vcpu, preempt_notifier),
	MEMBER(kvm_vcpu, vcpu_id),
	MEMBER(kvm_vcpu, mode),
	MEMBER(kvm_vcpu, requests),
	MEMBER(kvm_vcpu, pid),
	MEMBER(kvm_vcpu, pid_lock),
	MEMBER(kvm_vcpu, wants_to_run),
	MEMBER(kvm_vcpu, arch),
	MEMBER(kvm_vcpu, arch.hflags),
	MEMBER(kvm_vcpu, arch.apic),
	MEMBER(kvm_vcpu, arch.root_mmu.root.hpa),
	MEMBER(kvm_vcpu, arch.root_mmu.root_role),
	MEMBER(kvm_vcpu, arch.guest_mmu.root.hpa),
	MEMBER(kvm_vcpu, arch.guest_mmu.root_role),
	MEMBER(kvm_vcpu, arch.regs),
	MEMBER(kvm_vcpu, arch.rip),
	MEMBER(kvm_vcpu, arch.mp_state),
	MEMBER(kvm_vcpu, arch.exception.pending),
	MEMBER(kvm_vcpu, arch.exception.injected),
	MEMBER(kvm_vcpu, arch.exception.vector),
	MEMBER(kvm_vcpu, arch.interrupt.injected),
	MEMBER(kvm_vcpu, arch.interrupt.nr),
	MEMBER(kvm_vcpu, arch.nmi_queued),
	MEMBER(kvm_vcpu, arch.nmi_pending),
	MEMBER(kvm_vcpu, arch.nmi_injected),
	MEMBER(kvm_vcpu, arch.smi_pending),
	MEMBER(kvm_vcpu, arch.pv.pv_unhalted),
	MEMBER(kvm_vcpu, arch.guest_state_protected),
	MEMBER(kvm_vcpu, stat),
	MEMBER(kvm_vcpu, stat.generic.blocking),
	WHOLE(kvm_vcpu),
	MEMBER(kvm_irq_routing_table, chip),
	MEMBER(kvm_irq_routing_table, nr_rt_entries),
	WHOLE(kvm_irq_routing_table),
	MEMBER(kvm_kernel_irq_routing_entry, gsi),
	MEMBER(kvm_kernel_irq_routing_entry, type),
	MEMBER(kvm_kernel_irq_routing_entry, set),
	MEMBER(kvm_kernel_irq_routing_entry, irqchip.irqchip),
	MEMBER(kvm_kernel_irq_routing_entry, irqchip.pin),
	MEMBER(kvm_kernel_irq_routing_entry, msi.address_lo),
	MEMBER(kvm_kernel_irq_routing_entry, msi.address_hi),
	MEMBER(kvm_kernel_irq_routing_entry, msi.data),
	MEMBER(kvm_kernel_irq_routing_entry, msi.flags),
	MEMBER(kvm_kernel_irq_routing_entry, msi.devid),
	MEMBER(kvm_kernel_irq_routing_entry, link),
	WHOLE(kvm_kernel_irq_routing_entry),
	MEMBER(kvm_kernel_irqfd, gsi),
	MEMBER(kvm_kernel_irqfd, resampler),
	MEMBER(kvm_kernel_irqfd, eventfd),
	MEMBER(kvm_kernel_irqfd, list),
	MEMBER(kvm_memslots, gfn_tree),
	MEMBER(kvm_memslots, node_idx),
	WHOLE(kvm_memslots),
	MEMBER(kvm_memory_slot, gfn_node),
	MEMBER(kvm_memory_slot, base_gfn),
	MEMBER(kvm_memory_slot, npages),
	MEMBER(kvm_memory_slot, dirty_bitmap),
	MEMBER(kvm_memory_slot, arch.lpage_info),
	MEMBER(kvm_memory_slot, userspace_addr),
	MEMBER(kvm_memory_slot, flags),
	MEMBER(kvm_memory_slot, id),
	MEMBER(kvm_memory_slot, as_id),
	WHOLE(kvm_memory_slot),
	MEMBER(kvm_lpage_info, disallow_lpage),
	WHOLE(kvm_lpage_info),
};

/* Its header is private to KVM. What is used of it is where it begins, so it is said here. */
static const struct kvmate_layout kvm_amd[] = {
	{ "vcpu_svm", "vcpu", 0, sizeof(struct kvm_vcpu) },
	{ "vcpu_svm", "vmcb", sizeof(struct kvm_vcpu), sizeof(void *) },
};

/* Empty where the tree had none. */
static const unsigned char kvm_id[] = { KVMATE_BUILD_ID_KVM };
static const unsigned char kvm_amd_id[] = { KVMATE_BUILD_ID_KVM_AMD };

const struct kvmate_layouts kvmate_layouts_kvm = {
	"kvm", kvm, ARRAY_SIZE(kvm), kvm_id, sizeof(kvm_id)
};

const struct kvmate_layouts kvmate_layouts_kvm_amd = {
	"kvm_amd", kvm_amd, ARRAY_SIZE(kvm_amd), kvm_amd_id, sizeof(kvm_amd_id)
};
