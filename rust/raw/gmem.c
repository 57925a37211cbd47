// SPDX-License-Identifier: GPL-2.0
/* mm's and the VFS' inlines and macros, for a file that lives in the page cache. No logic. */
#include <linux/highmem.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/nodemask.h>
#include <linux/pagemap.h>
#include <linux/pseudo_fs.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>
#include <linux/uio.h>
#include "gmem.h"

#define KVMATE_GMEM_MAGIC	0x6b766d67	/* "kvmg" */

int kvmate_init_pseudo(struct fs_context *fc, const struct super_operations *ops)
{
	struct pseudo_fs_context *ctx = init_pseudo(fc, KVMATE_GMEM_MAGIC);

	if (!ctx)
		return -ENOMEM;
	ctx->ops = ops;
	return 0;
}

bool kvmate_fops_get(const struct file_operations *fops)
{
	return fops_get(fops);
}

void kvmate_inode_lock(struct inode *inode)
{
	inode_lock(inode);
}

void kvmate_inode_unlock(struct inode *inode)
{
	inode_unlock(inode);
}

bool kvmate_node_has_memory(int node)
{
	return node >= 0 && node < MAX_NUMNODES && node_state(node, N_MEMORY);
}

void kvmate_mapping_init(struct address_space *mapping)
{
	mapping_set_gfp_mask(mapping, GFP_HIGHUSER_MOVABLE);
	mapping_set_large_folios(mapping);
	mapping_set_unevictable(mapping);
}

void kvmate_invalidate_lock(struct address_space *mapping)
{
	filemap_invalidate_lock(mapping);
}

void kvmate_invalidate_unlock(struct address_space *mapping)
{
	filemap_invalidate_unlock(mapping);
}

void kvmate_invalidate_lock_shared(struct address_space *mapping)
{
	filemap_invalidate_lock_shared(mapping);
}

void kvmate_invalidate_unlock_shared(struct address_space *mapping)
{
	filemap_invalidate_unlock_shared(mapping);
}

int kvmate_mapping_deny_writable(struct address_space *mapping)
{
	return mapping_deny_writable(mapping);
}

void kvmate_mapping_allow_writable(struct address_space *mapping)
{
	mapping_allow_writable(mapping);
}

bool kvmate_area_may_share(const struct vm_area_desc *area)
{
	return vma_desc_test(area, VMA_MAYSHARE_BIT);
}

bool kvmate_area_read_only(struct vm_area_desc *area)
{
	if (vma_desc_test(area, VMA_WRITE_BIT))
		return false;
	vma_desc_clear_flags(area, VMA_MAYWRITE_BIT);
	return true;
}

void kvmate_mapping_inaccessible(struct address_space *mapping, bool inaccessible)
{
	assign_bit(AS_INACCESSIBLE, &mapping->flags, inaccessible);
}

bool kvmate_mapping_next(struct address_space *mapping, unsigned long index, unsigned long last,
			 unsigned long *begins, unsigned int *order)
{
	XA_STATE(xas, &mapping->i_pages, index);
	void *entry;

	rcu_read_lock();
	do {
		entry = xas_find(&xas, last);
	} while (xas_retry(&xas, entry));
	if (entry) {
		*order = xas_get_order(&xas);
		*begins = round_down(xas.xa_index, 1UL << *order);
	}
	rcu_read_unlock();
	return entry;
}

void kvmate_mapping_min_order(struct address_space *mapping, unsigned int order)
{
	const unsigned long mask = AS_FOLIO_ORDER_MIN_MASK;
	unsigned long old = READ_ONCE(mapping->flags);

	/* Others set bits beside it without a lock (mapping_set_error()). */
	while (!try_cmpxchg(&mapping->flags, &old,
			    (old & ~mask) | ((unsigned long)order << AS_FOLIO_ORDER_MIN)))
		;
}

void kvmate_folio_look(struct folio *folio, struct kvmate_folio_state *state)
{
	unsigned int tries = 8;

	state->index = folio->index;
	state->order = folio_order(folio);
	/* Expected are "mappings" and more, which others change: not a long loop. */
	do {
		state->mappings = folio_mapcount(folio);
		state->references = folio_ref_count(folio) - 1;
		state->expected = folio_expected_ref_count(folio);
	} while (folio_mapcount(folio) != state->mappings && tries--);
	state->pinned = folio_maybe_dma_pinned(folio);
	state->poisoned = folio_contain_hwpoisoned_page(folio);
	state->locked = folio_test_locked(folio);
	state->dirty = folio_test_dirty(folio);
}

bool kvmate_mapping_look(struct address_space *mapping, unsigned long index, unsigned long last,
			 struct kvmate_folio_state *state)
{
	XA_STATE(xas, &mapping->i_pages, index);
	struct folio *folio;

	rcu_read_lock();
	do {
		xas_set(&xas, index);
		folio = xas_find(&xas, last);
		if (!folio || xas_retry(&xas, folio))
			continue;
		/* As the page cache's own look-up does: the entry may be gone, or another's. */
		if (folio_try_get(folio)) {
			if (folio == xas_reload(&xas))
				break;
			folio_put(folio);
		}
	} while (folio);
	rcu_read_unlock();
	if (!folio)
		return false;
	kvmate_folio_look(folio, state);
	folio_put(folio);
	return true;
}

struct folio *kvmate_mapping_lock_folio(struct address_space *mapping, unsigned long index)
{
	struct folio *folio = filemap_lock_folio(mapping, index);

	return IS_ERR(folio) ? NULL : folio;
}

struct folio *kvmate_folio_alloc(gfp_t gfp, unsigned int order, int node, bool only)
{
	if (node == NUMA_NO_NODE)
		return filemap_alloc_folio(gfp, order, NULL);
	return __folio_alloc(only ? gfp | __GFP_THISNODE : gfp, order, node, NULL);
}

int kvmate_folio_node(struct folio *folio)
{
	return folio_nid(folio);
}

void kvmate_folio_put(struct folio *folio)
{
	folio_put(folio);
}

int kvmate_folio_copy_page(struct folio *to, unsigned long to_page, struct folio *from,
			   unsigned long from_page)
{
	if (copy_mc_highpage(folio_page(to, to_page), folio_page(from, from_page)))
		return -EHWPOISON;
	return 0;
}

int kvmate_folio_references(struct folio *folio)
{
	return folio_ref_count(folio);
}

int kvmate_folio_expected_references(struct folio *folio)
{
	return folio_expected_ref_count(folio);
}

unsigned long kvmate_folio_index(struct folio *folio)
{
	return folio->index;
}

unsigned int kvmate_folio_order(struct folio *folio)
{
	return folio_order(folio);
}

struct page *kvmate_folio_page(struct folio *folio, unsigned long number)
{
	return folio_page(folio, number);
}

bool kvmate_folio_has_failed(struct folio *folio)
{
	return folio_contain_hwpoisoned_page(folio);
}

bool kvmate_folio_page_has_failed(struct folio *folio, unsigned long number)
{
	return PageHWPoison(folio_page(folio, number));
}

void kvmate_folio_zero(struct folio *folio, size_t start, size_t length)
{
	folio_zero_range(folio, start, length);
}

void kvmate_folio_clear(struct folio *folio, unsigned long page, unsigned int pages)
{
	clear_pages(page_address(folio_page(folio, page)), pages);
}

void kvmate_folio_mark_uptodate(struct folio *folio)
{
	folio_mark_uptodate(folio);
}

bool kvmate_folio_needs_zeroing(void)
{
	return user_alloc_needs_zeroing();
}

size_t kvmate_iov_iter_count(const struct iov_iter *iter)
{
	return iov_iter_count(iter);
}

size_t kvmate_copy_folio_to_iter(struct folio *folio, size_t offset, size_t bytes,
				 struct iov_iter *iter)
{
	return copy_folio_to_iter(folio, offset, bytes, iter);
}

void kvmate_pagefault_disable(void)
{
	pagefault_disable();
}

void kvmate_pagefault_enable(void)
{
	pagefault_enable();
}

bool kvmate_fatal_signal_pending(void)
{
	return fatal_signal_pending(current);
}

struct mem_cgroup *kvmate_memcg_of(struct mm_struct *mm)
{
	return get_mem_cgroup_from_mm(mm);
}

struct mem_cgroup *kvmate_memcg_of_folio(struct folio *folio)
{
	struct mem_cgroup *memcg;

	rcu_read_lock();
	memcg = folio_memcg(folio);
#ifdef CONFIG_MEMCG
	if (memcg && !css_tryget(&memcg->css))
		memcg = NULL;
#endif
	rcu_read_unlock();
	return memcg;
}

struct mem_cgroup *kvmate_charge_to(struct mem_cgroup *memcg)
{
	return set_active_memcg(memcg);
}

void kvmate_memcg_put(struct mem_cgroup *memcg)
{
	mem_cgroup_put(memcg);
}
