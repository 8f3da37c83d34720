// SPDX-License-Identifier: Apache-2.0

// Package observe watches a LAN as a client sees it: which host answers for an
// address with ARP (RFC 826) and Neighbor Discovery (RFC 4861), and unsolicited
// announcements.
//
// It reads and writes frames by itself and shares no code with the announcer that
// it checks.
package observe
