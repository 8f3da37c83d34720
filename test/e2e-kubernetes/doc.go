// SPDX-License-Identifier: Apache-2.0

// Command e2e-kubernetes runs the [sig-network] part of Kubernetes' own end-to-end
// tests on the lab, where Causeway does everything: no kube-proxy, no endpoint
// controllers, dual stack, CoreDNS, load balancer addresses on the LAN.
//
//	make e2e-kubernetes                              # all that can run here
//	make e2e-kubernetes FOCUS='\[Conformance\]'      # a part
//	make e2e-kubernetes MODE=iptables                # another proxy mode
//
// The tests (suite) and the program that their Pods run (agnhost) are built from
// the module k8s.io/kubernetes, once; other images are Debian's programs. The tests
// run on a machine outside of the nodes' LAN.
//
// What cannot run here is in unrunnable.txt, with reasons. A spec that skips
// itself and is not there fails the run, and so does a pattern that matches nothing.
//
// Results are in build/e2e-kubernetes: junit.xml, report.json (Ginkgo's), table.md,
// and, beside it, build/e2e-kubernetes.json.
package main
