// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/causeway-lb/causeway/internal/lab/network"
	"github.com/causeway-lb/causeway/internal/lab/pki"
)

// bridge is the LAN's, and the LAN's own interface.
const bridge = "br0"

// Interface is the name of every machine's interface on the LAN.
const Interface = "eth0"

// Lab is a running cluster. It exists only in a process that Enter started.
// Safe for concurrent use.
type Lab struct {
	// Setup is what Enter was given, completed.
	Setup Setup
	// REST and Kubernetes are clients with administrator's rights, which
	// connect from the control plane's machine.
	REST       *rest.Config
	Kubernetes *kubernetes.Clientset

	lan       *network.Namespace
	client    *network.Namespace
	nodes     []*Node // the control plane's is the first
	authority *pki.Authority
	plane     *plane

	progress func(string)
	failed   chan error
	closers  []func()
	once     sync.Once
}

// Start makes the LAN, the machines and the control plane, and returns when
// the API server answers and every node is on its way. Progress, which may be
// nil, gets a sentence when something has been reached.
func Start(ctx context.Context, setup Setup, progress func(string)) (*Lab, error) {
	if setup.State == "" {
		return nil, errors.New("start lab: not inside the lab's namespaces: use Enter")
	}
	if progress == nil {
		progress = func(string) {}
	}
	l := &Lab{Setup: setup, progress: progress, failed: make(chan error, 1)}
	if err := l.start(ctx); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func (l *Lab) start(ctx context.Context) error {
	var err error
	if l.authority, err = pki.NewAuthority("causeway-lab"); err != nil {
		return err
	}
	if err := l.buildLAN(); err != nil {
		return err
	}
	if err := l.startPlane(ctx); err != nil {
		return err
	}
	l.progress(fmt.Sprintf("API server answers at https://%s", APIServer))
	for _, node := range l.nodes {
		if err := node.boot(); err != nil {
			return err
		}
	}
	if err := l.serveControl(); err != nil {
		return err
	}
	return l.markControlPlane(ctx)
}

// buildLAN makes the switch and every machine on it.
func (l *Lab) buildLAN() error {
	var err error
	if l.lan, err = network.New(LAN); err != nil {
		return err
	}
	if err := l.lan.AddBridge(bridge); err != nil {
		return err
	}
	if err := l.address(l.lan, bridge, machine{LAN, routerNumber}); err != nil {
		return err
	}
	client := machine{Client, clientNumber}
	if l.client, err = l.attach(client); err != nil {
		return err
	}
	l.nodes = append(l.nodes, &Node{lab: l, machine: machine{ControlPlane, controlPlaneNumber}})
	for i := 1; i <= or(l.Setup.Nodes, 3); i++ {
		l.nodes = append(l.nodes, &Node{lab: l, machine: machine{NodeName(i), controlPlaneNumber + uint8(i)}})
	}
	for _, node := range l.nodes {
		if err := node.install(); err != nil {
			return err
		}
	}
	return nil
}

// attach makes a machine's namespace and plugs it into the LAN.
func (l *Lab) attach(m machine) (*network.Namespace, error) {
	namespace, err := network.New(m.name)
	if err != nil {
		return nil, err
	}
	inside := network.End{Namespace: namespace, Name: Interface, MAC: m.mac()}
	if err := network.Connect(inside, network.End{Namespace: l.lan, Name: m.name}); err != nil {
		return nil, err
	}
	if err := l.lan.Plug(m.name, bridge); err != nil {
		return nil, err
	}
	if err := namespace.Up(Interface); err != nil {
		return nil, err
	}
	return namespace, l.address(namespace, Interface, m)
}

func (l *Lab) address(namespace *network.Namespace, name string, m machine) error {
	for i, address := range m.addresses() {
		prefix, err := address.Prefix([]int{LAN4.Bits(), LAN6.Bits()}[i])
		if err != nil {
			return err
		}
		if err := namespace.AddAddress(name, network.Host(address, prefix)); err != nil {
			return err
		}
	}
	return nil
}

// Machine returns the namespace of a machine: Client, LAN, ControlPlane or a
// node. It is nil for a name that isn't there.
func (l *Lab) Machine(name string) *network.Namespace {
	switch name {
	case Client:
		return l.client
	case LAN:
		return l.lan
	}
	if node := l.Node(name); node != nil {
		return node.Namespace()
	}
	return nil
}

// Node returns a node by name, nil for one that isn't there.
func (l *Lab) Node(name string) *Node {
	for _, node := range l.nodes {
		if node.machine.name == name {
			return node
		}
	}
	return nil
}

// Nodes returns the worker nodes.
func (l *Lab) Nodes() []*Node { return l.nodes[1:] }

// Failed gives the first error that ended a part of the lab that must not end.
func (l *Lab) Failed() <-chan error { return l.failed }

func (l *Lab) fail(err error) {
	select {
	case l.failed <- err:
	default:
	}
}

// Close ends every process of the lab.
func (l *Lab) Close() {
	l.once.Do(func() {
		for _, node := range l.nodes {
			node.kill()
		}
		if l.plane != nil {
			l.plane.stop()
		}
		for _, f := range l.closers {
			f()
		}
	})
}

// Kubeconfig is the file with which the user outside can look around.
func (l *Lab) Kubeconfig() string { return filepath.Join(l.Setup.State, kubeconfigFile) }

// LogFile returns where a process's or, with a machine in between, a Pod's
// logs go.
func (l *Lab) logFile(name string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(l.Setup.State, logsDir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return file, nil
}

// serveControl listens on the sockets through which the outside reaches the
// API server and the lab itself.
func (l *Lab) serveControl() error {
	api, err := net.Listen("unix", filepath.Join(l.Setup.State, apiServerSock))
	if err != nil {
		return fmt.Errorf("listen for kubectl: %w", err)
	}
	go relay(api, func() (net.Conn, error) {
		return l.Machine(ControlPlane).Dial(context.Background(), "tcp", APIServer.String())
	})
	control, err := net.Listen("unix", filepath.Join(l.Setup.State, controlSock))
	if err != nil {
		api.Close()
		return fmt.Errorf("listen for commands: %w", err)
	}
	server := &http.Server{Handler: l.control()} //nolint:gosec // the user's own socket
	go func() { _ = server.Serve(control) }()
	l.closers = append(l.closers, func() { api.Close(); server.Close() })
	return nil
}
