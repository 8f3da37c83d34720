// SPDX-License-Identifier: Apache-2.0

package model

import (
	"slices"
	"strings"

	"github.com/causeway-lb/causeway/api/v1alpha1"
)

// Schedulers are the kernel's names of IPVS schedulers, see ipvsadm(8). Which
// of them a kernel has differs.
var Schedulers = []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "mh", "sed", "nq", "fo", "ovf", "twos"}

// scheduler is the Service's choice, "" if it has none.
func (c *computation) scheduler() string {
	name := c.in.Service.Annotations[v1alpha1.SchedulerAnnotation]
	if name == "" || slices.Contains(Schedulers, name) {
		return name
	}
	c.problem("InvalidScheduler", "annotation %s has %q, which is not an IPVS scheduler: use one of %s",
		v1alpha1.SchedulerAnnotation, name, strings.Join(Schedulers, ", "))
	return ""
}
