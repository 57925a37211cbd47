// SPDX-License-Identifier: GPL-2.0
/*
 * KVM's routing of interrupts, which is in public headers, used as kvm_set_irq() uses it. Each
 * function wants a VM that cannot go away meanwhile. A GSI's entries are reached under
 * kvm->irq_srcu, and stay as they are until it is left.
 */
#include <linux/eventfd.h>
#include <linux/kvm_host.h>
#include <linux/kvm_irqfd.h>
#include <linux/nospec.h>
#include "shim.h"

static struct kvm_irq_routing_table *routing(struct kvm *kvm)
{
	return srcu_dereference(kvm->irq_routing, &kvm->irq_srcu);
}

/*
 * Set the level of a GSI for one source: with "pins" of one that is routed to pins, else of one
 * that is routed to an MSI, and then it may be called with interrupts off. What was answered is put
 * together as by kvm_set_irq(): below 0, ignored; 0, coalesced; above, delivered.
 *
 * -ENOENT: no route. -EWOULDBLOCK: to pins. -EOPNOTSUPP: to something else.
 */
int kvmate_irq_set(struct kvm *kvm, u32 gsi, int source, int level, bool pins, int *answer)
{
	struct kvm_kernel_irq_routing_entry *entry;
	struct kvm_irq_routing_table *table;
	int index, error = -ENOENT;

	*answer = -1;
	index = srcu_read_lock(&kvm->irq_srcu);
	table = routing(kvm);
	if (gsi >= table->nr_rt_entries)
		goto out;
	gsi = array_index_nospec(gsi, table->nr_rt_entries);
	hlist_for_each_entry(entry, &table->map[gsi], link) {
		int one;

		if (entry->type == KVM_IRQ_ROUTING_IRQCHIP && !pins) {
			error = -EWOULDBLOCK;
			break;
		}
		if (entry->type != (pins ? KVM_IRQ_ROUTING_IRQCHIP : KVM_IRQ_ROUTING_MSI)) {
			error = -EOPNOTSUPP;
			break;
		}
		error = 0;
		one = entry->set(entry, kvm, source, level, false);
		if (one >= 0)
			*answer = one + (*answer < 0 ? 0 : *answer);
	}
out:
	srcu_read_unlock(&kvm->irq_srcu, index);
	return error;
}

/* What a GSI is routed to, one of KVM_IRQ_ROUTING_*. -ENOENT: nothing. */
int kvmate_irq_type(struct kvm *kvm, u32 gsi)
{
	struct kvm_kernel_irq_routing_entry *entry;
	struct kvm_irq_routing_table *table;
	int index, type = -ENOENT;

	index = srcu_read_lock(&kvm->irq_srcu);
	table = routing(kvm);
	if (gsi >= table->nr_rt_entries)
		goto out;
	gsi = array_index_nospec(gsi, table->nr_rt_entries);
	hlist_for_each_entry(entry, &table->map[gsi], link)
		type = entry->type;
out:
	srcu_read_unlock(&kvm->irq_srcu, index);
	return type;
}

/* The entry of any GSI that is routed to an MSI. NULL: there is none. */
static struct kvm_kernel_irq_routing_entry *any_msi(struct kvm_irq_routing_table *table)
{
	struct kvm_kernel_irq_routing_entry *entry;
	u32 gsi;

	for (gsi = table->nr_rt_entries; gsi--; ) {
		hlist_for_each_entry(entry, &table->map[gsi], link) {
			if (entry->type == KVM_IRQ_ROUTING_MSI)
				return entry;
		}
	}
	return NULL;
}

/* Whether any MSI can be delivered. */
bool kvmate_irq_takes_msis(struct kvm *kvm)
{
	int index = srcu_read_lock(&kvm->irq_srcu);
	bool takes = any_msi(routing(kvm));

	srcu_read_unlock(&kvm->irq_srcu, index);
	return takes;
}

/*
 * Deliver any MSI, by the function of any GSI that is routed to one (the highest, as a table ends
 * with the highest GSI that has a route). Also with interrupts off.
 *
 * -ENXIO: there is none.
 */
int kvmate_irq_set_msi(struct kvm *kvm, u64 address, u32 data, int *answer)
{
	struct kvm_kernel_irq_routing_entry msi = {
		.type = KVM_IRQ_ROUTING_MSI,
		.msi.address_lo = lower_32_bits(address),
		.msi.address_hi = upper_32_bits(address),
		.msi.data = data,
	};
	struct kvm_kernel_irq_routing_entry *entry;
	int index, error = -ENXIO;

	*answer = -1;
	index = srcu_read_lock(&kvm->irq_srcu);
	entry = any_msi(routing(kvm));
	if (entry) {
		*answer = entry->set(&msi, kvm, KVM_USERSPACE_IRQ_SOURCE_ID, 1, false);
		error = 0;
	}
	srcu_read_unlock(&kvm->irq_srcu, index);
	return error;
}

/* The GSI that is routed to a chip's pin; -1: none. */
int kvmate_irq_gsi_of(struct kvm *kvm, unsigned int chip, unsigned int pin)
{
	int index, gsi;

	if (chip >= KVM_NR_IRQCHIPS || pin >= KVM_IRQCHIP_NUM_PINS)
		return -1;
	index = srcu_read_lock(&kvm->irq_srcu);
	gsi = routing(kvm)->chip[chip][pin];
	srcu_read_unlock(&kvm->irq_srcu, index);
	return gsi;
}

/* Whether PIC and IOAPIC are in the kernel. */
bool kvmate_irq_full_chips(struct kvm *kvm)
{
#ifdef CONFIG_KVM_IOAPIC
	return READ_ONCE(kvm->arch.irqchip_mode) == KVM_IRQCHIP_KERNEL;
#else
	return false;
#endif
}

/* Whether an MSI may be addressed to an APIC id of more than eight bits. */
bool kvmate_irq_long_ids(struct kvm *kvm)
{
	return kvm->arch.x2apic_format;
}

/* Every irqfd of KVM's own, with its lock held and interrupts off. */
void kvmate_irqfd_each(struct kvm *kvm,
		       void (*call)(void *data, u32 gsi, bool resample,
				    struct eventfd_ctx *eventfd),
		       void *data)
{
	struct kvm_kernel_irqfd *irqfd;

	spin_lock_irq(&kvm->irqfds.lock);
	list_for_each_entry(irqfd, &kvm->irqfds.items, list)
		call(data, irqfd->gsi, irqfd->resampler, irqfd->eventfd);
	spin_unlock_irq(&kvm->irqfds.lock);
}

/*
 * Signal the eventfd of an irqfd of KVM's own. Who takes it off the list waits for kvm->irq_srcu
 * before it lets go of the eventfd.
 *
 * -ENOTCONN: no irqfd has that GSI.
 */
int kvmate_irqfd_signal(struct kvm *kvm, u32 gsi)
{
	struct eventfd_ctx *eventfd = NULL;
	struct kvm_kernel_irqfd *irqfd;
	int index;

	index = srcu_read_lock(&kvm->irq_srcu);
	spin_lock_irq(&kvm->irqfds.lock);
	list_for_each_entry(irqfd, &kvm->irqfds.items, list) {
		if (irqfd->gsi == gsi) {
			eventfd = irqfd->eventfd;
			break;
		}
	}
	spin_unlock_irq(&kvm->irqfds.lock);
	if (eventfd)
		eventfd_signal(eventfd);
	srcu_read_unlock(&kvm->irq_srcu, index);
	return eventfd ? 0 : -ENOTCONN;
}

/* Where a GSI is routed to: up to KVM_NR_IRQCHIPS places. How many. */
unsigned int kvmate_irq_routes(struct kvm *kvm, u32 gsi, struct kvmate_route *routes)
{
	struct kvm_kernel_irq_routing_entry *entry;
	struct kvm_irq_routing_table *table;
	unsigned int count = 0;
	int index;

	index = srcu_read_lock(&kvm->irq_srcu);
	table = routing(kvm);
	if (gsi >= table->nr_rt_entries)
		goto out;
	gsi = array_index_nospec(gsi, table->nr_rt_entries);
	hlist_for_each_entry(entry, &table->map[gsi], link) {
		struct kvmate_route *route = &routes[count];

		if (count == KVM_NR_IRQCHIPS)
			break;
		route->type = entry->type;
		switch (entry->type) {
		case KVM_IRQ_ROUTING_IRQCHIP:
			route->chip = entry->irqchip.irqchip;
			route->pin = entry->irqchip.pin;
			break;
		case KVM_IRQ_ROUTING_MSI:
			route->address = (u64)entry->msi.address_hi << 32 | entry->msi.address_lo;
			route->data = entry->msi.data;
			break;
		}
		count++;
	}
out:
	srcu_read_unlock(&kvm->irq_srcu, index);
	return count;
}
