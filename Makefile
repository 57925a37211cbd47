# SPDX-License-Identifier: GPL-2.0
# What a person types. `make help` tells; Kbuild says how the module is made.

KERNEL ?= custom
KDIR ?= /lib/modules/$(shell uname -r)/build
# A kernel built with clang wants its modules built with clang; LLVM= says which one.
LLVM ?= $(if $(shell grep -s '^CONFIG_CC_IS_CLANG=y' $(KDIR)/.config),1)
kbuild = $(MAKE) -C $(KDIR) M=$(CURDIR) $(if $(LLVM),LLVM=$(LLVM))

.PHONY: help run test test-all bench check shell kernel module modules_install load clean distclean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#: //p' Makefile

#: make run              a tour: set up, boot a guest, load kvmate beside kvm, show what it sees
#: make test [T=GLOB]    set up and run the tests (custom kernel, SVM and VMX); T picks some
#: make test-all         the same, and the debug and stock kernels
#: make bench            what watching and memory cost, kvmate beside others            [KERNEL=...]
#: make check            format, lints, documentation, layers, shell scripts
#: make shell            a shell in a guest with kvmate loaded     [KERNEL=custom|debug|stock|PATH]
#: make kernel           only the kernel                           [KERNEL=...]
run:
	@scripts/tour

test:
	@scripts/test $(if $(T),--only '$(T)') $(if $(filter-out custom,$(KERNEL)),--kernel '$(KERNEL)')

test-all:
	@scripts/test --all $(if $(T),--only '$(T)')

# Without KERNEL= on two kernels, see its usage.
bench:
	@scripts/bench $(if $(filter-out file,$(origin KERNEL)),--kernel '$(KERNEL)')

check:
	@scripts/check

shell:
	@scripts/vm shell --load --kernel '$(KERNEL)'

kernel:
	@scripts/kernel '$(KERNEL)'

#: make module KDIR=...  only kvmate.ko, for a kernel you have built; needs its toolchain, nothing of ours
#: make modules_install  install that kvmate.ko beside the kernel's modules
#: make load             compare that kvmate.ko with the running kernel, then insmod it
module:
	+$(kbuild) modules

modules_install:
	+$(kbuild) modules_install

load:
	scripts/vermagic kvmate.ko
	insmod kvmate.ko

#: make clean            remove what this checkout made; make distclean: and the whole cache
clean:
	@scripts/clean

distclean:
	@scripts/clean --cache
