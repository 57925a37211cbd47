// SPDX-License-Identifier: GPL-2.0
/*
 * The page cache's own business, which is macros and inlines: one folio for many. As
 * collapse_file() in mm/khugepaged.c does it, with the accounting of mm/filemap.c.
 */
#include <linux/cpu.h>
#include <linux/folio_batch.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/vmstat.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>
#include "gmem.h"

/* With the caller's reference, and none of anybody else's but the cache's. */
static int references_alone(struct folio *folio)
{
	return folio_nr_pages(folio) + 1;
}

static unsigned int freeze(struct folio **old, unsigned int count)
{
	unsigned int i;

	for (i = 0; i < count; i++)
		if (!folio_ref_freeze(old[i], references_alone(old[i])))
			break;
	return i;
}

static void thaw(struct folio **old, unsigned int count)
{
	while (count--)
		folio_ref_unfreeze(old[count], references_alone(old[count]));
}

/* Tells how many pages they had. */
static unsigned long take_out(struct folio **old, unsigned int count)
{
	unsigned long all = 0;
	unsigned int i;

	for (i = 0; i < count; i++) {
		long pages = folio_nr_pages(old[i]);

		lruvec_stat_mod_folio(old[i], NR_FILE_PAGES, -pages);
		if (folio_test_pmd_mappable(old[i]))
			lruvec_stat_mod_folio(old[i], NR_FILE_THPS, -pages);
		all += pages;
		old[i]->mapping = NULL;
		folio_ref_unfreeze(old[i], 1);
	}
	return all;
}

/* It has been put elsewhere, with the references that it had here. */
static void forget(struct address_space *mapping, struct folio *folio)
{
	XA_STATE_ORDER(xas, &mapping->i_pages, folio->index, folio_order(folio));

	xas_lock_irq(&xas);
	xas_store(&xas, NULL);
	mapping->nrpages -= folio_nr_pages(folio);
	xas_unlock_irq(&xas);
}

int kvmate_mapping_replace(struct address_space *mapping, struct address_space *from,
			   struct folio *new, struct folio **old, unsigned int count,
			   unsigned int *busy)
{
	XA_STATE_ORDER(xas, &mapping->i_pages, new->index, folio_order(new));
	unsigned long pages;
	unsigned int frozen;
	int ret;

	do {
		ret = -EAGAIN;
		xas_lock_irq(&xas);
		frozen = freeze(old, count);
		if (frozen == count) {
			new->mapping = mapping;
			/* No shadows are here that workingset_update_node() had to know. */
			xas_store(&xas, new);
			ret = xas_error(&xas);
		}
		if (ret) {
			new->mapping = from;
			thaw(old, frozen);
		} else {
			/* fstat() reads without the lock: the old ones or the new, never fewer. */
			pages = mapping->nrpages + folio_nr_pages(new) - take_out(old, count);
			WRITE_ONCE(mapping->nrpages, pages);
		}
		xas_unlock_irq(&xas);
		/* Nobody is killed for it: the inode's nodes are charged. */
	} while (xas_nomem(&xas, GFP_KERNEL | __GFP_RETRY_MAYFAIL | __GFP_NOWARN));
	if (ret)
		*busy = frozen;
	else
		forget(from, new);
	return ret;
}

static long drain(void *unused)
{
	struct folio_batch batch;

	folio_batch_init(&batch);
	/* lru_add_drain() by an exported name. */
	__folio_batch_release(&batch);
	return 0;
}

void kvmate_lru_drain(bool everywhere)
{
	int cpu;

	if (!everywhere) {
		drain(NULL);
		return;
	}
	for_each_possible_cpu(cpu) {
		cpus_read_lock();
		if (cpu_online(cpu))
			work_on_cpu(cpu, drain, NULL);
		cpus_read_unlock();
	}
}
