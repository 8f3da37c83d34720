// SPDX-License-Identifier: Apache-2.0

// Package loadbalancer allocates many LoadBalancer addresses with two
// controllers, whose leader is killed again and again, and watches that none is
// given twice and none changes. Short in "make test", 20,000 in "make soak".
package loadbalancer
