/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What bindgen reads for the raw layer: public headers only. Which names it takes from them is
 * said in bindgen_parameters; what the kernel crate's own bindings have is taken from there.
 */
#include <linux/anon_inodes.h>
#include <linux/kvm_host.h>
#include <linux/falloc.h>
#include <asm/svm.h>
#include <asm/vmx.h>
#include <kvmate.h>
#include "gmem.h"
#include "layout.h"
#include "map.h"
#include "shim.h"
#include "trace.h"

/* Macros that bindgen cannot evaluate by itself. */
const unsigned int KVMATE_CONST_KVMATE_GET_INFO = KVMATE_GET_INFO;
const unsigned int KVMATE_CONST_KVMATE_GET_VM_STATS = KVMATE_GET_VM_STATS;
const unsigned int KVMATE_CONST_KVMATE_LOOKUP = KVMATE_LOOKUP;
const unsigned int KVMATE_CONST_KVMATE_GMEM_CREATE = KVMATE_GMEM_CREATE;
const unsigned int KVMATE_CONST_KVMATE_GMEM_QUERY = KVMATE_GMEM_QUERY;
const unsigned int KVMATE_CONST_KVMATE_GMEM_SPLIT = KVMATE_GMEM_SPLIT;
const unsigned int KVMATE_CONST_KVMATE_GMEM_MERGE = KVMATE_GMEM_MERGE;
const unsigned int KVMATE_CONST_KVMATE_GMEM_SEALS = KVMATE_GMEM_SEALS;
const unsigned int KVMATE_CONST_KVMATE_BIND_IRQFD = KVMATE_BIND_IRQFD;

/* Where GSIs are routed to. */
const unsigned int KVMATE_CONST_ROUTE_CHIP = KVM_IRQ_ROUTING_IRQCHIP;
const unsigned int KVMATE_CONST_ROUTE_MSI = KVM_IRQ_ROUTING_MSI;
const unsigned int KVMATE_CONST_CHIP_IOAPIC = KVM_IRQCHIP_IOAPIC;
const unsigned long KVMATE_CONST_ROUTES = KVM_NR_IRQCHIPS;

/*
 * For a file's pages: one that is looked for hard, and a large folio that one can do without.
 * Neither has anybody killed for it.
 */
const unsigned int KVMATE_CONST_GFP_PAGE =
	(__force unsigned int)(GFP_HIGHUSER_MOVABLE | __GFP_RETRY_MAYFAIL | __GFP_NOWARN);
const unsigned int KVMATE_CONST_GFP_LARGE =
	(__force unsigned int)(GFP_HIGHUSER_MOVABLE | __GFP_NORETRY | __GFP_NOWARN);
const unsigned int KVMATE_CONST_PMD_ORDER = HPAGE_PMD_ORDER;
const unsigned int KVMATE_CONST_FMODE_READABLE =
	(__force unsigned int)(FMODE_LSEEK | FMODE_PREAD);
const unsigned int KVMATE_CONST_FMODE_SEEKABLE =
	(__force unsigned int)(FMODE_LSEEK | FMODE_PREAD | FMODE_PWRITE);
const unsigned int KVMATE_CONST_FMODE_WRITE = (__force unsigned int)FMODE_WRITE;
const unsigned int KVMATE_CONST_FALLOCATE_KEEP = FALLOC_FL_KEEP_SIZE;
const unsigned int KVMATE_CONST_FALLOCATE_PUNCH = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;
const unsigned int KVMATE_CONST_SB_KERNMOUNT = SB_KERNMOUNT;

/*
 * Where the hot path reads. struct vcpu_svm, which is private, begins with the vCPU and a pointer
 * to the VMCB; that is taken as true only where it is proven (rust/wrap/exit_source.rs).
 */
#define SAVE(member) \
	(offsetof(struct vmcb, save) + offsetof(struct vmcb_save_area, member))
const unsigned long KVMATE_CONST_SVM_VMCB = sizeof(struct kvm_vcpu);
const unsigned long KVMATE_CONST_VMCB_EXIT_CODE = offsetof(struct vmcb, control) +
	offsetof(struct vmcb_control_area, exit_code);
const unsigned long KVMATE_CONST_VMCB_EXIT_INFO = offsetof(struct vmcb, control) +
	offsetof(struct vmcb_control_area, exit_info_1);
const unsigned long KVMATE_CONST_VMCB_RIP = SAVE(rip);
const unsigned long KVMATE_CONST_VMCB_RSP = SAVE(rsp);
const unsigned long KVMATE_CONST_VMCB_RAX = SAVE(rax);
const unsigned long KVMATE_CONST_VCPU_RIP = offsetof(struct kvm_vcpu, arch.rip);
const unsigned long KVMATE_CONST_VCPU_RSP = offsetof(struct kvm_vcpu, arch.regs) +
	VCPU_REGS_RSP * sizeof(unsigned long);
const unsigned long KVMATE_CONST_VCPU_RAX = offsetof(struct kvm_vcpu, arch.regs) +
	VCPU_REGS_RAX * sizeof(unsigned long);
const unsigned long KVMATE_CONST_VMCS_EXIT_REASON = VM_EXIT_REASON;
const unsigned long KVMATE_CONST_VMCS_EXIT_QUALIFICATION = EXIT_QUALIFICATION;
const unsigned long KVMATE_CONST_VMCS_GUEST_RIP = GUEST_RIP;
/* Flags of memslots. */
const unsigned int KVMATE_CONST_KVMATE_SLOT_DIRTY_LOG = KVM_MEM_LOG_DIRTY_PAGES;
const unsigned int KVMATE_CONST_KVMATE_SLOT_READ_ONLY = KVM_MEM_READONLY;
const unsigned int KVMATE_CONST_KVMATE_SLOT_GUEST_MEMFD = KVM_MEM_GUEST_MEMFD;
/* The tracepoint's "isa" argument. */
const unsigned int KVMATE_CONST_ISA_VMX = 1;
const unsigned int KVMATE_CONST_ISA_SVM = 2;
