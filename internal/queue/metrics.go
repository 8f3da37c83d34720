// SPDX-License-Identifier: Apache-2.0

package queue

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

// RegisterMetrics adds collectors to the manager's metrics. One that is there
// already, of another manager in this process, is not an error.
func RegisterMetrics(collectors ...prometheus.Collector) error {
	for _, c := range collectors {
		if err := metrics.Registry.Register(c); err != nil {
			if _, there := errors.AsType[prometheus.AlreadyRegisteredError](err); !there {
				return fmt.Errorf("register metrics: %w", err)
			}
		}
	}
	return nil
}
