/* SPDX-License-Identifier: GPL-2.0 */
/* For user-space bindgen: kvmate.h, and the macros of it that bindgen cannot evaluate. */
#include "kvmate.h"

static const __u64 KVMATE_CONST_KVMATE_GET_INFO = KVMATE_GET_INFO;
static const __u64 KVMATE_CONST_KVMATE_GET_VM_STATS = KVMATE_GET_VM_STATS;
static const __u64 KVMATE_CONST_KVMATE_GMEM_CREATE = KVMATE_GMEM_CREATE;
static const __u64 KVMATE_CONST_KVMATE_GMEM_QUERY = KVMATE_GMEM_QUERY;
static const __u64 KVMATE_CONST_KVMATE_GMEM_SPLIT = KVMATE_GMEM_SPLIT;
static const __u64 KVMATE_CONST_KVMATE_GMEM_MERGE = KVMATE_GMEM_MERGE;
static const __u64 KVMATE_CONST_KVMATE_BIND_IRQFD = KVMATE_BIND_IRQFD;
static const __u64 KVMATE_CONST_KVMATE_LOOKUP = KVMATE_LOOKUP;
