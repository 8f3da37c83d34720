// SPDX-License-Identifier: Apache-2.0

package model

import (
	"slices"
	"strings"
)

// SchedulerAnnotation on a Service chooses how the ipvs mode distributes its
// connections: one of Schedulers. The other modes do not look at it.
const SchedulerAnnotation = "causeway.dev/ipvs-scheduler"

// Schedulers are the kernel's names of IPVS schedulers, see ipvsadm(8). Which
// of them a kernel has differs.
var Schedulers = []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "mh", "sed", "nq", "fo", "ovf", "twos"}

// scheduler is the Service's choice, "" if it has none.
func (c *computation) scheduler() string {
	name := c.in.Service.Annotations[SchedulerAnnotation]
	if name == "" || slices.Contains(Schedulers, name) {
		return name
	}
	c.problem("InvalidScheduler", "annotation %s has %q, which is not an IPVS scheduler: use one of %s",
		SchedulerAnnotation, name, strings.Join(Schedulers, ", "))
	return ""
}
