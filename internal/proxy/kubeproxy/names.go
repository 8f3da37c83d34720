// SPDX-License-Identifier: Apache-2.0

package kubeproxy

import (
	"regexp"
	"slices"
	"strings"
)

const (
	// tableName is the nf_tables table.
	tableName = "kube-proxy"
	// Device is the interface of mode ipvs.
	Device = "kube-ipvs0"

	chainServices    = "KUBE-SERVICES"
	chainMark        = "KUBE-MARK-MASQ"
	chainPostrouting = "KUBE-POSTROUTING"
)

// tableChains are some of the chains that kube-proxy's table has, whatever the
// version.
var tableChains = []string{"nat-prerouting", "nat-postrouting", "services", "masquerading"}

// chains are those with a fixed name, by iptables table, of both modes that use
// iptables.
var chains = map[string][]string{
	"nat": {
		chainServices, "KUBE-NODEPORTS", chainPostrouting, chainMark, "KUBE-PROXY-CANARY",
		"KUBE-NODE-PORT", "KUBE-LOAD-BALANCER",
	},
	"filter": {
		chainServices, "KUBE-EXTERNAL-SERVICES", "KUBE-FORWARD", "KUBE-NODEPORTS", "KUBE-PROXY-FIREWALL",
		"KUBE-PROXY-CANARY", "KUBE-NODE-PORT", "KUBE-SOURCE-RANGES-FIREWALL", "KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER",
	},
	"mangle": {"KUBE-PROXY-CANARY"},
}

// hashed are the chains of Services and endpoints, in table nat. XLB is what
// EXT was called before Kubernetes 1.24.
var hashed = regexp.MustCompile(`^KUBE-(SVC|SVL|SEP|FW|EXT|XLB)-[A-Z2-7]{16}$`)

func ours(table, chain string) bool {
	return slices.Contains(chains[table], chain) || table == "nat" && hashed.MatchString(chain)
}

// comments are those of the rules in built-in chains.
var comments = []string{
	"kubernetes service portals", "kubernetes externally-visible service portals", "kubernetes health check service ports",
	"kubernetes forwarding rules", "kubernetes load balancer firewall", "kubernetes postrouting rules",
	"kubernetes health check rules", "kube-proxy firewall rules", "kubernetes ipvs access filter",
}

// sets are the ip sets of IPv4.
var sets = []string{
	"KUBE-LOOP-BACK", "KUBE-CLUSTER-IP", "KUBE-EXTERNAL-IP", "KUBE-EXTERNAL-IP-LOCAL", "KUBE-LOAD-BALANCER",
	"KUBE-LOAD-BALANCER-LOCAL", "KUBE-LOAD-BALANCER-FW", "KUBE-LOAD-BALANCER-SOURCE-IP", "KUBE-LOAD-BALANCER-SOURCE-CIDR",
	"KUBE-NODE-PORT-TCP", "KUBE-NODE-PORT-LOCAL-TCP", "KUBE-NODE-PORT-UDP", "KUBE-NODE-PORT-LOCAL-UDP",
	"KUBE-NODE-PORT-SCTP-HASH", "KUBE-NODE-PORT-LOCAL-SCTP-HASH", "KUBE-HEALTH-CHECK-NODE-PORT", "KUBE-IPVS-IPS",
}

// setOf gives the IPv4 name of an ip set of kube-proxy's, "" for others' sets.
func setOf(name string) string {
	for _, plain := range sets {
		if name == plain || name == ipv6Set(plain) {
			return plain
		}
	}
	return ""
}

// ipv6Set is the name of the IPv6 twin; the kernel's limit cuts it.
func ipv6Set(plain string) string {
	const longest = 31 // IPSET_MAXNAMELEN less the NUL
	name := strings.Replace(plain, "KUBE-", "KUBE-6-", 1)
	return name[:min(len(name), longest)]
}
