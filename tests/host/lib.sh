# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0
# How a test of the scripts reports: KTAP, as the programs in guests do.
#
# A test is a function; `tests NAME...` runs those whose name contains the program's first argument.
# `expect` ends the test at the first failure, and what it said is shown.

set -uo pipefail
KV_TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)

# expect WHAT FOUND EXPECTED
expect() {
	[ "$2" = "$3" ] || { echo "$1: found '$2', expected '$3'"; exit 1; }
}

# expect_in WHAT TEXT PART
expect_in() {
	case $2 in *"$3"*) ;; *) echo "$1: '$3' is not in: $2"; exit 1 ;; esac
}

# How many arguments of running programs have TEXT in them, of which the looking itself is none.
processes() { cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n' | grep -cFf <(printf '%s\n' "$1") || true; }

tests() {
	local name number=0 failed=0 chosen=() said
	for name in "$@"; do
		case $name in *"$wanted"*) chosen+=("$name") ;; esac
	done
	echo "KTAP version 1"
	echo "1..${#chosen[@]}"
	for name in "${chosen[@]}"; do
		number=$((number + 1))
		if said=$("$name" 2>&1); then
			echo "ok $number $name"
		else
			while IFS= read -r line; do echo "# $line"; done <<<"$said"
			echo "not ok $number $name"
			failed=1
		fi
	done
	exit "$failed"
}
wanted=${1-}
