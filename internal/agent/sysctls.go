// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
)

// ConntrackConfig is how connection tracking is set up on the node, as kube-proxy
// does it. 0 and false leave a setting as it is.
type ConntrackConfig struct {
	// MaxPerCore and Min set nf_conntrack_max: MaxPerCore for each of the node's cores,
	// at most maxTracked, and at least Min. With 0 for MaxPerCore it is left. It is
	// never lowered.
	MaxPerCore, Min int
	// Timeouts, in whole seconds.
	TCPEstablished, TCPCloseWait, UDP, UDPStream time.Duration
	// TCPBeLiberal tracks segments outside the window instead of considering them
	// invalid.
	TCPBeLiberal bool
}

// maxTracked bounds the result of MaxPerCore: a connection takes some 300 bytes.
const maxTracked = 1 << 20

// Validate returns an error for a negative value.
func (c ConntrackConfig) Validate() error {
	for _, n := range []struct {
		flag  string
		value int64
	}{
		{"conntrack-max-per-core", int64(c.MaxPerCore)}, {"conntrack-min", int64(c.Min)},
		{"conntrack-tcp-timeout-established", int64(c.TCPEstablished)}, {"conntrack-tcp-timeout-close-wait", int64(c.TCPCloseWait)},
		{"conntrack-udp-timeout", int64(c.UDP)}, {"conntrack-udp-timeout-stream", int64(c.UDPStream)},
	} {
		if n.value < 0 {
			return fmt.Errorf("--%s: less than 0; 0 leaves the setting as it is", n.flag)
		}
	}
	return nil
}

// sysctls are the files that ConntrackConfig is about.
type sysctls struct {
	proc     string // /proc/sys
	hashSize string
	online   string // the node's cores, "0-3,8"
}

func nodeSysctls(proc string) sysctls {
	return sysctls{
		proc:     cmp.Or(proc, "/proc/sys"),
		hashSize: "/sys/module/nf_conntrack/parameters/hashsize",
		online:   "/sys/devices/system/cpu/online",
	}
}

// max returns the nf_conntrack_max for a node with that many cores; 0 for none. The
// node's cores count, not those that this process may use.
func (c ConntrackConfig) max(cores int) int {
	if c.MaxPerCore == 0 {
		return 0
	}
	return max(min(c.MaxPerCore*cores, maxTracked), c.Min)
}

// cores returns the number of the node's cores.
func (s sysctls) cores() int {
	text, err := os.ReadFile(s.online)
	if err != nil {
		return runtime.NumCPU()
	}
	n := 0
	for part := range strings.SplitSeq(strings.TrimSpace(string(text)), ",") {
		first, last, ranged := strings.Cut(part, "-")
		if !ranged {
			last = first
		}
		from, err := strconv.Atoi(first)
		to, err2 := strconv.Atoi(last)
		if err != nil || err2 != nil || to < from {
			return runtime.NumCPU()
		}
		n += to - from + 1
	}
	return n
}

// apply sets what differs, continues after an error, and returns the settings that are
// not as c has them, "net.netfilter.x=1" each, and the errors.
func (s sysctls) apply(c ConntrackConfig) (left []string, err error) {
	var errs []error
	set := func(name string, want int, keepHigher bool) {
		if want == 0 {
			return
		}
		file := filepath.Join(s.proc, "net/netfilter", name)
		if e := setNumber(file, want, keepHigher); e != nil {
			left = append(left, fmt.Sprintf("net.netfilter.%s=%d", name, want))
			errs = append(errs, e)
		}
	}
	tracked := c.max(s.cores())
	set("nf_conntrack_max", tracked, true)
	set("nf_conntrack_tcp_timeout_established", seconds(c.TCPEstablished), false)
	set("nf_conntrack_tcp_timeout_close_wait", seconds(c.TCPCloseWait), false)
	set("nf_conntrack_udp_timeout", seconds(c.UDP), false)
	set("nf_conntrack_udp_timeout_stream", seconds(c.UDPStream), false)
	if c.TCPBeLiberal {
		set("nf_conntrack_tcp_be_liberal", 1, false)
	}
	// Four connections a bucket, as the kernel chooses. If this cannot be written,
	// lookups are slower on old kernels only.
	if tracked > 0 {
		_ = setNumber(s.hashSize, tracked/4, true)
	}
	return left, errors.Join(errs...)
}

func seconds(d time.Duration) int {
	if d > 0 && d < time.Second {
		return 1 // 0 would leave it
	}
	return int(d / time.Second)
}

// setNumber writes want to a file that has another number, or with keepHigher a
// lower one.
func setNumber(file string, want int, keepHigher bool) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if now, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && (now == want || keepHigher && now > want) {
		return nil
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_TRUNC, 0) // never makes one
	if err != nil {
		return err
	}
	_, err = f.WriteString(strconv.Itoa(want))
	return errors.Join(err, f.Close())
}

// Conntrack is a Part that configures connection tracking once the kernel has been
// programmed, and checks it at an interval. What it may not set it reports by a log line
// and an event on the Node, both once, and a metric. proc is where /proc/sys is mounted
// writable; "" is /proc/sys.
func Conntrack(c ConntrackConfig, proc string, every time.Duration) Part {
	return conntrackPart(c, nodeSysctls(proc), every)
}

func conntrackPart(c ConntrackConfig, s sysctls, every time.Duration) Part {
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "causeway_conntrack_sysctls_unset", Help: "Settings of connection tracking that are not as the agent's flags have them, because it may not write them.",
	})
	return Part{Name: "connection tracking's settings", NoLoadBalancers: true, Run: func(ctx context.Context, env Env) error {
		env.Registry.MustRegister(gauge)
		log := logr.FromContextOrDiscard(ctx)
		reported := ""
		env.whenProgrammed(ctx, every, func() { // the rules load the module
			left, err := s.apply(c)
			gauge.Set(float64(len(left)))
			if what := strings.Join(left, " "); what != "" && what != reported {
				reported = what
				log.Info("Connection tracking cannot be configured", "node", env.NodeName, "settings", left, "reason", err.Error())
				env.warnNode("ConntrackNotSet", "Connection tracking does not have the settings of the agent's flags: set %s on this node, or let the agent write /proc/sys/net/netfilter, "+
					"or switch them off (--conntrack-…=0): %v", what, err)
			}
		})
		return nil
	}}
}
