// SPDX-License-Identifier: Apache-2.0

// Command coredns is CoreDNS with the plugins that cluster DNS needs and no
// others, which builds in a fraction of the time of the whole. The lab runs it
// where config/samples/coredns says coredns; elsewhere that is CoreDNS's own
// image.
package main
