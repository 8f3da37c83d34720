// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"

	"github.com/causeway-lb/causeway/api/v1alpha1"
	"github.com/causeway-lb/causeway/internal/agent"
	"github.com/causeway-lb/causeway/internal/announce/members"
	"github.com/causeway-lb/causeway/internal/netaddr"
	"github.com/causeway-lb/causeway/internal/proxy/modes"
	"github.com/causeway-lb/causeway/internal/proxy/none"
	"github.com/causeway-lb/causeway/internal/proxy/userspace"
)

// flags are the command line.
type flags struct {
	kubeconfig string
	cfg        agent.Config
	zap        zap.Options

	conntrack agent.ConntrackConfig
	announce  bool
	announcer agent.AnnouncerConfig

	podCIDRs, nodePortAddresses, externalIPRanges []string

	mode       string
	chosenMode modes.Mode
	modes      modes.Configs
}

func (f *flags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.kubeconfig, "kubeconfig", os.Getenv("KUBECONFIG"), "file that says how to reach the API server; empty: as a Pod's ServiceAccount")
	fs.StringVar(&f.cfg.Node.Name, "node-name", os.Getenv("NODE_NAME"), "Kubernetes name of this node")
	fs.StringVar(&f.cfg.HealthAddress, "health-address", ":10256", "address of /healthz, /livez and /readyz; empty switches them off")
	fs.StringVar(&f.cfg.MetricsAddress, "metrics-address", "127.0.0.1:10249", "address of /metrics and /proxyMode, without authorization; empty switches it off")
	fs.StringVar(&f.cfg.SecureMetricsAddress, "secure-metrics-address", "", "address of the same over TLS, such as ':7963', for clients that the API server authorizes to get /metrics (nonResourceURLs); needs the ClusterRole system:auth-delegator; empty switches it off")
	fs.StringVar(&f.cfg.MetricsCertFile, "metrics-cert-file", "", "certificate of --secure-metrics-address; empty: a self-signed one")
	fs.StringVar(&f.cfg.MetricsKeyFile, "metrics-key-file", "", "key of --metrics-cert-file")
	fs.DurationVar(&f.cfg.Resync, "resync", 10*time.Minute, "how often the kernel is read back and repaired")
	fs.StringSliceVar(&f.podCIDRs, "pod-cidrs", nil, "ranges of the Pods of this node; empty: the Node's spec.podCIDRs")
	fs.StringSliceVar(&f.cfg.Node.PodInterfaces, "pod-interfaces", nil, "interfaces of this node's Pods, 'cali*' for a prefix; used instead of ranges")
	fs.StringSliceVar(&f.nodePortAddresses, "node-port-addresses", nil, "ranges of local addresses that NodePorts answer on; empty: all but loopback")
	fs.BoolVar(&f.cfg.Node.LocalhostNodePorts, "localhost-node-ports", false, "NodePorts answer on 127.0.0.1 too; needs net.ipv4.conf.all.route_localnet=1")
	fs.StringSliceVar(&f.externalIPRanges, "external-ip-ranges", nil, "ranges that spec.externalIPs of Services may use; empty: none (CVE-2020-8554)")
	fs.BoolVar(&f.cfg.Node.MasqueradeAll, "masquerade-all", false, "masquerade every connection to a Service, but for externalTrafficPolicy Local from outside")
	fs.BoolVar(&f.cfg.ResetTCP, "reset-tcp", false, "answer the next segment or keepalive probe of a TCP client with a reset if its endpoint is gone, or if source ranges or a traffic policy no longer admit it; needs nf_tables, in every mode")
	fs.StringVar(&f.cfg.Node.ServiceProxyName, "service-proxy-name", "", "serve the Services with this value of the label service.kubernetes.io/service-proxy-name instead of those without")
	fs.IntVar(&f.conntrack.MaxPerCore, "conntrack-max-per-core", 32*1024, "connections that the node tracks, per core, up to 1048576; never lowered; 0 leaves the limit and ignores --conntrack-min")
	fs.IntVar(&f.conntrack.Min, "conntrack-min", 128*1024, "connections that the node tracks at least")
	fs.DurationVar(&f.conntrack.TCPEstablished, "conntrack-tcp-timeout-established", 24*time.Hour, "how long an idle TCP connection is tracked; 0 leaves it")
	fs.DurationVar(&f.conntrack.TCPCloseWait, "conntrack-tcp-timeout-close-wait", time.Hour, "how long a TCP connection that one side has closed is tracked; 0 leaves it")
	fs.BoolVar(&f.conntrack.TCPBeLiberal, "conntrack-tcp-be-liberal", false, "track TCP segments outside the window instead of considering them invalid")
	fs.DurationVar(&f.conntrack.UDP, "conntrack-udp-timeout", 0, "how long a UDP flow without a reply is tracked; 0 leaves it")
	fs.DurationVar(&f.conntrack.UDPStream, "conntrack-udp-timeout-stream", 0, "how long an idle UDP flow with replies is tracked; 0 leaves it")
	fs.StringVar(&f.cfg.ProcSys, "proc-sys", "", "where the node's /proc/sys is mounted, if the agent's own is read-only, as in most containers; empty: "+mountedProcSys+" if it exists")
	fs.BoolVar(&f.announce, "announce", true, "announce LoadBalancer addresses by ARP and NDP")
	fs.Uint16Var(&f.announcer.GossipPort, "gossip-port", members.Port, "UDP and TCP port of the agents' gossip, the same on all nodes")
	fs.BoolVar(&f.announcer.KeepDeadNodes, "keep-dead-nodes", false, "use endpoints on nodes that the agents find dead until the API server knows")
	fs.BoolVar(&f.announcer.IgnoreExcludeLabel, "ignore-exclude-label", false, "announce from nodes with the label node.kubernetes.io/exclude-from-external-load-balancers too, as ignoreExcludeLabel of a pool does for that pool; the same on all nodes")
	fs.StringVar(&f.mode, "mode", string(modes.Auto), "how to program the kernel: auto (nftables, else iptables, else userspace), nftables, iptables, ipvs (where the kernel lacks it, as auto), userspace, or none (kube-proxy forwards, Causeway announces only)")
	fs.StringVar(&f.modes.None.Health, "forwarder-health", none.KubeProxy, "in mode none: URL that answers 200 while this node forwards, without which it announces nothing; empty: it always does")
	fs.StringVar(&f.modes.IPVS.Scheduler, "ipvs-scheduler", "wrr", "IPVS scheduler of Services without the annotation "+v1alpha1.SchedulerAnnotation)
	fs.DurationVar(&f.modes.IPVS.DrainTimeout, "ipvs-drain-timeout", 15*time.Minute, "how long a removed endpoint may keep its connections in mode ipvs")
	fs.StringVar(&f.modes.IPTables.Variant, "iptables-variant", "", "legacy or nft; empty: the variant of iptables-restore")
	fs.DurationVar(&f.modes.Userspace.UDPTimeout, "userspace-udp-timeout", 2*time.Minute, "how long a UDP flow may be idle in mode userspace")
	fs.DurationVar(&f.modes.Userspace.Grace, "userspace-grace", time.Second, "how long open connections may take to end when the agent stops in mode userspace")
	fs.IntVar(&f.modes.Userspace.MaxDescriptors, "userspace-max-descriptors", 0, "file descriptors that connections may use in mode userspace, six a TCP connection; 0: the process's limit less 512")
	std := flag.NewFlagSet("log", flag.ContinueOnError)
	f.zap.BindFlags(std)
	_ = std.Set("zap-time-encoding", "rfc3339nano") // failover takes less than a second
	fs.AddGoFlagSet(std)
}

func (f *flags) logger() logr.Logger { return zap.New(zap.UseFlagOptions(&f.zap)) }

// mountedProcSys is where config/components/conntrack mounts the node's /proc/sys.
const mountedProcSys = "/host/proc/sys"

// config returns the agent's config, with what had to be parsed.
func (f *flags) config() (agent.Config, error) {
	for _, p := range []struct {
		flag string
		raw  []string
		to   *[]netip.Prefix
	}{
		{"pod-cidrs", f.podCIDRs, &f.cfg.Node.PodCIDRs},
		{"node-port-addresses", f.nodePortAddresses, &f.cfg.Node.NodePortAddresses},
		{"external-ip-ranges", f.externalIPRanges, &f.cfg.Node.ExternalIPRanges},
	} {
		prefixes, err := parsePrefixes(p.raw)
		if err != nil {
			return agent.Config{}, fmt.Errorf("--%s: %w", p.flag, err)
		}
		*p.to = prefixes
	}
	mode, err := modes.Parse(f.mode)
	if err != nil {
		return agent.Config{}, fmt.Errorf("--mode: %w", err)
	}
	f.chosenMode = mode
	f.cfg.AnnounceOnly = mode == modes.None
	if err := f.modes.Validate(); err != nil {
		return agent.Config{}, err
	}
	if err := f.conntrack.Validate(); err != nil {
		return agent.Config{}, err
	}
	if (f.cfg.MetricsCertFile == "") != (f.cfg.MetricsKeyFile == "") {
		return agent.Config{}, errors.New("--metrics-cert-file and --metrics-key-file go together")
	}
	if _, err := os.Stat(mountedProcSys); err == nil && f.cfg.ProcSys == "" {
		f.cfg.ProcSys = mountedProcSys
	}
	f.modes.IPVS.ProcSys = f.cfg.ProcSys
	if !f.cfg.AnnounceOnly { // else kube-proxy sets them
		f.cfg.Parts = append(f.cfg.Parts, agent.Conntrack(f.conntrack, f.cfg.ProcSys, 10*time.Minute))
	}
	f.modes.Userspace.Metrics = userspace.NewMetrics()
	f.modes.Userspace.ResetTCP = f.cfg.ResetTCP
	f.cfg.Parts = append(f.cfg.Parts, agent.Metrics("userspace", f.modes.Userspace.Metrics.Collectors()...))
	if f.announce {
		f.cfg.Parts = append(f.cfg.Parts, agent.Announcer(f.announcer))
	}
	return f.cfg, nil
}

func parsePrefixes(raws []string) ([]netip.Prefix, error) {
	var ps []netip.Prefix
	for _, raw := range raws {
		p, ok := netaddr.ParsePrefix(raw)
		if !ok {
			return nil, fmt.Errorf("%q is not a range such as 192.0.2.0/24", raw)
		}
		ps = append(ps, p)
	}
	return ps, nil
}
