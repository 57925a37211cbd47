# shellcheck shell=bash disable=SC2154 # sourced by scripts/vm, whose variables these are
# SPDX-License-Identifier: GPL-2.0
# The machine for --cpu svm: QEMU. TCG emulates SVM with nested paging; one thread for all
# processors, because with several the guest kernel's self-modification is not always safe.

machine_prepare() {
	# Until alternatives are patched, KASAN asks boot_cpu_data whether there are five levels, which
	# identify_cpu() clears and fills again with interrupts on: one in between reads as a wild access.
	case $kernel in debug) flags=$flags,-la57 ;; esac
	accel=(-accel tcg,thread=single -cpu "max$flags")
	[ "${ACCEL:-tcg}" != kvm ] || accel=(-accel kvm -cpu "host$flags")
	case ${ACCEL:-tcg} in tcg | kvm) ;; *) die "ACCEL=$ACCEL: tcg or kvm" ;; esac
	[ "${ACCEL:-tcg}" = tcg ] || [ -n "${KV_TRIAL-}" ] || trial_boot
	# VMRUN and VMEXIT change interrupt_request without a lock in QEMU 10.0 (svm_helper.c), so that once in
	# some minutes of them an interrupt that a device's thread asks for meanwhile stays in the LAPIC,
	# unseen until the next one. Let there be a next one also if it was the timer's: a tick that the LAPIC
	# repeats by itself. Two processors wake each other.
	[ "$smp" != 1 ] || [ -n "$icount" ] || arguments="nohz=off highres=off $arguments"
	# One instruction, one nanosecond and one tick of the TSC; while nothing runs, time jumps to the
	# next timer. Whatever else a start depends on is given.
	[ -z "$icount" ] || accel+=(-icount "shift=0,sleep=off" -rtc "base=2026-01-01,clock=vm" -seed 1)
}

# A /dev/kvm that opens proves nothing: boot a guest on it and see KVM load in there.
trial_boot() {
	local why
	[ -c /dev/kvm ] || die "ACCEL=kvm refused: this machine has no /dev/kvm"
	why=$(KV_TRIAL=1 "$KV_TOP/scripts/vm" run --kernel "$kernel" --timeout 60 -- test -c /dev/kvm 2>&1) ||
		die "ACCEL=kvm refused: a trial boot failed: $(tail -n 1 <<<"$why" | cut -c 1-100)"
}

machine_start() {
	local ports
	if [ "$mode" = shell ]; then
		ports=(-chardev stdio,mux=on,id=out,signal=off -mon chardev=out -chardev null,id=err)
	else
		ports=(-chardev "file,id=out,path=$run/out,append=on" -chardev "file,id=err,path=$run/err,append=on")
	fi
	KV_BIND="$dir/boot/lib/modules=/lib/modules${share:+:$share=/share}" exec_or_run "$enter" qemu-system-x86_64 \
		-nodefaults -no-reboot -display none -machine pc -m "$mem" -smp "$smp" "${accel[@]}" \
		-kernel "$dir/boot/bzImage" -initrd "$run/initrd.cpio" -append "$arguments" \
		-chardev "file,id=console,path=$log" -serial chardev:console \
		"${ports[@]}" -serial chardev:out -serial chardev:err \
		-fsdev local,id=root,path=/,security_model=none,readonly=on,multidevs=remap \
		-device virtio-9p-pci,fsdev=root,mount_tag=root
}

# A machine in the background replaces its shell, so that ending it ends QEMU.
exec_or_run() { if [ "$mode" = shell ]; then "$@"; else exec "$@"; fi; }
