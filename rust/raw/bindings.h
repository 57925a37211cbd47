/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What bindgen reads for the raw layer: public headers only. Which names it takes from them is
 * said in bindgen_parameters; what the kernel crate's own bindings have is taken from there.
 */
#include <kvmate.h>
#include "shim.h"

/* Macros that bindgen cannot evaluate by itself. */
const unsigned int KVMATE_CONST_KVMATE_GET_INFO = KVMATE_GET_INFO;
