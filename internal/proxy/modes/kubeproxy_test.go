// SPDX-License-Identifier: Apache-2.0

package modes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/causeway-lb/causeway/internal/lab/controlplane"
	"github.com/causeway-lb/causeway/internal/netlink/ipvs"
	"github.com/causeway-lb/causeway/internal/proxy/kubeproxy"
	"github.com/causeway-lb/causeway/internal/testkit/nstest"
)

// Taking a running node over from kube-proxy and handing it back, under load:
// no new connection fails and none that is open ends; what one of them leaves
// behind goes, and nobody else's objects do.
func TestKubeProxyIPTables(t *testing.T) { exchange(t, "iptables", NFTables) }
func TestKubeProxyNFTables(t *testing.T) { exchange(t, "nftables", NFTables) }

// Both have their rules in the same tables then.
func TestKubeProxyIPTablesToOurs(t *testing.T) { exchange(t, "iptables", IPTables) }

func TestKubeProxyIPVS(t *testing.T) {
	probe, err := ipvs.Dial()
	if errors.Is(err, ipvs.ErrUnsupported) {
		nstest.TakeToVM(t, kubeProxyProgram(t))
		nstest.LeaveToVM(t, "this kernel has no IPVS")
	}
	if err != nil {
		t.Fatal(err)
	}
	probe.Close()
	exchange(t, "ipvs", NFTables)
}

func exchange(t *testing.T, theirs string, ours Mode) {
	nstest.Require(t, "ip", "nft", "ipset", "iptables-nft-restore", "ip6tables-nft-restore")
	network := newNetwork(t)
	network.dials = only
	if nstest.InVM() {
		network.perSecond = newPerSecond / 8 // or the emulated processor does nothing else
	}
	e := &exchanged{t: t, net: network, api: newAPI(t), theirs: theirs, kinds: Kinds(Configs{}), others: strangers(t), some: int64(network.perSecond / 2)}
	e.handBack(e.takeOver(ours))
}

// exchanged is one node between kube-proxy and us.
type exchanged struct {
	t           *testing.T
	net         *network
	api, theirs string
	kinds       map[Mode]Kind
	others      *others
	some        int64 // connections in half a second
}

// takeOver goes from kube-proxy to one of our modes.
func (e *exchanged) takeOver(ours Mode) *Chooser {
	t := e.t
	proxy := startKubeProxy(t, e.api, e.theirs)
	load := e.net.start(t)
	next := inUse(t, e.kinds, ours)
	load.more(t, e.some)
	if how := kubeproxy.Running(t.Context()); how == "" {
		t.Error("no sign that kube-proxy runs")
	}
	proxy.stop(t)
	if how := kubeproxy.Running(t.Context()); how != "" {
		t.Errorf("kube-proxy seems to run: %s", how)
	}
	load.more(t, e.some)
	e.others.serve(t, e.theirs)
	if e.theirs == "ipvs" {
		load = e.drain(load)
	} else if err := remove(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	load.more(t, e.some)
	mustSync(t, next)
	load.verify(t, false)
	left, err := kubeproxy.Find(t.Context())
	if err != nil || !left.Empty() {
		t.Errorf("left: %q, error %v", left.Lines(), err)
	}
	e.others.verify(t)
	return next
}

// drain removes what mode ipvs left: open connections need it until they end,
// those that are opened meanwhile do not. It returns a load of such ones.
func (e *exchanged) drain(load *load) *load {
	t := e.t
	begin := func(ctx context.Context) chan error {
		removed, waits := make(chan error, 1), make(chan struct{})
		tell := sync.OnceFunc(func() { close(waits) })
		go func() { removed <- remove(ctx, func(int) { tell() }) }()
		select {
		case <-waits:
		case err := <-removed:
			t.Fatalf("removed while connections are open, error %v", err)
		}
		return removed
	}
	// What is stopped halfway is taken up by the next one.
	ctx, cancel := context.WithCancel(t.Context())
	stopped := begin(ctx)
	cancel()
	if err := <-stopped; !errors.Is(err, context.Canceled) {
		t.Errorf("a removal that is stopped: %v", err)
	}
	removed := begin(t.Context())
	if addrs := deviceAddresses(t); len(addrs) > 0 {
		t.Errorf("the node would send from %v", addrs)
	}
	second := e.net.start(t)
	second.more(t, e.some)
	select {
	case err := <-removed:
		t.Errorf("removed while connections are open, error %v", err)
	default:
	}
	load.verify(t, false)
	if err := <-removed; err != nil {
		t.Fatal(err)
	}
	return second
}

// handBack goes back to kube-proxy. Its ports are the agent's as long as that
// runs, which does not matter.
func (e *exchanged) handBack(from *Chooser) {
	t := e.t
	for _, port := range []string{"10249", "10256"} {
		l, err := net.Listen("tcp", ":"+port)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	load := e.net.start(t)
	proxy := startKubeProxy(t, e.api, e.theirs)
	load.more(t, e.some)
	if err := errors.Join(from.Cleanup(t.Context()), from.Close()); err != nil {
		t.Error(err)
	}
	load.more(t, e.some)
	load.verify(t, false)
	if rules := nstest.Run(t, "nft", "list", "ruleset"); strings.Contains(strings.ToLower(rules), "causeway") {
		t.Errorf("left of ours:\n%s", rules)
	}
	proxy.stop(t)
	e.others.servers = nil // kube-proxy takes all for its own
	if err := remove(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	e.others.verify(t)
}

func remove(ctx context.Context, waiting func(int)) error {
	found, err := kubeproxy.Find(ctx)
	if err != nil {
		return err
	}
	if found.Empty() {
		return errors.New("found nothing of kube-proxy's")
	}
	return found.Remove(ctx, kubeproxy.Config{Drain: 10 * time.Minute, Waiting: waiting})
}

// others are objects that are neither kube-proxy's nor ours.
type others struct {
	before  string
	servers []ipvs.Key
}

// strangerRules are a network plugin's, and the kubelet's.
const strangerRules = `*nat
:KUBE-STRANGER - [0:0]
-A PREROUTING -d 198.51.100.77/32 -m comment --comment "a stranger's" -j KUBE-STRANGER
-A KUBE-STRANGER -j RETURN
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
COMMIT
`

func strangers(t *testing.T) *others {
	t.Helper()
	cmd := exec.Command("iptables-nft-restore", "--noflush")
	cmd.Stdin = strings.NewReader(strangerRules)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	nstest.Run(t, "nft", "add table ip stranger; add chain ip stranger c { type filter hook prerouting priority 0; }; add rule ip stranger c ip daddr 198.51.100.78 drop")
	nstest.Run(t, "ipset", "create", "KUBE-STRANGER", "hash:ip")
	t.Cleanup(func() {
		nstest.Run(t, "nft", "flush ruleset")
		nstest.Run(t, "ipset", "destroy", "KUBE-STRANGER")
	})
	return &others{before: strange(t)}
}

// strange are the strangers' objects as they are now, and whatever else is
// neither ours nor kube-proxy's.
func strange(t *testing.T) string {
	t.Helper()
	var out bytes.Buffer
	for _, name := range []string{"iptables-nft-save", "ip6tables-nft-save"} {
		for line := range strings.Lines(nstest.Run(t, name)) {
			if strings.Contains(line, "CAUSEWAY-") {
				continue // mode iptables'
			}
			// What every user of iptables makes is there afterwards too; IPv6's
			// copy of the kubelet's chain is kube-proxy's doing.
			if strings.HasPrefix(line, "-A") && !(name == "ip6tables-nft-save" && strings.Contains(line, "KUBE-FIREWALL")) ||
				strings.HasPrefix(line, ":KUBE") && name == "iptables-nft-save" {
				fmt.Fprintf(&out, "%s: %s", name, strings.Replace(line, "[0:0]", "", 1))
			}
		}
	}
	out.WriteString(nstest.Run(t, "nft", "list", "table", "ip", "stranger"))
	out.WriteString(nstest.Run(t, "ipset", "list", "-n"))
	return out.String()
}

// serve adds a stranger's virtual server, which kube-proxy would remove.
func (o *others) serve(t *testing.T, mode string) {
	t.Helper()
	if mode != "ipvs" {
		return
	}
	conn, err := ipvs.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	key := ipvs.Key{Addr: netip.MustParseAddr("198.51.100.79"), Port: 80, Protocol: 6}
	for _, err := range conn.Do([]ipvs.Change{{Op: ipvs.AddServer, Server: key, Settings: ipvs.Settings{Scheduler: "rr"}}}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	o.servers = append(o.servers, key)
}

func (o *others) verify(t *testing.T) {
	t.Helper()
	if diff := cmp.Diff(o.before, strange(t)); diff != "" {
		t.Errorf("others' objects (-want +got):\n%s", diff)
	}
	if len(o.servers) == 0 {
		return
	}
	conn, err := ipvs.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	all, err := conn.Read()
	if err != nil {
		t.Fatal(err)
	}
	var have []ipvs.Key
	for _, s := range all {
		have = append(have, s.Key)
	}
	if !slices.Equal(have, o.servers) {
		t.Errorf("virtual servers %v, want %v", have, o.servers)
	}
}

// kubeProxy is a process of the real one.
type kubeProxy struct {
	cmd   *exec.Cmd
	log   *bytes.Buffer
	ended chan struct{}
}

// kubeProxyProgram is the real kube-proxy.
func kubeProxyProgram(t *testing.T) string {
	t.Helper()
	if nstest.InVM() {
		return programInVM(t, "kube-proxy")
	}
	dir, err := controlplane.Assets(t.Context(), "kube-proxy")
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "kube-proxy")
}

// programInVM finds a program that was taken to the virtual machine, where it has
// the path that it has outside.
func programInVM(t *testing.T, name string) string {
	t.Helper()
	var at string
	err := filepath.WalkDir("/", func(path string, d fs.DirEntry, err error) error {
		switch {
		case path == "/proc" || path == "/sys" || path == "/dev":
			return fs.SkipDir
		case err != nil:
			return err
		case d.Name() == name && d.Type().IsRegular():
			at = path
			return fs.SkipAll
		}
		return nil
	})
	if err != nil || at == "" {
		t.Fatalf("%s is not in the virtual machine: %v", name, err)
	}
	return at
}

// startKubeProxy starts it in a mode, and returns when the Service is
// programmed, in mode ipvs to the last step.
func startKubeProxy(t *testing.T, api, mode string) *kubeProxy {
	t.Helper()
	p := &kubeProxy{log: &bytes.Buffer{}, ended: make(chan struct{})}
	p.cmd = exec.Command(kubeProxyProgram(t), "--master="+api, "--kube-api-content-type=application/json", "--proxy-mode="+mode,
		"--hostname-override=node-1", "--cluster-cidr=10.244.0.0/16",
		// Network namespaces share what these would set.
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s")
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // with whose end it would be killed
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait()
		}
		close(p.ended)
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); <-p.ended })
	for deadline := time.Now().Add(3 * time.Minute); !programmed(t, mode); time.Sleep(50 * time.Millisecond) {
		select {
		case <-p.ended:
			t.Fatalf("kube-proxy has ended by itself:\n%s", p.log)
		default:
		}
		if time.Now().After(deadline) {
			_ = p.cmd.Process.Kill()
			<-p.ended
			t.Fatalf("kube-proxy has not programmed the Service:\n%s", p.log)
		}
	}
	return p
}

func programmed(t *testing.T, mode string) bool {
	t.Helper()
	switch mode {
	case "iptables":
		for line := range strings.Lines(nstest.Run(t, "iptables-nft-save", "-t", "nat")) {
			// Mode iptables has such rules too.
			if strings.HasPrefix(line, "-A KUBE-") && strings.Contains(line, "--to-destination "+endpoint2) {
				return true
			}
		}
		return false
	case "nftables":
		out, err := exec.Command("nft", "list", "table", "ip", "kube-proxy").Output()
		return err == nil && strings.Contains(string(out), "10.244.1.4 . 8080 }") && strings.Contains(string(out), "10.96.0.10 . tcp . 80 : goto")
	}
	conn, err := ipvs.Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	at := netip.MustParseAddrPort(frontend)
	reals, err := conn.ReadReals(ipvs.Key{Addr: at.Addr(), Port: at.Port(), Protocol: 6})
	if err != nil || len(reals) != 2 || !slices.Contains(deviceAddresses(t), at.Addr()) {
		return false
	}
	// The virtual servers of NodePorts, then the sets, then the rules follow; only
	// with its sets is a NodePort known for kube-proxy's.
	nodePorts, err := exec.Command("ipset", "list", "KUBE-NODE-PORT-TCP").Output()
	if err != nil || !strings.Contains(string(nodePorts), "30080") {
		return false
	}
	return strings.Contains(nstest.Run(t, "iptables-nft-save", "-t", "nat"), "-j KUBE-NODE-PORT")
}

// deviceAddresses are those of kube-proxy's interface.
func deviceAddresses(t *testing.T) []netip.Addr {
	t.Helper()
	link, err := netlink.LinkByName(kubeproxy.Device)
	if err != nil {
		return nil
	}
	list, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	var out []netip.Addr
	for _, a := range list {
		addr, _ := netip.AddrFromSlice(a.IP.To4())
		out = append(out, addr)
	}
	return out
}

// stop ends it as a kubelet does; its rules stay.
func (p *kubeProxy) stop(t *testing.T) {
	t.Helper()
	select {
	case <-p.ended:
		t.Fatalf("kube-proxy has ended by itself:\n%s", p.log)
	default:
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-p.ended
}
