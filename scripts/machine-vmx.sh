# shellcheck shell=bash disable=SC2154 # sourced by scripts/vm, whose variables these are
# SPDX-License-Identifier: GPL-2.0
# The machine for --cpu vmx: Bochs, which emulates VMX with EPT. It has no 9p: the root comes as a
# squashfs on a second CD (made once a toolchain root, without compilers), and the checkout, the
# built tests and modules, and /share on the first, beside the kernel.

# Programs only: what compilers and documentation need stays out.
make_squashfs() {
	local out=$1
	long_step "root for Bochs (squashfs)" "$KV_CACHE/log/squashfs" 0 \
		"$enter" mksquashfs "$("$KV_TOP/scripts/toolchain")" "$out.part" -comp lz4 -noappend -no-progress \
		-wildcards -e 'usr/lib/gcc*' 'usr/lib/rustlib' 'usr/src' 'usr/include' 'usr/share/doc' \
		'usr/share/man' 'usr/share/locale' 'usr/share/qemu*' 'usr/share/bochs' 'usr/share/cargo' \
		'usr/share/perl*' 'usr/lib/x86_64-linux-gnu/*.a' 'usr/lib/x86_64-linux-gnu/librustc*' \
		'usr/lib/x86_64-linux-gnu/libclang*' 'usr/bin/qemu-*' 'usr/bin/bochs*' 'usr/bin/cargo' \
		'usr/lib/llvm-19/bin' 'usr/lib/llvm-19/include' 'usr/lib/llvm-19/lib/*.a' 'usr/lib/git-core' \
		'var/cache' 'var/lib/apt' 'dev/*' 'root/*' || return 1
	mv "$out.part" "$out"
}

# Bochs' terminal draws on a pseudo-terminal that nobody reads, some 20 bytes a time, and waits for ever once
# 64 KiB stand in it: 10 times a second of real time, by default, is for six minutes. Once a second of the
# guest's is for an hour.
machine_prepare() {
	local grafts=() file
	squashfs=$KV_CACHE/squashfs-$(basename "$("$KV_TOP/scripts/toolchain")")
	if [ ! -e "$squashfs" ]; then with_lock squashfs make_squashfs "$squashfs"; fi

	# Of the kernel's modules only KVM's and what they need.
	while read -r file; do
		grafts+=("/tree$file=$dir/boot$file")
	done < <(KV_BIND="$dir/boot/lib/modules=/lib/modules" "$enter" sh -c '
		modprobe -S "$1" --show-depends kvm_intel 2>/dev/null | awk "\$1 == \"insmod\" { print \$2 }"
		cd /lib/modules/"$1" && for f in modules.*; do echo "/lib/modules/$1/$f"; done' x "$release")
	[ ! -d "$KV_WORK/bin" ] || grafts+=("/tree$KV_WORK/bin=$KV_WORK/bin")
	for file in "$KV_WORK"/module/*/*.ko "$KV_WORK"/module/*/signed/*.ko "$KV_WORK"/module/*/tests/*.ko; do
		[ ! -e "$file" ] || grafts+=("/tree$file=$file")
	done
	[ -z "$share" ] || grafts+=("/tree/share=$share")
	cat >"$run/isolinux.cfg" <<-EOF
		default linux
		prompt 0
		label linux
		kernel /boot/bzImage
		initrd /boot/initrd
		append $arguments
	EOF
	KV_BIND="${share:-}" "$enter" xorriso -as mkisofs -quiet -R -graft-points -o "$run/cd.iso" \
		-b isolinux/isolinux.bin -c isolinux/boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table \
		-m "$KV_TOP/.git" \
		"/isolinux/isolinux.bin=/usr/lib/ISOLINUX/isolinux.bin" \
		"/isolinux/ldlinux.c32=/usr/lib/syslinux/modules/bios/ldlinux.c32" \
		"/isolinux/isolinux.cfg=$run/isolinux.cfg" "/boot/bzImage=$dir/boot/bzImage" \
		"/boot/initrd=$run/initrd.cpio" "/tree$KV_TOP=$KV_TOP" "${grafts[@]}" >"$run/iso.log" 2>&1 ||
		{ cat "$run/iso.log" >&2; die "the guest's CD could not be made"; }
	cat >"$run/bochsrc" <<-EOF
		display_library: term
		megs: $mem
		memory: guest=$mem, host=$mem
		cpu: model=broadwell_ult, count=1, ips=50000000, reset_on_triple_fault=0, ignore_bad_msrs=1
		romimage: file=/usr/share/bochs/BIOS-bochs-latest
		vgaromimage: file=/usr/share/vgabios/vgabios.bin
		ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
		ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15
		ata0-master: type=cdrom, path=$run/cd.iso, status=inserted
		ata1-master: type=cdrom, path=$squashfs, status=inserted
		boot: cdrom
		vga: update_freq=1, realtime=0
		clock: sync=none
		com1: enabled=1, mode=file, dev=$log
		com2: enabled=1, mode=file, dev=$run/out
		com3: enabled=1, mode=file, dev=$run/err
		log: $run/bochs.log
		panic: action=fatal
	EOF
	echo c >"$run/rc"
}

machine_start() {
	KV_BIND="" exec "$enter" env TERM=linux script -qec \
		"bochs -q -f '$run/bochsrc' -rc '$run/rc'" /dev/null
}
