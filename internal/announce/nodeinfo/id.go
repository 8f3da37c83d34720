// SPDX-License-Identifier: Apache-2.0

package nodeinfo

import (
	"crypto/sha256"
	"net"
)

// MAC is an Ethernet hardware address.
type MAC [6]byte

// String writes m as usual.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// IsGroup reports whether frames to m go to several hosts.
func (m MAC) IsGroup() bool { return m[0]&1 == 1 }

// IsZero reports whether m is unset.
func (m MAC) IsZero() bool { return m == MAC{} }

// ID stands for a node where its name is too long.
type ID [8]byte

// ShortID is the beginning of an ID. Two nodes may have the same.
type ShortID [4]byte

// IDOf returns the ID of a node by its name.
func IDOf(name string) ID {
	h := sha256.Sum256([]byte("causeway node " + name))
	return ID(h[:8])
}

// Short returns the beginning of id.
func (id ID) Short() ShortID { return ShortID(id[:4]) }
