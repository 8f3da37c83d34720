// SPDX-License-Identifier: Apache-2.0

// Package observe looks at a LAN with a client's eyes: who answers for an
// address, by ARP (RFC 826) and neighbour discovery (RFC 4861), and what is
// announced unasked.
//
// It reads and writes frames by itself and shares no code with the announcer
// that it is there to check.
package observe
