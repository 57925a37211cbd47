// SPDX-License-Identifier: GPL-2.0
/*
 * For tests only: holds a reference to a folio, or its lock, as anybody in the kernel may.
 *
 * /sys/kernel/debug/kvmate_hold/reference takes an address (8 bytes, of the writer's memory) and
 * holds the folio there until the descriptor is closed, up to 64 a descriptor. .../lock takes an
 * address and a number of microseconds (8 bytes each), and holds the folio's lock so long, asleep.
 * .../locked takes an address, and holds the folio's lock until the descriptor is closed.
 */
#include <linux/debugfs.h>
#include <linux/delay.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/slab.h>

struct held {
	/* For the two below: threads may write through one descriptor. */
	struct mutex lock;
	unsigned int count;
	struct folio *folios[64];
};

/* The folio at an address of the current task, with a reference. It is touched, but not changed. */
static struct folio *folio_at(unsigned long address)
{
	struct page *page;
	int got = get_user_pages_fast(address, 1, 0, &page);

	if (got != 1)
		return ERR_PTR(got < 0 ? got : -EFAULT);
	return page_folio(page);
}

static int reference_open(struct inode *inode, struct file *file)
{
	struct held *held = kzalloc(sizeof(*held), GFP_KERNEL);

	if (!held)
		return -ENOMEM;
	mutex_init(&held->lock);
	file->private_data = held;
	return 0;
}

static int reference_release(struct inode *inode, struct file *file)
{
	struct held *held = file->private_data;

	while (held->count)
		folio_put(held->folios[--held->count]);
	mutex_destroy(&held->lock);
	kfree(held);
	return 0;
}

static ssize_t reference_write(struct file *file, const char __user *buffer, size_t count,
			       loff_t *position)
{
	struct held *held = file->private_data;
	struct folio *folio;
	u64 address;

	if (count != sizeof(address))
		return -EINVAL;
	if (copy_from_user(&address, buffer, sizeof(address)))
		return -EFAULT;
	folio = folio_at(address);
	if (IS_ERR(folio))
		return PTR_ERR(folio);
	mutex_lock(&held->lock);
	if (held->count < ARRAY_SIZE(held->folios)) {
		held->folios[held->count++] = folio;
	} else {
		folio_put(folio);
		count = -ENOSPC;
	}
	mutex_unlock(&held->lock);
	return count;
}

static const struct file_operations reference = {
	.owner = THIS_MODULE,
	.open = reference_open,
	.release = reference_release,
	.write = reference_write,
};

static ssize_t lock_write(struct file *file, const char __user *buffer, size_t count,
			  loff_t *position)
{
	struct {
		u64 address;
		u64 us;
	} wish;
	struct folio *folio;

	if (count != sizeof(wish))
		return -EINVAL;
	if (copy_from_user(&wish, buffer, sizeof(wish)))
		return -EFAULT;
	if (wish.us > 1000000)
		return -EINVAL;
	folio = folio_at(wish.address);
	if (IS_ERR(folio))
		return PTR_ERR(folio);
	folio_lock(folio);
	fsleep(wish.us);
	folio_unlock(folio);
	folio_put(folio);
	return count;
}

static const struct file_operations lock = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = lock_write,
};

static ssize_t locked_write(struct file *file, const char __user *buffer, size_t count,
			    loff_t *position)
{
	struct folio *folio;
	u64 address;

	if (count != sizeof(address))
		return -EINVAL;
	if (copy_from_user(&address, buffer, sizeof(address)))
		return -EFAULT;
	folio = folio_at(address);
	if (IS_ERR(folio))
		return PTR_ERR(folio);
	if (folio_lock_killable(folio)) {
		folio_put(folio);
		return -EINTR;
	}
	/* One a descriptor: closing it gives up this one. */
	if (cmpxchg(&file->private_data, NULL, folio)) {
		folio_unlock(folio);
		folio_put(folio);
		return -EBUSY;
	}
	return count;
}

static int locked_release(struct inode *inode, struct file *file)
{
	struct folio *folio = file->private_data;

	if (folio) {
		folio_unlock(folio);
		folio_put(folio);
	}
	return 0;
}

static int locked_open(struct inode *inode, struct file *file)
{
	file->private_data = NULL;
	return 0;
}

static const struct file_operations locked = {
	.owner = THIS_MODULE,
	.open = locked_open,
	.release = locked_release,
	.write = locked_write,
};

static struct dentry *folder;

static int __init hold_init(void)
{
	folder = debugfs_create_dir("kvmate_hold", NULL);
	debugfs_create_file("reference", 0200, folder, NULL, &reference);
	debugfs_create_file("lock", 0200, folder, NULL, &lock);
	debugfs_create_file("locked", 0200, folder, NULL, &locked);
	return PTR_ERR_OR_ZERO(folder);
}

static void __exit hold_exit(void)
{
	debugfs_remove(folder);
}

module_init(hold_init);
module_exit(hold_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Holds folios, for kvmate's tests");
