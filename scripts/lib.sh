# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0
# What every script here shares: where things are, how they speak, how they take long steps.
#
# The cache (KVMATE_CACHE) holds every product that is not of this checkout alone. A product is
# made beside its final name and moved there whole, under a lock, so an interrupted set-up leaves
# nothing that a second one could mistake for finished.

set -euo pipefail
# Where a plain su leaves /usr/sbin out, chroot and others are there all the same.
PATH=$PATH:/usr/sbin:/sbin

KV_TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
KV_CACHE=${KVMATE_CACHE:-${HOME:-/root}/.cache/kvmate}
case $KV_CACHE in /*) ;; *) KV_CACHE=$PWD/$KV_CACHE ;; esac
# The products of this checkout: user-space builds, module trees, logs. One folder a checkout.
KV_WORK=$KV_CACHE/work/$(printf '%s' "$KV_TOP" | sha256sum | cut -c1-12)
KV_ME=${KV_ME:-$(basename "$0")}
KV_JOBS=${KVMATE_JOBS:-$(($(nproc) + 1))}
export KVMATE_CACHE=$KV_CACHE
# shellcheck disable=SC2034 # for those who boot guests
# What a guest's log must not say; run_tests looks for the same while a test runs.
KV_COMPLAINTS='WARNING:|BUG:|Oops|KASAN: |UBSAN: |general protection fault|INFO: task|rcu: INFO|soft lockup|possible circular locking|inconsistent lock state|suspicious RCU usage|sleeping function called|ODEBUG|Call Trace:|rust_kernel: attempted'

# background CMD... : start it in a process group of its own; its number is in $!.
background() {
	set -m
	"$@" &
	set +m
}

# However a script ends, what it started in the background ends too, whole groups of it.
end_jobs() {
	local job
	for job in $(jobs -p); do kill -TERM -- "-$job" 2>/dev/null || true; done
}
trap end_jobs EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

say() { printf '%s: %s\n' "$KV_ME" "$*" >&2; }
die() { printf '%s: error: %s\n' "$KV_ME" "$*" >&2; exit 1; }

# key FILE|TEXT... : a short name for everything that went into a product.
key() {
	local part
	for part in "$@"; do
		if [ -f "$part" ]; then cat "$part"; else printf '%s\n' "$part"; fi
	done | sha256sum | cut -c1-12
}

# with_lock NAME CMD... : one maker at a time of one product, whoever else shares the cache. Called
# plainly, a failure in CMD ends the script (set -e); behind || or in a condition CMD must mind its
# failures itself, as the shell's rule is.
with_lock() {
	local name=$1 fd status
	shift
	mkdir -p "$KV_CACHE/locks"
	exec {fd}>"$KV_CACHE/locks/$name"
	if ! flock -n "$fd"; then
		say "waiting for another run that makes $name"
		flock "$fd"
	fi
	"$@"
	status=$?
	exec {fd}>&-
	return "$status"
}

# long_step LABEL LOG EXPECTED CMD... : run CMD with its output in LOG and tell how it goes: each
# tenth second the elapsed time and how far LOG is of the EXPECTED lines (0: unknown). On failure
# the end of LOG is shown.
long_step() {
	local label=$1 log=$2 expected=$3 start=$SECONDS pid status=0 told=0 lines how
	shift 3
	mkdir -p "$(dirname "$log")"
	say "$label ..."
	background "$@" >"$log" 2>&1 </dev/null
	pid=$!
	while kill -0 "$pid" 2>/dev/null; do
		sleep 0.2
		[ $((SECONDS - start - told)) -ge 10 ] || continue
		told=$((SECONDS - start))
		how=
		if [ "$expected" -gt 0 ]; then
			lines=$(wc -l <"$log")
			[ "$lines" -lt "$expected" ] || lines=$((expected - 1))
			how=", about $((lines * 100 / expected)) %"
		fi
		say "$label: $told s$how"
	done
	wait "$pid" || status=$?
	if [ "$status" -ne 0 ]; then
		tail -n 30 "$log" >&2
		say "$label: failed with status $status; the whole log is $log"
		return "$status"
	fi
	say "$label: done in $((SECONDS - start)) s"
}
