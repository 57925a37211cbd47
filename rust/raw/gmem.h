/* SPDX-License-Identifier: GPL-2.0 */
/* mm's and the VFS' inlines and macros, for a file that lives in the page cache. No logic. */
#ifndef _KVMATE_GMEM_H
#define _KVMATE_GMEM_H

#include <linux/fs.h>
#include <linux/types.h>

struct folio;
struct mem_cgroup;
struct mm_struct;
struct vm_area_desc;

int kvmate_init_pseudo(struct fs_context *fc, const struct super_operations *ops);
bool kvmate_fops_get(const struct file_operations *fops);
void kvmate_inode_lock(struct inode *inode);
void kvmate_inode_unlock(struct inode *inode);
bool kvmate_node_has_memory(int node);

void kvmate_mapping_init(struct address_space *mapping);
void kvmate_invalidate_lock(struct address_space *mapping);
void kvmate_invalidate_unlock(struct address_space *mapping);
void kvmate_invalidate_lock_shared(struct address_space *mapping);
void kvmate_invalidate_unlock_shared(struct address_space *mapping);
int kvmate_mapping_deny_writable(struct address_space *mapping);
void kvmate_mapping_allow_writable(struct address_space *mapping);
/* Of an area that is to be: whether it is a shared one, of a file open for writing or not. */
bool kvmate_area_may_share(const struct vm_area_desc *area);
/* Have it never be writable. False if it is to be at once. */
bool kvmate_area_read_only(struct vm_area_desc *area);
void kvmate_mapping_inaccessible(struct address_space *mapping, bool inaccessible);

/* What stands at "index" or behind it, up to "last": where it begins, its order. A hint. */
bool kvmate_mapping_next(struct address_space *mapping, unsigned long index, unsigned long last,
			 unsigned long *begins, unsigned int *order);
/* Of the moment: a folio that is looked at, not held. "references" without the look's own. */
struct kvmate_folio_state {
	unsigned long index;
	unsigned int order;
	unsigned int references;
	unsigned int expected;
	unsigned int mappings;
	/* Each 0 or 1; a bool would take Copy from bindgen's type. */
	unsigned char pinned;
	unsigned char poisoned;
	unsigned char locked;
	unsigned char dirty;
};

/* The folio at "index" or the next one up to "last". */
bool kvmate_mapping_look(struct address_space *mapping, unsigned long index, unsigned long last,
			 struct kvmate_folio_state *state);
/* The smallest order that a split may leave. */
void kvmate_mapping_min_order(struct address_space *mapping, unsigned int order);
/* Locked and with a reference, or NULL. */
struct folio *kvmate_mapping_lock_folio(struct address_space *mapping, unsigned long index);

/* Of no node (NUMA_NO_NODE): as the task's policy says. "only": of no other. */
struct folio *kvmate_folio_alloc(gfp_t gfp, unsigned int order, int node, bool only);
int kvmate_folio_node(struct folio *folio);
void kvmate_folio_put(struct folio *folio);
/* The caller's reference is not told. */
void kvmate_folio_look(struct folio *folio, struct kvmate_folio_state *state);
/* -EHWPOISON if the source cannot be read. */
int kvmate_folio_copy_page(struct folio *to, unsigned long to_page, struct folio *from,
			   unsigned long from_page);
int kvmate_folio_references(struct folio *folio);
/* Without the caller's. */
int kvmate_folio_expected_references(struct folio *folio);
unsigned long kvmate_folio_index(struct folio *folio);
unsigned int kvmate_folio_order(struct folio *folio);
struct page *kvmate_folio_page(struct folio *folio, unsigned long number);
/* Whether a page of it has failed, and whether that one has. */
bool kvmate_folio_has_failed(struct folio *folio);
bool kvmate_folio_page_has_failed(struct folio *folio, unsigned long number);
void kvmate_folio_zero(struct folio *folio, size_t start, size_t length);
void kvmate_folio_clear(struct folio *folio, unsigned long page, unsigned int pages);
void kvmate_folio_mark_uptodate(struct folio *folio);
bool kvmate_folio_needs_zeroing(void);

size_t kvmate_iov_iter_count(const struct iov_iter *iter);
size_t kvmate_copy_folio_to_iter(struct folio *folio, size_t offset, size_t bytes,
				 struct iov_iter *iter);
void kvmate_pagefault_disable(void);
void kvmate_pagefault_enable(void);

bool kvmate_fatal_signal_pending(void);

/* That of a task with this mm, with a reference; what is charged to nobody in particular goes to */
/* "memcg" from then on (NULL: as ever), which tells where it went before. */
struct mem_cgroup *kvmate_memcg_of(struct mm_struct *mm);
/* That which paid for the folio, which is locked, with a reference; or NULL. */
struct mem_cgroup *kvmate_memcg_of_folio(struct folio *folio);
struct mem_cgroup *kvmate_charge_to(struct mem_cgroup *memcg);
void kvmate_memcg_put(struct mem_cgroup *memcg);

/*
 * "new", which stands at the same index in the mapping "from", takes the place of "old", the folios
 * that stand in its range, in one step. All are locked, the old ones unmapped; the caller has one
 * reference to each, keeps those, and has to keep others from adding to the range. -EAGAIN: "busy"
 * of the old ones has more references. -ENOMEM. Either way nothing has changed.
 */
int kvmate_mapping_replace(struct address_space *mapping, struct address_space *from,
			   struct folio *new, struct folio **old, unsigned int count,
			   unsigned int *busy);
/*
 * Have this processor, or all, sort in the folios that they keep in lists of theirs, with a
 * reference. Waits for them.
 */
void kvmate_lru_drain(bool everywhere);

#endif /* _KVMATE_GMEM_H */
