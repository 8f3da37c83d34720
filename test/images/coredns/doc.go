// SPDX-License-Identifier: Apache-2.0

// Command coredns is CoreDNS with only the plugins that cluster DNS needs, which
// builds in a fraction of the time. The lab runs it for the image coredns of
// config/samples/coredns; elsewhere that is CoreDNS's own image.
package main
