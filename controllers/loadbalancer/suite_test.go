// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"testing"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
)

// These specs need no API server; package controllers has those that do.
func TestSpecs(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "loadbalancer")
}
