// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"github.com/causeway-lb/causeway/internal/lab/kubelet"
	"github.com/causeway-lb/causeway/internal/lab/network"
	"github.com/causeway-lb/causeway/internal/lab/reexec"
	"github.com/causeway-lb/causeway/internal/lab/sandbox"
)

func init() { reexec.Register("node", nodeMain) }

// Node is a machine that runs Pods. Safe for concurrent use.
type Node struct {
	lab     *Lab
	machine machine

	mu        sync.Mutex
	namespace *network.Namespace
	process   *sandbox.Process
	ended     chan struct{} // closed when process has ended
}

// Name is the node's name in Kubernetes and in the lab.
func (n *Node) Name() string { return n.machine.name }

// Addresses are the node's on the LAN, IPv4 first.
func (n *Node) Addresses() []netip.Addr { return n.machine.addresses() }

// Namespace is the node's network namespace; a new one after every PowerOn.
func (n *Node) Namespace() *network.Namespace {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.namespace
}

// Pod returns the network namespace of a Pod that runs on the node. It is the
// kubelet's to delete.
func (n *Node) Pod(pod *corev1.Pod) (*network.Namespace, error) {
	n.mu.Lock()
	process := n.process
	n.mu.Unlock()
	if process == nil {
		return nil, fmt.Errorf("enter Pod %s: %s is off", pod.Name, n.Name())
	}
	// Bound in the node's own mount namespace.
	path := filepath.Join("/proc", strconv.Itoa(process.PID), "root", network.Dir, kubelet.PodNamespace(pod.UID))
	return network.OpenAt(pod.Name, path)
}

// install makes the node's network, ready for a kubelet.
func (n *Node) install() error {
	namespace, err := n.lab.attach(n.machine)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.namespace = namespace
	n.mu.Unlock()
	for _, setting := range nodeSysctls {
		if err := namespace.Sysctl(setting.key, setting.value); err != nil {
			return err
		}
	}
	return n.route()
}

// nodeSysctls are what an administrator sets on every node: it routes, and
// packets may come back another way than they went.
var nodeSysctls = []struct{ key, value string }{
	{"net/ipv4/ip_forward", "1"},
	{"net/ipv6/conf/all/forwarding", "1"},
	{"net/ipv4/conf/all/rp_filter", "0"},
	{"net/ipv4/conf/default/rp_filter", "0"},
	{"net/ipv4/conf/" + Interface + "/rp_filter", "0"},
	{"net/ipv4/conf/all/send_redirects", "0"},
	{"net/ipv4/conf/default/send_redirects", "0"},
	{"net/ipv4/conf/" + Interface + "/send_redirects", "0"},
}

// route leads to the other nodes' Pods by their nodes, and to all else by the
// LAN's router, which goes nowhere.
func (n *Node) route() error {
	namespace := n.Namespace()
	for _, router := range (machine{LAN, routerNumber}).addresses() {
		everywhere := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		if router.Is4() {
			everywhere = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		if err := namespace.AddRoute(everywhere, router, Interface); err != nil {
			return err
		}
	}
	for _, other := range n.lab.nodes {
		if other == n {
			continue
		}
		for i, cidr := range other.machine.podCIDRs() {
			if err := namespace.AddRoute(cidr, other.machine.addresses()[i], Interface); err != nil {
				return err
			}
		}
	}
	return nil
}

// boot starts the node's kubelet as process 1 of its own namespaces.
func (n *Node) boot() error {
	config, err := n.kubeletConfig()
	if err != nil {
		return err
	}
	data, err := json.Marshal(config)
	if err != nil {
		return fmt.Errorf("encode kubelet config: %w", err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	go func() {
		_, _ = write.Write(data) // a node that didn't start has closed the other end
		write.Close()
	}()
	log, err := n.lab.logFile(n.Name())
	if err != nil {
		return err
	}
	defer log.Close()
	process, err := sandbox.Start(sandbox.Spec{
		Argv:     reexec.Argv("node", n.Name()),
		Path:     reexec.Self,
		Env:      []string{"PATH=" + os.Getenv("PATH")},
		Hostname: n.Name(),
		Network:  n.Namespace().Path(),
	}, sandbox.Streams{Out: log, Err: log, Files: []*os.File{read}})
	if err != nil {
		return fmt.Errorf("boot %s: %w", n.Name(), err)
	}
	ended := make(chan struct{})
	go func() {
		process.Wait()
		close(ended)
	}()
	n.mu.Lock()
	n.process, n.ended = process, ended
	n.mu.Unlock()
	return n.writePID(process.PID)
}

func (n *Node) writePID(pid int) error {
	path := filepath.Join(n.lab.Setup.State, runtimeDir, n.Name()+".pid")
	if err := os.WriteFile(path, []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return fmt.Errorf("write process id: %w", err)
	}
	return nil
}

func (n *Node) kubeletConfig() (kubelet.Config, error) {
	l := n.lab
	client, err := l.authority.Client("system:node:"+n.Name(), "system:nodes")
	if err != nil {
		return kubelet.Config{}, err
	}
	serving, err := l.authority.Server([]string{n.Name()}, n.Addresses())
	if err != nil {
		return kubelet.Config{}, err
	}
	config := kubelet.Config{
		Node: n.Name(), Addresses: n.Addresses(), PodCIDRs: n.machine.podCIDRs(),
		Server: "https://" + APIServer.String(), Authority: l.authority.Cert, Client: client, Serving: serving,
		ServiceHost: ServiceCIDR4.Addr().Next().String(), ServicePort: 443, DNS: DNS,
		Images: l.Setup.Images, Version: l.plane.version, RuntimeDefault: l.Setup.RuntimeDefault,
		Logs:    filepath.Join(l.Setup.State, logsDir, n.Name()),
		Runtime: filepath.Join(l.Setup.State, runtimeDir, n.Name()),
	}
	if n.Name() == ControlPlane {
		config.Taints = []corev1.Taint{{Key: controlPlaneRole, Effect: corev1.TaintEffectNoSchedule}}
	}
	return config, nil
}

const controlPlaneRole = "node-role.kubernetes.io/control-plane"

// nodeMain is process 1 of a node.
func nodeMain() int {
	file := os.NewFile(3, "config")
	data, err := io.ReadAll(file)
	file.Close()
	var config kubelet.Config
	if err == nil {
		err = json.Unmarshal(data, &config)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "read kubelet config: %v\n", err)
		return 1
	}
	log := klog.NewKlogr()
	k, err := kubelet.New(config, log)
	if err != nil {
		log.Error(err, "Kubelet not started")
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if err := k.Run(ctx); err != nil {
		log.Error(err, "Kubelet stopped")
		return 1
	}
	return 0
}

// PowerOff cuts the node off as if its plug had been pulled: the link is down
// and every process is gone at once, then all state in its kernel.
func (n *Node) PowerOff() error {
	if err := n.lab.lan.Down(n.Name()); err != nil {
		return err
	}
	n.kill()
	if err := n.lab.lan.Remove(n.Name()); err != nil {
		return err
	}
	n.mu.Lock()
	namespace := n.namespace
	n.mu.Unlock()
	return namespace.Delete()
}

// PowerOn starts a node again that PowerOff stopped, with its old name and
// addresses and nothing else.
func (n *Node) PowerOn() error {
	if err := n.install(); err != nil {
		return err
	}
	return n.boot()
}

// KillProcesses kills the node's kubelet and with it every container; links
// and kernel state stay. Boot again with Restart.
func (n *Node) KillProcesses() { n.kill() }

// Restart starts the kubelet of a node whose processes were killed. What they
// have left in the kernel is still there.
func (n *Node) Restart() error { return n.boot() }

// CutLink takes the node's link down; the node sees its carrier go.
func (n *Node) CutLink() error { return n.lab.lan.Down(n.Name()) }

// MendLink takes it up again.
func (n *Node) MendLink() error { return n.lab.lan.Up(n.Name()) }

// Isolate keeps the LAN's switch from forwarding the node's packets; the node
// sees no change.
func (n *Node) Isolate() error { return n.lab.lan.Unplug(n.Name()) }

// Rejoin ends Isolate.
func (n *Node) Rejoin() error { return n.lab.lan.Plug(n.Name(), bridge) }

// kill ends all processes and waits until they are gone.
func (n *Node) kill() {
	n.mu.Lock()
	process, ended := n.process, n.ended
	n.process = nil
	n.mu.Unlock()
	if process == nil {
		return
	}
	process.Kill()
	<-ended
}

// MAC is the node's hardware address on the LAN.
func (n *Node) MAC() string { return n.machine.mac().String() }
