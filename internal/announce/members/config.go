// SPDX-License-Identifier: Apache-2.0

package members

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Port is the UDP and TCP port of the agents' gossip.
const Port = 7960

// KeyLength is the length of a gossip key in bytes (AES-256).
const KeyLength = 32

// MaxInfo is how many bytes of Info a node may publish, and MaxOldInfo how many to
// agents of a former version.
const (
	MaxInfo    = 64 << 10
	MaxOldInfo = 480
)

// Config is what Members needs.
type Config struct {
	// Name of this node, as in the API.
	Name string
	// Bind is the node's own address, where the other agents reach it; the port
	// may be 0 for Port.
	Bind netip.AddrPort
	// Timing; the zero value is DefaultTiming.
	Timing Timing
}

// Validate returns what is missing or wrong.
func (c *Config) Validate() error {
	var errs []error
	if c.Name == "" {
		errs = append(errs, errors.New("name is empty: set the node's name (NODE_NAME)"))
	}
	if len(c.Name) > 253 {
		errs = append(errs, fmt.Errorf("name has %d characters, at most 253 are possible", len(c.Name)))
	}
	if !c.Bind.Addr().IsValid() || c.Bind.Addr().IsUnspecified() {
		errs = append(errs, fmt.Errorf("bind address %v: give the node's InternalIP", c.Bind.Addr()))
	}
	return errors.Join(errs...)
}

// Timing is how fast death is noticed.
type Timing struct {
	// ProbeInterval is the interval of direct probes; 0 leaves everything to
	// gossip, and announcers are then not probed on the link either.
	ProbeInterval time.Duration
	// SilenceLimit is the least silence after which a watched peer is dead, and
	// MaxSilenceLimit the most. AgentSilenceLimit takes SilenceLimit's place while
	// the peer's kernel answers: the node forwards, only its agent is silent.
	SilenceLimit, AgentSilenceLimit, MaxSilenceLimit time.Duration
	// LostInterval is the interval of probes to peers that are not alive.
	LostInterval time.Duration
	// JoinInterval is the interval of attempts to join a peer that gossip does
	// not hold alive.
	JoinInterval time.Duration
	// KeyGrace is how long a new key is accepted before it is used.
	KeyGrace time.Duration
	// Gossip are memberlist's settings.
	Gossip GossipTiming
}

// GossipTiming are memberlist's settings of the same names.
type GossipTiming struct {
	ProbeInterval, ProbeTimeout, GossipInterval time.Duration
	SuspicionMult, SuspicionMaxTimeoutMult      int
}

// DefaultTiming finds the death of a watched node in about a fifth of a second,
// that of its agent alone in twice that, and that of any other in about one and a
// half.
func DefaultTiming() Timing {
	return Timing{
		ProbeInterval:     40 * time.Millisecond,
		SilenceLimit:      190 * time.Millisecond, // five intervals, not quite
		AgentSilenceLimit: 390 * time.Millisecond,
		MaxSilenceLimit:   800 * time.Millisecond,
		LostInterval:      240 * time.Millisecond,
		JoinInterval:      500 * time.Millisecond,
		KeyGrace:          10 * time.Second,
		Gossip: GossipTiming{
			ProbeInterval: 200 * time.Millisecond, ProbeTimeout: 150 * time.Millisecond,
			GossipInterval: 40 * time.Millisecond,
			SuspicionMult:  3, SuspicionMaxTimeoutMult: 2,
		},
	}
}

// LANTiming are memberlist's defaults for local networks, without direct
// probes: what announcers that rely on gossip alone use. Benchmarks compare
// with it.
func LANTiming() Timing {
	t := DefaultTiming()
	t.ProbeInterval = 0
	t.Gossip = GossipTiming{
		ProbeInterval: time.Second, ProbeTimeout: 500 * time.Millisecond,
		GossipInterval: 200 * time.Millisecond,
		SuspicionMult:  4, SuspicionMaxTimeoutMult: 6,
	}
	return t
}
