// SPDX-License-Identifier: GPL-2.0
/*
 * What of the host stands behind a guest's memory: mappings, page tables, folios. Inlines and
 * macros of the mm's public headers; nothing is faulted in, and no reference to a page is taken.
 */
#include <linux/file.h>
#include <linux/kvm_host.h>
#include <linux/memcontrol.h>
#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/sched/mm.h>
#include "map.h"

struct mm_struct *kvmate_vm_mmget(struct kvm *kvm)
{
	return mmget_not_zero(kvm->mm) ? kvm->mm : NULL;
}

void kvmate_mm_put(struct mm_struct *mm)
{
	mmput_async(mm);
}

bool kvmate_mm_trylock(struct mm_struct *mm)
{
	return mmap_read_trylock(mm);
}

void kvmate_mm_unlock(struct mm_struct *mm)
{
	mmap_read_unlock(mm);
}

bool kvmate_mm_vma(struct mm_struct *mm, unsigned long hva, struct kvmate_vma *out,
		   char *path, int size)
{
	struct vm_area_struct *vma = find_vma(mm, hva);
	struct file *file;

	if (!vma)
		return false;
	*out = (struct kvmate_vma){
		.start = vma->vm_start,
		.end = vma->vm_end,
		.shared = vma->vm_flags & VM_SHARED,
		.readable = vma->vm_flags & VM_READ,
		.writable = vma->vm_flags & VM_WRITE,
	};
	file = vma->vm_file;
	if (file) {
		const struct inode *inode = file_inode(file);

		out->file = true;
		out->offset = (u64)vma->vm_pgoff << PAGE_SHIFT;
		out->inode = inode->i_ino;
		strscpy(out->kind, inode->i_sb->s_type->name, sizeof(out->kind));
		if (size > 0) {
			const char *name = d_path(&file->f_path, path, size);

			if (IS_ERR(name))
				*path = '\0';
			else
				memmove(path, name, strlen(name) + 1);
		}
	} else if (size > 0) {
		*path = '\0';
	}
	return true;
}

static void of_folio(struct kvmate_leaf *leaf)
{
	struct page *page;
	struct folio *folio;

	if (!pfn_valid(leaf->pfn))
		return;
	page = pfn_to_page(leaf->pfn);
	folio = page_folio(page);
	/* Memory of a driver's, not of the mm. */
	if (page_has_type(&folio->page) && !folio_test_hugetlb(folio))
		return;
	leaf->folio = true;
	leaf->order = folio_order(folio);
	leaf->refcount = folio_ref_count(folio);
	leaf->expected = folio_expected_ref_count(folio);
	leaf->mapcount = folio_mapcount(folio);
	leaf->node = folio_nid(folio);
#ifdef CONFIG_PROC_PAGE_MONITOR
	leaf->flags = stable_page_flags(page);
#endif
#ifdef CONFIG_MEMCG
	leaf->cgroup = page_cgroup_ino(page);
#endif
}

/*
 * The leaf of an address, looked at with the page tables' own lock held: as long as that is, the
 * mapping keeps its folio. RCU keeps the tables, which may be retracted beside mmap_lock.
 */
static void look(struct mm_struct *mm, unsigned long hva, struct kvmate_leaf *leaf, bool folio)
{
	spinlock_t *lock; /* of the page table that has the leaf */
	pgd_t *pgdp;
	p4d_t *p4dp;
	pud_t *pudp, pud;
	pmd_t *pmdp, pmd;
	pte_t pte;

	pgdp = pgd_offset(mm, hva);
	if (!pgd_present(pgdp_get(pgdp)))
		return;
	p4dp = p4d_offset(pgdp, hva);
	if (!p4d_present(p4dp_get(p4dp)))
		return;
	pudp = pud_offset(p4dp, hva);
	pud = pudp_get(pudp);
	if (!pud_present(pud))
		return;
	if (pud_leaf(pud)) {
		lock = pud_lock(mm, pudp);
		pud = pudp_get(pudp);
		if (pud_present(pud) && pud_leaf(pud)) {
			leaf->level = PG_LEVEL_1G;
			leaf->writable = pud_write(pud);
			leaf->dirty = pud_dirty(pud);
			leaf->accessed = pud_young(pud);
			leaf->pfn = pud_pfn(pud) + ((hva & ~PUD_MASK) >> PAGE_SHIFT);
			if (folio && !pud_special(pud))
				of_folio(leaf);
		}
		spin_unlock(lock);
		return;
	}
	pmdp = pmd_offset(pudp, hva);
	pmd = pmdp_get_lockless(pmdp);
	if (!pmd_present(pmd))
		return;
	if (pmd_leaf(pmd)) {
		lock = pmd_lock(mm, pmdp);
		pmd = pmdp_get(pmdp);
		if (pmd_present(pmd) && pmd_leaf(pmd)) {
			leaf->level = PG_LEVEL_2M;
			leaf->writable = pmd_write(pmd);
			leaf->dirty = pmd_dirty(pmd);
			leaf->accessed = pmd_young(pmd);
			leaf->pfn = pmd_pfn(pmd) + ((hva & ~PMD_MASK) >> PAGE_SHIFT);
			/* The zero pages, and what a driver maps. */
			if (folio && !pmd_special(pmd))
				of_folio(leaf);
		}
		spin_unlock(lock);
		return;
	}
	if (pmd_bad(pmd))
		return;
	lock = pte_lockptr(mm, &pmd);
	spin_lock(lock);
	if (pmd_same(pmd, pmdp_get_lockless(pmdp))) {
		pte = ptep_get(pte_offset_kernel(&pmd, hva));
		if (pte_present(pte)) {
			leaf->level = PG_LEVEL_4K;
			leaf->writable = pte_write(pte);
			leaf->dirty = pte_dirty(pte);
			leaf->accessed = pte_young(pte);
			leaf->pfn = pte_pfn(pte);
			if (folio && !pte_special(pte))
				of_folio(leaf);
		}
	}
	spin_unlock(lock);
}

u8 kvmate_mm_level(struct mm_struct *mm, unsigned long hva)
{
	struct kvmate_leaf leaf = {};

	rcu_read_lock();
	look(mm, hva, &leaf, false);
	rcu_read_unlock();
	return leaf.level;
}

void kvmate_mm_leaf(struct mm_struct *mm, unsigned long hva, struct kvmate_leaf *leaf)
{
	*leaf = (struct kvmate_leaf){ .node = NUMA_NO_NODE };
	rcu_read_lock();
	look(mm, hva, leaf, true);
	rcu_read_unlock();
}
